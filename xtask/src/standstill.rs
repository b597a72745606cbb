// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Telling a command that stands still from one that is slow.

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

/// The least share of one processor that a command uses that gets on. A machine that others share may have no more for it.
const BUSY: f64 = 0.15;
/// Length of a tick of the processor times in /proc (100 a second, whatever the kernel's own is).
const TICK: Duration = Duration::from_millis(10);

/// Watches a command: it stands still when for some time it prints nothing and hardly uses a processor, or when it prints
/// nothing for much longer.
pub struct Standstill {
    patience: Duration,
    silence: Duration,
    /// When it last printed something.
    printed: Option<Instant>,
    /// When it last began to print nothing, and the processor time that it had used until then.
    silent: Option<(Instant, Duration)>,
}

impl Standstill {
    /// Standing still for `patience` is too long, and so is printing nothing for `silence`.
    pub fn new(patience: Duration, silence: Duration) -> Self {
        Self {
            patience,
            silence,
            printed: None,
            silent: None,
        }
    }

    /// It has printed something.
    pub fn printed(&mut self) {
        self.silent = None;
        self.printed = None;
    }

    /// It has not printed anything since the last call. `used` tells the processor time that it has used up to now.
    /// Returns whether it has stood still for too long.
    pub fn is_still(&mut self, now: Instant, used: impl FnOnce() -> Duration) -> bool {
        let printed = *self.printed.get_or_insert(now);
        if now.duration_since(printed) >= self.silence {
            return true;
        }
        let Some((since, before)) = self.silent else {
            self.silent = Some((now, used()));
            return false;
        };
        let silence = now.duration_since(since);
        if silence < self.patience {
            return false;
        }
        let used = used();
        self.silent = Some((now, used));
        used.saturating_sub(before).as_secs_f64() < silence.as_secs_f64() * BUSY
    }
}

/// The processor time that a process and its descendants have used; what has ended does not count.
pub fn processor_time(root: u32) -> Duration {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes: HashMap<u32, (u32, u32)> = entries
        .filter_map(|entry| {
            let id = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            Some((id, parent_and_ticks(&stat)?))
        })
        .collect();
    let is_of_root = |mut id: u32| {
        // A chain of parents is no longer than there are processes.
        for _ in 0..processes.len() {
            if id == root {
                return true;
            }
            match processes.get(&id) {
                Some((parent, _)) => id = *parent,
                None => break,
            }
        }
        false
    };
    let ticks = processes.iter().filter(|(id, _)| is_of_root(**id));
    ticks.map(|(_, (_, ticks))| TICK * *ticks).sum()
}

/// "ID (name) state parent ..." of proc(5); the name can have anything in it. utime and stime are fields 14 and 15.
fn parent_and_ticks(stat: &str) -> Option<(u32, u32)> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u32>().ok();
    Some((number(4)?, number(14)?.saturating_add(number(15)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(300);
    const SILENCE: Duration = Duration::from_secs(2000);

    /// Looks each second for as long as `time`, in which it uses so much of a processor; says when it stood still.
    fn silent_for(time: u64, share: f64, printed_at: Option<u64>) -> Option<u64> {
        let mut watch = Standstill::new(PATIENCE, SILENCE);
        let start = Instant::now();
        (0..time).find(|second| {
            if printed_at == Some(*second) {
                watch.printed();
                return false;
            }
            let now = Duration::from_secs(*second);
            watch.is_still(start + now, || now.mul_f64(share))
        })
    }

    #[test]
    fn what_does_nothing_stands_still_after_minutes() {
        assert_eq!(silent_for(1000, 0.05, None), Some(300));
        assert_eq!(silent_for(1000, 0.05, Some(200)), Some(501));
    }

    #[test]
    fn what_works_may_say_nothing_for_longer_but_not_for_ever() {
        assert_eq!(silent_for(10_000, 0.5, None), Some(2000));
        assert_eq!(silent_for(10_000, 0.5, Some(1000)), Some(3001));
    }

    #[test]
    fn what_worked_once_can_stand_still_later() {
        let mut watch = Standstill::new(PATIENCE, SILENCE);
        let start = Instant::now();
        let mut look = |second: u64, used: u64| {
            watch.is_still(start + Duration::from_secs(second), || {
                Duration::from_secs(used)
            })
        };
        assert!(!look(0, 0));
        assert!(!look(300, 200), "it has worked");
        assert!(!look(599, 200));
        assert!(look(600, 200), "since then it has not");
    }

    #[test]
    fn children_count() {
        let stat = "77 (a b) (c) S 5 2 3 4 5 6 7 8 9 10 30 12 0 0 20 0 1 0";
        assert_eq!(parent_and_ticks(stat), Some((5, 42)));
        assert_eq!(parent_and_ticks("77 (a"), None);
        let line = "setpriv --pdeathsig KILL sh -c 'while :; do :; done' & wait";
        let mut child = std::process::Command::new("sh")
            .args(["-c", line])
            .spawn()
            .unwrap();
        let start = Instant::now();
        let mut used = Duration::ZERO;
        while used < TICK * 3 && start.elapsed() < Duration::from_secs(60) {
            used = processor_time(child.id());
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(used >= TICK * 3, "{used:?}");
    }
}
