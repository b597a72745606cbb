// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Unix sockets of type SOCK_SEQPACKET, and descriptors that travel through them.

use std::fs::{self, Metadata, OpenOptions, Permissions};
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::ptr;
use std::time::SystemTime;

use vmm_sys_util::eventfd::EventFd;

use crate::wire::{MAX_DESCRIPTORS, MAX_MESSAGE};

const BACKLOG: i32 = 64;
/// Who may connect if other users are allowed: all. The device looks who they are.
const FOR_ALL: u32 = 0o666;
/// What a socket can receive is a little more than the longest message, to see that one is longer.
const PACKET: usize = MAX_MESSAGE + 8;
/// Room for one control message with all descriptors, in units that are aligned as one must be.
const CONTROL: usize =
    (size_of::<libc::cmsghdr>() + MAX_DESCRIPTORS * size_of::<RawFd>()).div_ceil(size_of::<u64>());

/// A socket that does not block.
#[derive(Debug)]
pub struct Socket(OwnedFd);

/// One packet.
#[derive(Debug)]
pub struct Packet {
    bytes: [u8; PACKET],
    len: usize,
    /// The descriptors that came with it.
    pub descriptors: Vec<OwnedFd>,
    /// There was more, of bytes or of descriptors, than any message has.
    pub is_cut: bool,
    /// There were descriptors for which this process has no room.
    pub is_short: bool,
}

impl Packet {
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
        Ok(Socket(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// A socket at `path`, to which nobody can connect yet.
    fn bind(path: &Path) -> io::Result<Self> {
        let socket = Self::new()?;
        let (address, len) = address(path)?;
        // SAFETY: the address outlives the call and is `len` long.
        check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) })?;
        Ok(socket)
    }

    fn listen(&self) -> io::Result<()> {
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
            // SAFETY: the descriptor is new and nobody else's.
            Ok(fd) => Ok(Some(Socket(unsafe { OwnedFd::from_raw_fd(fd) }))),
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EINTR | libc::ECONNABORTED) => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// The user of the process at the other end.
    pub fn peer_user(&self) -> io::Result<u32> {
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
        Ok(credentials.uid)
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

    /// Receives one packet; `None` when there is none.
    pub fn receive(&self) -> io::Result<Option<Packet>> {
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
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(&control) as _;
        let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
        // SAFETY: the header and all that it points to outlive the call.
        let received = unsafe { libc::recvmsg(self.as_raw_fd(), &mut header, flags) };
        if received < 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EINTR) => Ok(None),
                _ => Err(error),
            };
        }
        packet.len = (received as usize).min(PACKET);
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
                        packet.descriptors.push(OwnedFd::from_raw_fd(fd));
                    }
                }
                message = libc::CMSG_NXTHDR(&header, message);
            }
        }
        // There was room in the buffer for as many as any message has.
        let lacks = header.msg_flags & libc::MSG_CTRUNC != 0;
        packet.is_short = lacks && packet.descriptors.len() < MAX_DESCRIPTORS;
        packet.is_cut = header.msg_flags & libc::MSG_TRUNC != 0 || lacks && !packet.is_short;
        Ok(Some(packet))
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A descriptor that should be an eventfd, as one. If it is none, the VMM finds out when it becomes a doorbell.
pub fn into_eventfd(descriptor: OwnedFd) -> EventFd {
    // SAFETY: the descriptor is open, and given up by its owner.
    unsafe { EventFd::from_raw_fd(descriptor.into_raw_fd()) }
}

/// The user of this process.
pub fn own_user() -> u32 {
    // SAFETY: it cannot fail.
    unsafe { libc::geteuid() }
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

fn check(result: i32) -> io::Result<i32> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Device, inode and birth: what tells a file from another one of the same name. (Inodes are used again soon.)
type FileIdentity = (u64, u64, Option<SystemTime>);

fn identity(path: &Path) -> io::Result<FileIdentity> {
    fs::symlink_metadata(path).map(|metadata| identity_of(&metadata))
}

fn identity_of(metadata: &Metadata) -> FileIdentity {
    (metadata.dev(), metadata.ino(), metadata.created().ok())
}

/// The file of a socket that listens. Dropping it removes the file, unless it is another's by now; while the socket
/// still listens, nobody replaces it in between.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: FileIdentity,
}

impl SocketFile {
    /// Listens on `path`, in place of a socket there that nobody listens on any more. With `for_all` every user who
    /// can reach the file can connect, else those to whom the process's umask leaves it.
    ///
    /// # Errors
    /// AddrInUse if somebody does; AlreadyExists if it is something else than a socket.
    pub fn listen(path: &Path, for_all: bool) -> io::Result<(Socket, Self)> {
        match Self::listen_anew(path, for_all) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if !fs::symlink_metadata(path)?.file_type().is_socket() {
                    return Err(io::ErrorKind::AlreadyExists.into());
                }
                let found = identity(path)?;
                match Socket::connect(path) {
                    Err(stale) if stale.kind() == io::ErrorKind::ConnectionRefused => {}
                    _ => return Err(error),
                }
                // Somebody else may have replaced it since.
                if identity(path)? != found {
                    return Err(error);
                }
                fs::remove_file(path)?;
                Self::listen_anew(path, for_all)
            }
            other => other,
        }
    }

    /// The same where nothing is.
    ///
    /// # Errors
    /// AddrInUse if there is anything.
    pub fn listen_anew(path: &Path, for_all: bool) -> io::Result<(Socket, Self)> {
        let socket = Socket::bind(path)?;
        // From here on, dropping it removes the file.
        let file = SocketFile {
            path: path.into(),
            identity: identity(path)?,
        };
        if for_all {
            file.open_for_all().map_err(|error| {
                io::Error::other(format!("it cannot be opened to other users: {error}"))
            })?;
        }
        socket.listen()?;
        Ok((socket, file))
    }

    /// Whether it is still at its path, and not another file.
    ///
    /// # Errors
    /// NotFound if there is nothing.
    pub fn is_there(&self) -> io::Result<bool> {
        identity(&self.path).map(|found| found == self.identity)
    }

    /// Lets every user connect. It is changed through a descriptor: if somebody put another file or a link at the
    /// path meanwhile, that must not be changed.
    fn open_for_all(&self) -> io::Result<()> {
        let flags = libc::O_PATH | libc::O_NOFOLLOW;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(&self.path)?;
        if identity_of(&file.metadata()?) != self.identity {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let through = format!("/proc/self/fd/{}", file.as_raw_fd());
        fs::set_permissions(through, Permissions::from_mode(FOR_ALL))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_there().is_ok_and(|is_there| is_there)
            && let Err(error) = fs::remove_file(&self.path)
        {
            log::warn!("ivsmc: cannot remove {}: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::symlink;

    fn pair() -> (Socket, Socket, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let (listener, _file) = SocketFile::listen(&path, false).unwrap();
        let one = Socket::connect(&path).unwrap();
        let other = listener.accept().unwrap().unwrap();
        (one, other, folder)
    }

    #[test]
    fn packets_and_descriptors() {
        let (one, other, _folder) = pair();
        assert!(other.receive().unwrap().is_none());
        let file = File::open("/dev/null").unwrap();
        one.send(b"first", &[file.as_raw_fd(); MAX_DESCRIPTORS])
            .unwrap();
        one.send(&[7; MAX_MESSAGE], &[]).unwrap();
        let first = other.receive().unwrap().unwrap();
        assert_eq!((first.bytes(), first.is_cut), (&b"first"[..], false));
        assert_eq!(first.descriptors.len(), MAX_DESCRIPTORS);
        let second = other.receive().unwrap().unwrap();
        assert_eq!(
            (second.bytes(), second.is_cut),
            (&[7; MAX_MESSAGE][..], false)
        );
        assert!(second.descriptors.is_empty());
        assert_eq!(other.peer_user().unwrap(), own_user());
        drop(one);
        assert!(other.receive().unwrap().unwrap().bytes().is_empty());
    }

    #[test]
    fn what_is_too_much_is_cut() {
        let (one, other, _folder) = pair();
        one.send(&[0; 4096], &[]).unwrap();
        assert!(other.receive().unwrap().unwrap().is_cut);
        let file = File::open("/dev/null").unwrap();
        assert!(
            one.send(b"x", &[file.as_raw_fd(); 2 * MAX_DESCRIPTORS])
                .is_err()
        );
    }

    #[test]
    fn files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listen = |path: &Path| SocketFile::listen(path, false);
        let kind = |path: &Path| listen(path).map(drop).unwrap_err().kind();
        let (socket, file) = listen(&path).unwrap();
        assert_eq!(kind(&path), io::ErrorKind::AddrInUse);
        drop(socket);
        let anew = SocketFile::listen_anew(&path, false).map(drop);
        assert_eq!(anew.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert!(file.is_there().unwrap());
        let (_socket, new_file) = listen(&path).unwrap();
        assert!(!file.is_there().unwrap());
        drop(file);
        assert!(path.exists(), "it is another's by now");
        fs::rename(&path, folder.path().join("moved")).unwrap();
        assert_eq!(
            new_file.is_there().unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        fs::rename(folder.path().join("moved"), &path).unwrap();
        drop(new_file);
        assert!(!path.exists());
        File::create(&path).unwrap();
        assert_eq!(kind(&path), io::ErrorKind::AlreadyExists);
        assert_eq!(kind(&folder.path().join("no/s")), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_file_for_all_is_for_all_and_no_other_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        let (_socket, file) = SocketFile::listen(&path, true).unwrap();
        assert_eq!(mode(&path), 0o666);
        // Somebody replaces it in the wrong moment.
        let other = folder.path().join("other");
        File::create(&other).unwrap();
        fs::set_permissions(&other, Permissions::from_mode(0o600)).unwrap();
        fs::remove_file(&path).unwrap();
        symlink(&other, &path).unwrap();
        file.open_for_all().unwrap_err();
        fs::remove_file(&path).unwrap();
        fs::rename(&other, &path).unwrap();
        file.open_for_all().unwrap_err();
        assert_eq!(mode(&path), 0o600);
    }
}
