// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Runs a program so that its TCP sockets become SMC sockets, and those of its children too.
//!
//! A seccomp filter hands every `socket()` call that asks for TCP to a supervisor, which opens an SMC
//! socket and puts that into the program instead. Programs need not be dynamically linked, nor know
//! of it. Where SMC cannot be had the call goes on as it was, and the program has its TCP socket.
//!
//! The supervisor is a process of its own, detached from everything, which ends when the last process
//! under the filter has ended. The program takes the place of the caller: its process ID, its parent,
//! its exit status and its signals are what they would be without us.
//!
//! Sockets opened through io_uring do not pass seccomp and stay TCP.

use crate::IPPROTO_SMC;
use std::ffi::OsString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xc000_00b7;

/// Offsets in the kernel's `struct seccomp_data`; of an argument, its lower half (little-endian).
mod data {
    pub(super) const NUMBER: u32 = 0;
    pub(super) const ARCH: u32 = 4;
    pub(super) const DOMAIN: u32 = 16;
    pub(super) const TYPE: u32 = 24;
    pub(super) const PROTOCOL: u32 = 32;
}

/// The bits of a socket's type that are not flags.
const SOCKET_TYPE_MASK: u32 = 0xf;

/// Why a program could not be run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The supervisor could not be set up.
    #[error("cannot set up the supervisor: {0}")]
    Supervisor(io::Error),
    /// The filter could not be installed.
    #[error("cannot install the seccomp filter: {0}{hint}", hint = filter_hint(.0))]
    Filter(io::Error),
    /// The program could not be executed.
    #[error("cannot run {program:?}: {source}")]
    Execute {
        /// The program's name.
        program: OsString,
        /// What the kernel said.
        source: io::Error,
    },
}

fn filter_hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EBUSY) => {
            ": another supervisor watches this process already; is this ivsmc-guest run within \
             ivsmc-guest run? Once is enough"
        }
        Some(libc::ENOSYS | libc::EINVAL) => ": the kernel needs CONFIG_SECCOMP_FILTER",
        _ => "",
    }
}

/// Becomes `program`, with its TCP sockets made SMC sockets; comes back only with an error.
pub fn run(program: &OsString, arguments: &[OsString]) -> Error {
    match prepare() {
        Ok(()) => Error::Execute {
            program: program.clone(),
            source: Command::new(program).args(arguments).exec(),
        },
        Err(error) => error,
    }
}

/// Starts the supervisor and puts this process under the filter.
fn prepare() -> Result<(), Error> {
    let (ours, theirs) = UnixStream::pair().map_err(Error::Supervisor)?;
    // SAFETY: this process has one thread, so the child may do anything.
    match unsafe { libc::fork() } {
        -1 => return Err(Error::Supervisor(io::Error::last_os_error())),
        0 => detach_and_supervise(&theirs),
        child => reap(child).map_err(Error::Supervisor)?,
    }
    let listener = install_filter().map_err(Error::Filter)?;
    send_descriptor(&ours, listener.as_raw_fd()).map_err(Error::Supervisor)
}

/// Waits for the process between us and the supervisor, so that the program finds no unknown child.
fn reap(child: libc::pid_t) -> io::Result<()> {
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
    if libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0 {
        Ok(())
    } else {
        Err(io::Error::other("fork failed"))
    }
}

/// The supervisor's life, from the first fork on.
fn detach_and_supervise(channel: &UnixStream) -> ! {
    // SAFETY: none of these takes pointers; this process has one thread.
    unsafe {
        libc::setsid();
        match libc::fork() {
            -1 => libc::_exit(1),
            0 => {}
            _ => libc::_exit(0),
        }
    }
    // What is inherited may be a pipe whose other end waits for its end.
    let keep = channel.as_raw_fd();
    close_range(0, keep - 1);
    close_range(keep + 1, RawFd::MAX);
    // Best effort: only so that no file system is kept busy.
    let _ = std::env::set_current_dir("/");
    let done = receive_descriptor(channel).and_then(|listener| supervise(&listener));
    // SAFETY: ends this process without running what the caller registered.
    unsafe { libc::_exit(i32::from(done.is_err())) }
}

fn close_range(first: RawFd, last: RawFd) {
    if first <= last {
        // SAFETY: closes descriptors that nothing in this process uses any more.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    }
}

/// The filter: hand over `socket()` for a TCP socket, allow everything else.
fn filter() -> Vec<libc::sock_filter> {
    let load = |offset| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset);
    let give = |action| statement(libc::BPF_RET | libc::BPF_K, action);
    let equals = |value, yes, no| jump(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, yes, no);
    // Jump distances count from the next instruction; ALLOW is 13, NOTIFY is 14.
    vec![
        load(data::ARCH),
        equals(AUDIT_ARCH, 0, 11),
        load(data::NUMBER),
        equals(libc::SYS_socket as u32, 0, 9),
        load(data::DOMAIN),
        equals(libc::AF_INET as u32, 1, 0),
        equals(libc::AF_INET6 as u32, 0, 6),
        load(data::TYPE),
        statement(
            libc::BPF_ALU | libc::BPF_AND | libc::BPF_K,
            SOCKET_TYPE_MASK,
        ),
        equals(libc::SOCK_STREAM as u32, 0, 3),
        load(data::PROTOCOL),
        equals(0, 2, 0),
        equals(libc::IPPROTO_TCP as u32, 1, 0),
        give(libc::SECCOMP_RET_ALLOW),
        give(libc::SECCOMP_RET_USER_NOTIF),
    ]
}

fn statement(code: u32, k: u32) -> libc::sock_filter {
    jump(code, k, 0, 0)
}

fn jump(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    }
}

/// Puts this process and all that it becomes or starts under the filter; gives the listener.
fn install_filter() -> io::Result<OwnedFd> {
    let mut filter = filter();
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    let install = || {
        // SAFETY: the program and its instructions are alive during the call.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
                &raw const program,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor, and nobody else has it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
    };
    match install() {
        // Without the privilege the kernel wants no_new_privs first. It is not set needlessly,
        // because it keeps set-user-ID programs from working.
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
            // SAFETY: takes no pointers.
            if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } < 0 {
                return Err(io::Error::last_os_error());
            }
            install()
        }
        other => other,
    }
}

/// Room for one descriptor in a control message, aligned as the kernel wants it.
#[repr(C, align(8))]
struct Control([u8; 64]);

fn with_message<R>(control: &mut Control, call: impl FnOnce(&mut libc::msghdr) -> R) -> R {
    let mut byte = 0u8;
    let mut part = libc::iovec {
        iov_base: (&raw mut byte).cast(),
        iov_len: 1,
    };
    // SAFETY: all zeroes is a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len() as _;
    call(&mut message)
}

fn send_descriptor(channel: &UnixStream, fd: RawFd) -> io::Result<()> {
    let mut control = Control([0; 64]);
    let sent = with_message(&mut control, |message| {
        // SAFETY: the control buffer has room for one header and one descriptor; `message` and what
        // it points to are alive during the call.
        unsafe {
            message.msg_controllen = libc::CMSG_SPACE(size_of::<RawFd>() as u32) as _;
            let header = libc::CMSG_FIRSTHDR(message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as _;
            libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(fd);
            libc::sendmsg(channel.as_raw_fd(), message, 0)
        }
    });
    if sent < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn receive_descriptor(channel: &UnixStream) -> io::Result<OwnedFd> {
    let mut control = Control([0; 64]);
    with_message(&mut control, |message| {
        // SAFETY: `message` and what it points to are alive during the calls; the kernel wrote the
        // control message, and its descriptor is ours alone.
        unsafe {
            if libc::recvmsg(channel.as_raw_fd(), message, libc::MSG_CMSG_CLOEXEC) < 1 {
                return Err(io::Error::last_os_error());
            }
            let header = libc::CMSG_FIRSTHDR(message);
            if header.is_null() || (*header).cmsg_type != libc::SCM_RIGHTS {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            }
            Ok(OwnedFd::from_raw_fd(
                libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned(),
            ))
        }
    })
}

const fn ioctl_number(direction: u64, number: u64, size: usize) -> u64 {
    direction << 30 | (size as u64) << 16 | (b'!' as u64) << 8 | number
}
const NOTIF_RECV: u64 = ioctl_number(3, 0, size_of::<libc::seccomp_notif>());
const NOTIF_SEND: u64 = ioctl_number(3, 1, size_of::<libc::seccomp_notif_resp>());
const NOTIF_ADDFD: u64 = ioctl_number(1, 3, size_of::<libc::seccomp_notif_addfd>());
const ADDFD_FLAG_SEND: u32 = 2;
const USER_NOTIF_FLAG_CONTINUE: u32 = 1;

/// Answers calls until no process is left under the filter.
fn supervise(listener: &OwnedFd) -> io::Result<()> {
    loop {
        let mut poll = libc::pollfd {
            fd: listener.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one pollfd, alive during the call.
        if unsafe { libc::poll(&raw mut poll, 1, -1) } < 0 {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        }
        if poll.revents & libc::POLLIN == 0 {
            return Ok(());
        }
        // SAFETY: all zeroes is a valid notification, and what the kernel wants to be given.
        let mut call: libc::seccomp_notif = unsafe { MaybeUninit::zeroed().assume_init() };
        // SAFETY: the kernel writes a notification, for which there is room.
        if unsafe { libc::ioctl(listener.as_raw_fd(), NOTIF_RECV as _, &raw mut call) } < 0 {
            // The caller was killed or interrupted in between.
            continue;
        }
        // Neither answer can fail in a way that matters: if the caller is gone there is nobody to answer.
        if !give_smc_socket(listener, &call) {
            go_on(listener, call.id);
        }
    }
}

/// Answers the call with an SMC socket; false if the caller has to be answered otherwise.
fn give_smc_socket(listener: &OwnedFd, call: &libc::seccomp_notif) -> bool {
    let pid = call.pid;
    if pid == 0 || network_namespace(&pid.to_string()) != network_namespace("self") {
        return false;
    }
    let [domain, kind, ..] = call.data.args.map(|argument| argument as i32);
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, IPPROTO_SMC) };
    if fd < 0 {
        return false;
    }
    // SAFETY: `fd` was just opened and nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let answer = libc::seccomp_notif_addfd {
        id: call.id,
        flags: ADDFD_FLAG_SEND,
        srcfd: fd.as_raw_fd() as u32,
        newfd: 0,
        newfd_flags: (kind & libc::SOCK_CLOEXEC) as u32,
    };
    // SAFETY: the structure is alive during the call and of the size that the number says.
    unsafe { libc::ioctl(listener.as_raw_fd(), NOTIF_ADDFD as _, &raw const answer) >= 0 }
}

/// Lets the call go on as if nobody had looked at it.
fn go_on(listener: &OwnedFd, id: u64) {
    let mut answer = libc::seccomp_notif_resp {
        id,
        val: 0,
        error: 0,
        flags: USER_NOTIF_FLAG_CONTINUE,
    };
    // SAFETY: the structure is alive during the call and of the size that the number says.
    unsafe { libc::ioctl(listener.as_raw_fd(), NOTIF_SEND as _, &raw mut answer) };
}

/// What names the network namespace of a process, if we may know.
fn network_namespace(process: &str) -> Option<(u64, u64)> {
    let namespace = std::fs::metadata(format!("/proc/{process}/ns/net")).ok()?;
    Some((namespace.dev(), namespace.ino()))
}
