// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sending and receiving.

use super::{Addr, Errno, Fd, Out, flags, length, out};
use std::fmt;

/// Longest text of what was received that is written out.
const SHOWN: usize = 16;

/// What a call received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received(pub Vec<u8>);

impl fmt::Display for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Received(bytes) = self;
        let text = std::str::from_utf8(bytes).unwrap_or("");
        let is_shown =
            (1..=SHOWN).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        write!(f, "{}", bytes.len())?;
        if is_shown {
            write!(f, ":{text}")?;
        }
        Ok(())
    }
}

/// `send()`
pub fn send(fd: Fd, bytes: &[u8], flags: i32) -> Out {
    // SAFETY: the bytes are alive during the call.
    length(unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags) })
}

/// `sendto()`
pub fn sendto(fd: Fd, bytes: &[u8], flags: i32, to: &Addr) -> Out {
    let (raw, size) = to.raw();
    // SAFETY: the bytes and the address are alive during the call.
    length(unsafe { libc::sendto(fd, bytes.as_ptr().cast(), bytes.len(), flags, raw, size) })
}

/// `send()` of memory that need not be there.
pub fn send_at(fd: Fd, address: usize, size: usize, flags: i32) -> Out {
    // SAFETY: the kernel only reads at the address, and looks whether it may.
    length(unsafe { libc::send(fd, address as *const _, size, flags) })
}

/// `write()`
pub fn write(fd: Fd, bytes: &[u8]) -> Out {
    // SAFETY: the bytes are alive during the call.
    length(unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) })
}

/// `pwrite()`
pub fn pwrite(fd: Fd, bytes: &[u8], at: i64) -> Out {
    // SAFETY: the bytes are alive during the call.
    length(unsafe { libc::pwrite(fd, bytes.as_ptr().cast(), bytes.len(), at) })
}

/// `recv()` of at most `size` bytes.
pub fn recv(fd: Fd, size: usize, flags: i32) -> Result<Received, Errno> {
    let mut bytes = vec![0u8; size];
    // SAFETY: the bytes are alive during the call, and that many.
    let got = unsafe { libc::recv(fd, bytes.as_mut_ptr().cast(), size, flags) };
    cut(bytes, got)
}

/// What MSG_TRUNC drops: `recv()` without memory to write to.
pub fn recv_nowhere(fd: Fd, size: usize, flags: i32) -> Out {
    // SAFETY: the kernel looks whether it may write at address 0, and it may not.
    length(unsafe { libc::recv(fd, std::ptr::null_mut(), size, flags) })
}

/// `recv()` into memory of which only the first `good` bytes are there.
pub fn recv_at_edge(fd: Fd, good: usize, size: usize, flags: i32) -> Out {
    let edge = Edge::new();
    // SAFETY: up to the edge the memory is ours, and behind it there is none: the kernel does not write there.
    length(unsafe { libc::recv(fd, edge.before(good).cast(), size, flags) })
}

/// `send()` out of memory of which only the first `good` bytes are there.
pub fn send_at_edge(fd: Fd, good: usize, size: usize, flags: i32) -> Out {
    let edge = Edge::new();
    // SAFETY: as for receiving.
    length(unsafe { libc::send(fd, edge.before(good).cast(), size, flags) })
}

/// A page behind which there is no memory.
struct Edge(*mut u8);

const PAGE: usize = 4096;

impl Edge {
    fn new() -> Self {
        // SAFETY: new memory at an address of the kernel's choice; its second half is made unusable.
        unsafe {
            let start = libc::mmap(
                std::ptr::null_mut(),
                2 * PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert!(start != libc::MAP_FAILED, "no memory");
            libc::mprotect(start.byte_add(PAGE), PAGE, libc::PROT_NONE);
            Edge(start.cast())
        }
    }

    /// The address from which `good` bytes are there.
    fn before(&self, good: usize) -> *mut u8 {
        self.0.wrapping_add(PAGE - good)
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        // SAFETY: it was mapped by new(), and nobody else has it.
        unsafe { libc::munmap(self.0.cast(), 2 * PAGE) };
    }
}

/// `read()` of at most `size` bytes.
pub fn read(fd: Fd, size: usize) -> Result<Received, Errno> {
    let mut bytes = vec![0u8; size];
    // SAFETY: the bytes are alive during the call, and that many.
    let got = unsafe { libc::read(fd, bytes.as_mut_ptr().cast(), size) };
    cut(bytes, got)
}

fn cut(mut bytes: Vec<u8>, got: isize) -> Result<Received, Errno> {
    let got = length(got)?;
    // With MSG_TRUNC it can be more than was written.
    bytes.resize(usize::try_from(got).unwrap_or(0), 0);
    Ok(Received(bytes))
}

fn vector(parts: &[&[u8]]) -> Vec<libc::iovec> {
    parts
        .iter()
        .map(|part| libc::iovec {
            iov_base: part.as_ptr().cast_mut().cast(),
            iov_len: part.len(),
        })
        .collect()
}

/// `writev()`
pub fn writev(fd: Fd, parts: &[&[u8]]) -> Out {
    let vector = vector(parts);
    // SAFETY: the parts are alive during the call, and are only read.
    length(unsafe { libc::writev(fd, vector.as_ptr(), vector.len() as i32) })
}

/// `readv()` into this many parts of this size.
pub fn readv(fd: Fd, parts: usize, size: usize) -> Result<Received, Errno> {
    let mut bytes = vec![0u8; parts * size];
    let vector: Vec<_> = bytes
        .chunks_mut(size)
        .map(|part| libc::iovec {
            iov_base: part.as_mut_ptr().cast(),
            iov_len: part.len(),
        })
        .collect();
    // SAFETY: the parts are alive during the call, and are those bytes.
    let got = unsafe { libc::readv(fd, vector.as_ptr(), vector.len() as i32) };
    cut(bytes, got)
}

/// `sendmsg()` of these parts, with descriptors (SCM_RIGHTS) if there are any.
pub fn sendmsg(fd: Fd, parts: &[&[u8]], rights: &[Fd], flags: i32) -> Out {
    let mut vector = vector(parts);
    let mut control = [0u64; 8];
    // SAFETY: a header that is all zero is an empty one.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = vector.as_mut_ptr();
    header.msg_iovlen = vector.len();
    if !rights.is_empty() {
        let size = size_of_val(rights);
        header.msg_control = control.as_mut_ptr().cast();
        // SAFETY: the control's memory is aligned, and large enough for the few descriptors that cases pass.
        unsafe {
            header.msg_controllen = libc::CMSG_SPACE(size as u32) as usize;
            let first = libc::CMSG_FIRSTHDR(&raw const header);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(size as u32) as usize;
            libc::CMSG_DATA(first).copy_from(rights.as_ptr().cast(), size);
        }
    }
    // SAFETY: the header and what it points to are alive during the call.
    length(unsafe { libc::sendmsg(fd, &raw const header, flags) })
}

/// What `recvmsg()` gave.
#[derive(Debug)]
pub struct Message {
    /// The data.
    pub data: Received,
    /// `msg_flags`
    pub flags: u32,
    /// Levels and types of its control messages.
    pub control: Vec<(i32, i32)>,
    /// A descriptor that was passed.
    pub right: Option<Fd>,
    /// Length of the address.
    pub address: u32,
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = [
            (libc::MSG_OOB as u32, "OOB"),
            (libc::MSG_TRUNC as u32, "TRUNC"),
            (libc::MSG_CTRUNC as u32, "CTRUNC"),
            (libc::MSG_ERRQUEUE as u32, "ERRQUEUE"),
            (libc::MSG_EOR as u32, "EOR"),
        ];
        write!(f, "{},{}", self.data, flags(self.flags, &named, "-"))?;
        for (level, kind) in &self.control {
            write!(f, ",{level}/{kind}")?;
        }
        if self.address != 0 {
            write!(f, ",address")?;
        }
        Ok(())
    }
}

/// `recvmsg()` into one part of `size` bytes, with room for an address and control messages.
pub fn recvmsg(fd: Fd, size: usize, flags: i32) -> Result<Message, Errno> {
    let mut bytes = vec![0u8; size];
    let mut part = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: size,
    };
    let (mut control, mut address) = ([0u64; 32], [0u8; 28]);
    // SAFETY: a header that is all zero is an empty one.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control);
    header.msg_name = address.as_mut_ptr().cast();
    header.msg_namelen = 28;
    // SAFETY: the header and what it points to are alive during the call, and have the lengths given.
    let got = unsafe { libc::recvmsg(fd, &raw mut header, flags) };
    let data = cut(bytes, got)?;
    let (mut list, mut right) = (Vec::new(), None);
    // SAFETY: the kernel has filled in the header; the macros stay within the control's memory.
    unsafe {
        let mut next = libc::CMSG_FIRSTHDR(&raw const header);
        while !next.is_null() {
            let kind = ((*next).cmsg_level, (*next).cmsg_type);
            list.push(kind);
            if kind == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                right = Some(libc::CMSG_DATA(next).cast::<Fd>().read_unaligned());
            }
            next = libc::CMSG_NXTHDR(&raw const header, next);
        }
    }
    Ok(Message {
        data,
        flags: header.msg_flags as u32,
        control: list,
        right,
        address: header.msg_namelen,
    })
}

/// `socketpair()` of local sockets.
pub fn local_pair() -> [Fd; 2] {
    let mut pair = [-1; 2];
    // SAFETY: there is room for two descriptors.
    let made = unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, pair.as_mut_ptr()) };
    assert!(out(made).is_ok(), "no socketpair");
    pair
}

/// `sendmmsg()` of this many messages of the same bytes: how many were sent.
pub fn sendmmsg(fd: Fd, bytes: &[u8], count: usize, flags: i32) -> Out {
    let mut part = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let mut headers: Vec<libc::mmsghdr> = (0..count)
        .map(|_| {
            // SAFETY: a header that is all zero is an empty one.
            let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
            header.msg_hdr.msg_iov = &raw mut part;
            header.msg_hdr.msg_iovlen = 1;
            header
        })
        .collect();
    // SAFETY: headers and bytes are alive during the call.
    out(unsafe { libc::sendmmsg(fd, headers.as_mut_ptr(), count as u32, flags) })
}

/// `recvmmsg()` of this many messages of this size: how many were received, and their lengths.
pub fn recvmmsg(fd: Fd, size: usize, count: usize, flags: i32) -> Result<String, Errno> {
    let mut bytes = vec![0u8; size * count];
    let mut parts: Vec<_> = bytes
        .chunks_mut(size)
        .map(|part| libc::iovec {
            iov_base: part.as_mut_ptr().cast(),
            iov_len: part.len(),
        })
        .collect();
    let mut headers: Vec<libc::mmsghdr> = parts
        .iter_mut()
        .map(|part| {
            // SAFETY: a header that is all zero is an empty one.
            let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
            header.msg_hdr.msg_iov = part;
            header.msg_hdr.msg_iovlen = 1;
            header
        })
        .collect();
    // SAFETY: headers, parts and bytes are alive during the call.
    let got = unsafe {
        libc::recvmmsg(
            fd,
            headers.as_mut_ptr(),
            count as u32,
            flags,
            std::ptr::null_mut(),
        )
    };
    let got = usize::try_from(out(got)?).unwrap_or(0);
    let lengths: Vec<_> = headers
        .iter()
        .take(got)
        .map(|h| h.msg_len.to_string())
        .collect();
    Ok(format!("{got}:{}", lengths.join(",")))
}
