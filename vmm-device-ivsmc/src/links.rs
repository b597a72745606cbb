// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a device tells of its links.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::Gid;

/// What a link is at, as the guest reads it in the register State.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    /// There is no peer.
    Down,
    /// Both ends have the window.
    Up,
    /// The peer is gone, and the guest still has the window.
    Lost,
}

/// A device and its links. See [`Device::links`](crate::Device::links).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Links {
    /// The device's GID.
    pub gid: Gid,
    /// Where it listens.
    pub path: String,
    /// The guest's stores to doorbells without a link behind them, of all links. (KVM alone takes those of a link that is
    /// up, and does not count them.)
    pub doorbells_trapped: u64,
    /// The links that are not down.
    pub links: Vec<LinkInfo>,
    /// The peers that get no link, because their links were dropped.
    pub refused: Vec<RefusedPeer>,
}

/// A link that is not down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkInfo {
    /// Its number in the link table.
    pub link: usize,
    /// What it is at.
    pub state: LinkState,
    /// The peer's GID.
    pub peer: Gid,
    /// The peer's socket. It is not known of a peer that has connected to this device, and that this device does not
    /// join; and it is only what the peer says if its GID is.
    pub path: Option<String>,
    /// Which side of the window this device is, 0 or 1.
    pub side: u32,
    /// The window's size in bytes.
    pub size: u64,
    /// How many vectors the peer has.
    pub vectors: u16,
    /// How many times the link came up.
    pub generation: u32,
    /// Whether the guest's driver has the window in use.
    pub claimed: bool,
    /// For how many seconds it has been up; not of one that is lost.
    pub up_seconds: Option<u64>,
}

/// A peer that gets no link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedPeer {
    /// Its GID.
    pub peer: Gid,
    /// Its socket, if that was known when its link was dropped.
    pub path: Option<String>,
}

/// There is nothing to drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "ivsmc: there is no link to peer={0}, and it is not refused; the device's list of links has the GIDs of its peers"
)]
pub struct NoSuchPeer(pub Gid);
