// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The filter's listener, on which calls are heard and answered, and its way from the program to the supervisor.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

const fn ioctl_number(direction: u64, number: u64, size: usize) -> u64 {
    direction << 30 | (size as u64) << 16 | (b'!' as u64) << 8 | number
}
const NOTIF_RECV: u64 = ioctl_number(3, 0, size_of::<libc::seccomp_notif>());
const NOTIF_SEND: u64 = ioctl_number(3, 1, size_of::<libc::seccomp_notif_resp>());
const NOTIF_ADDFD: u64 = ioctl_number(1, 3, size_of::<libc::seccomp_notif_addfd>());
const NOTIF_SET_FLAGS: u64 = ioctl_number(1, 4, size_of::<u64>());
const USER_NOTIF_FLAG_CONTINUE: u32 = 1;
const FD_SYNC_WAKE_UP: u64 = 1;

/// A filter's listener.
pub(super) struct Listener(OwnedFd);

impl Listener {
    /// Takes the listener for what it is.
    pub(super) fn new(fd: OwnedFd) -> Self {
        // SAFETY: takes no pointers. Who calls makes room for us at once: a signal that comes before we have the
        // call ends it with EINTR. Linux before 6.6 does not know it, and does without.
        unsafe { libc::ioctl(fd.as_raw_fd(), NOTIF_SET_FLAGS as _, FD_SYNC_WAKE_UP) };
        Listener(fd)
    }

    /// Its descriptor.
    pub(super) fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Takes the next call to `call`, which has to be all zeroes.
    ///
    /// # Safety
    /// `call` is valid for writes.
    pub(super) unsafe fn receive(&self, call: *mut libc::seccomp_notif) -> io::Result<()> {
        // SAFETY: the kernel writes a notification, for which the caller says that there is room.
        succeeded(unsafe { libc::ioctl(self.as_raw_fd(), NOTIF_RECV as _, call) }).map(drop)
    }

    /// Puts a descriptor into the caller of `id`, to be closed on exec or not, and gives its number there. The call still
    /// wants an answer: Linux could do both at once, but if we were killed while it does, the call would give 0.
    pub(super) fn add(&self, id: u64, fd: BorrowedFd<'_>, cloexec: bool) -> io::Result<RawFd> {
        let answer = libc::seccomp_notif_addfd {
            id,
            flags: 0,
            srcfd: fd.as_raw_fd() as u32,
            newfd: 0,
            newfd_flags: if cloexec { libc::O_CLOEXEC as u32 } else { 0 },
        };
        // SAFETY: the structure is alive during the call and of the size that the number says.
        succeeded(unsafe { libc::ioctl(self.as_raw_fd(), NOTIF_ADDFD as _, &raw const answer) })
    }

    /// Has the call give `value`. If the caller is gone there is nobody to answer.
    pub(super) fn answer(&self, id: u64, value: RawFd) {
        self.send(libc::seccomp_notif_resp {
            id,
            val: value.into(),
            error: 0,
            flags: 0,
        });
    }

    /// Lets the call go on as if nobody had looked at it. If the caller is gone there is nobody to answer.
    pub(super) fn go_on(&self, id: u64) {
        self.send(libc::seccomp_notif_resp {
            id,
            val: 0,
            error: 0,
            flags: USER_NOTIF_FLAG_CONTINUE,
        });
    }

    fn send(&self, mut answer: libc::seccomp_notif_resp) {
        // SAFETY: the structure is alive during the call and of the size that the number says.
        unsafe { libc::ioctl(self.as_raw_fd(), NOTIF_SEND as _, &raw mut answer) };
    }
}

fn succeeded(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
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

/// Sends the listener through `channel`.
pub(super) fn send(channel: &UnixStream, listener: &OwnedFd) -> io::Result<()> {
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
            let data = libc::CMSG_DATA(header).cast::<RawFd>();
            data.write_unaligned(listener.as_raw_fd());
            libc::sendmsg(channel.as_raw_fd(), message, libc::MSG_NOSIGNAL)
        }
    });
    if sent < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Receives what [`send`] sends.
pub(super) fn receive(channel: &UnixStream) -> io::Result<OwnedFd> {
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
