// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Mapped memory or registers that a peer has mapped, too.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, fence};

/// What is read and written as a whole.
pub(crate) trait Word: Copy {}
impl Word for u32 {}
impl Word for u64 {}

/// Where a BAR starts, as the file `resource` of a PCI device's folder says: a line for each, "0xSTART 0xEND 0xFLAGS".
fn start(bars: &str, number: usize) -> Option<u64> {
    let start = bars.lines().nth(number)?.split(' ').next()?;
    let start = u64::from_str_radix(start.strip_prefix("0x")?, 16).ok()?;
    (start != 0).then_some(start)
}

/// A shared mapping of a part of a file.
#[derive(Debug)]
pub(crate) struct Mapping {
    address: NonNull<u8>,
    size: usize,
}

impl Mapping {
    /// Maps `size` bytes from `offset`, readable and writable.
    pub(crate) fn new(file: BorrowedFd<'_>, offset: u64, size: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                i64::try_from(offset).map_err(io::Error::other)?,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = NonNull::new(address.cast());
        let address = address.ok_or_else(|| io::Error::other("a mapping at address 0"))?;
        Ok(Mapping { address, size })
    }

    /// Maps `size` bytes of BAR `number`, registers, from `offset` on, of the device with this folder in sysfs, whatever
    /// driver it has.
    pub(crate) fn of_bar(
        device: &Path,
        number: u32,
        offset: usize,
        size: usize,
    ) -> io::Result<Self> {
        let path = device.join(format!("resource{number}"));
        Self::of_file(&path, offset as u64, size)
    }

    /// The same of BAR2, memory. It is mapped as ivpci maps it: a file of sysfs would map it uncached, and a kernel with
    /// PAT does not do both.
    pub(crate) fn of_memory(device: &Path, offset: usize, size: usize) -> io::Result<Self> {
        let path = device.join("resource");
        let bars = fs::read_to_string(&path)?;
        let start = start(&bars, 2).ok_or_else(|| {
            let error = format!("{}: no BAR2 in {bars:?}", path.display());
            io::Error::new(io::ErrorKind::InvalidData, error)
        })?;
        Self::of_file(Path::new("/dev/mem"), start + offset as u64, size)
    }

    fn of_file(path: &Path, offset: u64, size: usize) -> io::Result<Self> {
        let open = || OpenOptions::new().read(true).write(true).open(path);
        open()
            .and_then(|file| Mapping::new(file.as_fd(), offset, size))
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    }

    /// Its size in bytes.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    fn word<W: Word>(&self, offset: usize) -> *mut W {
        assert!(
            offset.is_multiple_of(size_of::<W>()) && offset < self.size,
            "{offset:#x} is outside the mapping"
        );
        // SAFETY: within the mapping, as was just checked.
        unsafe { self.address.as_ptr().byte_add(offset).cast() }
    }

    /// Reads the word at `offset`; what is read after it is as new as the word.
    pub(crate) fn read<W: Word>(&self, offset: usize) -> W {
        // SAFETY: an aligned word of the mapping, which lives as long as we do.
        let value = unsafe { self.word::<W>(offset).read_volatile() };
        fence(Ordering::Acquire);
        value
    }

    /// Writes the word at `offset`, after all that was written before.
    pub(crate) fn write<W: Word>(&self, offset: usize, value: W) {
        fence(Ordering::Release);
        // SAFETY: an aligned word of the mapping, which lives as long as we do.
        unsafe { self.word::<W>(offset).write_volatile(value) };
    }

    fn range(&self, offset: usize, length: usize) -> *mut u8 {
        assert!(
            offset <= self.size && length <= self.size - offset,
            "{length:#x} bytes at {offset:#x} are outside the mapping"
        );
        // SAFETY: within the mapping, as was just checked.
        unsafe { self.address.as_ptr().add(offset) }
    }

    /// Copies `data` to `offset`. The peer must not write there meanwhile.
    pub(crate) fn copy_in(&self, offset: usize, data: &[u8]) {
        let to = self.range(offset, data.len());
        // SAFETY: within the mapping, which is no memory of Rust's; what a peer that breaks the rules spoils are bytes.
        unsafe { to.copy_from_nonoverlapping(data.as_ptr(), data.len()) };
    }

    /// Copies what is at `offset`. The peer must not write there meanwhile.
    pub(crate) fn copy_out(&self, offset: usize, data: &mut [u8]) {
        let from = self.range(offset, data.len());
        // SAFETY: as in `copy_in`.
        unsafe { from.copy_to_nonoverlapping(data.as_mut_ptr(), data.len()) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nothing refers to any more.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.size) };
    }
}

#[cfg(test)]
mod tests {
    use super::start;

    #[test]
    fn bars_start_where_sysfs_says() {
        let bars = "0x00000000febf0000 0x00000000febf1fff 0x0000000000040200\n\
            0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
            0x0000008000000000 0x000000801fffffff 0x000000000014220c\n";
        assert_eq!(start(bars, 0), Some(0xfebf_0000));
        assert_eq!(start(bars, 1), None);
        assert_eq!(start(bars, 2), Some(0x80_0000_0000));
        assert_eq!(start(bars, 3), None);
    }
}
