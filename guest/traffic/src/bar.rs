// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device's BARs, mapped as sysfs offers them, whatever driver the device has.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr::NonNull;

/// A mapped part of a BAR.
pub(crate) struct Bar {
    address: NonNull<u8>,
    size: usize,
}

impl Bar {
    /// Maps `size` bytes of BAR `number` from `offset` on, of the device with this folder in sysfs.
    pub(crate) fn map(device: &Path, number: u32, offset: usize, size: usize) -> io::Result<Self> {
        let path = device.join(format!("resource{number}"));
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(named)?;
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
            return Err(named(io::Error::last_os_error()));
        }
        let address = NonNull::new(address.cast())
            .ok_or_else(|| io::Error::other("a mapping at address 0"))?;
        Ok(Bar { address, size })
    }

    /// Bytes that are mapped.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    fn place<T>(&self, offset: usize) -> *mut T {
        assert!(
            offset.is_multiple_of(size_of::<T>()) && offset < self.size,
            "{offset:#x} is outside the mapping"
        );
        // SAFETY: within the mapping, as was just checked.
        unsafe { self.address.as_ptr().add(offset).cast() }
    }

    /// The 8 bytes at `offset`.
    pub(crate) fn read(&self, offset: usize) -> u64 {
        // SAFETY: an aligned word of the mapping, which lives as long as we do.
        unsafe { self.place::<u64>(offset).read_volatile() }
    }

    /// Sets the 8 bytes at `offset`.
    pub(crate) fn write(&self, offset: usize, value: u64) {
        // SAFETY: an aligned word of the mapping, which lives as long as we do.
        unsafe { self.place::<u64>(offset).write_volatile(value) };
    }

    /// The 4 bytes at `offset`: registers want no other width.
    pub(crate) fn read_register(&self, offset: usize) -> u32 {
        // SAFETY: an aligned word of the mapping, which lives as long as we do.
        unsafe { self.place::<u32>(offset).read_volatile() }
    }

    /// Sets the 4 bytes at `offset`.
    pub(crate) fn write_register(&self, offset: usize, value: u32) {
        // SAFETY: an aligned word of the mapping, which lives as long as we do.
        unsafe { self.place::<u32>(offset).write_volatile(value) };
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nothing refers to any more.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.size) };
    }
}
