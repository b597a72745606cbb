// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The network namespaces of containers: SMC's connections, statistics and settings are those of one namespace.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

/// Does something in each network namespace that a process has or `ip netns` keeps, this one's among them. What it gives comes
/// with the namespace's inode, as `lsns` and `/proc/PID/ns/net` have it; `None` for one that may not be entered, which takes
/// CAP_SYS_ADMIN.
///
/// It is done in a thread of its own, which has the namespace and ends.
pub fn each<T: Send + 'static>(
    work: impl Fn() -> T + Send + 'static,
) -> io::Result<Vec<(u64, Option<T>)>> {
    let own = fs::metadata("/proc/thread-self/ns/net")?.ino();
    let thread = std::thread::Builder::new().spawn(move || {
        let mut found = Vec::new();
        for (inode, namespace) in all() {
            // SAFETY: takes no pointers.
            let is_there = inode == own
                || unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } == 0;
            found.push((inode, is_there.then(&work)));
        }
        found
    })?;
    thread
        .join()
        .map_err(|_| io::Error::other("a thread's panic"))
}

/// All that are known, this one first.
fn all() -> Vec<(u64, File)> {
    let folder = |path: &str| fs::read_dir(path).into_iter().flatten().flatten();
    let own = ["/proc/thread-self/ns/net".into()];
    let of_processes = folder("/proc").map(|process| process.path().join("ns/net"));
    let kept = folder("/run/netns").map(|kept| kept.path());
    let mut seen = BTreeSet::new();
    let mut namespaces = Vec::new();
    for path in own.into_iter().chain(of_processes).chain(kept) {
        // Processes end, and what is no namespace must not make us wait.
        let mut options = OpenOptions::new();
        let opened = options.read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let Ok(file) = opened else { continue };
        let Ok(metadata) = file.metadata() else {
            continue;
        };
        if seen.insert((metadata.dev(), metadata.ino())) {
            namespaces.push((metadata.ino(), file));
        }
    }
    namespaces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ones_own_is_the_first_and_can_be_looked_into_by_anybody() {
        let own = fs::metadata("/proc/self/ns/net").unwrap().ino();
        let found = each(|| fs::read_link("/proc/thread-self/ns/net").unwrap()).unwrap();
        let name = format!("net:[{own}]");
        assert_eq!(found[0], (own, Some(name.into())));
        assert_eq!(found.iter().filter(|(inode, _)| *inode == own).count(), 1);
    }
}
