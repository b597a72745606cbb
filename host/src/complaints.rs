// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is logged of VMs. They, and who makes files, could make a log grow: each has a rate, and all together.

use log::Level;
use std::collections::HashMap;
use std::fmt::Display;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often the same is said of one VM again.
const AGAIN: Duration = Duration::from_secs(600);
/// The lines that a VM may have at once, and the time in which one more is there.
const VM: Rate = Rate {
    burst: 8,
    each: Duration::from_secs(5),
};
/// The same for all of them together.
const ALL: Rate = Rate {
    burst: 100,
    each: Duration::from_millis(100),
};
/// The VMs that are known at the same time.
const MAX_KNOWN: usize = 16384;

/// Says things of VMs, but not too often.
#[derive(Debug, Default)]
pub struct Complaints(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    known: HashMap<String, Known>,
    bucket: Bucket,
    unsaid: u32,
}

#[derive(Debug)]
struct Known {
    at: Instant,
    bucket: Bucket,
    line: String,
    unsaid: u32,
}

struct Rate {
    burst: u32,
    each: Duration,
}

/// What is left of a rate: all of it after `full_at`.
#[derive(Debug, Default, Clone, Copy)]
struct Bucket {
    full_at: Option<Instant>,
}

impl Bucket {
    fn take(&mut self, rate: &Rate, now: Instant) -> bool {
        let full_at = self.full_at.unwrap_or(now).max(now) + rate.each;
        let is_there = full_at <= now + rate.each * rate.burst;
        if is_there {
            self.full_at = Some(full_at);
        }
        is_there
    }
}

impl Complaints {
    /// A new one, which has said nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Logs that something is so with a VM or a file: once, and again when it has become something else, or after ten
    /// minutes.
    pub fn say(&self, level: Level, of: &str, what: impl Display) {
        if !log::log_enabled!(target: "ivsmc_host", level) {
            return;
        }
        let line = self.state().line(of, &what.to_string(), Instant::now());
        // Outside the lock: a log may wait.
        if let Some(line) = line {
            log::log!(target: "ivsmc_host", level, "{line}");
        }
    }

    /// A VM has something new to say, as it is another one.
    pub fn forget(&self, of: &str) {
        if let Some(known) = self.state().known.get_mut(of) {
            known.line.clear();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn line(&mut self, of: &str, what: &str, now: Instant) -> Option<String> {
        let mut bucket = Bucket::default();
        if let Some(known) = self.known.get_mut(of) {
            if known.line == what && now.saturating_duration_since(known.at) < AGAIN {
                return None;
            }
            bucket = known.bucket;
            if !bucket.take(&VM, now) {
                known.unsaid = known.unsaid.saturating_add(1);
                return None;
            }
        } else {
            bucket.take(&VM, now);
        }
        if !self.bucket.take(&ALL, now) {
            self.unsaid = self.unsaid.saturating_add(1);
            return None;
        }
        if self.known.len() >= MAX_KNOWN {
            // The rate of all leaves no more than a few hundred of these.
            let is_limited = |known: &Known| known.bucket.full_at.is_some_and(|at| at > now);
            self.known.retain(|_, known| is_limited(known));
        }
        let before = self.known.insert(
            of.into(),
            Known {
                at: now,
                bucket,
                line: what.into(),
                unsaid: 0,
            },
        );
        let mut line = format!("{of}: {what}");
        match before.map_or(0, |before| before.unsaid) {
            0 => {}
            unsaid => line.push_str(&format!(" ({unsaid} more were not said of it)")),
        }
        match std::mem::take(&mut self.unsaid) {
            0 => {}
            unsaid => line.push_str(&format!(" ({unsaid} lines of others were left out)")),
        }
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_said_once() {
        let (mut state, now) = (State::default(), Instant::now());
        assert_eq!(state.line("a", "hangs", now).unwrap(), "a: hangs");
        assert_eq!(state.line("a", "hangs", now), None);
        assert_eq!(state.line("a", "is back", now).unwrap(), "a: is back");
        assert_eq!(state.line("a", "is back", now), None);
        assert!(state.line("a", "is back", now + AGAIN).is_some());
    }

    #[test]
    fn each_has_a_rate() {
        let (mut state, now) = (State::default(), Instant::now());
        let said = (0..1000).filter(|n| state.line("a", &n.to_string(), now).is_some());
        assert_eq!(said.count(), VM.burst as usize);
        assert!(state.line("b", "x", now).is_some());
        let line = state.line("a", "x", now + VM.each).unwrap();
        assert_eq!(line, "a: x (992 more were not said of it)");
    }

    #[test]
    fn all_together_have_a_rate() {
        let (mut state, now) = (State::default(), Instant::now());
        let said = (0..1000).filter(|n| state.line(&n.to_string(), "x", now).is_some());
        assert_eq!(said.count(), ALL.burst as usize);
        let line = state.line("y", "x", now + ALL.each).unwrap();
        assert_eq!(line, "y: x (900 lines of others were left out)");
        for n in 0..2 * MAX_KNOWN {
            let now = now + ALL.each * u32::try_from(n + 2).unwrap();
            assert!(state.line(&format!("z{n}"), "x", now).is_some());
        }
        assert!(state.known.len() <= MAX_KNOWN);
    }
}
