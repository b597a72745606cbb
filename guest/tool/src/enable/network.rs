// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which handshake control the network namespaces use: `net.smc.hs_ctrl` in each.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

/// Which control a namespace uses; a thread sees its own.
const SYSCTL: &str = "/proc/sys/net/smc/hs_ctrl";

/// The control that this network namespace uses, empty if it uses none; `None` if the kernel has no such thing.
pub fn used() -> Option<String> {
    Some(fs::read_to_string(SYSCTL).ok()?.trim().to_owned())
}

/// Has all network namespaces use the control of this name; or none, if it is empty. New ones get that of the initial one.
/// Those in which it could not be set are counted.
pub fn use_everywhere(name: &str) -> io::Result<usize> {
    // A write of nothing would be none.
    let line = format!("{name}\n");
    // Before all others, as those that are made meanwhile get it from there.
    fs::write(SYSCTL, &line)?;
    // Threads have namespaces of their own; this one's ends with it.
    let thread = std::thread::spawn(move || {
        let mut failed = 0;
        for namespace in namespaces() {
            // SAFETY: takes no pointers.
            let entered = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } == 0;
            if !entered || fs::write(SYSCTL, &line).is_err() {
                failed += 1;
            }
        }
        failed
    });
    thread
        .join()
        .map_err(|_| io::Error::other("a thread's panic"))
}

/// The network namespaces of all processes, and those that `ip netns` keeps.
fn namespaces() -> Vec<File> {
    let folder = |path: &str| fs::read_dir(path).into_iter().flatten().flatten();
    let of_processes = folder("/proc").map(|process| process.path().join("ns/net"));
    let kept = folder("/run/netns").map(|kept| kept.path());
    let mut seen = BTreeSet::new();
    let mut namespaces = Vec::new();
    for path in of_processes.chain(kept) {
        // Processes end, and what is no namespace must not make us wait.
        let mut options = OpenOptions::new();
        let opened = options.read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let Ok(file) = opened else { continue };
        let Ok(metadata) = file.metadata() else {
            continue;
        };
        if seen.insert((metadata.dev(), metadata.ino())) {
            namespaces.push(file);
        }
    }
    namespaces
}
