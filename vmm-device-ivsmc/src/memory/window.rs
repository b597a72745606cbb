// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The memory of a window: a sealed memfd, which is mapped at its place in BAR2 for as long as the guest has it.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

/// What keeps either end from cutting the memory away under the other's guest.
const SEALS: i32 = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;

/// Bytes of a window that are looked at together for a snapshot; windows are multiples of it.
const PIECE: u64 = 64 << 10;

/// A piece of a window's content, in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    offset: u64,
    /// In base64.
    data: String,
}

impl Piece {
    /// How many bytes of a window it is.
    pub fn len(&self) -> usize {
        self.data.len() / 4 * 3
    }
}

/// A window's memory.
#[derive(Debug)]
pub struct Window {
    /// Where it is in this process: null as long as it has no place in BAR2.
    address: *mut u8,
    len: u64,
    file: File,
}

// SAFETY: the Window never looks at the memory, and hands out only its address.
unsafe impl Send for Window {}
// SAFETY: as above; all methods that can be called at the same time only read the Window's own fields.
unsafe impl Sync for Window {}

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
        let fd = file.as_raw_fd();
        // SAFETY: plain system call on a descriptor that is open.
        let seals = unsafe { libc::fcntl(fd, libc::F_GET_SEALS) };
        if seals < 0 || seals & SEALS != SEALS {
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
        Self::new(File::from(file), size)
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
            address: ptr::null_mut(),
            len,
            file,
        })
    }

    /// It has got its place.
    pub(super) fn set_host_addr(&mut self, address: *mut u8) {
        self.address = address;
    }

    /// Where the memory is in this process, in the device's [`BarMemory`](crate::BarMemory). It is shared with another
    /// VM: do not make references into it.
    pub fn host_addr(&self) -> *mut u8 {
        self.address
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

    /// The memory's content, without what is zero, of `limit` bytes at most. Returns whether that was all.
    ///
    /// It is read in order. A peer that writes meanwhile announces data in front of it (see docs/window.md), and does
    /// not overwrite what this VM has not read: so the content has all that it announces.
    pub(crate) fn content(&self, limit: usize) -> io::Result<(Vec<Piece>, bool)> {
        let mut pieces = Vec::new();
        let mut bytes = vec![0; PIECE as usize];
        let mut offset = 0;
        while let Some(data) = self.next_data(offset)? {
            offset = data - data % PIECE;
            self.file.read_exact_at(&mut bytes, offset)?;
            if bytes.iter().any(|&byte| byte != 0) {
                if (pieces.len() + 1) * bytes.len() > limit {
                    return Ok((pieces, false));
                }
                pieces.push(Piece {
                    offset,
                    data: BASE64.encode(&bytes),
                });
            }
            offset += PIECE;
        }
        Ok((pieces, true))
    }

    /// Where from `offset` on the file has memory, so that none is taken for what was never touched.
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        if offset >= self.len() {
            return Ok(None);
        }
        // SAFETY: plain system call on a descriptor that is open. (Where the descriptor is does not matter to anybody.)
        let data = unsafe { libc::lseek(self.file.as_raw_fd(), offset as i64, libc::SEEK_DATA) };
        if let Ok(data) = u64::try_from(data) {
            return Ok(Some(data));
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::ENXIO) => Ok(None),
            // Huge pages do not tell.
            Some(libc::EINVAL) => Ok(Some(offset)),
            _ => Err(error),
        }
    }

    /// Puts content into a window of zeros.
    pub(crate) fn fill(&self, pieces: &[Piece]) -> io::Result<()> {
        for piece in pieces {
            let bytes = BASE64.decode(&piece.data).map_err(io::Error::other)?;
            let end = piece.offset.checked_add(bytes.len() as u64);
            if end.is_none_or(|end| end > self.len()) {
                return Err(invalid("the content is larger than the window"));
            }
            self.file.write_all_at(&bytes, piece.offset)?;
        }
        Ok(())
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
    // SAFETY: the name is a C string; the result is checked.
    let fd = check(unsafe { libc::memfd_create(name.as_ptr(), flags | huge) })?;
    // SAFETY: memfd_create has just made this descriptor, and nobody else knows it.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
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
        return Err(io::Error::last_os_error());
    }
    Ok(address)
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
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::memory::bar::BarMemory;

    const SIZE: u64 = 2 << 20;

    #[test]
    fn both_ends_see_the_same_memory() {
        let memory = BarMemory::reserve(2 * SIZE, SIZE).unwrap();
        let mut ours = Window::create(SIZE, false).unwrap();
        let copy = ours.file().try_clone().unwrap();
        let mut theirs = Window::accept(copy.into(), SIZE, false).unwrap();
        memory.put(0, &mut ours).unwrap();
        memory.put(1, &mut theirs).unwrap();
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
    fn content_is_kept_and_takes_no_memory_for_what_is_not_there() {
        let window = Window::create(SIZE, false).unwrap();
        let allocated = || window.file().metadata().unwrap().blocks();
        assert_eq!(window.content(usize::MAX).unwrap(), (vec![], true));
        assert_eq!(allocated(), 0);
        let places = [5, PIECE - 1, 7 * PIECE + 9, SIZE - 1];
        for at in places {
            window.file().write_all_at(&[7], at).unwrap();
        }
        let before = allocated();
        let (pieces, is_all) = window.content(3 * PIECE as usize).unwrap();
        assert!(is_all && pieces.len() == 3);
        assert_eq!(allocated(), before);
        let copy = Window::create(SIZE, false).unwrap();
        copy.fill(&pieces).unwrap();
        assert_eq!(copy.content(usize::MAX).unwrap().0, pieces);
        assert_eq!(window.content(2 * PIECE as usize).unwrap().0, pieces[..2]);
        assert!(!window.content(2 * PIECE as usize).unwrap().1);
    }

    #[test]
    fn content_that_does_not_fit_is_refused() {
        let window = Window::create(SIZE, false).unwrap();
        let data = BASE64.encode([1; 16]);
        for (offset, data) in [(SIZE - 15, &*data), (u64::MAX, &*data), (0, "no base64")] {
            let data = data.to_owned();
            assert!(window.fill(&[Piece { offset, data }]).is_err());
        }
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
