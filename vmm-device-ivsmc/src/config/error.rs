// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What can be wrong with options: an error for each rule, which names the option and what would do.

use std::fmt;
use std::path::PathBuf;

use thiserror::Error;

use crate::Config;
use crate::config::{MAX_PATH, MAX_PEERS, MAX_VECTORS, MIN_WINDOW};

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
    /// A value that should be users or groups by their ids.
    #[error(
        "ivsmc: allow={0} is neither a user id nor a group; use ids in digits (what id -u NAME or getent group NAME \
         prints), as in allow=1000, allow=[1000,2000-2999] or allow=group:990"
    )]
    BadUser(String),
    /// The same user or group twice.
    #[error("ivsmc: allow={0} is listed twice, or a part of it is; list each user and group once")]
    UserTwice(String),
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
