// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a process has and does, as /proc tells.

use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// What a window's memory is called in /proc/PID/maps.
const WINDOW: &str = "memfd:ivsmc-window";

/// Where KVM counts what each VM does.
const KVM: &str = "/sys/kernel/debug/kvm";

/// A process.
#[derive(Debug, Clone, Copy)]
pub struct Process(pub u32);

/// A thread, and what it has done so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thread {
    /// Its id.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Processor time in ticks, of which there are 100 in a second, in user and kernel.
    pub ticks: u64,
}

/// What a process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// File descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
    /// Mappings of windows.
    pub windows: usize,
}

impl fmt::Display for Footprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Footprint {
            descriptors,
            threads,
            windows,
        } = self;
        write!(
            f,
            "{descriptors} descriptors, {threads} threads, {windows} windows mapped"
        )
    }
}

impl Process {
    fn path(self, what: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{what}", self.0))
    }

    fn read(self, what: &str) -> Result<String> {
        let path = self.path(what);
        std::fs::read_to_string(&path).with_context(|| path.display().to_string())
    }

    /// Sends it a signal.
    pub fn signal(self, signal: i32) -> io::Result<()> {
        // SAFETY: takes no pointers.
        match unsafe { libc::kill(self.0 as i32, signal) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// What it holds now.
    pub fn footprint(self) -> Result<Footprint> {
        Ok(Footprint {
            descriptors: self.descriptors()?.len(),
            threads: self.threads()?.len(),
            windows: window_lines(&self.read("maps")?).count(),
        })
    }

    /// The windows that it has mapped, by the inodes of their memory.
    pub fn windows(self) -> Result<BTreeSet<u64>> {
        let maps = self.read("maps")?;
        window_lines(&maps)
            .map(|line| {
                let inode = line.split_whitespace().nth(4);
                inode
                    .and_then(|inode| inode.parse().ok())
                    .with_context(|| format!("no inode in {line}"))
            })
            .collect()
    }

    /// What its descriptors are of.
    pub fn descriptors(self) -> Result<Vec<String>> {
        let mut descriptors = Vec::new();
        for entry in std::fs::read_dir(self.path("fd"))? {
            let entry = entry?;
            // One can be closed meanwhile.
            if let Ok(target) = std::fs::read_link(entry.path()) {
                descriptors.push(target.display().to_string());
            }
        }
        descriptors.sort();
        Ok(descriptors)
    }

    /// Its threads.
    pub fn threads(self) -> Result<Vec<Thread>> {
        let mut threads = Vec::new();
        for entry in std::fs::read_dir(self.path("task"))? {
            let stat = match std::fs::read_to_string(entry?.path().join("stat")) {
                Ok(stat) => stat,
                // It has ended meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => continue,
                Err(error) => return Err(error.into()),
            };
            threads.push(thread(&stat).with_context(|| format!("a thread's stat: {stat}"))?);
        }
        threads.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
        Ok(threads)
    }

    /// What KVM counts for its VM, by KVM's names; empty if that cannot be had.
    pub fn kvm_counters(self) -> BTreeMap<String, u64> {
        let mut counters = BTreeMap::new();
        // A folder's name is THREAD-DESCRIPTOR, of the thread that has made the VM.
        let threads = self.threads().unwrap_or_default();
        let is_ours = |name: &str| {
            let thread = name.split('-').next().and_then(|id| id.parse().ok());
            threads.iter().any(|own| thread == Some(own.id))
        };
        let folders = std::fs::read_dir(KVM).into_iter().flatten().flatten();
        for folder in folders.filter(|f| is_ours(&f.file_name().to_string_lossy())) {
            for file in std::fs::read_dir(folder.path())
                .into_iter()
                .flatten()
                .flatten()
            {
                let text = std::fs::read_to_string(file.path()).unwrap_or_default();
                if let Ok(count) = text.trim().parse() {
                    counters.insert(file.file_name().to_string_lossy().into_owned(), count);
                }
            }
        }
        counters
    }

    /// What its threads and its VM do for a while, in lines: of one that hangs it is to be seen whether it works or waits.
    pub fn activity(self, time: Duration) -> Result<String> {
        let (before, exits) = (self.threads()?, self.kvm_counters());
        std::thread::sleep(time);
        let later = self.kvm_counters();
        let mut text = format!("--- its threads, and their ticks of 10 ms in {time:?}\n");
        for thread in self.threads()? {
            let earlier = before.iter().find(|earlier| earlier.id == thread.id);
            let ticks = thread.ticks - earlier.map_or(0, |earlier| earlier.ticks);
            text += &format!("{:<20} {ticks}\n", thread.name);
        }
        for (name, count) in later {
            let more = count.saturating_sub(exits.get(&name).copied().unwrap_or(0));
            if more > 0 {
                text += &format!("KVM: {name:<15} {more}\n");
            }
        }
        Ok(text)
    }
}

/// The lines of maps that are windows.
fn window_lines(maps: &str) -> impl Iterator<Item = &str> {
    maps.lines().filter(|line| line.contains(WINDOW))
}

/// "ID (name) state ..." of proc(5); the name can have anything in it.
fn thread(stat: &str) -> Option<Thread> {
    let (id, rest) = stat.split_once(" (")?;
    let (name, rest) = rest.rsplit_once(") ")?;
    // utime and stime are fields 14 and 15; the state is field 3.
    let mut times = rest.split(' ').skip(11).map(str::parse::<u64>);
    Some(Thread {
        id: id.parse().ok()?,
        name: name.to_owned(),
        ticks: times.next()?.ok()? + times.next()?.ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_understood() {
        let stat = "77 (a b) (c) S 1 2 3 4 5 6 7 8 9 10 30 12 0 0 20 0 1 0";
        assert_eq!(
            thread(stat),
            Some(Thread {
                id: 77,
                name: "a b) (c".to_owned(),
                ticks: 42
            })
        );
        assert_eq!(thread("77 (a"), None);
    }

    #[test]
    fn windows_are_counted() {
        let maps = "7f00-7f01 rw-s 00000000 00:01 9 /memfd:ivsmc-window (deleted)\n7f01-7f02 rw-p 0 00:00 0\n";
        assert_eq!(window_lines(maps).count(), 1);
    }

    #[test]
    fn this_process_has_threads_and_descriptors() {
        let process = Process(std::process::id());
        let footprint = process.footprint().unwrap();
        assert!(
            footprint.threads >= 1 && footprint.descriptors >= 3,
            "{footprint}"
        );
        assert_eq!(footprint.windows, 0);
        assert_eq!(process.windows().unwrap(), BTreeSet::new());
    }
}
