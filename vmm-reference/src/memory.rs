// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the VM's devices reach: its RAM, and BAR2 of ivsmc devices.
//!
//! The guest's kernel gives devices addresses in BAR2, too: what it receives over SMC-D is in a window, and when a program
//! splices that to a socket or a file, it stays there.

use std::sync::{Arc, Mutex, Weak};

use anyhow::Result;
use log::{info, warn};
use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemoryMmap, GuestRegionMmap, MmapRegion};
use vmm_device_ivsmc::BarMemory;

use crate::lock;

/// The memory that devices reach; it changes when a BAR2 moves. Clones are the same memory.
#[derive(Clone)]
pub struct DeviceMemory(Arc<Inner>);

struct Inner {
    ram: GuestMemoryMmap,
    now: Mutex<Arc<GuestMemoryMmap>>,
    // Taken before all other locks.
    parts: Mutex<Parts>,
}

#[derive(Default)]
struct Parts {
    /// Each BAR2, and where it is. They are kept for as long as anybody may have a table with them.
    bars: Vec<(Arc<BarMemory>, Option<u64>)>,
    users: Vec<Weak<dyn MemoryUser>>,
}

/// Who has a table of its own of what is where.
pub trait MemoryUser: Send + Sync {
    /// The memory has changed.
    fn memory_changed(&self) -> Result<()>;
}

impl GuestAddressSpace for DeviceMemory {
    type M = GuestMemoryMmap;
    type T = Arc<GuestMemoryMmap>;

    fn memory(&self) -> Arc<GuestMemoryMmap> {
        lock(&self.0.now).clone()
    }
}

impl DeviceMemory {
    /// Nothing but RAM.
    pub fn new(ram: GuestMemoryMmap) -> Self {
        DeviceMemory(Arc::new(Inner {
            now: Mutex::new(Arc::new(ram.clone())),
            ram,
            parts: Mutex::default(),
        }))
    }

    /// Tells `user` from now on, for as long as it is there.
    pub fn tell(&self, user: Weak<dyn MemoryUser>) {
        lock(&self.0.parts).users.push(user);
    }

    /// A BAR2 is at `address` now, or nowhere. What the guest puts over other memory, devices do not reach.
    pub fn place(&self, bar: &Arc<BarMemory>, address: Option<u64>) {
        let parts = &mut *lock(&self.0.parts);
        match parts.bars.iter_mut().find(|(it, _)| Arc::ptr_eq(it, bar)) {
            Some((_, at)) => *at = address,
            None => parts.bars.push((bar.clone(), address)),
        }
        let mut memory = self.0.ram.clone();
        for (bar, address) in &parts.bars {
            let Some(address) = address else { continue };
            match with_bar(&memory, bar, *address) {
                Ok(with) => memory = with,
                Err(error) => info!("devices do not reach BAR2 at {address:#x}: {error:#}"),
            }
        }
        *lock(&self.0.now) = Arc::new(memory);
        parts.users.retain(|user| user.strong_count() > 0);
        for user in parts.users.iter().filter_map(Weak::upgrade) {
            if let Err(error) = user.memory_changed() {
                warn!("a device does not hear where BAR2 is: {error:#}");
            }
        }
    }
}

fn with_bar(memory: &GuestMemoryMmap, bar: &BarMemory, address: u64) -> Result<GuestMemoryMmap> {
    let (size, access) = (
        usize::try_from(bar.len())?,
        libc::PROT_READ | libc::PROT_WRITE,
    );
    // SAFETY: it is a mapping of this size that can be read and written, and is kept with the memory.
    let region = unsafe { MmapRegion::build_raw(bar.host_addr(), size, access, libc::MAP_SHARED) }?;
    let region = GuestRegionMmap::new(region, GuestAddress(address));
    let region = region.ok_or_else(|| anyhow::anyhow!("it is too high"))?;
    Ok(memory.insert_region(Arc::new(region))?)
}
