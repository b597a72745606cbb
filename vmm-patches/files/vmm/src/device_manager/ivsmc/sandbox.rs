// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The system calls that threads may make for an ivsmc device.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, SeccompCmpArgLen as ArgLen, SeccompCmpOp, SeccompCondition, SeccompRule,
};
use vmm_device_ivsmc::{Device, Fabric, Reaper, Syscall};

use crate::seccomp_filters::Thread;

const fn any(number: i64) -> Syscall {
    let argument = None;
    Syscall { number, argument }
}

const fn with(number: i64, argument: u8, value: u32) -> Syscall {
    let argument = Some((argument, value));
    Syscall { number, argument }
}

/// What the device asks of KVM on its own thread: KVM_SET_USER_MEMORY_REGION, KVM_IOEVENTFD, KVM_IRQFD.
const HOST: &[Syscall] = &[
    with(libc::SYS_ioctl, 1, 0x4020_ae46),
    with(libc::SYS_ioctl, 1, 0x4040_ae79),
    with(libc::SYS_ioctl, 1, 0x4020_ae76),
    // The event monitor's properties are in a HashMap, which wants random numbers.
    any(libc::SYS_getrandom),
];

/// The logger tells which thread it is.
const LOG: &[Syscall] = &[with(libc::SYS_prctl, 0, libc::PR_GET_NAME as u32)];

/// The fstat that the memory manager makes for a snapshot, as glibc 2.33 to 2.38 has it. Not the device's: but without
/// it a migration ends the VMM there.
const GLIBC_FSTAT: &[Syscall] = &[any(libc::SYS_newfstatat)];

/// What an ivsmc device lets threads do in addition to what they may do anyway.
pub(crate) fn seccomp_rules(thread: &Thread) -> Result<Vec<(i64, Vec<SeccompRule>)>, BackendError> {
    let syscalls: &[&[Syscall]] = match thread {
        // Whatever the VMM's thread starts has to live with its filter, too.
        Thread::Vmm => &[
            Device::NEW_SYSCALLS,
            Device::STATE_SYSCALLS,
            Device::SYSCALLS,
            Fabric::SYSCALLS,
            Reaper::SYSCALLS,
        ],
        // Makes the guest's accesses, and removes devices.
        Thread::Vcpu => &[Device::SYSCALLS],
        // Takes snapshots, and ends the VM that has moved away.
        Thread::MigrationWorker => &[Device::STATE_SYSCALLS, Device::SYSCALLS, GLIBC_FSTAT],
        Thread::Ivsmc => &[Fabric::SYSCALLS, HOST, LOG],
        Thread::IvsmcReaper => &[Reaper::SYSCALLS, LOG],
        _ => &[],
    };
    let syscalls = syscalls.concat();
    let mut rules: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for Syscall { number, argument } in &syscalls {
        if let Some((argument, value)) = *argument {
            let (kind, equal) = (ArgLen::Dword, SeccompCmpOp::Eq);
            let condition = SeccompCondition::new(argument, kind, equal, value.into())?;
            let rule = SeccompRule::new(vec![condition])?;
            rules.entry(*number).or_default().push(rule);
        }
    }
    // Without a rule any arguments will do.
    for syscall in syscalls.iter().filter(|each| each.argument.is_none()) {
        rules.insert(syscall.number, Vec::new());
    }
    Ok(rules.into_iter().collect())
}

/// Rules that take the place of the threads' own, which restrict arguments further than the device can live with: the file
/// of a socket that other users may connect to (`allow`) is made with a umask of its own, under the VMM thread's filter.
pub(crate) fn wider_seccomp_rules(thread: &Thread) -> Vec<(i64, Vec<SeccompRule>)> {
    match thread {
        Thread::Vmm => vec![(libc::SYS_umask, Vec::new())],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp_filters::allowed_anyway;

    /// System calls that a thread may make only because of the device. They are in `docs/ivsmc.md`.
    fn added(thread: &Thread) -> Vec<i64> {
        let anyway = allowed_anyway(thread);
        let rules = seccomp_rules(thread).unwrap().into_iter();
        let mut added: Vec<_> = rules.map(|(syscall, _)| syscall).collect();
        added.retain(|syscall| !anyway.contains(syscall));
        added
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn test_other_threads_may_do_little_more() {
        let none: [i64; 0] = [];
        assert_eq!(added(&Thread::Vcpu), none);
        assert_eq!(added(&Thread::HttpApi), none);
        let migration = [libc::SYS_pread64, libc::SYS_newfstatat];
        assert_eq!(added(&Thread::MigrationWorker), migration);
        let vmm = [
            libc::SYS_lstat,
            libc::SYS_getsockopt,
            libc::SYS_geteuid,
            libc::SYS_fstatfs,
            libc::SYS_inotify_add_watch,
            libc::SYS_inotify_rm_watch,
            libc::SYS_unlinkat,
            libc::SYS_readlinkat,
            libc::SYS_unshare,
            libc::SYS_inotify_init1,
        ];
        assert_eq!(added(&Thread::Vmm), vmm);
    }

    #[test]
    fn test_arguments_of_the_devices_thread_are_checked() {
        let rules = seccomp_rules(&Thread::Ivsmc).unwrap();
        for syscall in [libc::SYS_ioctl, libc::SYS_socket, libc::SYS_fcntl] {
            let rule = rules.iter().find(|(number, _)| *number == syscall);
            assert!(
                rule.is_some_and(|(_, rules)| !rules.is_empty()),
                "{syscall}"
            );
        }
    }
}
