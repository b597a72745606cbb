// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! vhost-net: the host's kernel moves the packets.

use std::sync::Arc;

use anyhow::{Context, Result};
use log::warn;
use vhost::net::VhostNet;
use vhost::vhost_kern::net::Net;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemory, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use super::{Backend, DATA_PATH, QUEUES, Tap};
use crate::memory::DeviceMemory;

/// The data path in the host's kernel.
pub struct Vhost {
    vhost: Net<DeviceMemory>,
    memory: DeviceMemory,
    features: u64,
    tap: Arc<Tap>,
    kicks: Arc<[EventFd; QUEUES]>,
    started: bool,
}

impl Vhost {
    /// Fails if the host has no vhost-net, or not for this user.
    pub fn new(memory: DeviceMemory, tap: Arc<Tap>, kicks: Arc<[EventFd; QUEUES]>) -> Result<Self> {
        let vhost = Net::new(memory.clone())?;
        vhost.set_owner()?;
        let features = vhost.get_features()? & DATA_PATH;
        let vhost = Vhost {
            vhost,
            memory,
            features,
            tap,
            kicks,
            started: false,
        };
        vhost.memory_changed()?;
        Ok(vhost)
    }
}

impl Backend for Vhost {
    fn memory_changed(&self) -> Result<()> {
        let regions: Vec<_> = self
            .memory
            .memory()
            .iter()
            .map(|region| VhostUserMemoryRegionInfo {
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
                mmap_offset: 0,
                mmap_handle: -1,
            })
            .collect();
        Ok(self.vhost.set_mem_table(&regions)?)
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn start(
        &mut self,
        features: u64,
        queues: [Queue; QUEUES],
        calls: [EventFd; QUEUES],
    ) -> Result<()> {
        self.tap.set_offloads(features).context("TUNSETOFFLOAD")?;
        self.vhost.set_features(features & self.features)?;
        for (index, (queue, call)) in queues.iter().zip(&calls).enumerate() {
            let ring = VringConfigData {
                queue_max_size: queue.max_size(),
                queue_size: queue.size(),
                flags: 0,
                desc_table_addr: queue.desc_table(),
                used_ring_addr: queue.used_ring(),
                avail_ring_addr: queue.avail_ring(),
                log_addr: None,
            };
            self.vhost.set_vring_num(index, queue.size())?;
            self.vhost.set_vring_addr(index, &ring)?;
            self.vhost.set_vring_base(index, 0)?;
            self.vhost.set_vring_call(index, call)?;
            self.vhost.set_vring_kick(index, &self.kicks[index])?;
        }
        self.started = true;
        for index in 0..QUEUES {
            self.vhost.set_backend(index, Some(self.tap.file()))?;
        }
        Ok(())
    }

    fn stop(&mut self) {
        if !std::mem::take(&mut self.started) {
            return;
        }
        for index in 0..QUEUES {
            if let Err(error) = self.vhost.set_backend(index, None) {
                warn!("vhost-net: queue {index} cannot be stopped: {error}");
            }
        }
    }
}
