// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bad options get an error that names the option, the value and what would do.

use super::Suite;
use crate::guest::{Guest, Mode};
use crate::lab::{self, Lab};
use crate::vmm::Vmm;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::Duration;

pub(super) fn add(suite: &mut Suite) {
    suite.add("options::bad_ones_are_named", |fixture| {
        bad_ones_are_named(&fixture.lab)
    });
    suite.add("options::path_in_use", |fixture| path_in_use(&fixture.lab));
}

/// How long a VMM may take to refuse its options.
const PROMPT: Duration = Duration::from_secs(20);

/// Options that a device cannot have.
pub(super) struct Bad {
    /// As on the command line.
    pub(super) text: String,
    /// As in the body of an API's request, where that can say it.
    pub(super) body: Option<Value>,
    /// What the error has to have: of each of these lists one.
    pub(super) words: Vec<Vec<String>>,
}

impl Bad {
    /// Says which word a text does not have.
    pub(super) fn check(&self, said: &str) -> Result<()> {
        for words in &self.words {
            ensure!(
                words.iter().any(|word| said.contains(word)),
                "--ivsmc {}: there is none of {words:?} in the error: {said}",
                self.text
            );
        }
        Ok(())
    }
}

/// What breaks each rule that there is.
pub(super) fn bad_ones(lab: &Lab) -> Result<Vec<Bad>> {
    let folder = lab.run_folder();
    let socket = |name: &str| folder.join(name).display().to_string();
    let (path, peer) = (socket("bad"), socket("peer"));
    let long = format!("/tmp/{}", "x".repeat(120));
    // Root may write almost anywhere, but not here.
    let forbidden = "/proc/ivsmc";
    let bad = |text: String, body: Option<Value>, words: &[&[&str]]| Bad {
        text,
        body,
        words: words
            .iter()
            .map(|words| words.iter().map(|word| (*word).to_owned()).collect())
            .collect(),
    };
    // An option more than path and peer, on the command line and in JSON.
    let more = |option: &str, value: Value, words: &[&[&str]]| {
        let (name, _) = option.split_once('=').unwrap_or((option, ""));
        let mut body = json!({"path": path, "peer": [peer]});
        body[name] = value;
        bad(
            format!("path={path},peer={peer},{option}"),
            Some(body),
            words,
        )
    };
    let null_gid = "00000000-0000-0000-0000-000000000000";
    let text_only = |text: String, words: &[&[&str]]| bad(text, None, words);
    Ok(vec![
        bad(
            format!("peer={peer}"),
            Some(json!({"peer": [peer]})),
            &[&["path"]],
        ),
        bad(
            format!("path={long},peer={peer}"),
            Some(json!({"path": long, "peer": [peer]})),
            &[&["path"], &[&long]],
        ),
        bad(
            format!("path={path},peer={long}"),
            Some(json!({"path": path, "peer": [long]})),
            &[&["peer"], &[&long]],
        ),
        bad(
            format!("path={path},peer={path}"),
            Some(json!({"path": path, "peer": [path]})),
            &[&["peer"], &[&path]],
        ),
        bad(
            format!("path={path},peer=[{peer},{peer}]"),
            Some(json!({"path": path, "peer": [peer, peer]})),
            &[&["peer"], &[&peer], &["twice"]],
        ),
        bad(
            format!("path={path},peer=[{peer},{peer}2],max_peers=1"),
            Some(json!({"path": path, "peer": [peer, format!("{peer}2")], "max_peers": 1})),
            &[&["peer"], &["max_peers"]],
        ),
        bad(
            format!("path={forbidden},peer={peer}"),
            Some(json!({"path": forbidden, "peer": [peer]})),
            &[&["path"], &[forbidden]],
        ),
        more(
            "size=3M",
            json!(3 << 20),
            &[&["size"], &["3M", "3145728"], &["power of two"]],
        ),
        more(
            "size=1M",
            json!(1 << 20),
            &[&["size"], &["1M", "1048576"], &["2M"]],
        ),
        more(
            "size=1024G",
            json!(1u64 << 40),
            &[&["size"], &["max_peers"]],
        ),
        more("max_peers=0", json!(0), &[&["max_peers"], &["0"]]),
        more("max_peers=65", json!(65), &[&["max_peers"], &["65"]]),
        more("vectors=0", json!(0), &[&["vectors"], &["0"]]),
        more("vectors=17", json!(17), &[&["vectors"], &["17"]]),
        more(
            "fabric_id=0x100",
            json!(0x100),
            &[&["fabric_id"], &["0x100"], &["0xff00"]],
        ),
        more(
            "fabric_id=0xffff",
            json!(0xffff),
            &[&["fabric_id"], &["0xffff"], &["0xff00"]],
        ),
        more("gid=nothing", json!("nothing"), &[&["gid"], &["nothing"]]),
        more(
            &format!("gid={null_gid}"),
            json!(null_gid),
            &[&["gid"], &[null_gid]],
        ),
        more("colour=red", json!("red"), &[&["colour"]]),
        text_only(
            format!("path={path},peer={peer},max_peers=many"),
            &[&["max_peers"], &["many"]],
        ),
        text_only(
            format!("path={path},peer={peer},size=big"),
            &[&["size"], &["big"]],
        ),
        text_only(
            format!("path={path},peer={peer},hugepages=maybe"),
            &[&["hugepages"], &["maybe"]],
        ),
        text_only(format!("path={path},peer=[{peer}"), &[&["peer"]]),
    ])
}

/// The VMM has to refuse these options.
fn refused(lab: &Lab, bad: &Bad) -> Result<()> {
    let option = &bad.text;
    let guest = Guest::new("bad", 9).mode(Mode::Off).ivsmc(option);
    let mut vmm = Vmm::start(lab, &guest)?;
    let status = vmm
        .wait(PROMPT)
        .with_context(|| format!("--ivsmc {option}: {}", vmm.tails()))?;
    let said = lab::read(&vmm.folder().join("vmm.log"))?;
    let said = String::from_utf8_lossy(&said);
    ensure!(!status.success(), "--ivsmc {option} is accepted");
    bad.check(&said)
}

fn bad_ones_are_named(lab: &Lab) -> Result<()> {
    for bad in bad_ones(lab)? {
        refused(lab, &bad)?;
    }
    Ok(())
}

fn path_in_use(lab: &Lab) -> Result<()> {
    let folder = lab.run_folder();
    let path = folder.join("used").display().to_string();
    let option = format!("path={path},peer={}", folder.join("nobody").display());
    let guest = Guest::new("user", 8)
        .mode(Mode::Off)
        .ivsmc(&option)
        .boot(lab)?;
    let bad = Bad {
        text: option,
        body: None,
        words: ["path", &path, "in use"]
            .map(|word| vec![word.to_owned()])
            .into(),
    };
    refused(lab, &bad).map_err(|error| error.context(guest.tails()))
}
