// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! System calls as cases use them, and how their outcome is written.
//!
//! Descriptors are numbers here, as in C: cases close twice, use what is closed, and pass pointers that lead nowhere.

mod data;
mod names;
mod options;
mod pipes;
mod processes;
mod ready;

pub use data::*;
pub use names::{Errno, flags, signal_name};
pub use options::*;
pub use pipes::*;
pub use processes::*;
pub use ready::*;

use std::net::{Ipv4Addr, Ipv6Addr};

/// A descriptor.
pub type Fd = libc::c_int;
/// What a system call gives: a number, or an error.
pub type Out = Result<i64, Errno>;

/// What a call returned, with errno if it was -1.
pub(crate) fn out(result: impl Into<i64>) -> Out {
    match result.into() {
        -1 => Err(Errno::last()),
        value => Ok(value),
    }
}

/// A call's length.
pub(crate) fn length(result: isize) -> Out {
    out(result as i64)
}

/// A socket's address.
#[derive(Clone, Copy)]
pub struct Addr {
    bytes: [u8; 28],
    length: libc::socklen_t,
}

impl Addr {
    /// An IPv4 address.
    pub fn v4(address: Ipv4Addr, port: u16) -> Self {
        let mut bytes = [0; 28];
        bytes[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
        bytes[2..4].copy_from_slice(&port.to_be_bytes());
        bytes[4..8].copy_from_slice(&address.octets());
        Addr { bytes, length: 16 }
    }

    /// An IPv6 address.
    pub fn v6(address: Ipv6Addr, port: u16) -> Self {
        let mut bytes = [0; 28];
        bytes[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
        bytes[2..4].copy_from_slice(&port.to_be_bytes());
        bytes[8..24].copy_from_slice(&address.octets());
        Addr { bytes, length: 28 }
    }

    /// AF_UNSPEC.
    pub fn unspecified() -> Self {
        Addr {
            bytes: [0; 28],
            length: 16,
        }
    }

    /// The same with a length of its own.
    pub fn with_length(mut self, length: u32) -> Self {
        self.length = length;
        self
    }

    /// The same with another port.
    pub fn with_port(mut self, port: u16) -> Self {
        self.bytes[2..4].copy_from_slice(&port.to_be_bytes());
        self
    }

    /// Its family.
    pub fn family(&self) -> libc::c_int {
        u16::from_ne_bytes([self.bytes[0], self.bytes[1]]).into()
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        u16::from_be_bytes([self.bytes[2], self.bytes[3]])
    }

    /// Whether it names no host.
    pub fn is_any(&self) -> bool {
        match self.family() {
            libc::AF_INET => self.bytes[4..8] == [0; 4],
            _ => self.bytes[8..24] == [0; 16],
        }
    }

    /// Whether it is an IPv4 address in IPv6's clothes.
    pub fn is_mapped(&self) -> bool {
        let prefix = self.bytes[8..18] == [0; 10] && self.bytes[18..20] == [0xff; 2];
        self.family() == libc::AF_INET6 && prefix
    }

    pub(crate) fn raw(&self) -> (*const libc::sockaddr, libc::socklen_t) {
        (self.bytes.as_ptr().cast(), self.length)
    }
}

/// `socket()`
pub fn socket(domain: i32, kind: i32, protocol: i32) -> Out {
    // SAFETY: takes no pointers.
    out(unsafe { libc::socket(domain, kind, protocol) })
}

/// `bind()`
pub fn bind(fd: Fd, address: &Addr) -> Out {
    let (raw, length) = address.raw();
    // SAFETY: the address is alive, and longer than any length that the kernel would read of it.
    out(unsafe { libc::bind(fd, raw, length) })
}

/// `listen()`
pub fn listen(fd: Fd, backlog: i32) -> Out {
    // SAFETY: takes no pointers.
    out(unsafe { libc::listen(fd, backlog) })
}

/// `connect()`
pub fn connect(fd: Fd, address: &Addr) -> Out {
    let (raw, length) = address.raw();
    // SAFETY: as for bind().
    out(unsafe { libc::connect(fd, raw, length) })
}

/// `accept()`
pub fn accept(fd: Fd) -> Out {
    accept4(fd, 0)
}

/// `accept4()`
pub fn accept4(fd: Fd, flags: i32) -> Out {
    // SAFETY: null pointers say that the address is not wanted.
    out(unsafe { libc::accept4(fd, std::ptr::null_mut(), std::ptr::null_mut(), flags) })
}

/// `accept()` with room for the peer's address.
pub fn accept_from(fd: Fd) -> Result<(Fd, Addr), Errno> {
    let mut address = Addr::unspecified().with_length(28);
    // SAFETY: the address and its length are alive, and the length is the address's.
    let raw = unsafe {
        libc::accept4(
            fd,
            address.bytes.as_mut_ptr().cast(),
            &raw mut address.length,
            0,
        )
    };
    out(raw).map(|_| (raw, address))
}

/// `getsockname()`
pub fn getsockname(fd: Fd) -> Result<Addr, Errno> {
    let mut address = Addr::unspecified().with_length(28);
    // SAFETY: as for accept().
    let raw = unsafe {
        libc::getsockname(
            fd,
            address.bytes.as_mut_ptr().cast(),
            &raw mut address.length,
        )
    };
    out(raw).map(|_| address)
}

/// `getpeername()`
pub fn getpeername(fd: Fd) -> Result<Addr, Errno> {
    let mut address = Addr::unspecified().with_length(28);
    // SAFETY: as for accept().
    let raw = unsafe {
        libc::getpeername(
            fd,
            address.bytes.as_mut_ptr().cast(),
            &raw mut address.length,
        )
    };
    out(raw).map(|_| address)
}

/// `shutdown()`
pub fn shutdown(fd: Fd, how: i32) -> Out {
    // SAFETY: takes no pointers.
    out(unsafe { libc::shutdown(fd, how) })
}

/// `close()`
pub fn close(fd: Fd) -> Out {
    // SAFETY: takes no pointers; cases own the numbers that they close.
    out(unsafe { libc::close(fd) })
}

/// `dup()`
pub fn dup(fd: Fd) -> Out {
    // SAFETY: takes no pointers.
    out(unsafe { libc::dup(fd) })
}

/// `dup2()`
pub fn dup2(fd: Fd, to: Fd) -> Out {
    // SAFETY: takes no pointers.
    out(unsafe { libc::dup2(fd, to) })
}
