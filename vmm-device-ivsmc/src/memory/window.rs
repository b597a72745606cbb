// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The memory of a window: a sealed memfd, which is mapped at its place in BAR2 for as long as the guest has it.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::limits::{check_file_size, explain_mapping};
use crate::sys::check;

/// What keeps either end from cutting the memory away under the other's guest.
const SEALS: i32 = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
/// What would keep the guest from writing.
const NO_SEALS: i32 = libc::F_SEAL_WRITE | libc::F_SEAL_FUTURE_WRITE;

/// A window's memory.
#[derive(Debug)]
pub struct Window {
    /// Where it is in this process: null as long as it has no place in BAR2.
    address: AtomicPtr<u8>,
    len: u64,
    file: File,
}

impl Window {
    /// Makes a new window of zeros, which has no place yet.
    ///
    /// # Errors
    /// When the system has no memory (or, with `hugepages`, not enough free huge pages) or descriptors left.
    pub(crate) fn create(size: u64, hugepages: bool) -> io::Result<Self> {
        let file = memfd(c"ivsmc-window", size, hugepages)?;
        // SAFETY: plain system call on a descriptor that is open.
        check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, SEALS) })?;
        Self::new(file, size)
    }

    /// Checks a window that a peer made. It has no place yet.
    ///
    /// # Errors
    /// When it is not a memfd with the seals that the protocol wants and of just that size, when it is of huge
    /// pages and these are not allowed, or when it cannot be mapped.
    pub(crate) fn accept(file: OwnedFd, size: u64, hugepages: bool) -> io::Result<Self> {
        Self::check(&file, size, hugepages)?;
        Self::new(File::from(file), size)
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
        // It could not be mapped, and that would look as if something had failed here.
        // SAFETY: as above.
        let flags = check(unsafe { libc::fcntl(fd, libc::F_GETFL) })?;
        if flags & libc::O_ACCMODE != libc::O_RDWR {
            return Err(invalid("the window is not open to be read and written"));
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

    /// A window that can be mapped: when it gets its place, and something else has to leave that, it is late to find
    /// that there are no huge pages left, or that the peer has sealed it against writing.
    fn new(file: File, len: u64) -> io::Result<Self> {
        let size = usize::try_from(len).map_err(|_| invalid("the window is too large"))?;
        // SAFETY: a new mapping at an address of the kernel's choice, of which nobody hears, takes nothing from anybody.
        unsafe {
            let trial = map(ptr::null_mut(), size, &file, 0)?;
            libc::munmap(trial, size);
        }
        Ok(Window {
            address: AtomicPtr::new(ptr::null_mut()),
            len,
            file,
        })
    }

    /// It has got its place.
    pub(super) fn set_host_addr(&self, address: *mut u8) {
        self.address.store(address, Ordering::Release);
    }

    /// Where the memory is in this process, in the device's [`BarMemory`](crate::BarMemory). It is shared with another
    /// VM: do not make references into it.
    pub fn host_addr(&self) -> *mut u8 {
        self.address.load(Ordering::Acquire)
    }

    /// Size in bytes, a power of two.
    #[allow(clippy::len_without_is_empty)] // it never is
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The memory's file, a memfd.
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// Makes a memfd of zeros.
pub(super) fn memfd(name: &CStr, size: u64, hugepages: bool) -> io::Result<File> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    let huge = if hugepages {
        libc::MFD_HUGETLB | libc::MFD_HUGE_2MB
    } else {
        0
    };
    check_file_size(size)?;
    let file = match empty_memfd(name, flags | huge | libc::MFD_NOEXEC_SEAL) {
        // Kernels before 6.3 do not know that flag, with which later ones can be told to refuse all others.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => empty_memfd(name, flags | huge),
        other => other,
    }?;
    file.set_len(size)?;
    Ok(file)
}

/// Maps the first `len` bytes of a file that cannot shrink, to be read and written.
///
/// # Safety
/// With MAP_FIXED, the caller must own the `len` bytes of addresses from `at` on.
pub(super) unsafe fn map(
    at: *mut libc::c_void,
    len: usize,
    file: &File,
    flags: i32,
) -> io::Result<*mut libc::c_void> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the caller's. The memory is shared with others, so that no Rust reference into it is ever made.
    let address = unsafe {
        libc::mmap(
            at,
            len,
            access,
            libc::MAP_SHARED | flags,
            file.as_raw_fd(),
            0,
        )
    };
    if address == libc::MAP_FAILED {
        return Err(explain_mapping(io::Error::last_os_error()));
    }
    Ok(address)
}

/// A new memfd of no size.
fn empty_memfd(name: &CStr, flags: libc::c_uint) -> io::Result<File> {
    // SAFETY: the name is a C string; the result is checked.
    let fd = check(unsafe { libc::memfd_create(name.as_ptr(), flags) })?;
    // SAFETY: memfd_create has just made this descriptor, and nobody else knows it.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::bar::BarMemory;

    const SIZE: u64 = 2 << 20;

    #[test]
    fn both_ends_see_the_same_memory() {
        let memory = BarMemory::reserve(2 * SIZE, SIZE).unwrap();
        let ours = Window::create(SIZE, false).unwrap();
        let copy = ours.file().try_clone().unwrap();
        let theirs = Window::accept(copy.into(), SIZE, false).unwrap();
        memory.put(0, &ours).unwrap();
        memory.put(1, &theirs).unwrap();
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
