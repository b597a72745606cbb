// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The system calls that threads may make for an ivsmc device.

use seccompiler::SeccompRule;
use vmm_device_ivsmc::{Device, Fabric};

use crate::seccomp_filters::Thread;

/// What an ivsmc device lets threads do in addition to what they may do anyway.
pub(crate) fn seccomp_rules(thread: &Thread) -> Vec<(i64, Vec<SeccompRule>)> {
    let syscalls: &[&[i64]] = match thread {
        // Whatever the VMM's thread starts has to live with its filter, too.
        Thread::Vmm => &[
            Device::NEW_SYSCALLS,
            Device::STATE_SYSCALLS,
            Device::SYSCALLS,
            Fabric::SYSCALLS,
        ],
        // Makes the guest's accesses, and removes devices.
        Thread::Vcpu => &[Device::SYSCALLS],
        // Takes snapshots, and ends the VM that has moved away.
        Thread::MigrationWorker => &[Device::STATE_SYSCALLS, Device::SYSCALLS],
        // The event monitor's properties are in a HashMap, which wants random numbers.
        Thread::Ivsmc => &[Fabric::SYSCALLS, &[libc::SYS_getrandom]],
        _ => &[],
    };
    let syscalls = syscalls.iter().copied().flatten();
    syscalls.map(|&syscall| (syscall, vec![])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp_filters::allowed_anyway;

    /// System calls that a thread may make only because of the device. They are in `docs/ivsmc.md`.
    fn added(thread: &Thread) -> Vec<i64> {
        let anyway = allowed_anyway(thread);
        let rules = seccomp_rules(thread).into_iter();
        let mut added: Vec<_> = rules.map(|(syscall, _)| syscall).collect();
        added.retain(|syscall| !anyway.contains(syscall));
        added.sort_unstable();
        added.dedup();
        added
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn test_other_threads_may_do_little_more() {
        assert_eq!(added(&Thread::Vcpu), [libc::SYS_lstat, libc::SYS_unlinkat]);
        assert_eq!(added(&Thread::MigrationWorker), []);
        assert_eq!(added(&Thread::Vmm), []);
        assert_eq!(added(&Thread::HttpApi), []);
    }
}
