// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device's options, and their rules. How they are parsed from text is apart from that.

mod allowed;
mod error;
mod parse;

use std::ops::RangeInclusive;
use std::path::{self, Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

pub use allowed::Allowed;
pub use error::ConfigError;
pub(crate) use error::Size;

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
    /// Size of the window that it shares with each peer, in bytes: a power of two of at least 2 MiB. If it is larger than
    /// [`snapshot_budget`](Self::snapshot_budget), a peer that fills its window can keep the VM from being snapshotted.
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
    /// The users and groups whose devices it has links with, beside its own user's and root's. (A single one may
    /// be deserialised without a list around it.) If there are any, its socket's file lets all users connect, and the
    /// device looks who they are.
    #[serde(default, deserialize_with = "allowed::list")]
    pub allow: Vec<Allowed>,
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

impl Config {
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
        for (n, allowed) in self.allow.iter().enumerate() {
            if !allowed.is_valid() {
                return Err(ConfigError::BadUser(allowed.to_string()));
            }
            if self.allow[..n].iter().any(|other| other.overlaps(allowed)) {
                return Err(ConfigError::UserTwice(allowed.to_string()));
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
    pub(crate) fn allows_user(&self, user: u32) -> bool {
        let is_it =
            |allowed: &Allowed| matches!(allowed, Allowed::Users(ids) if ids.contains(&user));
        user == 0 || self.allow.iter().any(is_it)
    }

    /// Whether members of some groups are admitted: a user's groups are only asked for then.
    pub(crate) fn allows_groups(&self) -> bool {
        let is_group = |allowed: &Allowed| matches!(allowed, Allowed::Groups(_));
        self.allow.iter().any(is_group)
    }

    /// Whether members of this group are admitted.
    pub(crate) fn allows_group(&self, group: u32) -> bool {
        let is_it =
            |allowed: &Allowed| matches!(allowed, Allowed::Groups(ids) if ids.contains(&group));
        self.allow.iter().any(is_it)
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

#[cfg(test)]
mod tests;
