// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! TCP and SMC sockets. What the standard library calls a TCP stream can be either: the calls are the same.

use crate::connections::{self, Connection};
use crate::netlink;
use std::io;
use std::net::{SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

/// Which kind of socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Plain TCP.
    Tcp,
    /// SMC, which may fall back to TCP.
    Smc,
}

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;
/// How long to wait before a refused connection is tried again.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a server may take to begin to listen.
const PATIENCE: Duration = Duration::from_secs(10);

fn open(transport: Transport) -> io::Result<OwnedFd> {
    let protocol = match transport {
        Transport::Tcp => libc::IPPROTO_TCP,
        Transport::Smc => crate::IPPROTO_SMC,
    };
    // SAFETY: takes no pointers.
    let fd = unsafe {
        libc::socket(
            libc::AF_INET,
            libc::SOCK_STREAM | libc::SOCK_CLOEXEC,
            protocol,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just opened and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn raw_address(address: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from_ne_bytes(address.ip().octets()),
        },
        sin_zero: [0; 8],
    }
}

fn succeeded(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Listens on `address`.
pub fn listen(address: SocketAddrV4, transport: Transport) -> io::Result<TcpListener> {
    let fd = open(transport)?;
    let (raw, one) = (raw_address(address), 1i32);
    // SAFETY: the option's value and the address are alive during the calls and of the sizes given.
    unsafe {
        succeeded(libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_REUSEADDR,
            (&raw const one).cast(),
            size_of_val(&one) as libc::socklen_t,
        ))?;
        succeeded(libc::bind(
            fd.as_raw_fd(),
            (&raw const raw).cast(),
            size_of_val(&raw) as libc::socklen_t,
        ))?;
        succeeded(libc::listen(fd.as_raw_fd(), BACKLOG))?;
    }
    Ok(fd.into())
}

/// Connects to `address`.
pub fn connect_once(address: SocketAddrV4, transport: Transport) -> io::Result<TcpStream> {
    let raw = raw_address(address);
    let fd = open(transport)?;
    // SAFETY: the address is alive during the call and of the size given.
    succeeded(unsafe {
        libc::connect(
            fd.as_raw_fd(),
            (&raw const raw).cast(),
            size_of_val(&raw) as libc::socklen_t,
        )
    })?;
    Ok(fd.into())
}

/// Connects to `address`, again if nobody listens there yet.
pub fn connect(address: SocketAddrV4, transport: Transport) -> io::Result<TcpStream> {
    let start = Instant::now();
    loop {
        match connect_once(address, transport) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error)
                if error.kind() == io::ErrorKind::ConnectionRefused
                    && start.elapsed() < PATIENCE =>
            {
                std::thread::sleep(PAUSE);
            }
            Err(error) => return Err(error),
        }
    }
}

/// What SMC's diagnosis says of this socket; `None` for one that is not SMC.
pub fn diagnosis(stream: &TcpStream) -> Result<Option<Connection>, netlink::Error> {
    let inode = std::fs::metadata(format!("/proc/self/fd/{}", stream.as_raw_fd()))?.ino();
    match connections::find(inode) {
        // A kernel without SMC has no SMC sockets either.
        Err(netlink::Error::NoFamily(_)) => Ok(None),
        found => found,
    }
}
