// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Processes and signals.

use super::{Fd, Out, out, signal_name};
use std::cell::Cell;

thread_local! {
    /// Signals that this thread has handled since they were last asked for: a bit each. SIGPIPE comes to the thread that
    /// sends.
    static HANDLED: Cell<u32> = const { Cell::new(0) };
}

extern "C" fn note(signal: libc::c_int) {
    HANDLED.set(HANDLED.get() | 1 << signal);
}

/// Has a signal noted, and interrupted calls go on after it or not.
pub fn handle(signal: i32, restart: bool) -> Out {
    // SAFETY: the handler does nothing but set a bit.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let handler: extern "C" fn(libc::c_int) = note;
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = if restart { libc::SA_RESTART } else { 0 };
        out(libc::sigaction(
            signal,
            &raw const action,
            std::ptr::null_mut(),
        ))
    }
}

/// Has a signal do what it does by default.
pub fn default_action(signal: i32) {
    // SAFETY: sets no handler.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

/// The signals that have been handled, and forgets them: "+SIGPIPE". Those that cases interrupt calls with are not told.
pub fn handled() -> String {
    let bits = HANDLED.replace(0) & !(1 << libc::SIGUSR1 | 1 << libc::SIGALRM);
    (1..32)
        .filter(|signal| bits & 1 << signal != 0)
        .map(|signal| format!("+{}", signal_name(signal)))
        .collect()
}

/// The calling thread's number.
pub fn thread_id() -> i32 {
    // SAFETY: takes no pointers.
    unsafe { libc::gettid() }
}

/// Signals a thread of this process.
pub fn signal_thread(thread: i32, signal: i32) -> Out {
    // SAFETY: takes no pointers.
    out(unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal) })
}

/// Signals a process.
pub fn kill(process: i32, signal: i32) -> Out {
    // SAFETY: takes no pointers.
    out(unsafe { libc::kill(process, signal) })
}

/// Kills a group of processes.
pub fn kill_group(group: i32) {
    // SAFETY: takes no pointers. It may be gone.
    unsafe { libc::kill(-group, libc::SIGKILL) };
}

/// `fork()`
pub fn fork() -> Out {
    // SAFETY: the child calls what it likes, as this program has no locks that another thread could hold but
    // the allocator's, which glibc looks after.
    out(unsafe { libc::fork() })
}

/// Ends the process at once.
pub fn exit(status: i32) -> ! {
    // SAFETY: takes no pointers.
    unsafe { libc::_exit(status) }
}

/// Waits for a child: how it ended.
pub fn wait(process: i32) -> String {
    let mut status = 0;
    // SAFETY: the status is alive during the call.
    let waited = unsafe { libc::waitpid(process, &raw mut status, 0) };
    match out(waited) {
        Err(error) => error.to_string(),
        Ok(_) if libc::WIFSIGNALED(status) => signal_name(libc::WTERMSIG(status)),
        Ok(_) => format!("exit {}", libc::WEXITSTATUS(status)),
    }
}

/// Waits until a child has ended, and leaves it to be waited for.
pub fn wait_without_reaping(process: i32) {
    // SAFETY: the information is alive during the call.
    unsafe {
        let mut information: libc::siginfo_t = std::mem::zeroed();
        libc::waitid(
            libc::P_PID,
            process as libc::id_t,
            &raw mut information,
            libc::WEXITED | libc::WNOWAIT,
        );
    }
}

/// A new, empty network namespace.
pub fn new_network() -> Out {
    // SAFETY: takes no pointers.
    out(unsafe { libc::unshare(libc::CLONE_NEWNET) })
}

/// Goes (back) to a network namespace.
pub fn enter_network(fd: Fd) -> Out {
    // SAFETY: takes no pointers.
    out(unsafe { libc::setns(fd, libc::CLONE_NEWNET) })
}

/// Brings the loopback interface up.
pub fn loopback_up() -> Out {
    let fd = super::socket(libc::AF_INET, libc::SOCK_DGRAM, 0)? as Fd;
    // SAFETY: a request that is all zero is empty; it is alive during the call.
    let done = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
        out(libc::ioctl(fd, libc::SIOCSIFFLAGS, &raw const request))
    };
    super::close(fd)?;
    done
}

/// Opens a file to read it.
pub fn open(path: &std::ffi::CStr) -> Out {
    // SAFETY: the path is a C string.
    out(unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) })
}

/// `io_uring_setup()` of a ring that nobody uses.
pub fn io_uring_setup() -> Out {
    let mut parameters = [0u8; 120];
    // SAFETY: the parameters are alive during the call and as large as the kernel's.
    out(unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) })
}

/// Has SIGALRM come again and again, or no more (0).
pub fn alarm_every(microseconds: i64) -> Out {
    let interval = libc::timeval {
        tv_sec: 0,
        tv_usec: microseconds,
    };
    let timer = libc::itimerval {
        it_interval: interval,
        it_value: interval,
    };
    // SAFETY: the timer is alive during the call, and where the old one goes is not said.
    out(unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) })
}
