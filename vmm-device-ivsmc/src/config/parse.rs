// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Options as text, as on a command line.

use std::path::PathBuf;
use std::str::FromStr;

use crate::{Config, ConfigError};

impl Config {
    /// The options, for a VMM's help text, to which it may add its own.
    pub const SYNTAX: &'static str = "path=<socket_to_listen_on>,\
        peer=<socket_or_folder_to_join>|[<socket_or_folder>,<socket_or_folder>...],size=<window_size>,\
        max_peers=<1..64>,vectors=<1..16>,gid=<uuid>,fabric_id=<0xff00..0xfffe>,hugepages=on|off,\
        allow=<user_id>|<first>-<last>|group:<group_id>|[<user_id>,group:<group_id>...]";

    /// The options' names.
    pub const OPTIONS: &'static [&'static str] = &[
        "path",
        "peer",
        "size",
        "max_peers",
        "vectors",
        "gid",
        "fabric_id",
        "hugepages",
        "allow",
    ];

    /// Sets one option from its text, as on a command line: for a VMM that takes the command line apart itself.
    ///
    /// # Errors
    /// When there is no such option, or the text cannot be its value. Rules that are about more than the text are
    /// for [`validate`](Self::validate).
    pub fn set(&mut self, option: &str, value: &str) -> Result<(), ConfigError> {
        match option {
            "path" => self.path = unquote(value).into(),
            "peer" => self.peers = list(value)?.into_iter().map(PathBuf::from).collect(),
            "size" => self.window_size = size(value)?,
            "max_peers" => self.max_peers = number("max_peers", value)?,
            "vectors" => self.vectors = number("vectors", value)?,
            "gid" => {
                let gid = value.parse();
                self.gid = Some(gid.map_err(|_| ConfigError::BadGid(value.into()))?);
            }
            "fabric_id" => self.fabric_id = number("fabric_id", value)?,
            "hugepages" => self.hugepages = switch("hugepages", value)?,
            "allow" => {
                self.allow = list(value)?
                    .into_iter()
                    .map(str::parse)
                    .collect::<Result<_, _>>()?;
            }
            _ => return Err(ConfigError::UnknownOption(option.into())),
        }
        Ok(())
    }

    /// Parses the text of a command line option among whose parts are some of the VMM's own: `own` is handed each
    /// option and its value, and says whether it has taken it. It does not [`validate`](Self::validate).
    ///
    /// # Errors
    /// When the text is not of the form that it should be, or the path is missing.
    pub fn parse_with(
        text: &str,
        mut own: impl FnMut(&str, &str) -> bool,
    ) -> Result<Self, ConfigError> {
        let mut config = Config::default();
        let mut seen: Vec<&str> = Vec::new();
        for part in split(text)? {
            let Some((option, value)) = part.split_once('=') else {
                return Err(ConfigError::NotAnOption(part.into()));
            };
            if seen.contains(&option) {
                return Err(ConfigError::Twice(option.into()));
            }
            seen.push(option);
            if !own(option, unquote(value)) {
                config.set(option, value)?;
            }
        }
        if config.path.as_os_str().is_empty() {
            return Err(ConfigError::NoPath);
        }
        Ok(config)
    }
}

/// Parses the text of a command line option. It does not [`validate`](Config::validate).
impl FromStr for Config {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        Config::parse_with(text, |_, _| false)
    }
}

/// Splits at commas that are neither in brackets nor in double quotes.
fn split(text: &str) -> Result<Vec<&str>, ConfigError> {
    let mut parts = Vec::new();
    let (mut start, mut quoted, mut listed) = (0, false, false);
    for (at, character) in text.char_indices() {
        match character {
            '"' => quoted = !quoted,
            '[' if !quoted && !listed => listed = true,
            ']' if !quoted && listed => listed = false,
            ',' if !quoted && !listed => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if quoted || listed {
        return Err(ConfigError::Unbalanced(text.into()));
    }
    parts.push(&text[start..]);
    Ok(parts)
}

fn unquote(value: &str) -> &str {
    value
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .unwrap_or(value)
}

fn list(value: &str) -> Result<Vec<&str>, ConfigError> {
    match value
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        Some("") => Ok(Vec::new()),
        Some(inner) => Ok(split(inner)?.into_iter().map(unquote).collect()),
        None => Ok(vec![unquote(value)]),
    }
}

fn number(option: &'static str, value: &str) -> Result<u16, ConfigError> {
    let parsed = match value.strip_prefix("0x") {
        Some(digits) => u16::from_str_radix(digits, 16),
        None => value.parse(),
    };
    parsed.map_err(|_| ConfigError::BadNumber {
        option,
        value: value.into(),
    })
}

fn size(value: &str) -> Result<u64, ConfigError> {
    let (digits, shift) = match value.as_bytes().last() {
        Some(b'K') => (&value[..value.len() - 1], 10),
        Some(b'M') => (&value[..value.len() - 1], 20),
        Some(b'G') => (&value[..value.len() - 1], 30),
        Some(b'T') => (&value[..value.len() - 1], 40),
        _ => (value, 0),
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| ConfigError::BadSize(value.into()))
}

fn switch(option: &'static str, value: &str) -> Result<bool, ConfigError> {
    match value {
        "on" | "true" => Ok(true),
        "off" | "false" => Ok(false),
        _ => Err(ConfigError::BadSwitch {
            option,
            value: value.into(),
        }),
    }
}
