// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the device counts.

use serde::{Deserialize, Serialize};

/// Counts of what happened since the device was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Links that are up now.
    pub links: u64,
    /// Windows that are in the guest now, each of which takes a memory slot.
    pub windows: u64,
    /// Times that a link came up.
    pub links_up: u64,
    /// Times that a link ended because the peer went away, or the device's user dropped it.
    pub links_lost: u64,
    /// Times that a link ended whose window the guest had claimed, so that its connections were reset.
    pub links_reset: u64,
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
    /// The guest's stores to a doorbell or the Doorbell register that came to the VMM, because no link stood behind
    /// them. KVM alone takes those of a link that is up: while links are up and the guest rings only them, this does
    /// not grow.
    pub doorbells_trapped: u64,
}

impl Counters {
    /// Every counter and its name, which is that of the field.
    pub fn named(&self) -> [(&'static str, u64); 13] {
        macro_rules! named {
            ($($name:ident),*) => {{
                // A counter that is missing here does not compile.
                let Counters { $($name),* } = *self;
                [$((stringify!($name), $name)),*]
            }};
        }
        named!(
            links,
            windows,
            links_up,
            links_lost,
            links_reset,
            resets,
            connections_accepted,
            connections_made,
            handshakes_refused,
            handshakes_timed_out,
            protocol_errors,
            host_errors,
            doorbells_trapped
        )
    }
}
