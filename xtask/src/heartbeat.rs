// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Telling a lab VM that stands still from one that is slow.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

/// Watches files that are to be written again and again, one by each of the lab VM's processors.
pub struct Heartbeat<'a> {
    folder: &'a Path,
    patience: Duration,
    started: Instant,
    /// Of each file, when it was written last by its own clock, and when that was first seen.
    beats: BTreeMap<OsString, (SystemTime, Instant)>,
}

impl<'a> Heartbeat<'a> {
    /// Watches the files of `folder`, which stand still when one has not been written for `patience`, or when
    /// there is none for as long.
    pub fn new(folder: &'a Path, patience: Duration, now: Instant) -> Self {
        Self {
            folder,
            patience,
            started: now,
            beats: BTreeMap::new(),
        }
    }

    /// For how long none may stand still.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// Looks at the files; returns whether one stands still.
    pub fn is_still(&mut self, now: Instant) -> bool {
        for entry in fs::read_dir(self.folder).into_iter().flatten().flatten() {
            let Ok(written) = entry.metadata().and_then(|file| file.modified()) else {
                continue;
            };
            let beat = self
                .beats
                .entry(entry.file_name())
                .or_insert((written, now));
            if beat.0 != written {
                *beat = (written, now);
            }
        }
        let last = self.beats.values().map(|(_, seen)| *seen).min();
        now.duration_since(last.unwrap_or(self.started)) >= self.patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(120);

    #[test]
    fn each_file_has_to_be_written_again_and_again() {
        let folder = std::env::temp_dir().join(format!("ivsmc-heartbeat-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let start = Instant::now();
        let mut watch = Heartbeat::new(&folder, PATIENCE, start);
        let mut look = |second: u64, written: &[&str]| {
            for name in written {
                let file = fs::File::create(folder.join(name)).unwrap();
                let time = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
                file.set_modified(time).unwrap();
            }
            watch.is_still(start + Duration::from_secs(second))
        };
        assert!(!look(0, &[]));
        assert!(!look(119, &[]));
        assert!(!look(119, &["0", "1"]));
        assert!(!look(200, &["0", "1"]));
        assert!(!look(319, &["0"]));
        assert!(look(320, &["0"]), "1 stands still");
        assert!(!look(330, &["1"]));
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn the_first_beat_may_not_be_late_either() {
        let start = Instant::now();
        let mut watch = Heartbeat::new(Path::new("/nonexistent"), PATIENCE, start);
        assert!(!watch.is_still(start + Duration::from_secs(119)));
        assert!(watch.is_still(start + PATIENCE));
    }
}
