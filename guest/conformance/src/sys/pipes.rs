// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pipes, files, and what moves data between them and sockets.

use super::{Fd, Out, length, out};

/// `pipe()`: the reading end, and the writing end.
pub fn pipe() -> (Fd, Fd) {
    let mut pair = [-1; 2];
    // SAFETY: there is room for two descriptors.
    let made = unsafe { libc::pipe(pair.as_mut_ptr()) };
    assert!(out(made).is_ok(), "no pipe");
    (pair[0], pair[1])
}

/// A file in memory with this content.
pub fn file(content: &[u8]) -> Fd {
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"conformance".as_ptr(), 0) };
    assert!(out(fd).is_ok(), "no memfd");
    let mut rest = content;
    while !rest.is_empty() {
        let Ok(done) = super::write(fd, rest) else {
            panic!("no room for a file");
        };
        rest = &rest[usize::try_from(done).unwrap_or(0)..];
    }
    // SAFETY: takes no pointers.
    unsafe { libc::lseek(fd, 0, libc::SEEK_SET) };
    fd
}

/// Where a file is read next.
pub fn position(fd: Fd) -> Out {
    // SAFETY: takes no pointers.
    out(unsafe { libc::lseek(fd, 0, libc::SEEK_CUR) })
}

/// `splice()` at the current positions.
pub fn splice(from: Fd, to: Fd, size: usize, flags: u32) -> Out {
    let here = std::ptr::null_mut();
    // SAFETY: null pointers stand for the current positions.
    length(unsafe { libc::splice(from, here, to, here, size, flags) })
}

/// `tee()`
pub fn tee(from: Fd, to: Fd, size: usize, flags: u32) -> Out {
    // SAFETY: takes no pointers.
    length(unsafe { libc::tee(from, to, size, flags) })
}

/// `vmsplice()` of these bytes, which stay as they are as long as the program runs.
pub fn vmsplice(to: Fd, bytes: &'static [u8], flags: u32) -> Out {
    let part = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: the bytes are never changed, and are only read.
    length(unsafe { libc::vmsplice(to, &raw const part, 1, flags) })
}

/// `sendfile()`, from an offset or from the file's position.
pub fn sendfile(to: Fd, from: Fd, offset: Option<i64>, count: usize) -> Out {
    let mut at = offset.unwrap_or(0);
    let at = if offset.is_some() {
        &raw mut at
    } else {
        std::ptr::null_mut()
    };
    // SAFETY: the offset is alive during the call, or the pointer is null, which stands for the file's position.
    length(unsafe { libc::sendfile(to, from, at, count) })
}

/// `copy_file_range()` at the current positions.
pub fn copy_file_range(from: Fd, to: Fd, size: usize) -> Out {
    let here = std::ptr::null_mut();
    // SAFETY: null pointers stand for the current positions.
    length(unsafe { libc::copy_file_range(from, here, to, here, size, 0) })
}

/// `fsync()`
pub fn fsync(fd: Fd) -> Out {
    // SAFETY: takes no pointers.
    out(unsafe { libc::fsync(fd) })
}

/// `ftruncate()` to nothing.
pub fn ftruncate(fd: Fd) -> Out {
    // SAFETY: takes no pointers.
    out(unsafe { libc::ftruncate(fd, 0) })
}
