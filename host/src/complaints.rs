// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is logged of VMs. They, and who makes files, could make a log grow: each has a rate, and all together.

use log::Level;
use std::collections::HashMap;
use std::fmt::Display;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often the same is said of one VM again.
const AGAIN: Duration = Duration::from_secs(600);
/// How long nothing is said of a VM after a line, whatever it is.
const PAUSE: Duration = Duration::from_secs(1);
/// The lines that all VMs may have at once, and the time in which one more is there.
const BURST: u32 = 100;
const EACH: Duration = Duration::from_millis(100);
/// The VMs that are known at the same time.
const MAX_KNOWN: usize = 16384;

/// Says things of VMs, but not too often.
#[derive(Debug, Default)]
pub struct Complaints(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    known: HashMap<String, Known>,
    /// When the bucket of all will be full.
    full_at: Option<Instant>,
    unsaid: u32,
}

#[derive(Debug)]
struct Known {
    at: Instant,
    line: String,
    unsaid: u32,
}

impl Complaints {
    /// A new one, which has said nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Logs that something is so with a VM or a file: once, and again when it has become something else, or after ten
    /// minutes.
    pub fn say(&self, level: Level, of: &str, what: impl Display) {
        let line = self.state().line(of, &what.to_string(), Instant::now());
        // Outside the lock: a log may wait.
        if let Some(line) = line {
            log::log!(level, "{line}");
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
        if let Some(known) = self.known.get_mut(of) {
            let since = now.saturating_duration_since(known.at);
            if known.line == what && since < AGAIN {
                return None;
            }
            if since < PAUSE {
                known.unsaid = known.unsaid.saturating_add(1);
                return None;
            }
        }
        let full_at = self.full_at.unwrap_or(now).max(now) + EACH;
        if full_at > now + EACH * BURST {
            self.unsaid = self.unsaid.saturating_add(1);
            return None;
        }
        self.full_at = Some(full_at);
        if self.known.len() >= MAX_KNOWN {
            self.known
                .retain(|_, known| now.saturating_duration_since(known.at) < PAUSE);
        }
        let before = self.known.insert(
            of.into(),
            Known {
                at: now,
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
        assert_eq!(state.line("a", "hangs", now + PAUSE), None);
        assert_eq!(state.line("a", "is back", now), None);
        let line = state.line("a", "is back", now + PAUSE).unwrap();
        assert_eq!(line, "a: is back (1 more were not said of it)");
        assert!(state.line("a", "is back", now + PAUSE + AGAIN).is_some());
    }

    #[test]
    fn all_together_have_a_rate() {
        let (mut state, now) = (State::default(), Instant::now());
        let said = (0..1000).filter(|n| state.line(&n.to_string(), "x", now).is_some());
        assert_eq!(said.count(), BURST as usize);
        let line = state.line("y", "x", now + EACH).unwrap();
        assert_eq!(line, "y: x (900 lines of others were left out)");
        for n in 0..2 * MAX_KNOWN {
            let now = now + PAUSE * 2 * u32::try_from(n + 1).unwrap();
            assert!(state.line(&format!("z{n}"), "x", now).is_some());
        }
        assert!(state.known.len() <= MAX_KNOWN);
    }
}
