// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The memory of a window: a sealed memfd, mapped into this process for as long as the guest has it.

use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};

use crate::limits::{check_file_size, explain_mapping};

/// What keeps either end from cutting the memory away under the other's guest.
const SEALS: i32 = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
/// What would keep the guest from writing.
const NO_SEALS: i32 = libc::F_SEAL_WRITE | libc::F_SEAL_FUTURE_WRITE;

/// A window's memory, mapped into this process. Dropping it unmaps it.
#[derive(Debug)]
pub struct Window {
    address: NonNull<u8>,
    len: usize,
    file: File,
}

// SAFETY: the mapping belongs to the Window alone and lives exactly as long; the Window itself never looks
// at the memory, and hands out only its address.
unsafe impl Send for Window {}
// SAFETY: as above; all methods only read the Window's own fields.
unsafe impl Sync for Window {}

impl Window {
    /// Makes a new window of zeros.
    ///
    /// # Errors
    /// When the system has no memory (or, with `hugepages`, not enough free huge pages) or descriptors left.
    pub(crate) fn create(size: u64, hugepages: bool) -> io::Result<Self> {
        let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
        let huge = if hugepages {
            libc::MFD_HUGETLB | libc::MFD_HUGE_2MB
        } else {
            0
        };
        check_file_size(size)?;
        let file = match memfd(flags | huge | libc::MFD_NOEXEC_SEAL) {
            // Kernels before 6.3 do not know that flag, with which later ones can be told to refuse all others.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => memfd(flags | huge),
            other => other,
        }?;
        file.set_len(size)?;
        // SAFETY: plain system call on a descriptor that is open.
        check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, SEALS) })?;
        Self::map(file, size)
    }

    /// Checks and maps a window that a peer made.
    ///
    /// # Errors
    /// When it is not a memfd with the seals that the protocol wants and of just that size, when it is of huge
    /// pages and these are not allowed, or when it cannot be mapped.
    pub(crate) fn accept(file: OwnedFd, size: u64, hugepages: bool) -> io::Result<Self> {
        Self::check(&file, size, hugepages)?;
        Self::map(File::from(file), size)
    }

    /// Checks what should be the window that a peer made. It may be anything: until it is known to be a memfd nothing is
    /// done that a file system could prolong.
    ///
    /// # Errors
    /// When it is none.
    pub(crate) fn check(file: &OwnedFd, size: u64, hugepages: bool) -> io::Result<()> {
        let fd = file.as_raw_fd();
        // SAFETY: plain system call on a descriptor that is open.
        let seals = unsafe { libc::fcntl(fd, libc::F_GET_SEALS) };
        if seals < 0 || seals & SEALS != SEALS || seals & NO_SEALS != 0 {
            return Err(invalid("the window is not a memfd sealed as it must be"));
        }
        // SAFETY: a stat of zeros is a valid one, which fstat fills.
        let mut stat: libc::stat = unsafe { mem::zeroed() };
        // SAFETY: `stat` outlives the call.
        check(unsafe { libc::fstat(fd, &mut stat) })?;
        if u64::try_from(stat.st_size) != Ok(size) {
            return Err(invalid("the window is not of the size that was agreed"));
        }
        // SAFETY: as for stat.
        let mut statfs: libc::statfs = unsafe { mem::zeroed() };
        // SAFETY: `statfs` outlives the call.
        check(unsafe { libc::fstatfs(fd, &mut statfs) })?;
        // A peer can punch holes into any memfd. Those in ordinary memory fill up again; one of huge pages
        // may not, and then stops whoever touches it. So the user must have said that the peer is trusted.
        if statfs.f_type == libc::HUGETLBFS_MAGIC && !hugepages {
            return Err(invalid(
                "the window is of huge pages; set hugepages=on to allow that",
            ));
        }
        Ok(())
    }

    fn map(file: File, size: u64) -> io::Result<Self> {
        let len = usize::try_from(size).map_err(|_| invalid("the window is too large"))?;
        // SAFETY: a new mapping at an address of the kernel's choice takes nothing from anybody. The
        // memory is shared with others, so that no Rust reference into it is ever made. It cannot shrink.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(explain_mapping(io::Error::last_os_error()));
        }
        let address =
            NonNull::new(address.cast()).ok_or_else(|| invalid("the window is at address zero"))?;
        Ok(Window { address, len, file })
    }

    /// Where the memory is in this process. It is shared with another VM: do not make references into it.
    pub fn host_addr(&self) -> *mut u8 {
        self.address.as_ptr()
    }

    /// Size in bytes, a power of two.
    #[allow(clippy::len_without_is_empty)] // it never is
    pub fn len(&self) -> u64 {
        self.len as u64
    }

    /// The memory's file, a memfd.
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the range is what mmap returned, and after this nobody can ask the Window for it.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.len) };
    }
}

/// A new memfd of no size.
fn memfd(flags: libc::c_uint) -> io::Result<File> {
    // SAFETY: the name is a C string; the result is checked.
    let fd = check(unsafe { libc::memfd_create(c"ivsmc-window".as_ptr(), flags) })?;
    // SAFETY: memfd_create has just made this descriptor, and nobody else knows it.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 2 << 20;

    #[test]
    fn both_ends_see_the_same_memory() {
        let ours = Window::create(SIZE, false).unwrap();
        let theirs = Window::accept(ours.file().try_clone().unwrap().into(), SIZE, false).unwrap();
        // SAFETY: offset 12345 is in both mappings.
        unsafe {
            assert_eq!(theirs.host_addr().add(12345).read_volatile(), 0);
            ours.host_addr().add(12345).write_volatile(7);
            assert_eq!(theirs.host_addr().add(12345).read_volatile(), 7);
        }
        assert!(ours.file().set_len(0).is_err(), "a window can be cut");
        assert!(ours.file().set_len(2 * SIZE).is_err(), "a window can grow");
    }

    #[test]
    fn what_is_no_window_is_refused() {
        let window = Window::create(SIZE, false).unwrap();
        let copy = || OwnedFd::from(window.file().try_clone().unwrap());
        Window::accept(copy(), 2 * SIZE, false).unwrap_err();
        Window::accept(copy(), SIZE / 2, false).unwrap_err();
        Window::accept(File::open("/dev/null").unwrap().into(), SIZE, false).unwrap_err();
        Window::accept(File::open("/proc/self/exe").unwrap().into(), SIZE, false).unwrap_err();
        // SAFETY: the name is a C string; the descriptor is new and ours.
        let unsealed = unsafe {
            let flags = libc::MFD_ALLOW_SEALING | libc::MFD_CLOEXEC;
            File::from_raw_fd(libc::memfd_create(c"unsealed".as_ptr(), flags))
        };
        unsealed.set_len(SIZE).unwrap();
        Window::accept(unsealed.into(), SIZE, false).unwrap_err();
    }
}
