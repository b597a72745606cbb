// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The limits of the process, as errors that say what would do.

use std::io;
use std::mem::zeroed;

/// An error, with the limit that it is of if there is one, and what would do.
pub fn explain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EMFILE) => format!(
            "{error}: this process has as many descriptors open as RLIMIT_NOFILE allows; raise it (ulimit -n, \
             LimitNOFILE=)"
        ),
        Some(libc::ENFILE) => {
            format!("{error}: the system has as many files open as fs.file-max allows; raise it")
        }
        Some(libc::ETOOMANYREFS) => format!(
            "{error}: this user has as many descriptors under way in sockets as RLIMIT_NOFILE allows; raise it (ulimit -n, \
             LimitNOFILE=)"
        ),
        _ => error.to_string(),
    }
}

/// That a file of this size can be made.
///
/// # Errors
/// When RLIMIT_FSIZE is less. The kernel would not only fail, but also end the process with SIGXFSZ.
pub fn check_file_size(size: u64) -> io::Result<()> {
    // SAFETY: a limit of zeros is a valid one.
    let mut limit: libc::rlimit = unsafe { zeroed() };
    // SAFETY: the limit outlives the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &mut limit) } < 0 {
        return Err(io::Error::last_os_error());
    }
    if limit.rlim_cur >= size {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "a window of {size} bytes is more than RLIMIT_FSIZE, {} bytes, allows; raise it (ulimit -f, LimitFSIZE=), or \
         set a smaller size",
        limit.rlim_cur
    )))
}

/// An error of mmap, which with mlockall may be one of RLIMIT_MEMLOCK.
pub fn explain_mapping(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EAGAIN) => io::Error::other(format!(
            "{error}: this process locks its memory, and RLIMIT_MEMLOCK does not allow as much; raise it (ulimit -l, \
             LimitMEMLOCK=)"
        )),
        _ => error,
    }
}
