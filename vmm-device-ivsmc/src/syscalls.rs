// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The system calls that the threads of a device make, for seccomp filters of theirs.

use crate::{Device, Fabric, Reaper};

/// A system call, for a seccomp filter that permits it. A call is permitted if any element of a list permits it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Syscall {
    /// Its number on this architecture.
    pub number: i64,
    /// An argument, counted from 0, and the value that its lower 32 bits must have; `None`: any arguments will do.
    pub argument: Option<(u8, u32)>,
}

/// In a debug build Rust's library looks whether what it closes is open.
const IS_OPEN: Syscall = any(libc::SYS_fcntl).with(1, libc::F_GETFD as u32);

/// A system call with any arguments.
const fn any(number: i64) -> Syscall {
    let argument = None;
    Syscall { number, argument }
}

impl Syscall {
    /// The same with one argument's value.
    const fn with(self, argument: u8, value: u32) -> Self {
        let argument = Some((argument, value));
        Syscall { argument, ..self }
    }
}

impl Device {
    /// The system calls that vCPU threads make, for a seccomp filter of theirs: those of the guest's accesses
    /// ([`read`](Self::read) and [`write`](Self::write)), of BARs that move ([`place_registers`](Self::place_registers),
    /// [`place_windows`](Self::place_windows)), of [`reset`](Self::reset), and of a guest that unplugs the device,
    /// so that the VMM calls [`shutdown`](Self::shutdown), joins the fabric's thread and drops the device. They are
    /// the device's own and the allocator's. What the host and the logger make has to be added: ioctl, of a
    /// [`Host`](crate::Host) like the one that [`Fabric::SYSCALLS`] is for.
    pub const SYSCALLS: &'static [Syscall] = &[
        // The fabric thread is woken.
        any(libc::SYS_write),
        // A link that has no doorbells any more after a BAR moved is ended; descriptors go with the device.
        any(libc::SYS_close),
        IS_OPEN,
        any(libc::SYS_munmap),
        // How often failures are logged, where the clock is a system call.
        any(libc::SYS_clock_gettime),
        // The locks, the allocator.
        any(libc::SYS_futex),
        any(libc::SYS_brk),
        any(libc::SYS_mmap),
        any(libc::SYS_mremap),
        any(libc::SYS_mprotect),
        any(libc::SYS_madvise),
    ];

    /// The system calls that [`new`](Self::new) makes on top of [`Fabric::SYSCALLS`], for a seccomp filter of the
    /// thread that makes devices. (One that also calls the methods for the guest needs [`SYSCALLS`](Self::SYSCALLS),
    /// too.)
    pub const NEW_SYSCALLS: &'static [Syscall] = &[
        // Windows' content in a snapshot.
        any(libc::SYS_pwrite64),
        // The fabric's epoll; a GID; the folder that a relative path starts from.
        any(libc::SYS_epoll_create1),
        any(libc::SYS_getrandom),
        any(libc::SYS_getcwd),
        // A thread for the umask with which the socket's file is made, if other users are allowed.
        any(libc::SYS_clone),
        any(libc::SYS_clone3),
        any(libc::SYS_set_robust_list),
        any(libc::SYS_rseq),
        any(libc::SYS_prctl).with(0, libc::PR_SET_NAME as u32),
        any(libc::SYS_sched_getaffinity),
        any(libc::SYS_gettid),
    ];

    /// The system calls that [`state`](Self::state) makes, for a seccomp filter of the thread that takes snapshots:
    /// those that read windows, of the locks and of the allocator. What the logger makes has to be added.
    pub const STATE_SYSCALLS: &'static [Syscall] = &[
        any(libc::SYS_pread64),
        // A link may have ended meanwhile.
        any(libc::SYS_close),
        IS_OPEN,
        any(libc::SYS_futex),
        any(libc::SYS_brk),
        any(libc::SYS_mmap),
        any(libc::SYS_munmap),
        any(libc::SYS_mremap),
        any(libc::SYS_mprotect),
        any(libc::SYS_madvise),
    ];
}

impl Fabric {
    /// The system calls that [`run`](Self::run) makes: those of its own, of the allocator and of thread exit. What the
    /// host and the logger make has to be added: of a [`Host`](crate::Host) that does what it must with ioctls, ioctl with its
    /// requests (KVM_SET_USER_MEMORY_REGION, KVM_IOEVENTFD, KVM_IRQFD).
    pub const SYSCALLS: &'static [Syscall] = &[
        // The loop.
        #[cfg(target_arch = "x86_64")]
        any(libc::SYS_epoll_wait),
        any(libc::SYS_epoll_pwait),
        any(libc::SYS_epoll_ctl),
        any(libc::SYS_clock_gettime),
        any(libc::SYS_restart_syscall),
        // Connections and descriptors in them. (83 is SO_PASSRIGHTS.)
        any(libc::SYS_socket).with(0, libc::AF_UNIX as u32),
        any(libc::SYS_bind),
        any(libc::SYS_listen),
        any(libc::SYS_connect),
        any(libc::SYS_accept4),
        any(libc::SYS_getsockopt).with(2, libc::SO_PEERCRED as u32),
        any(libc::SYS_getsockopt).with(2, libc::SO_PEERGROUPS as u32),
        any(libc::SYS_getsockopt).with(2, libc::SO_MEMINFO as u32),
        any(libc::SYS_setsockopt).with(2, 83),
        any(libc::SYS_shutdown),
        any(libc::SYS_geteuid),
        any(libc::SYS_sendmsg),
        any(libc::SYS_recvmsg),
        any(libc::SYS_recvfrom),
        any(libc::SYS_close),
        IS_OPEN,
        // What kind of descriptor one is: the name of /proc/self/fd/N.
        #[cfg(target_arch = "x86_64")]
        any(libc::SYS_readlink),
        any(libc::SYS_readlinkat),
        // The socket's file: it is removed, and made if the path was in use at first or somebody has removed it.
        any(libc::SYS_statx),
        #[cfg(target_arch = "x86_64")]
        any(libc::SYS_lstat),
        #[cfg(target_arch = "x86_64")]
        any(libc::SYS_unlink),
        any(libc::SYS_unlinkat),
        any(libc::SYS_unshare).with(0, libc::CLONE_FS as u32),
        any(libc::SYS_umask),
        // Folders of peers.
        #[cfg(target_arch = "x86_64")]
        any(libc::SYS_stat),
        #[cfg(target_arch = "x86_64")]
        any(libc::SYS_open),
        any(libc::SYS_inotify_init1),
        any(libc::SYS_inotify_add_watch),
        any(libc::SYS_inotify_rm_watch),
        any(libc::SYS_openat),
        any(libc::SYS_getdents64),
        // Windows.
        any(libc::SYS_prlimit64).with(1, libc::RLIMIT_FSIZE),
        any(libc::SYS_memfd_create),
        any(libc::SYS_ftruncate),
        any(libc::SYS_fcntl).with(1, libc::F_ADD_SEALS as u32),
        any(libc::SYS_fcntl).with(1, libc::F_GET_SEALS as u32),
        any(libc::SYS_fcntl).with(1, libc::F_GETFL as u32),
        any(libc::SYS_fcntl).with(1, libc::F_DUPFD_CLOEXEC as u32),
        any(libc::SYS_fstat),
        any(libc::SYS_newfstatat),
        any(libc::SYS_fstatfs),
        any(libc::SYS_mmap),
        any(libc::SYS_munmap),
        // Vectors' eventfds; the log.
        any(libc::SYS_eventfd2),
        any(libc::SYS_read),
        any(libc::SYS_write),
        // The lock, the allocator, the thread's end.
        any(libc::SYS_futex),
        any(libc::SYS_brk),
        any(libc::SYS_mremap),
        any(libc::SYS_mprotect),
        any(libc::SYS_madvise),
        any(libc::SYS_sched_yield),
        any(libc::SYS_rt_sigprocmask),
        any(libc::SYS_rt_sigreturn),
        any(libc::SYS_sigaltstack),
        any(libc::SYS_exit),
    ];
}

impl Reaper {
    /// The system calls that [`run`](Self::run) makes, on its thread and those that it starts, which inherit its filter:
    /// those of closing, of starting and ending threads, and of the allocator. What the logger makes has to be added.
    pub const SYSCALLS: &'static [Syscall] = &[
        any(libc::SYS_close),
        IS_OPEN,
        // glibc looks how many processors there are when a thread allocates for the first time.
        any(libc::SYS_openat).with(2, libc::O_CLOEXEC as u32),
        any(libc::SYS_read),
        // The clock, for a thread that could not be started.
        any(libc::SYS_clock_gettime),
        // Threads.
        any(libc::SYS_clone),
        any(libc::SYS_clone3),
        any(libc::SYS_set_robust_list),
        any(libc::SYS_rseq),
        any(libc::SYS_prctl).with(0, libc::PR_SET_NAME as u32),
        any(libc::SYS_sched_getaffinity),
        any(libc::SYS_gettid),
        any(libc::SYS_rt_sigprocmask),
        any(libc::SYS_rt_sigreturn),
        any(libc::SYS_sigaltstack),
        any(libc::SYS_exit),
        // The lock, the allocator, the stacks.
        any(libc::SYS_futex),
        any(libc::SYS_brk),
        any(libc::SYS_mmap),
        any(libc::SYS_munmap),
        any(libc::SYS_mremap),
        any(libc::SYS_mprotect),
        any(libc::SYS_madvise),
        any(libc::SYS_sched_yield),
    ];
}
