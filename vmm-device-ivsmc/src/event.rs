// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What happened, for a VMM that tells its user.

use std::mem;
use std::time::{Duration, Instant};

use crate::Gid;

/// How many [`EventKind::Refused`], and warnings of connections, there are in a second at most.
const MAX_PER_SECOND: u32 = 10;

/// Something that happened to a device. See [`Host::event`](crate::Host::event).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The link's number, if it happened to one.
    pub link: Option<usize>,
    /// The peer, if it is known.
    pub peer: Option<Gid>,
    /// Why, for people to read.
    pub reason: String,
}

/// What can happen to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A link came up.
    LinkUp,
    /// A link's place is free: the link has ended and the guest does not have its window (any more). It follows
    /// [`LinkReset`](Self::LinkReset) once the guest has let go. When the device is reset or closes, it alone comes,
    /// for each link that was not down.
    LinkDown,
    /// A link ended whose window the guest had claimed: the connections on it are reset.
    LinkReset,
    /// A connection was refused, broke the protocol, or did not become a link in time. Of these no more than ten
    /// are told in a second; the next one's reason says how many were left out.
    Refused,
}

impl EventKind {
    /// Its name: "link-up", "link-down", "link-reset" or "refused".
    pub const fn name(self) -> &'static str {
        match self {
            EventKind::LinkUp => "link-up",
            EventKind::LinkDown => "link-down",
            EventKind::LinkReset => "link-reset",
            EventKind::Refused => "refused",
        }
    }
}

/// Keeps others from making this device say something as often as they like.
#[derive(Debug, Default)]
pub struct Limiter {
    /// When the present second began.
    since: Option<Instant>,
    passed: u32,
    left_out: u64,
}

impl Limiter {
    /// Whether something may be said now; if so, how many times it could not be since the last time.
    pub fn pass(&mut self, now: Instant) -> Option<u64> {
        let is_over =
            |since: Instant| now.saturating_duration_since(since) >= Duration::from_secs(1);
        if self.since.is_none_or(is_over) {
            self.since = Some(now);
            self.passed = 0;
        }
        if self.passed == MAX_PER_SECOND {
            self.left_out += 1;
            return None;
        }
        self.passed += 1;
        Some(mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_a_second_pass_and_the_rest_is_counted() {
        let mut limiter = Limiter::default();
        let start = Instant::now();
        let mut pass = |ms: u64| limiter.pass(start + Duration::from_millis(ms));
        for n in 0..10 {
            assert_eq!(pass(n), Some(0));
        }
        for n in 10..1000 {
            assert_eq!(pass(n), None);
        }
        assert_eq!(pass(1000), Some(990));
        for n in 1001..1010 {
            assert_eq!(pass(n), Some(0));
        }
        assert_eq!(pass(1010), None);
        assert_eq!(pass(9000), Some(1));
    }
}
