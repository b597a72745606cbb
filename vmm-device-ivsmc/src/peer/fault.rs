// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory whose first access waits.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::raw::c_ulong;
use std::ptr;
use std::thread::{self, JoinHandle};

use crate::sys::{check, page_size};

/// Requests of userfaultfd(2).
const UFFDIO_API: c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: c_ulong = 0xc020_aa00;
/// To be told of pages that are missing.
const MISSING: u64 = 1;

/// Memory whose first access waits until this is dropped.
#[derive(Debug)]
pub struct Fault {
    uffd: OwnedFd,
    page: usize,
    len: usize,
}

impl Fault {
    /// New memory.
    ///
    /// # Errors
    /// When this kernel has no userfaultfd, or not for this user.
    pub fn new() -> io::Result<Self> {
        let len = page_size()?;
        let mut api = [0xaau64, 0, 0];
        // SAFETY: new memory at an address of the kernel's choice, and system calls on a new descriptor with
        // arguments that outlive them.
        unsafe {
            let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
            let fd = check(libc::syscall(libc::SYS_userfaultfd, flags) as i32)?;
            let uffd = OwnedFd::from_raw_fd(fd);
            check(libc::ioctl(uffd.as_raw_fd(), UFFDIO_API, &mut api))?;
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let page = libc::mmap(ptr::null_mut(), len, protection, flags, -1, 0);
            if page == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            let page = page as usize;
            let mut register = [page as u64, len as u64, MISSING, 0];
            check(libc::ioctl(
                uffd.as_raw_fd(),
                UFFDIO_REGISTER,
                &mut register,
            ))?;
            Ok(Fault { uffd, page, len })
        }
    }

    /// Begins to write this memory to the beginning of a file, on a thread of its own that gives what came of it.
    pub fn write_to(&self, file: File) -> JoinHandle<io::Result<()>> {
        let (page, len) = (self.page, self.len);
        thread::spawn(move || {
            // SAFETY: the kernel alone reads the memory, which is never unmapped.
            let written =
                unsafe { libc::pwrite(file.as_raw_fd(), page as *const libc::c_void, len, 0) };
            match usize::try_from(written) {
                Ok(written) if written == len => Ok(()),
                Ok(_) => Err(io::ErrorKind::WriteZero.into()),
                Err(_) => Err(io::Error::last_os_error()),
            }
        })
    }

    /// Whether somebody waits.
    pub fn is_hit(&self) -> bool {
        let mut poll = libc::pollfd {
            fd: self.uffd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one element, which outlives the call.
        unsafe { libc::poll(&mut poll, 1, 0) > 0 && poll.revents & libc::POLLIN != 0 }
    }
}
