// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Unix sockets of type SOCK_SEQPACKET, and descriptors that travel through them.

#[cfg(test)]
use std::env;
use std::fs;
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use vmm_sys_util::eventfd::EventFd;

use crate::fabric::wire::{MAX_DESCRIPTORS, MAX_MESSAGE};
use crate::sys::check;
#[cfg(test)]
use crate::test_utils::OLD_KERNEL;

const BACKLOG: i32 = 64;
/// Whether descriptors may be sent to a socket (Linux 6.16).
const SO_PASSRIGHTS: i32 = 83;
/// Where SO_MEMINFO says how much that was sent is still in the other end's queue.
const SK_MEMINFO_WMEM_ALLOC: usize = 2;
/// The most supplementary groups that a process can have: the kernel's `NGROUPS_MAX`.
const MAX_GROUPS: usize = 65536;
/// What a socket can receive is a little more than the longest message, to see that one is longer.
const PACKET: usize = MAX_MESSAGE + 8;
/// Room for one control message with all descriptors, in units that are aligned as one must be.
const CONTROL: usize =
    (size_of::<libc::cmsghdr>() + MAX_DESCRIPTORS * size_of::<RawFd>()).div_ceil(size_of::<u64>());

/// A socket that does not block.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    /// Nobody can send descriptors to it, nor could until now.
    is_without_rights: bool,
}

/// One packet.
#[derive(Debug)]
pub struct Packet<D = OwnedFd> {
    bytes: [u8; PACKET],
    len: usize,
    /// The descriptors that came with it.
    pub descriptors: Vec<D>,
    /// There were more bytes than any message has, or more descriptors than there was to be room for.
    pub is_cut: bool,
    /// There were descriptors for which this process has no room.
    pub is_short: bool,
}

impl<D> Packet<D> {
    /// What is in it. Nothing: the other end has closed the connection.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Socket {
    fn new() -> io::Result<Self> {
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: plain system call; the result is checked.
        let fd = check(unsafe { libc::socket(libc::AF_UNIX, kind, 0) })?;
        // SAFETY: the descriptor is new and nobody else's.
        let mut socket = Self::from(unsafe { OwnedFd::from_raw_fd(fd) });
        socket.is_without_rights = may_block_rights() && socket.set_rights(false).is_ok();
        Ok(socket)
    }

    /// A socket at `path`, to which nobody can connect yet.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let socket = Self::new()?;
        let (address, len) = address(path)?;
        // SAFETY: the address outlives the call and is `len` long.
        check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) })?;
        Ok(socket)
    }

    /// From now on whoever may connect can.
    pub fn listen(&self) -> io::Result<()> {
        // SAFETY: plain system call on a descriptor that is open.
        check(unsafe { libc::listen(self.as_raw_fd(), BACKLOG) }).map(drop)
    }

    /// A connection to the socket that listens on `path`.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let socket = Self::new()?;
        let (address, len) = address(path)?;
        // SAFETY: the address outlives the call and is `len` long.
        check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) })?;
        Ok(socket)
    }

    /// The next connection that somebody made; `None` when there is none.
    pub fn accept(&self) -> io::Result<Option<Self>> {
        let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        let none = ptr::null_mut();
        // SAFETY: no address is asked for.
        let fd = unsafe { libc::accept4(self.as_raw_fd(), none, none.cast(), flags) };
        match check(fd) {
            Ok(fd) => Ok(Some(Socket {
                // SAFETY: the descriptor is new and nobody else's.
                fd: unsafe { OwnedFd::from_raw_fd(fd) },
                // It has that of the socket that listens.
                is_without_rights: self.is_without_rights,
            })),
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EINTR | libc::ECONNABORTED) => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// Whether nobody could ever send descriptors to it, so that closing it cannot block.
    ///
    /// From Linux 6.16 on sockets begin like that: at first the kernel refuses to send descriptors to them, also
    /// before they have been accepted.
    pub fn is_without_rights(&self) -> bool {
        self.is_without_rights
    }

    /// From now on the other end can send descriptors.
    pub fn allow_rights(&mut self) -> io::Result<()> {
        if self.is_without_rights {
            self.set_rights(true)?;
            self.is_without_rights = false;
        }
        Ok(())
    }

    fn set_rights(&self, are_allowed: bool) -> io::Result<()> {
        let value = i32::from(are_allowed);
        // SAFETY: `value` outlives the call and is as long as it says.
        check(unsafe {
            libc::setsockopt(
                self.as_raw_fd(),
                libc::SOL_SOCKET,
                SO_PASSRIGHTS,
                (&raw const value).cast(),
                size_of::<i32>() as libc::socklen_t,
            )
        })
        .map(drop)
    }

    /// Ends the connection, or the listening, without closing the socket: nothing more can be sent to it.
    pub fn shut_down(&self) {
        // SAFETY: plain system call on a descriptor that is open. It can fail only if there is no connection.
        unsafe { libc::shutdown(self.as_raw_fd(), libc::SHUT_RDWR) };
    }

    /// The user of the process at the other end, and its group: as they were when it connected, or began to listen.
    pub fn peer_user(&self) -> io::Result<(u32, u32)> {
        // SAFETY: a ucred of zeros is a valid one.
        let mut credentials: libc::ucred = unsafe { zeroed() };
        let mut len = size_of::<libc::ucred>() as libc::socklen_t;
        // SAFETY: `credentials` outlives the call and is `len` long.
        check(unsafe {
            libc::getsockopt(
                self.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                (&raw mut credentials).cast(),
                &mut len,
            )
        })?;
        Ok((credentials.uid, credentials.gid))
    }

    /// The supplementary groups of the process at the other end, of the same time.
    pub fn peer_groups(&self) -> io::Result<Vec<u32>> {
        let mut groups = vec![0u32; MAX_GROUPS];
        let mut len = size_of_val(groups.as_slice()) as libc::socklen_t;
        // SAFETY: `groups` outlives the call and is `len` long.
        check(unsafe {
            libc::getsockopt(
                self.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &mut len,
            )
        })?;
        groups.truncate(len as usize / size_of::<u32>());
        Ok(groups)
    }

    /// Whether the other end has not read all that was sent. It has if it has closed.
    pub fn has_unread(&self) -> bool {
        let mut memory = [0u32; SK_MEMINFO_WMEM_ALLOC + 1];
        let mut len = size_of_val(&memory) as libc::socklen_t;
        // SAFETY: `memory` outlives the call and is `len` long.
        let result = unsafe {
            libc::getsockopt(
                self.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_MEMINFO,
                memory.as_mut_ptr().cast(),
                &mut len,
            )
        };
        result == 0 && memory[SK_MEMINFO_WMEM_ALLOC] > 0
    }

    /// Sends one packet.
    pub fn send(&self, bytes: &[u8], descriptors: &[RawFd]) -> io::Result<()> {
        let mut control = [0u64; CONTROL];
        let size = size_of_val(descriptors) as u32;
        let mut buffer = libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        // SAFETY: a msghdr of zeros is a valid one.
        let mut header: libc::msghdr = unsafe { zeroed() };
        header.msg_iov = &mut buffer;
        header.msg_iovlen = 1;
        if !descriptors.is_empty() {
            // SAFETY: computes a size.
            let space = unsafe { libc::CMSG_SPACE(size) } as usize;
            if space > size_of_val(&control) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            header.msg_control = control.as_mut_ptr().cast();
            header.msg_controllen = space as _;
            // SAFETY: the control buffer is aligned and has room for a message with all descriptors, as was
            // just checked: so there is a first header, with `size` bytes of data behind it.
            unsafe {
                let message = libc::CMSG_FIRSTHDR(&header);
                (*message).cmsg_level = libc::SOL_SOCKET;
                (*message).cmsg_type = libc::SCM_RIGHTS;
                (*message).cmsg_len = libc::CMSG_LEN(size) as _;
                let data = libc::CMSG_DATA(message);
                ptr::copy_nonoverlapping(descriptors.as_ptr().cast(), data, size as usize);
            }
        }
        // SAFETY: the header and all that it points to outlive the call. Nothing is written to `bytes`.
        let sent = unsafe { libc::sendmsg(self.as_raw_fd(), &header, libc::MSG_NOSIGNAL) };
        if sent < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// Receives one packet, with `room` descriptors at most, each of which `guard` takes; `None` when there is none.
    ///
    /// It closes none. What there is no room for, and a packet that is too long, stay in the queue: the caller has to
    /// give the socket up.
    pub fn receive<D>(
        &self,
        room: usize,
        guard: impl Fn(OwnedFd) -> D,
    ) -> io::Result<Option<Packet<D>>> {
        // As many as fit: the kernel would use the padding that a whole number of these units has at its end.
        let mut control = [0u64; CONTROL];
        let mut packet = Packet {
            bytes: [0; PACKET],
            len: 0,
            descriptors: Vec::new(),
            is_cut: false,
            is_short: false,
        };
        let mut buffer = libc::iovec {
            iov_base: packet.bytes.as_mut_ptr().cast(),
            iov_len: PACKET,
        };
        // SAFETY: a msghdr of zeros is a valid one.
        let mut header: libc::msghdr = unsafe { zeroed() };
        header.msg_iov = &mut buffer;
        header.msg_iovlen = 1;
        let room = room.min(MAX_DESCRIPTORS);
        // SAFETY: computes a size, which is that of the buffer at most.
        let controllen = unsafe { libc::CMSG_LEN((room * size_of::<RawFd>()) as u32) };
        // The packet stays where it is, with the descriptors: those that are not taken are not closed.
        let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT | libc::MSG_PEEK;
        let received = until_settled(|| {
            if room > 0 {
                header.msg_control = control.as_mut_ptr().cast();
                header.msg_controllen = controllen as _;
            }
            // SAFETY: the header and all that it points to outlive the call.
            let received =
                check_len(unsafe { libc::recvmsg(self.as_raw_fd(), &mut header, flags) })?;
            // What is empty but has descriptors is a packet, of which no second look may take more of them.
            Ok((received > 0 || header.msg_controllen > 0).then_some(received))
        });
        let received = match received {
            Ok(received) => received,
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EINTR) => return Ok(None),
                _ => return Err(error),
            },
        };
        packet.len = received.min(PACKET);
        // SAFETY: the kernel has filled the control buffer with messages of the lengths they say, and each
        // descriptor in them is a new one of this process that nobody else knows.
        unsafe {
            let mut message = libc::CMSG_FIRSTHDR(&header);
            while let Some(&libc::cmsghdr {
                cmsg_len,
                cmsg_level,
                cmsg_type,
                ..
            }) = message.as_ref()
            {
                if cmsg_level == libc::SOL_SOCKET && cmsg_type == libc::SCM_RIGHTS {
                    let size = cmsg_len.saturating_sub(libc::CMSG_LEN(0) as usize);
                    let first: *const RawFd = libc::CMSG_DATA(message).cast();
                    for n in 0..size / size_of::<RawFd>() {
                        let fd = first.add(n).read_unaligned();
                        packet.descriptors.push(guard(OwnedFd::from_raw_fd(fd)));
                    }
                }
                message = libc::CMSG_NXTHDR(&header, message);
            }
        }
        let lacks = header.msg_flags & libc::MSG_CTRUNC != 0;
        packet.is_short = lacks && packet.descriptors.len() < room;
        packet.is_cut = header.msg_flags & libc::MSG_TRUNC != 0 || lacks && !packet.is_short;
        if !packet.is_cut && !packet.is_short {
            self.take()?;
        }
        Ok(Some(packet))
    }

    /// Takes the packet that was just looked at out of the queue. This end has all its descriptors by now, so that
    /// none is closed for good.
    fn take(&self) -> io::Result<()> {
        let mut byte = 0u8;
        let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
        let mut take = || {
            // SAFETY: the buffer outlives the call and is as long as it says.
            check_len(unsafe { libc::recv(self.as_raw_fd(), (&raw mut byte).cast(), 1, flags) })
        };
        match take() {
            // The other end has closed since it was looked at: the packet is still there, and what follows it.
            Err(error) if error.raw_os_error() == Some(libc::ECONNRESET) => take().map(drop),
            other => other.map(drop),
        }
    }
}

impl From<OwnedFd> for Socket {
    fn from(fd: OwnedFd) -> Self {
        Socket {
            fd,
            is_without_rights: false,
        }
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// A descriptor as an eventfd, which it should be.
pub fn into_eventfd(descriptor: OwnedFd) -> EventFd {
    // SAFETY: the descriptor is open, and given up by its owner.
    unsafe { EventFd::from_raw_fd(descriptor.into_raw_fd()) }
}

/// Whether a descriptor is an eventfd. A file is not asked, for that may block: the kernel has a name for each kind of
/// descriptor that is no file, and no file has such a name. Where there is no /proc nobody can tell; then
/// [`Host::set_doorbell`](crate::Host::set_doorbell) does.
pub fn may_be_eventfd(descriptor: &impl AsRawFd) -> bool {
    match fs::read_link(format!("/proc/self/fd/{}", descriptor.as_raw_fd())) {
        Ok(name) => name.as_os_str() == "anon_inode:[eventfd]",
        Err(_) => true,
    }
}

/// The user of this process.
pub fn own_user() -> u32 {
    // SAFETY: it cannot fail.
    unsafe { libc::geteuid() }
}

/// Sockets begin without rights. (Tests play an older kernel.)
#[cfg(not(test))]
fn may_block_rights() -> bool {
    true
}

#[cfg(test)]
fn may_block_rights() -> bool {
    env::var_os(OLD_KERNEL).is_none()
}

fn address(path: &Path) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    // SAFETY: an address of zeros is a valid one.
    let mut address: libc::sockaddr_un = unsafe { zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let path = path.as_os_str().as_bytes();
    if path.len() >= address.sun_path.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in address.sun_path.iter_mut().zip(path) {
        *to = *from as libc::c_char;
    }
    Ok((address, size_of::<libc::sockaddr_un>() as libc::socklen_t))
}

/// Looks for a packet again where the kernel may have said that the other end has closed although there is one.
///
/// That is so if it has not read all itself: the reset comes before what it said, perhaps why. And if it has said
/// something and closed after the kernel had looked for a packet, but before it looked for the end. Each happens once.
fn until_settled(mut look: impl FnMut() -> io::Result<Option<usize>>) -> io::Result<usize> {
    for _ in 0..2 {
        match look() {
            Ok(None) => {}
            Err(error) if error.raw_os_error() == Some(libc::ECONNRESET) => {}
            other => return other.map(Option::unwrap_or_default),
        }
    }
    look().map(Option::unwrap_or_default)
}

fn check_len(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fabric::socket_file::SocketFile;
    use std::fs::File;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    fn receive(socket: &Socket) -> io::Result<Option<Packet>> {
        socket.receive(MAX_DESCRIPTORS, |fd| fd)
    }

    fn pair() -> (Socket, Socket, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let (listener, _file) = SocketFile::listen(&path, false).unwrap();
        let one = Socket::connect(&path).unwrap();
        let mut other = listener.accept().unwrap().unwrap();
        other.allow_rights().unwrap();
        (one, other, folder)
    }

    #[test]
    fn packets_and_descriptors() {
        let (one, other, _folder) = pair();
        assert!(receive(&other).unwrap().is_none());
        let file = File::open("/dev/null").unwrap();
        one.send(b"first", &[file.as_raw_fd(); MAX_DESCRIPTORS])
            .unwrap();
        one.send(&[7; MAX_MESSAGE], &[]).unwrap();
        let first = receive(&other).unwrap().unwrap();
        assert_eq!((first.bytes(), first.is_cut), (&b"first"[..], false));
        assert_eq!(first.descriptors.len(), MAX_DESCRIPTORS);
        let second = receive(&other).unwrap().unwrap();
        assert_eq!(
            (second.bytes(), second.is_cut),
            (&[7; MAX_MESSAGE][..], false)
        );
        assert!(second.descriptors.is_empty());
        assert_eq!(other.peer_user().unwrap().0, own_user());
        other.peer_groups().unwrap();
        drop(one);
        assert!(receive(&other).unwrap().unwrap().bytes().is_empty());
    }

    /// The reason with which the other end had closed got lost.
    #[test]
    fn what_was_said_before_a_close_can_be_read_whenever_that_comes() {
        let (mut one, other, _folder) = pair();
        one.allow_rights().unwrap();
        other.send(b"first", &[]).unwrap();
        other.send(b"why", &[]).unwrap();
        // It closes without having read this, which makes the connection one that was reset.
        one.send(b"unread", &[]).unwrap();
        drop(other);
        // The same as when that happens between looking at a packet and taking it.
        one.take().unwrap();
        assert_eq!(receive(&one).unwrap().unwrap().bytes(), b"why");
        assert!(receive(&one).unwrap().unwrap().bytes().is_empty());
    }

    /// The reason got lost, now and then, when the other end closed while this one looked.
    #[test]
    fn an_end_is_looked_behind() {
        let reset = || Err(io::Error::from_raw_os_error(libc::ECONNRESET));
        let settled = |script: Vec<io::Result<Option<usize>>>| {
            let mut script = script.into_iter();
            until_settled(|| script.next().unwrap()).unwrap()
        };
        assert_eq!(settled(vec![Ok(Some(3))]), 3);
        assert_eq!(settled(vec![Ok(None), Ok(Some(3))]), 3);
        assert_eq!(settled(vec![reset(), Ok(Some(3))]), 3);
        assert_eq!(settled(vec![Ok(None), reset(), Ok(Some(3))]), 3);
        assert_eq!(settled(vec![Ok(None), Ok(None), Ok(None)]), 0);
    }

    #[test]
    fn descriptors_without_a_byte_are_taken_once() {
        let (one, other, _folder) = pair();
        let (mut kept, sent) = UnixStream::pair().unwrap();
        one.send(b"", &[sent.as_raw_fd()]).unwrap();
        drop(sent);
        let packet = receive(&other).unwrap().unwrap();
        assert_eq!(packet.descriptors.len(), 1);
        drop(packet);
        drop(one);
        assert!(receive(&other).unwrap().unwrap().descriptors.is_empty());
        // A copy would keep this from its end.
        kept.set_nonblocking(true).unwrap();
        assert_eq!(kept.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn what_is_too_much_is_cut() {
        let (one, other, _folder) = pair();
        one.send(&[0; 4096], &[]).unwrap();
        assert!(receive(&other).unwrap().unwrap().is_cut);
        let file = File::open("/dev/null").unwrap();
        assert!(
            one.send(b"x", &[file.as_raw_fd(); 2 * MAX_DESCRIPTORS])
                .is_err()
        );
    }
}
