// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The policy's file: TOML, then the rules that TOML does not know.

use super::{BadPolicy, Fabric, MAX_FABRICS, MAX_PATTERNS, Policy, leaves_room};
use crate::name::Name;
use crate::pattern::Pattern;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::str::FromStr;
use toml::Spanned;
use vmm_device_ivsmc::{Config, ConfigError};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    sockets: Spanned<Vec<Spanned<String>>>,
    label_file: Option<Spanned<String>>,
    fabric: Spanned<Vec<Spanned<FabricTable>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FabricTable {
    name: Spanned<String>,
    #[serde(default)]
    vms: Vec<Spanned<String>>,
    #[serde(default)]
    sockets: Vec<Spanned<String>>,
    #[serde(default)]
    labels: BTreeMap<Spanned<String>, Spanned<String>>,
    group: Option<u32>,
    size: Option<Spanned<Size>>,
    max_peers: Option<Spanned<u16>>,
    vectors: Option<Spanned<u16>>,
    fabric_id: Option<Spanned<u16>>,
    hugepages: Option<bool>,
    allow: Option<Spanned<OneOrMany>>,
    pci_segment: Option<u16>,
}

/// Bytes, or text such as "64M".
#[derive(Deserialize)]
#[serde(untagged)]
enum Size {
    Bytes(u64),
    Text(String),
}

/// As the device takes it, which knows what may stand there.
#[derive(Deserialize, Serialize)]
#[serde(untagged)]
enum OneOrMany {
    One(User),
    Many(Vec<User>),
}

#[derive(Deserialize, Serialize)]
#[serde(untagged)]
enum User {
    Id(i64),
    Text(String),
}

/// Something that is wrong, and where in the text.
struct Wrong(Range<usize>, String);

impl Wrong {
    fn at<T>(place: &Spanned<T>, reason: impl ToString) -> Self {
        Wrong(place.span(), reason.to_string())
    }
}

pub(super) fn parse(text: &str, run_dir: &Path) -> Result<Policy, BadPolicy> {
    let read: File = toml::from_str(text).map_err(|error| {
        let span = error.span().unwrap_or_default();
        bad(text, span, error.message().to_string())
    })?;
    check(read, run_dir).map_err(|Wrong(span, reason)| bad(text, span, reason))
}

/// Puts line and column to what is wrong.
fn bad(text: &str, span: Range<usize>, reason: String) -> BadPolicy {
    let before = text.get(..span.start).unwrap_or(text);
    let line = before.rsplit('\n').next().unwrap_or_default();
    BadPolicy {
        line: before.matches('\n').count() + 1,
        column: line.chars().count() + 1,
        // One line, whatever is in it: it goes into logs.
        reason: reason.trim_end().replace('\n', "; "),
    }
}

fn check(file: File, run_dir: &Path) -> Result<Policy, Wrong> {
    let sockets = file.sockets.get_ref();
    if sockets.is_empty() || sockets.len() > MAX_PATTERNS {
        let reason = format!(
            "sockets has {} patterns; give 1 to {MAX_PATTERNS}, as in sockets = [\"/run/vms/*/api.sock\"]",
            sockets.len()
        );
        return Err(Wrong::at(&file.sockets, reason));
    }
    let mut patterns = Vec::new();
    for text in sockets {
        let pattern = Pattern::new(text.get_ref()).map_err(|error| Wrong::at(text, error))?;
        if patterns.contains(&pattern) {
            return Err(Wrong::at(
                text,
                "this pattern is listed twice; list it once",
            ));
        }
        patterns.push(pattern);
    }
    let label_file = match file.label_file {
        None => None,
        Some(name) => {
            let stars = name.get_ref().matches('*').count();
            let Ok(_) = Name::new(name.get_ref().replace('*', "x").as_bytes()) else {
                let reason = "label_file is a file's name beside the socket, as \"labels\" or \"*.labels\", \
                              where * stands for the VM's name";
                return Err(Wrong::at(&name, reason));
            };
            if stars > 1 {
                return Err(Wrong::at(&name, "label_file has one '*' at most"));
            }
            Some(name.into_inner())
        }
    };
    let tables = file.fabric.get_ref();
    if tables.is_empty() || tables.len() > MAX_FABRICS {
        let reason = format!(
            "there are {} fabrics; give 1 to {MAX_FABRICS}, each as a table [[fabric]]",
            tables.len()
        );
        return Err(Wrong::at(&file.fabric, reason));
    }
    let mut fabrics: Vec<Fabric> = Vec::new();
    for table in tables {
        let fabric = fabric(table, run_dir, label_file.is_some())?;
        if fabrics.iter().any(|other| other.name == fabric.name) {
            let reason = format!("there is a fabric {} already", fabric.name);
            return Err(Wrong::at(&table.get_ref().name, reason));
        }
        fabrics.push(fabric);
    }
    Ok(Policy {
        patterns,
        label_file,
        fabrics,
    })
}

fn fabric(table: &Spanned<FabricTable>, run_dir: &Path, has_labels: bool) -> Result<Fabric, Wrong> {
    let place = table;
    let table = table.get_ref();
    let name = Name::new(table.name.get_ref().as_bytes())
        .map_err(|error| Wrong::at(&table.name, format!("name: {error}")))?;
    let folder = run_dir.join(name.as_str());
    if let Some(excess) = leaves_room(&folder) {
        let reason = format!(
            "name: {} is too long by {excess} bytes for a socket's path, with VMs' names of 64 bytes; \
             use a shorter name or --run-dir",
            folder.display()
        );
        return Err(Wrong::at(&table.name, reason));
    }
    if table.vms.is_empty() && table.sockets.is_empty() && table.labels.is_empty() {
        let reason = format!(
            "fabric {name} has no rule; give vms, sockets or labels, or vms = [\"*\"] for every VM"
        );
        return Err(Wrong::at(place, reason));
    }
    if let (Some((key, _)), false) = (table.labels.first_key_value(), has_labels) {
        let reason =
            "labels are looked for in no file; set label_file, as in label_file = \"labels\"";
        return Err(Wrong::at(key, reason));
    }
    let sockets = globs(&table.sockets, |text| match text {
        "kata-go" => crate::pattern::KATA_GO.into(),
        "kata-rust" => crate::pattern::KATA_RUST.into(),
        text => text.into(),
    })?;
    if let Some(relative) = table
        .sockets
        .iter()
        .zip(&sockets)
        .find_map(|(text, glob)| (!glob.as_str().starts_with(['/', '*'])).then_some(text))
    {
        let reason = "sockets of a fabric are absolute paths, as in \"/run/vms/*/api.sock\"";
        return Err(Wrong::at(relative, reason));
    }
    let mut labels = BTreeMap::new();
    for (key, value) in &table.labels {
        let key_text = key.get_ref();
        // As it would be read, so that it can match at all.
        if key_text.trim() != key_text || key_text.is_empty() || key_text.contains(['=', '\n', '#'])
        {
            let reason = format!("{key_text:?} cannot be a key of a label file");
            return Err(Wrong::at(key, reason));
        }
        labels.insert(key_text.clone(), glob(value, str::to_string)?);
    }
    Ok(Fabric {
        device: device(table, &folder)?,
        vms: globs(&table.vms, str::to_string)?,
        group: table.group,
        pci_segment: table.pci_segment,
        name,
        folder,
        sockets,
        labels,
    })
}

fn globs(
    texts: &[Spanned<String>],
    expand: impl Fn(&str) -> String,
) -> Result<Vec<glob::Pattern>, Wrong> {
    texts.iter().map(|text| glob(text, &expand)).collect()
}

fn glob(text: &Spanned<String>, expand: impl Fn(&str) -> String) -> Result<glob::Pattern, Wrong> {
    if text.get_ref().is_empty() {
        return Err(Wrong::at(
            text,
            "this is empty and matches nothing; use \"*\" for everything",
        ));
    }
    // Many of them take time without end to match.
    if text.get_ref().matches('*').count() > 8 {
        return Err(Wrong::at(text, "this has more than eight '*'"));
    }
    glob::Pattern::new(&expand(text.get_ref())).map_err(|error| Wrong::at(text, error))
}

/// The options of a fabric's devices, as the device itself checks them.
fn device(table: &FabricTable, folder: &Path) -> Result<Config, Wrong> {
    let mut device = Config::new(folder.join("x"));
    device.peers = vec![folder.into()];
    if let Some(size) = &table.size {
        device.window_size = match size.get_ref() {
            Size::Bytes(bytes) => *bytes,
            Size::Text(text) => bytes(text).map_err(|error| Wrong::at(size, error))?,
        };
    }
    let number = |given: &Option<Spanned<u16>>| given.as_ref().map(|given| *given.get_ref());
    device.max_peers = number(&table.max_peers).unwrap_or(device.max_peers);
    device.vectors = number(&table.vectors).unwrap_or(device.vectors);
    device.fabric_id = number(&table.fabric_id).unwrap_or(device.fabric_id);
    device.hugepages = table.hugepages.unwrap_or_default();
    if let Some(allow) = &table.allow {
        // The device knows what may stand there.
        let given = json!({ "path": "/", "allow": allow.get_ref() });
        let read: Config =
            serde_json::from_value(given).map_err(|error| Wrong::at(allow, error))?;
        device.allow = read.allow;
    }
    device.validate().map_err(|error| {
        let span = |given: &Option<Spanned<u16>>| given.as_ref().map(Spanned::span);
        let place = match &error {
            ConfigError::SizeNotPowerOfTwo(_)
            | ConfigError::SizeTooSmall(_)
            | ConfigError::SizeTooLarge { .. } => table.size.as_ref().map(Spanned::span),
            ConfigError::MaxPeers(_) => span(&table.max_peers),
            ConfigError::Vectors(_) => span(&table.vectors),
            ConfigError::FabricId(_) => span(&table.fabric_id),
            ConfigError::BadUser(_) | ConfigError::UserTwice(_) => {
                table.allow.as_ref().map(Spanned::span)
            }
            _ => None,
        };
        let place = place.or_else(|| span(&table.max_peers));
        Wrong(place.unwrap_or(table.name.span()), error.to_string())
    })?;
    Ok(device)
}

/// The bytes of a size such as "64M".
fn bytes(text: &str) -> Result<u64, ConfigError> {
    if !text.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(ConfigError::BadSize(text.into()));
    }
    Ok(Config::from_str(&format!("path=/x,size={text}"))?.window_size)
}
