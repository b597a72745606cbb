// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the crate's own system calls have in common.

use std::io;

/// What a system call that is less than 0 if it fails has returned, or its error.
pub fn check(result: i32) -> io::Result<i32> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// The size of this host's pages, in bytes: 4 KiB on x86, up to 64 KiB elsewhere.
#[cfg(any(test, feature = "peer"))]
pub fn page_size() -> io::Result<usize> {
    // SAFETY: asks for a number.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).map_err(|_| io::Error::last_os_error())
}
