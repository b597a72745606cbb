// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the device counts.

use serde::{Deserialize, Serialize};

/// Counts of what happened since the device was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Links that are up now.
    pub links: u64,
    /// Times that a link came up.
    pub links_up: u64,
    /// Times that a link ended because the peer went away.
    pub links_lost: u64,
    /// Resets of the device.
    pub resets: u64,
    /// Connections that peers made to this device.
    pub connections_accepted: u64,
    /// Connections that this device made to peers.
    pub connections_made: u64,
    /// Connections that were refused because of who or what connected (credentials, fabric, too many).
    pub handshakes_refused: u64,
    /// Connections that did not become a link in time.
    pub handshakes_timed_out: u64,
    /// Connections that a peer ended by breaking the protocol.
    pub protocol_errors: u64,
    /// Calls of the VMM (see [`Host`](crate::Host)) that failed.
    pub host_errors: u64,
}
