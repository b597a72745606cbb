// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the virtio devices of this process reach: RAM, and BAR2 of ivsmc devices.
//!
//! A guest gives its devices addresses in BAR2, too: what Linux receives over SMC-D is in a window, and what a program
//! splices from there to a socket or a disk stays there. The memory manager's view of guest memory knows nothing of it,
//! because what is done with that does not go for BAR2: it is not migrated, dumped or taken for the end of RAM. So
//! virtio devices have a view of their own. Devices in other processes (vhost-user) and those that the host's kernel
//! or hardware serves (vDPA, VFIO) have the memory manager's: a mapping that they have of a window would be out of date
//! as soon as a link ends.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::{io, mem};

use log::{info, warn};
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryRegion};
use vmm_device_ivsmc::{Addresses, BarMemory};

use crate::memory_manager::MemoryManager;
use crate::{GuestMemoryMmap, GuestRegionMmap};

/// Guest memory as virtio devices see it. It changes when a BAR2 comes, moves or goes, and when RAM is added.
pub struct DeviceMemory {
    ram: GuestMemoryAtomic<GuestMemoryMmap>,
    all: GuestMemoryAtomic<GuestMemoryMmap>,
    parts: Mutex<Parts>,
}

#[derive(Default)]
struct Parts {
    bars: Vec<Bar>,
    /// What was in the view: a device may be at work with it still.
    gone: Vec<Bar>,
    /// Where BAR2s of devices that are gone were. The host's kernel can have these addresses still, in requests of a disk
    /// that a view knows nothing of: nothing else may get there while the VM has its devices.
    removed: Vec<Arc<Addresses>>,
    /// The ids of devices that have no use for BAR2.
    elsewhere: HashSet<String>,
}

/// A BAR2 in the view. The mapping outlives all that look at it.
struct Bar {
    region: Arc<GuestRegionMmap>,
    memory: Arc<BarMemory>,
}

impl Bar {
    fn new(memory: Arc<BarMemory>, address: u64) -> io::Result<Self> {
        let size = usize::try_from(memory.len()).map_err(io::Error::other)?;
        // Nobody asks what of it is dirty: its content is in the device's state.
        let pages = NonZeroUsize::new(size).ok_or(io::ErrorKind::InvalidInput)?;
        let builder = MmapRegionBuilder::new_with_bitmap(size, AtomicBitmap::new(size, pages))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED);
        // SAFETY: it is a mapping of this size that can be read and written, and it is kept until nobody has the
        // region any more.
        let region = unsafe { builder.with_raw_mmap_pointer(memory.host_addr()) };
        let region = region.build().map_err(io::Error::other)?;
        let region = GuestRegionMmap::new(region, GuestAddress(address));
        let region = Arc::new(region.ok_or(io::ErrorKind::InvalidInput)?);
        Ok(Bar { region, memory })
    }
}

impl Parts {
    /// Takes a BAR2 out of the view, if it is there.
    fn take(&mut self, memory: &Arc<BarMemory>) -> bool {
        let mut bars = self.bars.iter();
        let index = bars.position(|bar| Arc::ptr_eq(&bar.memory, memory));
        let bar = index.map(|index| self.bars.swap_remove(index));
        let was_there = bar.is_some();
        self.gone.extend(bar);
        was_there
    }
}

impl DeviceMemory {
    /// Nothing but RAM, as the memory manager has it.
    pub(crate) fn new(memory_manager: &Mutex<MemoryManager>) -> Arc<Self> {
        Self::with_ram(memory_manager.lock().unwrap().guest_memory())
    }

    /// Nothing but this.
    pub(super) fn with_ram(ram: GuestMemoryAtomic<GuestMemoryMmap>) -> Arc<Self> {
        let now = ram.memory().into_inner();
        Arc::new(DeviceMemory {
            ram,
            all: GuestMemoryAtomic::from(now),
            parts: Mutex::default(),
        })
    }

    /// The device `id`, which is about to be made, is in another process, and needs a file for all that it sees. It
    /// goes for that one device: the next may have the same id.
    pub(crate) fn keep_from(&self, id: &str) {
        self.parts.lock().unwrap().elsewhere.insert(id.to_owned());
    }

    /// The memory that the virtio device `id` sees, instead of just `ram`.
    pub(crate) fn of_device(
        &self,
        id: &str,
        ram: GuestMemoryAtomic<GuestMemoryMmap>,
    ) -> GuestMemoryAtomic<GuestMemoryMmap> {
        if self.parts.lock().unwrap().elsewhere.remove(id) {
            ram
        } else {
            self.all.clone()
        }
    }

    /// RAM was added.
    pub(crate) fn update(&self) {
        self.rebuild(&mut self.parts.lock().unwrap());
    }

    /// The BAR2 of the ivsmc device `id`, with this memory, is at `address` now.
    pub(super) fn place(&self, id: &str, memory: &Arc<BarMemory>, address: u64) {
        let parts = &mut *self.parts.lock().unwrap();
        parts.take(memory);
        match Bar::new(memory.clone(), address) {
            Ok(bar) => parts.bars.push(bar),
            Err(e) => warn!("{id}: virtio devices do not reach BAR2: {e}"),
        }
        self.rebuild(parts);
    }

    /// The ivsmc device with this memory is going.
    pub(super) fn remove(&self, memory: &Arc<BarMemory>) {
        let parts = &mut *self.parts.lock().unwrap();
        if parts.take(memory) {
            parts.removed.push(memory.addresses());
            self.rebuild(parts);
        }
    }

    fn rebuild(&self, parts: &mut Parts) {
        let mut memory = self.ram.memory().into_inner();
        for bar in &parts.bars {
            match memory.insert_region(bar.region.clone()) {
                Ok(with_bar) => memory = Arc::new(with_bar),
                // The guest has put it over other memory.
                Err(e) => {
                    let address = bar.region.start_addr().0;
                    info!("Virtio devices do not reach the BAR2 at {address:#x}: {e}");
                }
            }
        }
        self.replace(&memory, parts);
    }

    fn replace(&self, memory: &GuestMemoryMmap, parts: &mut Parts) {
        self.all.lock().unwrap().replace(memory.clone());
        // Who looked at the view that was before has it by now.
        parts.gone.retain(|bar| Arc::strong_count(&bar.region) > 1);
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        let parts = &mut mem::take(self.parts.get_mut().unwrap());
        parts.gone.append(&mut parts.bars);
        self.replace(&self.ram.memory(), parts);
        // A device that still works with it must not find something else there.
        mem::forget(mem::take(&mut parts.gone));
    }
}
