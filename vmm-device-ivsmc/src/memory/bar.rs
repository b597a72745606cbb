// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The memory of BAR2 as a whole: one range of this process's addresses, for as long as the device is there.
//!
//! A guest can have any device of its VM read or write BAR2: Linux's SMC-D gives pages of a window to a pipe, and from
//! there they get to virtio-net or virtio-blk. These find guest memory in tables of ranges, which would have to
//! follow each link that comes and goes. So BAR2 is one range in them, whose address never changes.

use std::fs::File;
use std::io;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use super::window::{self, Window};

/// Where BAR2 starts in this process: a multiple of what a huge page has.
const ALIGNMENT: usize = 2 << 20;

/// A range of addresses in this process that is BAR2's: windows where the guest has some, and gaps.
///
/// What is written to a gap is in no window, and is read back from this or any other gap, or is not. (All gaps are the
/// same memory, as large as one window at most, so that a guest cannot fill more.) A gap is there for other devices of
/// the VM that the guest has go there, so that they do not die of it; the guest's processors get to the device instead.
#[derive(Debug)]
pub struct BarMemory {
    addresses: Arc<Addresses>,
    /// The size of a place: one link's part of the BAR.
    place: usize,
    /// What gaps are made of, of the size of a place.
    gap: File,
}

/// The addresses of a [`BarMemory`]. While one has this, nothing else gets to them, and when the BarMemory is gone, there
/// is nothing: an access fails.
#[derive(Debug)]
pub struct Addresses {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it has addresses, and never looks at what is there.
unsafe impl Send for Addresses {}
// SAFETY: as above; what changes the mappings is one system call each, and who makes it is the device, one at a time.
unsafe impl Sync for Addresses {}

impl Drop for Addresses {
    fn drop(&mut self) {
        // SAFETY: the range is what is left of the reservation, and after this nobody can ask for it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

impl BarMemory {
    /// Reserves `len` bytes that are places of `place` bytes each, all of them gaps. Both are powers of two.
    ///
    /// # Errors
    /// When there are not as many addresses left, or no descriptors or memory.
    pub(crate) fn reserve(len: u64, place: u64) -> io::Result<Self> {
        let gap = window::memfd(c"ivsmc-gap", place, false)?;
        let too_large = |_| io::ErrorKind::OutOfMemory;
        let (len, place) = (
            usize::try_from(len).map_err(too_large)?,
            usize::try_from(place).map_err(too_large)?,
        );
        let reserved = len
            .checked_add(ALIGNMENT)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: a new mapping at an address of the kernel's choice takes nothing from anybody.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                reserved,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let before = start.cast::<u8>().align_offset(ALIGNMENT);
        let address = start.cast::<u8>().wrapping_add(before);
        // SAFETY: both ranges are of the reservation, in front of and behind what is kept of it.
        unsafe {
            if before > 0 {
                libc::munmap(start, before);
            }
            libc::munmap(address.wrapping_add(len).cast(), reserved - before - len);
        }
        let start = NonNull::new(address).ok_or(io::ErrorKind::OutOfMemory)?;
        let memory = BarMemory {
            addresses: Arc::new(Addresses { start, len }),
            place,
            gap,
        };
        for place in 0..len / place {
            memory.clear(place)?;
        }
        Ok(memory)
    }

    /// Where BAR2 is in this process: a multiple of 2 MiB. Other VMs share what is there: do not make references into
    /// it.
    pub fn host_addr(&self) -> *mut u8 {
        self.addresses.start.as_ptr()
    }

    /// Keeps the addresses when this is gone: for a VMM that may have given them to the host's kernel, in a disk's request
    /// that does not end with the device.
    pub fn addresses(&self) -> Arc<Addresses> {
        self.addresses.clone()
    }

    /// Size in bytes, that of BAR2.
    #[allow(clippy::len_without_is_empty)] // it never is
    pub fn len(&self) -> u64 {
        self.addresses.len as u64
    }

    /// Puts a window into a place that has none. It stays there until [`clear`](Self::clear), also if it is dropped.
    ///
    /// # Errors
    /// When it cannot be mapped; the place is a gap still.
    pub(crate) fn put(&self, place: usize, window: &Window) -> io::Result<()> {
        let at = self.place(place)?;
        let len = usize::try_from(window.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        if len > self.place {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: the place is in the range, which is this BarMemory's, and `len` is not more than it has.
        unsafe { window::map(at.cast(), len, window.file(), libc::MAP_FIXED) }
            // It may have taken away what was there.
            .inspect_err(|_| drop(self.clear(place)))?;
        window.set_host_addr(at);
        Ok(())
    }

    /// Makes a place a gap. At no time is there nothing.
    ///
    /// # Errors
    /// When the kernel is out of memory; the place is then as it was.
    pub(crate) fn clear(&self, place: usize) -> io::Result<()> {
        let at = self.place(place)?;
        // SAFETY: the place is in the range, which is this BarMemory's.
        unsafe { window::map(at.cast(), self.place, &self.gap, libc::MAP_FIXED) }.map(drop)
    }

    fn place(&self, place: usize) -> io::Result<*mut u8> {
        let offset = place.checked_mul(self.place);
        let offset = offset.filter(|&offset| offset < self.addresses.len);
        let offset = offset.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.host_addr().wrapping_add(offset))
    }
}

impl Drop for BarMemory {
    fn drop(&mut self) {
        // SAFETY: the range is this BarMemory's. Who keeps its addresses does not look at what is there.
        unsafe {
            libc::mmap(
                self.host_addr().cast(),
                self.addresses.len,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED,
                -1,
                0,
            )
        };
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;
    use crate::sys::page_size;

    const PLACE: u64 = 4 << 20;

    fn read(memory: &BarMemory, offset: u64) -> u8 {
        assert!(offset < memory.len());
        // SAFETY: it is in the range, all of which is mapped.
        unsafe { memory.host_addr().add(offset as usize).read_volatile() }
    }

    fn write(memory: &BarMemory, offset: u64, byte: u8) {
        assert!(offset < memory.len());
        // SAFETY: it is in the range, all of which is mapped.
        unsafe { memory.host_addr().add(offset as usize).write_volatile(byte) }
    }

    #[test]
    fn windows_come_and_go_in_a_range_that_stays() {
        let memory = BarMemory::reserve(8 * PLACE, PLACE).unwrap();
        assert_eq!(memory.host_addr() as usize % ALIGNMENT, 0);
        let window = Window::create(PLACE, false).unwrap();
        memory.put(3, &window).unwrap();
        let start = memory.host_addr().wrapping_add(3 * PLACE as usize);
        assert_eq!(window.host_addr(), start);
        window.file().write_all_at(&[7], PLACE - 1).unwrap();
        assert_eq!(read(&memory, 4 * PLACE - 1), 7);
        write(&memory, 3 * PLACE, 8);
        let mut byte = [0];
        window.file().read_exact_at(&mut byte, 0).unwrap();
        assert_eq!(byte, [8]);
        memory.clear(3).unwrap();
        assert_eq!(read(&memory, 4 * PLACE - 1), 0);
        write(&memory, 3 * PLACE, 9);
        window.file().read_exact_at(&mut byte, 0).unwrap();
        assert_eq!(byte, [8], "what is written to a gap gets to a window");
    }

    #[test]
    fn all_gaps_can_be_touched_and_take_no_more_than_one_window() {
        let memory = BarMemory::reserve(8 * PLACE, PLACE).unwrap();
        let small = Window::create(PLACE / 2, false).unwrap();
        memory.put(7, &small).unwrap();
        let page = page_size().unwrap();
        for offset in (0..memory.len()).step_by(page) {
            write(&memory, offset, 1);
            assert_eq!(read(&memory, offset), 1);
        }
        assert!(memory.gap.metadata().unwrap().blocks() * 512 <= PLACE);
    }

    #[test]
    fn a_window_that_does_not_fit_leaves_a_gap() {
        let memory = BarMemory::reserve(2 * PLACE, PLACE).unwrap();
        let large = Window::create(2 * PLACE, false).unwrap();
        memory.put(0, &large).unwrap_err();
        let window = Window::create(PLACE, false).unwrap();
        memory.put(2, &window).unwrap_err();
        memory.put(usize::MAX, &window).unwrap_err();
        write(&memory, 0, 1);
    }

    #[test]
    fn addresses_that_are_kept_have_nothing() {
        let memory = BarMemory::reserve(2 * PLACE, PLACE).unwrap();
        let start = memory.host_addr() as usize;
        let end = start + memory.len() as usize;
        let addresses = memory.addresses();
        drop(memory);
        let mut at = start;
        for line in fs::read_to_string("/proc/self/maps").unwrap().lines() {
            let (range, rest) = line.split_once(' ').unwrap();
            let (from, to) = range.split_once('-').unwrap();
            let [from, to] = [from, to].map(|hex| usize::from_str_radix(hex, 16).unwrap());
            if from <= at && at < to.min(end) {
                assert!(rest.starts_with("---p"), "{line}");
                at = to;
            }
        }
        assert!(at >= end, "{start:#x}-{end:#x}, to {at:#x}");
        drop(addresses);
    }

    #[test]
    fn the_largest_bar_takes_no_memory() {
        let memory = BarMemory::reserve(1 << 46, 1 << 40).unwrap();
        write(&memory, (1 << 46) - 1, 1);
        BarMemory::reserve(1 << 62, 1 << 40).unwrap_err();
    }
}
