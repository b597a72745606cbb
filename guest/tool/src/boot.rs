// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest sets once for each boot: UEIDs, sizes of buffers, the scheduler's timer, what is enabled.
//!
//! ```toml
//! # /etc/ivsmc/guest.toml; these are the defaults
//! ueids = ["IVSMC"]           # peers need one in common; at most 4
//! buffers = "1M"              # of each connection, "16K" to "1M"
//! hrtick = false              # true: leave the scheduler's timer as it is
//!
//! # [enable]                  # without it nothing is enabled; with it, all sockets or those of these
//! # cgroups = ["nginx.service", "libpod-*"]
//!
//! # [warm]                    # for ivsmc-warm.service
//! # peers = ["10.77.0.2", "10.77.0.3"]
//! # port = 6900
//! ```

use crate::enable::{self, policy};
use crate::file::{self, Problem};
use crate::{IPPROTO_SMC, ueid, warm};
use serde::Deserialize;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use toml::Spanned;

/// Where a guest's configuration is.
pub const FILE: &str = "/etc/ivsmc/guest.toml";
/// The UEID of guests for which nothing else was said.
const UEID: &str = "IVSMC";
/// As many as Linux takes.
const MOST_UEIDS: usize = 4;
/// Sizes of buffers that SMC-D has, in bytes.
const BUFFERS: [u32; 2] = [16 << 10, 1 << 20];
/// SMC's settings that have them.
const SETTINGS: [&str; 2] = ["/proc/sys/net/smc/rmem", "/proc/sys/net/smc/wmem"];
/// The scheduler's features.
const FEATURES: &str = "/sys/kernel/debug/sched/features";

/// What has not worked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A UEID cannot be set.
    #[error("UEID {name}: {source}; is SMC there (modprobe smc)?")]
    Ueid {
        /// The UEID.
        name: String,
        /// Why.
        source: ueid::Error,
    },
    /// A setting cannot be written.
    #[error("cannot write {value} to {}: {source}", path.display())]
    Setting {
        /// The setting.
        path: PathBuf,
        /// What was to be written.
        value: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// What the file enables cannot be enabled.
    #[error("[enable]: {0}")]
    Enable(#[from] enable::Error),
    /// Not everywhere.
    #[error("[enable]: in {0} network namespaces connections could not be chosen")]
    Skipped(usize),
}

/// A guest's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Its UEIDs.
    pub ueids: Vec<String>,
    /// The size of each connection's buffers, in bytes.
    pub buffers: u32,
    /// Whether the scheduler sets a timer for each turn of a program.
    pub hrtick: bool,
    /// Whose sockets become SMC sockets.
    pub enable: Option<policy::Policy>,
    /// The peers to each of which a connection is kept.
    pub peers: Vec<IpAddr>,
    /// The port for that.
    pub port: u16,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            ueids: vec![UEID.into()],
            buffers: BUFFERS[1],
            hrtick: false,
            enable: None,
            peers: Vec::new(),
            port: warm::PORT,
        }
    }
}

/// The file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    ueids: Option<Spanned<Vec<Spanned<String>>>>,
    buffers: Option<Spanned<String>>,
    hrtick: Option<bool>,
    enable: Option<policy::Table>,
    warm: Option<Warm>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Warm {
    peers: Vec<IpAddr>,
    port: Option<Spanned<u16>>,
}

impl Settings {
    /// Those of a file. If it is not there, the defaults.
    pub fn read(path: &Path) -> Result<Self, file::Error> {
        match file::read(path, Self::of) {
            Err(file::Error::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(Self::default())
            }
            other => other,
        }
    }

    fn of(content: Content) -> Result<Self, Problem> {
        let mut settings = Settings::default();
        if let Some(ueids) = content.ueids {
            let at = ueids.span().start;
            let ueids = ueids.into_inner();
            if ueids.is_empty() || ueids.len() > MOST_UEIDS {
                let problem = format!("ueids: there are 1 to {MOST_UEIDS} of them");
                return Err((at, problem));
            }
            for name in &ueids {
                let wrong = |error: ueid::Error| (name.span().start, error.to_string());
                ueid::check(name.get_ref()).map_err(wrong)?;
            }
            settings.ueids = ueids.into_iter().map(Spanned::into_inner).collect();
        }
        if let Some(buffers) = content.buffers {
            settings.buffers = size(buffers.get_ref()).ok_or_else(|| {
                let problem = format!(
                    "buffers: `{}` is none of \"16K\", \"32K\", \"64K\", \"128K\", \"256K\", \"512K\", \"1M\"",
                    buffers.get_ref()
                );
                (buffers.span().start, problem)
            })?;
        }
        settings.hrtick = content.hrtick.unwrap_or(settings.hrtick);
        settings.enable = content.enable.map(policy::Policy::of_table).transpose()?;
        if let Some(warm) = content.warm {
            settings.peers = warm.peers;
            if let Some(port) = warm.port {
                if *port.get_ref() == 0 {
                    return Err((port.span().start, "port: there is no port 0".into()));
                }
                settings.port = port.into_inner();
            }
        }
        Ok(settings)
    }

    /// Sets all of it; what does not work keeps nothing else from being set.
    pub fn apply(&self) -> Vec<Error> {
        let mut errors = Vec::new();
        for name in &self.ueids {
            if let Err(source) = ueid::add(name) {
                let name = name.clone();
                errors.push(Error::Ueid { name, source });
            }
        }
        let mut write = |path: &str, value: String| {
            if let Err(source) = fs::write(path, &value) {
                let path = path.into();
                errors.push(Error::Setting {
                    path,
                    value,
                    source,
                });
            }
        };
        for path in SETTINGS {
            write(path, self.buffers.to_string());
        }
        // A kernel that has no such timer has no such feature.
        let features = fs::read_to_string(FEATURES).unwrap_or_default();
        if !self.hrtick && features.split_whitespace().any(|it| it == "HRTICK") {
            write(FEATURES, "NO_HRTICK".into());
        }
        if let Some(policy) = &self.enable {
            match enable::enable(policy, IPPROTO_SMC) {
                Ok(0) => {}
                Ok(skipped) => errors.push(Error::Skipped(skipped)),
                Err(error) => errors.push(error.into()),
            }
        }
        errors
    }
}

/// A size of SMC's buffers, in bytes: `64K`, `1M`.
fn size(text: &str) -> Option<u32> {
    let (number, unit) = match text.strip_suffix('K') {
        Some(number) => (number, 1 << 10),
        None => (text.strip_suffix('M')?, 1 << 20),
    };
    let size = number.parse::<u32>().ok()?.checked_mul(unit)?;
    let fits = size.is_power_of_two() && (BUFFERS[0]..=BUFFERS[1]).contains(&size);
    fits.then_some(size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Settings, (usize, String)> {
        file::parse(text, Settings::of)
    }

    #[test]
    fn without_a_file_there_are_defaults() {
        let missing = Settings::read(Path::new("/nonexistent/guest.toml")).unwrap();
        assert_eq!(missing, Settings::default());
        assert_eq!(parse("").unwrap(), Settings::default());
    }

    #[test]
    fn the_packages_file_has_the_defaults_and_shows_the_rest() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/guest.toml");
        let file = fs::read_to_string(file).unwrap();
        assert_eq!(parse(&file).unwrap(), Settings::default());
        // Every setting is in it, and is one.
        let uncommented: String = file
            .lines()
            .map(|line| line.strip_prefix('#').unwrap_or(line))
            .filter(|line| !line.starts_with(' '))
            .map(|line| format!("{line}\n"))
            .collect();
        let settings = parse(&uncommented).unwrap();
        let enabled = settings.enable.unwrap().to_string();
        assert_eq!(
            enabled,
            "libpod-*, nginx.service; except backup.service; ports 80, 443"
        );
        assert_eq!((settings.peers.len(), settings.port), (2, warm::PORT));
    }

    #[test]
    fn a_mistake_is_named_with_its_line() {
        for (text, line, said) in [
            ("\nueid = 'A'", 2, "unknown field `ueid`"),
            ("ueids = []", 1, "1 to 4"),
            ("ueids = [\n'A',\n'b',\n]", 3, "no UEID"),
            ("buffers = '2M'", 1, "`2M` is none of"),
            ("buffers = '48K'", 1, "`48K` is none of"),
            ("buffers = 65536", 1, "expected a string"),
            ("[enable]\ncgroups = []", 2, "leave it out"),
            ("[warm]\npeers = ['here']", 2, "IP address"),
            ("[warm]\npeers = []\nport = 0", 3, "no port 0"),
        ] {
            let (at, problem) = parse(text).unwrap_err();
            assert_eq!(at, line, "{text}: {problem}");
            assert!(problem.contains(said), "{text}: {problem}");
        }
    }

    #[test]
    fn sizes_are_smcs() {
        assert_eq!(size("16K"), Some(16384));
        assert_eq!(size("1M"), Some(1 << 20));
        for wrong in ["", "K", "8K", "1", "1m", "-1M", "4294967296M", "1048577K"] {
            assert_eq!(size(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_file_panics(text in ".*") {
            let _ = parse(&text);
        }
    }
}
