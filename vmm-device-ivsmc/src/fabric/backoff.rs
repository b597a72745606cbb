// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How often a peer may do what it can repeat. There is no I/O in here.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::Gid;

/// A link that stood for this long does not count against its peer, and makes up for those before.
const STABLE: Duration = Duration::from_secs(10);
/// For how long a peer gets no link after one that did not: at first, and at most.
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LAST_DELAY: Duration = Duration::from_secs(10);
/// How many such links a user may have, all its peers together: at once, and in a second.
const USER_LINKS: Bucket = Bucket::new(32, 2);

/// Lets pass so many at once, and so many in a second.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    burst: u32,
    per_second: u32,
    /// How many may pass now, as of `since`; in units of a second divided by `per_second`.
    left: u32,
    since: Option<Instant>,
}

impl Bucket {
    /// A full one.
    pub const fn new(burst: u32, per_second: u32) -> Self {
        Bucket {
            burst,
            per_second,
            left: burst,
            since: None,
        }
    }

    fn refill(&mut self, now: Instant) {
        let each = Duration::from_secs(1) / self.per_second;
        let since = *self.since.get_or_insert(now);
        let more = now.saturating_duration_since(since).as_nanos() / each.as_nanos();
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        if self.left.saturating_add(more) >= self.burst {
            self.left = self.burst;
            self.since = Some(now);
        } else {
            self.left += more;
            self.since = Some(since + each * more);
        }
    }

    /// Whether there is anything left.
    pub fn has_left(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.left > 0
    }

    /// Takes one, if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        let has_left = self.has_left(now);
        self.left -= u32::from(has_left);
        has_left
    }

    fn is_full(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.left == self.burst
    }
}

/// When a peer whose links came and went may have one again.
#[derive(Debug)]
struct Delay {
    next: Instant,
    delay: Duration,
}

/// Keeps peers whose links come and go from having another at once.
#[derive(Debug, Default)]
pub struct Backoff {
    delays: BTreeMap<(u32, Gid), Delay>,
    users: BTreeMap<u32, Bucket>,
}

impl Backoff {
    /// Whether this user's peer of this GID may have a link now.
    pub fn allows(&mut self, user: u32, gid: Gid, now: Instant) -> bool {
        let is_early = |delay: &Delay| now < delay.next;
        !self.delays.get(&(user, gid)).is_some_and(is_early)
            && self
                .users
                .get_mut(&user)
                .is_none_or(|bucket| bucket.has_left(now))
    }

    /// A peer has ended its link, which stood for so long.
    pub fn ended(&mut self, user: u32, gid: Gid, stood: Duration, now: Instant) {
        self.forget(now);
        if stood >= STABLE {
            self.delays.remove(&(user, gid));
            return;
        }
        self.users.entry(user).or_insert(USER_LINKS).take(now);
        let last = self.delays.get(&(user, gid));
        let delay = last.map_or(FIRST_DELAY, |last| (last.delay * 2).min(LAST_DELAY));
        let next = now + delay;
        self.delays.insert((user, gid), Delay { next, delay });
    }

    /// What makes no difference any more. (How much there is else is for the users' buckets to say.)
    fn forget(&mut self, now: Instant) {
        self.delays.retain(|_, delay| now < delay.next + STABLE);
        self.users.retain(|_, bucket| !bucket.is_full(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn gid(n: u8) -> Gid {
        Gid::from_bytes([n; 16])
    }

    #[test]
    fn a_bucket_lets_a_burst_pass_and_then_a_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(3, 10);
        let mut passed = |ms: u32| (0..9).filter(|_| bucket.take(start + ms * MS)).count();
        assert_eq!(
            (passed(0), passed(99), passed(100), passed(350)),
            (3, 0, 1, 2)
        );
        assert_eq!((passed(399), passed(400), passed(60_000)), (0, 1, 3));
    }

    #[test]
    fn a_peer_whose_links_come_and_go_waits_longer_and_longer() {
        let start = Instant::now();
        let mut backoff = Backoff::default();
        let mut now = start;
        let mut waits = Vec::new();
        for _ in 0..9 {
            backoff.ended(7, gid(1), Duration::ZERO, now);
            let begin = now;
            while !backoff.allows(7, gid(1), now) {
                now += 50 * MS;
            }
            waits.push((now - begin).as_millis());
        }
        assert_eq!(
            waits,
            [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]
        );
        // Another peer is not affected, nor is another user that has the GID.
        backoff.ended(7, gid(1), Duration::ZERO, now);
        assert!(!backoff.allows(7, gid(1), now));
        assert!(backoff.allows(7, gid(2), now) && backoff.allows(8, gid(1), now));
        // A link that stands makes up for it.
        backoff.ended(7, gid(1), STABLE, now);
        assert!(backoff.allows(7, gid(1), now));
        backoff.ended(7, gid(1), Duration::ZERO, now);
        assert!(backoff.allows(7, gid(1), now + FIRST_DELAY));
    }

    /// A guest that reboots is the same peer; a VMM that is started anew is another one.
    #[test]
    fn who_reboots_again_and_again_hardly_waits() {
        let wait = |pause: Duration, name: fn(u8) -> u8| {
            let mut backoff = Backoff::default();
            let mut now = Instant::now();
            let mut waits = Vec::new();
            for time in 0..4 {
                let begin = now;
                while !backoff.allows(7, gid(name(time)), now) {
                    now += 10 * MS;
                }
                waits.push((now - begin).as_millis());
                now += pause;
                backoff.ended(7, gid(name(time)), pause, now);
            }
            waits
        };
        assert_eq!(wait(20 * 1000 * MS, |_| 1), [0; 4]);
        assert_eq!(wait(1000 * MS, |_| 1), [0, 100, 200, 400]);
        assert_eq!(wait(1000 * MS, |time| time), [0; 4]);
    }

    #[test]
    fn a_user_cannot_make_up_peers_without_end() {
        let start = Instant::now();
        let mut backoff = Backoff::default();
        let mut links = 0;
        for ms in 0..60_000u32 {
            let now = start + ms * MS;
            let gid = Gid::from_bytes(u128::from(ms).to_le_bytes());
            if backoff.allows(7, gid, now) {
                links += 1;
                backoff.ended(7, gid, Duration::ZERO, now);
            }
            assert!(backoff.allows(8, gid, now), "another user");
            assert!(backoff.delays.len() < 100, "it is forgotten");
        }
        assert_eq!(links, 32 + 2 * 60 - 1);
    }
}
