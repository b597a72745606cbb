// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The supervisor's processes: how they come to be without the program's knowing, and what they have no part in.

use std::io;
use std::os::fd::RawFd;

/// The most that a command line may say of us.
const TITLE: &str = "ivsmc-guest: supervisor of process";
/// What a supervisor is called in /proc/PID/comm.
const NAME: &std::ffi::CStr = c"ivsmc-supervise";

/// Who a new process is, as `fork()` tells.
pub(super) enum Fork {
    /// The one that was there.
    Parent(libc::pid_t),
    /// The new one.
    Child,
}

/// Makes a process, with `flags` for clone(), of which the lowest byte is the signal at its end.
fn clone(flags: libc::c_int) -> io::Result<Fork> {
    // SAFETY: without a stack of its own the new process goes on with a copy of this one's. All of our processes have
    // one thread, so that nothing is left half-done in it.
    match unsafe { libc::syscall(libc::SYS_clone, flags as libc::c_long, 0, 0, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        child => Ok(Fork::Parent(child as libc::pid_t)),
    }
}

/// Makes a child.
pub(super) fn fork() -> io::Result<Fork> {
    clone(libc::SIGCHLD)
}

/// Makes a process that has this one's parent.
pub(super) fn fork_sibling() -> io::Result<Fork> {
    clone(libc::CLONE_PARENT | libc::SIGCHLD)
}

/// Makes a process of which this one, and what it becomes, does not get to know: it belongs to whoever takes orphans in.
pub(super) fn fork_stranger() -> io::Result<Fork> {
    if takes_orphans_in() {
        // Then it would come back to us. wait() does not see children that are not to tell of their end.
        return clone(0);
    }
    match fork()? {
        Fork::Child => match fork() {
            Ok(Fork::Child) => Ok(Fork::Child),
            Ok(Fork::Parent(_)) => exit(0),
            Err(error) => exit(error.raw_os_error().unwrap_or(1)),
        },
        Fork::Parent(child) => match wait(child)? {
            0 => Ok(Fork::Parent(child)),
            code => Err(io::Error::from_raw_os_error(code)),
        },
    }
}

/// Whether orphans become this process's children: the first one's of a container, or one's that has asked for it.
fn takes_orphans_in() -> bool {
    let mut subreaper: libc::c_int = 0;
    // SAFETY: `subreaper` is alive during the call; the other calls take no pointers.
    unsafe {
        libc::prctl(libc::PR_GET_CHILD_SUBREAPER, &raw mut subreaper);
        subreaper != 0 || libc::getpid() == 1
    }
}

/// Waits for a child's end; gives its exit status, or 128 and more for a signal.
pub(super) fn wait(child: libc::pid_t) -> io::Result<i32> {
    let mut status = 0;
    loop {
        // SAFETY: `status` is alive during the call.
        if unsafe { libc::waitpid(child, &raw mut status, 0) } >= 0 {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    Ok(if libc::WIFEXITED(status) {
        libc::WEXITSTATUS(status)
    } else {
        128 + libc::WTERMSIG(status)
    })
}

/// Has the orphans among this process's descendants become its children.
pub(super) fn adopt() {
    // SAFETY: takes no pointers.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
}

/// Has this process killed when its parent ends.
pub(super) fn end_with_parent() {
    // SAFETY: takes no pointers.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
}

/// Kills a child that has not been waited for.
pub(super) fn kill(child: libc::pid_t) {
    // SAFETY: takes no pointers.
    unsafe { libc::kill(child, libc::SIGKILL) };
}

/// Ends this process without running what the caller registered.
pub(super) fn exit(code: i32) -> ! {
    // SAFETY: takes no pointers.
    unsafe { libc::_exit(code) }
}

/// Takes no part any more in what the program's processes share: signals, terminal, descriptors, folder.
pub(super) fn detach(keep: RawFd, program: libc::pid_t) {
    // SAFETY: `all` is alive during the calls; the other calls take no pointers, or a string that is there for good.
    unsafe {
        // What stops a service goes to all its processes, and the program may need some time, and sockets, to stop.
        let mut all = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
        libc::setsid();
        libc::prctl(libc::PR_SET_NAME, NAME.as_ptr());
    }
    // What is inherited may be a pipe whose other end waits for its end.
    close_all_but(keep);
    raise_descriptor_limit();
    // All best effort. That no file system is kept busy; that the program does not lose us where memory is short, which
    // takes CAP_SYS_RESOURCE; that a search for the program's command line does not find us.
    let _ = std::env::set_current_dir("/");
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    set_title(&format!("{TITLE} {program}"));
    // Last, as /proc/self belongs to root from now on: a program that confines itself does not get out through us.
    // SAFETY: takes no pointers.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
}

/// Has this process come before all others for the moment that it takes to answer a call, where that is allowed
/// (CAP_SYS_NICE, RLIMIT_RTPRIO). A signal that comes while a call waits for us ends it with EINTR. Who calls pays with
/// as much time of its own share.
pub(super) fn hurry() {
    // SAFETY: `lowest` is alive during the call; the other calls take no pointers.
    unsafe {
        let lowest = libc::sched_param {
            sched_priority: libc::sched_get_priority_min(libc::SCHED_FIFO),
        };
        // A priority that the program was given is ours already.
        if libc::sched_getscheduler(0) == libc::SCHED_OTHER {
            let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
            libc::sched_setscheduler(0, policy, &raw const lowest);
        }
    }
}

fn close_all_but(keep: RawFd) {
    let ranges = [(0, keep - 1), (keep + 1, RawFd::MAX)];
    for (first, last) in ranges.into_iter().filter(|(first, last)| first <= last) {
        // SAFETY: closes descriptors that nothing in this process uses any more.
        if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } < 0 {
            // An outer filter may not know the call.
            // SAFETY: takes no pointers.
            let open = unsafe { libc::sysconf(libc::_SC_OPEN_MAX) };
            for fd in first..=last.min(open as RawFd) {
                // SAFETY: as above.
                unsafe { libc::close(fd) };
            }
        }
    }
}

/// A program may be given few descriptors on purpose; we need some, too.
fn raise_descriptor_limit() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is alive during the calls.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

/// Puts `title` where this process's arguments were.
fn set_title(title: &str) {
    let Ok(stat) = std::fs::read_to_string("/proc/self/stat") else {
        return;
    };
    let Some([start, end]) = argument_area(&stat) else {
        return;
    };
    let bytes = title.bytes().chain(std::iter::repeat(0));
    // The last byte stays the end of a string.
    for (at, byte) in (start..end.saturating_sub(1)).zip(bytes) {
        // SAFETY: the kernel says that these are the process's arguments, which are writable and which nothing in
        // this process reads any more.
        unsafe { (at as *mut u8).write_volatile(byte) };
    }
}

/// Where the arguments begin and end, the 48th and 49th field of /proc/PID/stat.
fn argument_area(stat: &str) -> Option<[usize; 2]> {
    // The second field, a name in parentheses, can have anything in it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(45);
    let mut next = || fields.next()?.parse().ok().filter(|&address| address != 0);
    Some([next()?, next()?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_found() {
        let numbers: Vec<_> = (4..=52).map(|number| number.to_string()).collect();
        let stat = format!("1 (a) b (c) S {}", numbers.join(" "));
        assert_eq!(argument_area(&stat), Some([48, 49]));
        assert_eq!(argument_area("1 (a) S 1 2"), None);
        assert_eq!(argument_area(""), None);
        let own = std::fs::read_to_string("/proc/self/stat").unwrap();
        let [start, end] = argument_area(&own).unwrap();
        let line = std::fs::read("/proc/self/cmdline").unwrap();
        assert_eq!(end - start, line.len());
    }
}
