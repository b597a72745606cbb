// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Connections that have ended while descriptors of this end's were in the other end's queue.
//!
//! They stay there as long as the other end likes. Until then the kernel charges them to this process's user, who may have
//! no more under way in all its sockets than RLIMIT_NOFILE says, and who could offer windows to nobody if a peer collected
//! them. So the socket is kept until all is read or the other end closes, and how many there are is bounded.

use std::time::Instant;

use super::connectors::Retry;
use super::reaper::Foreign;
use super::socket::Socket;

/// How many there may be before there are no new connections: with one user, and with anybody.
const MAX_OF_USER: usize = 8;
const MAX: usize = 32;

/// All of them, with the user at the other end.
pub struct Unread {
    sockets: Vec<(Option<u32>, Foreign<Socket>)>,
    /// When to look again.
    pub check: Retry,
}

impl Unread {
    /// None.
    pub fn new() -> Self {
        Unread {
            sockets: Vec::new(),
            check: Retry::from(None),
        }
    }

    /// One more.
    pub fn keep(&mut self, user: Option<u32>, socket: Foreign<Socket>, now: Instant) {
        self.sockets.push((user, socket));
        if self.check.next.is_none() {
            self.check.later(now);
        }
    }

    /// Drops those that were read or closed.
    pub fn look(&mut self, now: Instant) {
        self.sockets.retain(|(_, socket)| socket.has_unread());
        if self.sockets.is_empty() {
            self.check = Retry::from(None);
        } else if self.check.is_due(now) {
            self.check.later(now);
        }
    }

    /// Whether there are as many as there may be, for this user.
    pub fn is_full(&self, user: u32) -> bool {
        let of_user = self.sockets.iter().filter(|each| each.0 == Some(user));
        of_user.count() >= MAX_OF_USER || self.sockets.len() >= MAX
    }
}
