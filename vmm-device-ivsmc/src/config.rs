// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device's options: parsed from text, and checked apart from that, with one error for each rule.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::{self, Path, PathBuf};
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use thiserror::Error;

use crate::Gid;

/// The smallest window, in bytes: what the window's format needs.
const MIN_WINDOW: u64 = 2 << 20;
/// The largest BAR2, in bytes: what guests can be expected to have room for.
const MAX_BAR: u64 = 1 << 40;
/// The most bytes that a socket's path can have: `sun_path` less its terminating zero.
const MAX_PATH: usize = 107;
/// The most links of a device.
const MAX_PEERS: u16 = 64;
/// The most MSI-X vectors of a device.
const MAX_VECTORS: u16 = 16;
/// What stands for no user at all where a user's id is expected.
const NO_USER: u32 = u32::MAX;
/// The CHIDs that Linux reserves for emulated ISM devices, except loopback's.
const FABRIC_IDS: RangeInclusive<u16> = 0xff00..=0xfffe;
/// The most bytes of all windows together that go into a snapshot: as many as the default options can have.
const MAX_SNAPSHOT: u64 = 512 << 20;

/// The options of one device. Serialised they have the names that they have on the command line, and a VMM can
/// flatten them into a struct of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// The Unix socket on which the device listens for peers.
    pub path: PathBuf,
    /// The sockets of the devices that it joins, and folders in which every socket is one. (A single one may be
    /// deserialised without a list around it.)
    #[serde(rename = "peer", default, deserialize_with = "one_or_many")]
    pub peers: Vec<PathBuf>,
    /// Size of the window that it shares with each peer, in bytes: a power of two of at least 2 MiB.
    #[serde(rename = "size", default = "default_window_size")]
    pub window_size: u64,
    /// How many links it can have: 1 to 64.
    #[serde(default = "default_max_peers")]
    pub max_peers: u16,
    /// MSI-X vectors: 1 to 16.
    #[serde(default = "default_vectors")]
    pub vectors: u16,
    /// The device's GID; a random one when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<Gid>,
    /// The fabric that it belongs to, which is the CHID that SMC sees: 0xff00 to 0xfffe.
    #[serde(default = "default_fabric_id")]
    pub fabric_id: u16,
    /// Whether the windows that it makes are of huge pages, and those that peers make may be.
    #[serde(default)]
    pub hugepages: bool,
    /// The users, by their ids, whose devices it has links with, beside its own user's and root's. (A single one may
    /// be deserialised without a list around it.) If there are any, its socket's file lets all users connect, and the
    /// device looks who they are.
    #[serde(default, deserialize_with = "users")]
    pub allow: Vec<u32>,
}

fn default_window_size() -> u64 {
    64 << 20
}

fn default_max_peers() -> u16 {
    8
}

fn default_vectors() -> u16 {
    4
}

fn default_fabric_id() -> u16 {
    0xff00
}

fn one_or_many<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Given<T> {
        One(T),
        Many(Vec<T>),
    }
    Ok(match Given::deserialize(deserializer)? {
        Given::One(one) => vec![one],
        Given::Many(many) => many,
    })
}

/// Says of what is no user's id the same as the command line does.
fn users<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u32>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum User {
        Id(i64),
        Text(String),
    }
    let users: Vec<User> = one_or_many(deserializer)?;
    let ids = users.into_iter().map(|given| match given {
        User::Id(id) => user(&id.to_string()),
        User::Text(text) => user(&text),
    });
    ids.collect::<Result<_, _>>().map_err(D::Error::custom)
}

/// What is wrong with a device's options.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// Not of the form `option=value`.
    #[error("ivsmc: '{0}' is not of the form option=value; options are {syntax}", syntax = Config::SYNTAX)]
    NotAnOption(String),
    /// An option that does not exist.
    #[error("ivsmc: there is no option '{0}'; options are {syntax}", syntax = Config::SYNTAX)]
    UnknownOption(String),
    /// An option that is given twice.
    #[error("ivsmc: {0} is given twice; give it once")]
    Twice(String),
    /// A bracket or quote without its other half.
    #[error("ivsmc: '{0}' has a bracket or quote that is not closed; a list is written [a,b]")]
    Unbalanced(String),
    /// A value that should be a number.
    #[error("ivsmc: {option}={value} is not a number; use decimal or 0x and hexadecimal digits")]
    BadNumber {
        /// The option's name.
        option: &'static str,
        /// What was given.
        value: String,
    },
    /// A value that should be a size.
    #[error("ivsmc: size={0} is not a size; use bytes, or a number with K, M, G or T, as in 64M")]
    BadSize(String),
    /// A value that should be on or off.
    #[error("ivsmc: {option}={value} is neither on nor off; use one of these")]
    BadSwitch {
        /// The option's name.
        option: &'static str,
        /// What was given.
        value: String,
    },
    /// A value that should be a user's id.
    #[error(
        "ivsmc: allow={0} is not a user id; use ids in digits (what id -u NAME prints), as in allow=1000 or \
         allow=[1000,1001]"
    )]
    BadUser(String),
    /// The same user twice.
    #[error("ivsmc: allow={0} is listed twice; list each user once")]
    UserTwice(u32),
    /// A GID that is none.
    #[error("ivsmc: gid={0} is not a GID; use a UUID that is not all zeros, or leave it out")]
    BadGid(String),
    /// There is no socket to listen on.
    #[error("ivsmc: path is missing; give the socket to listen on, as in path=/run/ivsmc/a")]
    NoPath,
    /// A path that does not fit into a socket's address.
    #[error(
        "ivsmc: {option}={path} has {length} bytes; a socket's path can have {MAX_PATH}, use a shorter one"
    )]
    PathTooLong {
        /// The option's name.
        option: &'static str,
        /// What was given.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// A path that cannot be one.
    #[error("ivsmc: {option}={path:?} is no path; it must not be empty nor contain a zero byte")]
    BadPath {
        /// The option's name.
        option: &'static str,
        /// What was given.
        path: PathBuf,
    },
    /// The device would join itself.
    #[error("ivsmc: peer={0} is the device's own path; give the path of another VM's device")]
    PeerIsSelf(PathBuf),
    /// The same peer twice.
    #[error("ivsmc: peer={0} is listed twice; list each peer once")]
    PeerTwice(PathBuf),
    /// More peers than links.
    #[error("ivsmc: peer lists {peers} but max_peers={max_peers}; raise max_peers")]
    TooManyPeers {
        /// Peers given.
        peers: usize,
        /// Links of the device.
        max_peers: u16,
    },
    /// A window size that is no power of two.
    #[error("ivsmc: size={size} is not a power of two; use {down} or {up}", size = Size(*.0), down = Size(below(*.0)), up = Size(above(*.0)))]
    SizeNotPowerOfTwo(u64),
    /// A window size that is too small.
    #[error("ivsmc: size={size} is too small for a window; use at least 2M", size = Size(*.0))]
    SizeTooSmall(u64),
    /// Windows that are too large altogether.
    #[error(
        "ivsmc: size={size} for each of max_peers={max_peers} is more than 1T; lower one of the two",
        size = Size(*size)
    )]
    SizeTooLarge {
        /// Size of a window in bytes.
        size: u64,
        /// Links of the device.
        max_peers: u16,
    },
    /// Too few or too many links.
    #[error("ivsmc: max_peers={0} is out of range; use 1 to {MAX_PEERS}")]
    MaxPeers(u16),
    /// Too few or too many vectors.
    #[error("ivsmc: vectors={0} is out of range; use 1 to {MAX_VECTORS}")]
    Vectors(u16),
    /// A CHID of something else.
    #[error("ivsmc: fabric_id={0:#x} is out of range; use 0xff00 to 0xfffe")]
    FabricId(u16),
}

/// A size as one writes it in an option.
pub(crate) struct Size(pub(crate) u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
        let fits = |&&(shift, _): &&(u32, &str)| self.0 != 0 && self.0.trailing_zeros() >= shift;
        match units.iter().find(fits) {
            Some((shift, unit)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

/// The power of two below a size, at least the smallest window.
fn below(size: u64) -> u64 {
    size.checked_ilog2()
        .map_or(0, |bits| 1 << bits)
        .max(MIN_WINDOW)
}

/// The power of two above a size, at least twice the smallest window.
fn above(size: u64) -> u64 {
    size.checked_next_power_of_two()
        .unwrap_or(1 << 63)
        .max(2 * MIN_WINDOW)
}

impl Config {
    /// The options, for a VMM's help text, to which it may add its own.
    pub const SYNTAX: &'static str = "path=<socket_to_listen_on>,\
        peer=<socket_or_folder_to_join>|[<socket_or_folder>,<socket_or_folder>...],size=<window_size>,\
        max_peers=<1..64>,vectors=<1..16>,gid=<uuid>,fabric_id=<0xff00..0xfffe>,hugepages=on|off,\
        allow=<user_id>|[<user_id>,<user_id>...]";

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

    /// The default options with the given socket to listen on.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Config {
            path: path.into(),
            peers: Vec::new(),
            window_size: default_window_size(),
            max_peers: default_max_peers(),
            vectors: default_vectors(),
            gid: None,
            fabric_id: default_fabric_id(),
            hugepages: false,
            allow: Vec::new(),
        }
    }

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
                    .map(user)
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

    /// Checks everything about the options that can be known without touching the system.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.path.as_os_str().is_empty() {
            return Err(ConfigError::NoPath);
        }
        check_path("path", &self.path)?;
        for (n, peer) in self.peers.iter().enumerate() {
            check_path("peer", peer)?;
            if same_path(peer, &self.path) {
                return Err(ConfigError::PeerIsSelf(peer.clone()));
            }
            if self.peers[..n].iter().any(|other| same_path(peer, other)) {
                return Err(ConfigError::PeerTwice(peer.clone()));
            }
        }
        if !(1..=MAX_PEERS).contains(&self.max_peers) {
            return Err(ConfigError::MaxPeers(self.max_peers));
        }
        if self.peers.len() > usize::from(self.max_peers) {
            return Err(ConfigError::TooManyPeers {
                peers: self.peers.len(),
                max_peers: self.max_peers,
            });
        }
        if self.window_size < MIN_WINDOW {
            return Err(ConfigError::SizeTooSmall(self.window_size));
        }
        if !self.window_size.is_power_of_two() {
            return Err(ConfigError::SizeNotPowerOfTwo(self.window_size));
        }
        if self.window_size > MAX_BAR / u64::from(self.max_peers.next_power_of_two()) {
            return Err(ConfigError::SizeTooLarge {
                size: self.window_size,
                max_peers: self.max_peers,
            });
        }
        if !(1..=MAX_VECTORS).contains(&self.vectors) {
            return Err(ConfigError::Vectors(self.vectors));
        }
        if !FABRIC_IDS.contains(&self.fabric_id) {
            return Err(ConfigError::FabricId(self.fabric_id));
        }
        for (n, user) in self.allow.iter().enumerate() {
            if *user == NO_USER {
                return Err(ConfigError::BadUser(user.to_string()));
            }
            if self.allow[..n].contains(user) {
                return Err(ConfigError::UserTwice(*user));
            }
        }
        match self.gid {
            Some(gid) if gid.is_null() => Err(ConfigError::BadGid(gid.to_string())),
            _ => Ok(()),
        }
    }

    /// How many bytes of each window can go into a snapshot: 512 MiB divided by `max_peers`, whatever the other links
    /// have. With `size` no larger than that, as it is by default, all of each window fits. A larger window fits as
    /// long as no more of it is in use, which the peer has a say in: a snapshot is an error when it is.
    pub fn snapshot_budget(&self) -> u64 {
        MAX_SNAPSHOT / u64::from(self.max_peers.max(1))
    }

    /// Whether devices of this user are admitted beside those of the process's own user.
    pub(crate) fn allows(&self, user: u32) -> bool {
        user == 0 || self.allow.contains(&user)
    }

    /// Whether users of whom the socket's file knows nothing have to be able to connect.
    pub(crate) fn is_for_all(&self) -> bool {
        !self.allow.is_empty()
    }

    /// log2 of the window's size.
    pub(crate) fn window_shift(&self) -> u32 {
        self.window_size.ilog2()
    }
}

fn check_path(option: &'static str, path: &Path) -> Result<(), ConfigError> {
    let bytes = path.as_os_str().as_encoded_bytes();
    if bytes.is_empty() || bytes.contains(&0) {
        return Err(ConfigError::BadPath {
            option,
            path: path.into(),
        });
    }
    if bytes.len() > MAX_PATH {
        return Err(ConfigError::PathTooLong {
            option,
            path: path.into(),
            length: bytes.len(),
        });
    }
    Ok(())
}

/// Whether two paths are the same file as far as their text says.
fn same_path(one: &Path, other: &Path) -> bool {
    match (path::absolute(one), path::absolute(other)) {
        (Ok(one), Ok(other)) => one == other,
        _ => one == other,
    }
}

/// The default options, without a socket to listen on, which has to be set.
impl Default for Config {
    fn default() -> Self {
        Config::new("")
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

fn user(value: &str) -> Result<u32, ConfigError> {
    value
        .parse()
        .map_err(|_| ConfigError::BadUser(value.into()))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> Result<Config, ConfigError> {
        let config: Config = text.parse()?;
        config.validate()?;
        Ok(config)
    }

    fn message(text: &str) -> String {
        checked(text).map_or_else(|error| error.to_string(), |_| String::new())
    }

    #[test]
    fn defaults() {
        let config = checked("path=/run/a").unwrap();
        assert_eq!(config, Config::new("/run/a"));
        assert_eq!(config.window_size, 64 << 20);
        assert_eq!(
            (config.max_peers, config.vectors, config.fabric_id),
            (8, 4, 0xff00)
        );
    }

    #[test]
    fn everything_given() {
        let gid = "01234567-89ab-4def-8123-456789abcdef";
        let config = checked(&format!(
            "path=\"/run/a,b\",peer=[/run/c,\"/run/d]\"],size=2G,max_peers=2,vectors=0x10,\
             gid={gid},fabric_id=0xfffe,hugepages=on,allow=[0,1000]"
        ))
        .unwrap();
        assert_eq!(config.path, PathBuf::from("/run/a,b"));
        assert_eq!(
            config.peers,
            [PathBuf::from("/run/c"), PathBuf::from("/run/d]")]
        );
        assert_eq!(config.window_size, 2 << 30);
        assert_eq!(
            (config.max_peers, config.vectors, config.fabric_id),
            (2, 16, 0xfffe)
        );
        assert_eq!(config.gid.unwrap().to_string(), gid);
        assert!(config.hugepages);
        assert_eq!(config.allow, [0, 1000]);
        assert_eq!(checked("path=/a,allow=7").unwrap().allow, [7]);
        assert!(checked("path=/a,allow=[]").unwrap().allow.is_empty());
    }

    #[test]
    fn a_vmm_s_own_options_are_left_to_it() {
        let mut id = String::new();
        let config = Config::parse_with("id=\"a,b\",path=/a,peer=[/b,id=c]", |option, value| {
            let is_own = option == "id";
            if is_own {
                id = value.into();
            }
            is_own
        });
        let config = config.unwrap();
        assert_eq!(id, "a,b");
        assert_eq!(config.peers, [PathBuf::from("/b"), PathBuf::from("id=c")]);
        let twice = Config::parse_with("id=a,path=/a,id=b", |option, _| option == "id");
        assert_eq!(twice, Err(ConfigError::Twice("id".into())));
    }

    #[test]
    fn each_option_can_be_set_and_serialised() {
        let values = [
            "/a",
            "[/b,/c]",
            "2M",
            "3",
            "5",
            "01234567-89ab-4def-8123-456789abcdef",
            "0xff07",
            "on",
            "[1000,1001]",
        ];
        let (mut config, mut text) = (Config::default(), String::new());
        assert_eq!(values.len(), Config::OPTIONS.len());
        for (option, value) in Config::OPTIONS.iter().zip(values) {
            config.set(option, value).unwrap();
            text += &format!("{option}={value},");
            assert!(Config::SYNTAX.contains(&format!("{option}=<")) || *option == "hugepages");
        }
        assert_eq!(text.trim_end_matches(',').parse(), Ok(config.clone()));
        let json = serde_json::to_value(&config).unwrap();
        assert_eq!(json.as_object().unwrap().len(), Config::OPTIONS.len());
        assert_eq!(json["peer"], serde_json::json!(["/b", "/c"]));
        assert_eq!(json["size"], 2 << 20);
        assert_eq!(json["allow"], serde_json::json!([1000, 1001]));
        assert_eq!(serde_json::from_value::<Config>(json).unwrap(), config);
        let unknown = ConfigError::UnknownOption("id".into());
        assert_eq!(config.set("id", "x"), Err(unknown));
    }

    #[test]
    fn a_vmm_can_flatten_the_options_into_its_own() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Own {
            id: String,
            #[serde(flatten)]
            config: Config,
        }
        let text = r#"{"id":"x","path":"/a","peer":"/b","allow":1000,"other":1}"#;
        let own: Own = serde_json::from_str(text).unwrap();
        assert_eq!(own.config.peers, [PathBuf::from("/b")]);
        assert_eq!(own.config.allow, [1000]);
        let json = serde_json::to_value(&own).unwrap();
        assert!(json.get("gid").is_none());
        assert_eq!(serde_json::from_value::<Own>(json).unwrap(), own);
        for wrong in [r#""peer":1"#, r#""allow":"root""#, r#""allow":[-1]"#] {
            let text = format!(r#"{{"id":"x","path":"/a",{wrong}}}"#);
            serde_json::from_str::<Own>(&text).unwrap_err();
        }
        for (allow, words) in [("\"root\"", "allow=root"), ("[1,-1]", "allow=-1")] {
            let text = format!(r#"{{"path":"/a","allow":{allow}}}"#);
            let error = serde_json::from_str::<Config>(&text).unwrap_err();
            let said = error.to_string();
            assert!(said.contains(words) && said.contains("id -u"), "{said}");
        }
    }

    #[test]
    fn every_error_names_option_value_and_remedy() {
        let long = "x".repeat(108);
        let peers: Vec<String> = (0..9).map(|n| format!("/p{n}")).collect();
        let peers = format!("path=/a,peer=[{}]", peers.join(","));
        for (text, words) in [
            (
                "path=/a,size=3M",
                &["size=3M", "power of two", "2M", "4M"][..],
            ),
            ("path=/a,size=1M", &["size=1M", "at least 2M"]),
            ("path=/a,size=0", &["size=0", "at least 2M"]),
            (
                "path=/a,size=1T,max_peers=2",
                &["size=1T", "max_peers=2", "lower"],
            ),
            ("path=/a,size=12X", &["size=12X", "64M"]),
            ("path=/a,size=99999999999T", &["size=99999999999T", "64M"]),
            (
                &format!("path=/{long}"),
                &["path=/xx", "109 bytes", "107", "shorter"],
            ),
            (
                &format!("path=/a,peer={long}"),
                &["peer=xx", "108 bytes", "107", "shorter"],
            ),
            (
                "path=/a/b,peer=/a/./b",
                &["peer=/a/./b", "own path", "another"],
            ),
            ("path=/a,peer=[/b,/b]", &["peer=/b", "twice", "once"]),
            (&peers, &["peer lists 9", "max_peers=8", "raise"]),
            ("path=/a,peer=", &["peer=\"\"", "empty"]),
            ("peer=/b", &["path is missing", "path=/run/ivsmc/a"]),
            ("path=,peer=/b", &["path is missing", "path=/run/ivsmc/a"]),
            ("path=/a,pear=/b", &["'pear'", "options are", "peer="]),
            ("path=/a,id=b", &["'id'", "options are"]),
            ("path=/a,peer", &["'peer'", "option=value"]),
            ("path=/a,path=/b", &["path", "twice", "once"]),
            ("path=/a,peer=[/b", &["not closed", "[a,b]"]),
            (
                "path=/a,max_peers=many",
                &["max_peers=many", "not a number"],
            ),
            ("path=/a,max_peers=0", &["max_peers=0", "1 to 64"]),
            ("path=/a,max_peers=65", &["max_peers=65", "1 to 64"]),
            (
                "path=/a,max_peers=70000",
                &["max_peers=70000", "not a number"],
            ),
            ("path=/a,vectors=17", &["vectors=17", "1 to 16"]),
            (
                "path=/a,fabric_id=0xffff",
                &["fabric_id=0xffff", "0xff00 to 0xfffe"],
            ),
            ("path=/a,allow=root", &["allow=root", "id -u", "allow=1000"]),
            ("path=/a,allow=", &["allow= is", "allow=1000"]),
            ("path=/a,allow=-1", &["allow=-1", "allow=1000"]),
            ("path=/a,allow=4294967295", &["allow=4294967295", "digits"]),
            (
                "path=/a,allow=[1,group:2]",
                &["allow=group:2", "[1000,1001]"],
            ),
            ("path=/a,allow=[1,2,1]", &["allow=1 ", "twice", "once"]),
            ("path=/a,hugepages=yes", &["hugepages=yes", "on nor off"]),
            ("path=/a,gid=12", &["gid=12", "UUID"]),
            (
                "path=/a,gid=00000000-0000-0000-0000-000000000000",
                &["gid=00000000", "not all zeros"],
            ),
        ] {
            let message = message(text);
            for word in words {
                assert!(
                    message.contains(word),
                    "{text}: '{message}' does not say '{word}'"
                );
            }
        }
    }

    #[test]
    fn a_path_of_107_bytes_is_just_right() {
        checked(&format!("path=/{}", "x".repeat(106))).unwrap();
    }
}
