// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which system calls each kind of thread may make.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};
use vmm_device_ivsmc::{Device, Fabric, Reaper, Syscall};

use crate::options::Seccomp;

/// A kind of thread.
#[derive(Clone, Copy, Debug)]
pub enum Thread {
    /// Builds VMs and waits for their ends. All others are its children and inherit its filter.
    Main,
    /// Runs a processor.
    Vcpu,
    /// Moves packets between a tap and a guest.
    Net,
    /// Makes an ivsmc device's links.
    Fabric,
    /// Closes what its peers supplied.
    Reaper,
}

/// What every thread does: allocate, lock, log, read and write what is open, and end.
const COMMON: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_prctl,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_seccomp,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Running a guest, and what virtio-net does when it writes its registers. ioctl's requests are not looked at,
/// for a filter that looks at arguments would run at each exit; one that does not is run once.
const VCPU: &[i64] = &[libc::SYS_eventfd2, libc::SYS_fcntl, libc::SYS_ioctl];

/// Waiting for events.
const EPOLL: &[i64] = &[
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
];

/// What the main thread does besides: it builds VMs. (What its children do has to be permitted to it, too.)
const MAIN: &[i64] = &[
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_fstat,
    libc::SYS_lseek,
    libc::SYS_newfstatat,
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_statx,
];

/// What an ivsmc device asks of KVM, on whatever thread: KVM_SET_USER_MEMORY_REGION, KVM_IOEVENTFD, KVM_IRQFD, and
/// KVM_SIGNAL_MSI to tell its guest of a link.
const KVM_REQUESTS: [u64; 4] = [0x4020_ae46, 0x4040_ae79, 0x4020_ae76, 0x4020_aea5];

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// A rule that a call has this value in the lower half of this argument.
fn rule(argument: u8, value: u64) -> Result<SeccompRule> {
    let (kind, equal) = (SeccompCmpArgLen::Dword, SeccompCmpOp::Eq);
    let condition = SeccompCondition::new(argument, kind, equal, value)?;
    Ok(SeccompRule::new(vec![condition])?)
}

impl Thread {
    /// What the thread may do with whatever arguments.
    fn syscalls(self) -> Vec<i64> {
        let own: &[&[i64]] = match self {
            Thread::Main => &[MAIN, VCPU, EPOLL],
            Thread::Vcpu => &[VCPU],
            Thread::Net => &[EPOLL],
            Thread::Fabric | Thread::Reaper => &[],
        };
        [&[COMMON], own].concat().concat()
    }

    /// What the thread may do for ivsmc devices.
    fn of_devices(self) -> Vec<Syscall> {
        let lists: &[&[Syscall]] = match self {
            Thread::Main => &[
                Device::NEW_SYSCALLS,
                Device::STATE_SYSCALLS,
                Device::SYSCALLS,
                Fabric::SYSCALLS,
                Reaper::SYSCALLS,
            ],
            Thread::Vcpu => &[Device::SYSCALLS],
            Thread::Net => &[],
            Thread::Fabric => &[Fabric::SYSCALLS],
            Thread::Reaper => &[Reaper::SYSCALLS],
        };
        lists.concat()
    }

    fn rules(self) -> Result<Rules> {
        let mut rules = Rules::new();
        let of_devices = self.of_devices();
        for Syscall { number, argument } in &of_devices {
            if let Some((argument, value)) = *argument {
                let rules = rules.entry(*number).or_default();
                rules.push(rule(argument, value.into())?);
            }
        }
        if matches!(self, Thread::Fabric) {
            let requests = KVM_REQUESTS.map(|request| rule(1, request));
            let requests = requests.into_iter().collect::<Result<_>>()?;
            rules.insert(libc::SYS_ioctl, requests);
        }
        // Without a rule any arguments will do.
        let any = of_devices.iter().filter(|each| each.argument.is_none());
        for number in any.map(|each| each.number).chain(self.syscalls()) {
            rules.insert(number, Vec::new());
        }
        Ok(rules)
    }

    /// Confines the calling thread from now on.
    pub fn confine(self, mode: Seccomp) -> Result<()> {
        let action = match mode {
            Seccomp::True => SeccompAction::KillProcess,
            Seccomp::Log => SeccompAction::Log,
            Seccomp::False => return Ok(()),
        };
        let (rules, allow) = (self.rules()?, SeccompAction::Allow);
        let filter = SeccompFilter::new(rules, action, allow, TargetArch::x86_64)?;
        let program: BpfProgram = filter.try_into()?;
        apply_filter(&program).with_context(|| {
            format!("--seccomp: the {self:?} thread cannot be confined; --seccomp false would do")
        })
    }
}
