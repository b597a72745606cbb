// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! TCP and SMC sockets. What the standard library calls a TCP stream can be either: the calls are the same.

use crate::connections::{self, Connection};
use crate::netlink;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
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

fn open(address: SocketAddr, transport: Transport) -> io::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => libc::AF_INET,
        SocketAddr::V6(_) => libc::AF_INET6,
    };
    let protocol = match transport {
        Transport::Tcp => libc::IPPROTO_TCP,
        Transport::Smc => crate::IPPROTO_SMC,
    };
    open_kind(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, protocol)
}

/// Opens a socket of any kind.
pub fn open_kind(domain: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::socket(domain, kind, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just opened and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The protocol that a socket says it has.
pub fn protocol(socket: &impl AsRawFd) -> io::Result<i32> {
    let mut protocol = 0i32;
    let mut length = size_of_val(&protocol) as libc::socklen_t;
    // SAFETY: `protocol` and its length are alive during the call.
    succeeded(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PROTOCOL,
            (&raw mut protocol).cast(),
            &raw mut length,
        )
    })?;
    Ok(protocol)
}

/// An address as the kernel wants it.
enum RawAddress {
    V4(libc::sockaddr_in),
    V6(libc::sockaddr_in6),
}

impl RawAddress {
    fn new(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(address) => RawAddress::V4(libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: address.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from_ne_bytes(address.ip().octets()),
                },
                sin_zero: [0; 8],
            }),
            SocketAddr::V6(address) => RawAddress::V6(libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: address.port().to_be(),
                sin6_flowinfo: address.flowinfo(),
                sin6_addr: libc::in6_addr {
                    s6_addr: address.ip().octets(),
                },
                sin6_scope_id: address.scope_id(),
            }),
        }
    }

    /// Where it is, and how long.
    fn parts(&self) -> (*const libc::sockaddr, libc::socklen_t) {
        let (pointer, length) = match self {
            RawAddress::V4(address) => (std::ptr::from_ref(address).cast(), size_of_val(address)),
            RawAddress::V6(address) => (std::ptr::from_ref(address).cast(), size_of_val(address)),
        };
        (pointer, length as libc::socklen_t)
    }
}

/// Sets an option to 1.
fn set(fd: &OwnedFd, level: i32, option: i32) -> io::Result<()> {
    let one = 1i32;
    // SAFETY: the option's value is alive during the call and of the size given.
    succeeded(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            (&raw const one).cast(),
            size_of_val(&one) as libc::socklen_t,
        )
    })
}

fn succeeded(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Listens on `address`; on an IPv6 address for IPv6 alone.
pub fn listen(address: impl Into<SocketAddr>, transport: Transport) -> io::Result<TcpListener> {
    let address = address.into();
    let fd = open(address, transport)?;
    set(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR)?;
    if address.is_ipv6() {
        set(&fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY)?;
    }
    let address = RawAddress::new(address);
    let (address, length) = address.parts();
    // SAFETY: the address is alive during the call and of the size given.
    unsafe {
        succeeded(libc::bind(fd.as_raw_fd(), address, length))?;
        succeeded(libc::listen(fd.as_raw_fd(), BACKLOG))?;
    }
    Ok(fd.into())
}

/// Connects to `address`.
pub fn connect_once(address: impl Into<SocketAddr>, transport: Transport) -> io::Result<TcpStream> {
    let address = address.into();
    let fd = open(address, transport)?;
    let address = RawAddress::new(address);
    let (address, length) = address.parts();
    // SAFETY: the address is alive during the call and of the size given.
    succeeded(unsafe { libc::connect(fd.as_raw_fd(), address, length) })?;
    Ok(fd.into())
}

/// Connects to `address`, again if nobody listens there yet.
pub fn connect(address: impl Into<SocketAddr>, transport: Transport) -> io::Result<TcpStream> {
    let address = address.into();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_on_one_port() {
        let v6 = listen("[::1]:0".parse::<SocketAddr>().unwrap(), Transport::Tcp).unwrap();
        let port = v6.local_addr().unwrap().port();
        let any: SocketAddr = ([0; 16], port).into();
        drop(v6);
        let v6 = listen(any, Transport::Tcp).unwrap();
        let v4 = listen(SocketAddr::from(([0; 4], port)), Transport::Tcp).unwrap();
        for (listener, address) in [(v6, "::1"), (v4, "127.0.0.1")] {
            let to = SocketAddr::new(address.parse().unwrap(), port);
            let stream = connect(to, Transport::Tcp).unwrap();
            let (_, from) = listener.accept().unwrap();
            assert_eq!(from, stream.local_addr().unwrap());
        }
    }
}
