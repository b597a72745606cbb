// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Socket options, ioctls, fcntls.

use super::{Errno, Fd, Out, out};
use std::time::Duration;

/// Sets an option that is a number.
pub fn set(fd: Fd, level: i32, option: i32, value: i32) -> Out {
    set_bytes(fd, level, option, &value.to_ne_bytes())
}

/// Sets an option.
pub fn set_bytes(fd: Fd, level: i32, option: i32, value: &[u8]) -> Out {
    // SAFETY: the value is alive during the call and has the length given.
    out(unsafe {
        libc::setsockopt(
            fd,
            level,
            option,
            value.as_ptr().cast(),
            value.len() as libc::socklen_t,
        )
    })
}

/// Sets an option whose value cannot be read.
pub fn set_bad(fd: Fd, level: i32, option: i32) -> Out {
    // SAFETY: the kernel looks whether it may read at address 8, and it may not.
    out(unsafe { libc::setsockopt(fd, level, option, 8 as *const _, 4) })
}

/// Gets an option that is a number.
pub fn get(fd: Fd, level: i32, option: i32) -> Out {
    let bytes = get_bytes(fd, level, option, 4)?;
    Ok(match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(bytes) => i32::from_ne_bytes(bytes).into(),
        Err(_) => bytes.first().copied().unwrap_or(0).into(),
    })
}

/// Gets an option of at most `size` bytes.
pub fn get_bytes(fd: Fd, level: i32, option: i32, size: usize) -> Result<Vec<u8>, Errno> {
    let (mut bytes, mut length) = (vec![0; size], size as libc::socklen_t);
    // SAFETY: the bytes are alive during the call and as many as the length says.
    out(unsafe {
        libc::getsockopt(
            fd,
            level,
            option,
            bytes.as_mut_ptr().cast(),
            &raw mut length,
        )
    })?;
    bytes.truncate(length as usize);
    Ok(bytes)
}

/// `SO_LINGER`; `None` switches it off.
pub fn linger(fd: Fd, seconds: Option<i32>) -> Out {
    let value = [i32::from(seconds.is_some()), seconds.unwrap_or(0)];
    let bytes: Vec<u8> = value.iter().flat_map(|word| word.to_ne_bytes()).collect();
    set_bytes(fd, libc::SOL_SOCKET, libc::SO_LINGER, &bytes)
}

/// `SO_RCVTIMEO` or `SO_SNDTIMEO`.
pub fn timeout(fd: Fd, option: i32, time: Duration) -> Out {
    let words = [
        i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        time.subsec_micros().into(),
    ];
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    set_bytes(fd, libc::SOL_SOCKET, option, &bytes)
}

/// The error that a socket has kept, `SO_ERROR`.
#[derive(Clone, Copy)]
pub struct Kept(pub i32);

impl std::fmt::Display for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            0 => f.write_str("0"),
            number => Errno(number).fmt(f),
        }
    }
}

/// `SO_ERROR`
pub fn so_error(fd: Fd) -> Result<Kept, Errno> {
    get(fd, libc::SOL_SOCKET, libc::SO_ERROR).map(|value| Kept(value as i32))
}

/// An `ioctl()` that gives a number.
pub fn ioctl(fd: Fd, request: u64) -> Out {
    let mut value: libc::c_int = -1;
    // SAFETY: the requests that cases make write one int.
    out(unsafe { libc::ioctl(fd, request, &raw mut value) }).map(|_| value.into())
}

/// An `ioctl()` that takes a number.
pub fn ioctl_set(fd: Fd, request: u64, value: i32) -> Out {
    // SAFETY: the requests that cases make read one int.
    out(unsafe { libc::ioctl(fd, request, &raw const value) })
}

/// `fcntl()`
pub fn fcntl(fd: Fd, command: i32, value: i32) -> Out {
    // SAFETY: the commands that cases use take a number.
    out(unsafe { libc::fcntl(fd, command, value) })
}

/// Sets or clears O_NONBLOCK.
pub fn nonblocking(fd: Fd, on: bool) -> Out {
    let flags = fcntl(fd, libc::F_GETFL, 0)? as i32;
    let flags = if on {
        flags | libc::O_NONBLOCK
    } else {
        flags & !libc::O_NONBLOCK
    };
    fcntl(fd, libc::F_SETFL, flags)
}

/// The request that tells whether reading has come to the urgent byte.
pub const SIOCATMARK: u64 = 0x8905;
