// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The ivsmc device: memory and doorbells that are shared with other VMs of the host, for SMC-D and other drivers.
//!
//! Registers, links and their life are the crate `vmm-device-ivsmc`, which knows no VMM. Here is what it needs of this
//! one ([`host`]), what makes a PCI device of it ([`device`]), its options ([`config`]), and what its threads may do
//! ([`sandbox`]). What the VM's virtio devices reach of its windows is [`memory`]. See `docs/ivsmc.md`.

pub(crate) mod config;
pub(super) mod device;
mod host;
pub(super) mod memory;
pub(crate) mod sandbox;

use std::collections::HashMap;
use std::num::Wrapping;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::{io, panic, result, thread};

use log::{error, info};
use pci::{MSIX_CONFIG_ID, MaybeMutInterruptSourceGroup, MsixConfig, PciBdf, PciDevice};
use seccompiler::apply_filter;
use serde::Serialize;
use thiserror::Error;
use vm_device::interrupt::MsiIrqGroupConfig;
use vm_device::{BusDeviceSync, Resource};
use vm_migration::{MigratableError, Snapshot, snapshot_from_id, state_from_id};
use vmm_device_ivsmc::{Device, DeviceState, Gid, Links, NoSuchPeer};

pub use self::config::IvsmcConfig;
pub(super) use self::device::IvsmcDevice;
use self::host::VmHost;
use super::{DeviceManager, DeviceManagerError, DeviceManagerResult, PciDeviceHandle};
use crate::PciDeviceInfo;
use crate::device_tree::DeviceNode;
use crate::seccomp_filters::{Thread, get_seccomp_filter};

const IVSMC_DEVICE_NAME_PREFIX: &str = "_ivsmc";

/// Why an ivsmc device cannot be made.
#[derive(Debug, Error)]
pub enum IvsmcError {
    /// An option or the socket is not right.
    #[error(transparent)]
    Device(#[from] vmm_device_ivsmc::Error),
    /// No interrupts for it.
    #[error("Cannot make the interrupts of an ivsmc device")]
    Interrupts(#[source] io::Error),
    /// No MSI-X for it.
    #[error("Cannot make MSI-X of an ivsmc device")]
    Msix(#[source] anyhow::Error),
    /// No link to drop.
    #[error(transparent)]
    NoSuchPeer(#[from] NoSuchPeer),
    /// A BAR cannot be where it is to be.
    #[error("Cannot place the BARs of an ivsmc device")]
    PlaceBars(#[source] io::Error),
    /// The snapshot has no state of this device.
    #[error("Cannot read the state of an ivsmc device in the snapshot")]
    RestoreState(#[source] MigratableError),
    /// No seccomp filter for the device's thread.
    #[error("Cannot make the seccomp filter of an ivsmc device's thread")]
    SeccompFilter(#[source] seccompiler::Error),
    /// The device's thread cannot be started.
    #[error("Cannot start the thread of an ivsmc device")]
    SpawnThread(#[source] io::Error),
}

/// A device and its links, as `vm.ivsmc-links` has them.
#[derive(Clone, Debug, Serialize)]
pub struct IvsmcLinks {
    id: String,
    #[serde(flatten)]
    links: Links,
}

impl DeviceManager {
    /// Makes the devices of the VM's configuration.
    pub(super) fn add_ivsmc_devices(
        &mut self,
        snapshot: Option<&Snapshot>,
    ) -> DeviceManagerResult<()> {
        let mut configs = self.config.lock().unwrap().ivsmc.take();
        let made = configs.iter_mut().flatten().try_for_each(|config| {
            self.make_ivsmc_device(config, snapshot)?;
            Ok(())
        });
        self.config.lock().unwrap().ivsmc = configs;
        made
    }

    /// Adds a device to the VM. It joins no peers before [`Self::start_ivsmc_devices`].
    pub fn add_ivsmc(&mut self, config: &mut IvsmcConfig) -> DeviceManagerResult<PciDeviceInfo> {
        self.validate_identifier(&config.pci_common.id)?;
        let info = self.make_ivsmc_device(config, None)?;
        self.pci_segments[config.pci_common.pci_segment as usize].pci_devices_up |=
            1 << info.bdf.device();
        Ok(info)
    }

    /// The VM runs, at boot, after a restore or after a pause: devices may join their peers. (That is not for
    /// [`Pausable::resume`](vm_migration::Pausable::resume), which is also called to end a VM that never ran.)
    pub fn start_ivsmc_devices(&self) {
        for (_, device) in self.ivsmc_devices() {
            device.lock().unwrap().start();
        }
    }

    fn make_ivsmc_device(
        &mut self,
        config: &mut IvsmcConfig,
        snapshot: Option<&Snapshot>,
    ) -> DeviceManagerResult<PciDeviceInfo> {
        let id = match &config.pci_common.id {
            Some(id) => id.clone(),
            None => self.next_device_name(IVSMC_DEVICE_NAME_PREFIX)?,
        };
        config.pci_common.id = Some(id.clone());
        info!("Creating ivsmc device: id = {id}, {:?}", config.device);

        let (segment, bdf, resources) = self.pci_resources(
            &id,
            config.pci_common.pci_segment,
            config.pci_common.pci_device_id,
        )?;
        self.ivsmc_device(&id, config, bdf, snapshot)
            .map_err(DeviceManagerError::Ivsmc)
            .and_then(|device| {
                let device = Arc::new(Mutex::new(device));
                self.insert_ivsmc_device(&id, &device, segment, bdf, resources)
                    .inspect_err(|_| self.remove_ivsmc_device(&id, &device, segment))
            })
            .inspect_err(|_| {
                // There are few slots, and a user may try often.
                let bus = &self.pci_segments[segment as usize].pci_bus;
                bus.lock().unwrap().free_device_id(bdf.device()).ok();
            })?;
        Ok(PciDeviceInfo { id, bdf })
    }

    /// Makes a device that is nowhere yet, and starts its thread.
    fn ivsmc_device(
        &self,
        id: &str,
        config: &IvsmcConfig,
        bdf: PciBdf,
        snapshot: Option<&Snapshot>,
    ) -> result::Result<IvsmcDevice, IvsmcError> {
        let config = &config.device;
        config.validate().map_err(vmm_device_ivsmc::Error::from)?;
        let snapshot = snapshot_from_id(snapshot, id);
        let state: Option<DeviceState> = snapshot
            .map(Snapshot::to_state)
            .transpose()
            .map_err(IvsmcError::RestoreState)?;
        let interrupts = self
            .msi_interrupt_manager
            .create_group(MsiIrqGroupConfig {
                base: 0,
                count: config.vectors.into(),
            })
            .map_err(IvsmcError::Interrupts)?;
        let msix_config = MsixConfig::new(
            config.vectors,
            MaybeMutInterruptSourceGroup::Immutable(interrupts.clone()),
            bdf.into(),
            state_from_id(snapshot, MSIX_CONFIG_ID).map_err(IvsmcError::RestoreState)?,
        )
        .map_err(|e| IvsmcError::Msix(e.into()))?;
        let msix_config = Arc::new(Mutex::new(msix_config));
        let host = VmHost::new(
            id,
            self.address_manager.vm.clone(),
            self.memory_manager.lock().unwrap().memory_slot_allocator(),
            interrupts.clone(),
            msix_config.clone(),
        );
        let (device, mut fabric) = Device::new(id, config.clone(), Arc::new(host), state.as_ref())?;
        let memory = self.device_memory.clone();
        let mut device = IvsmcDevice::new(id, device, memory, msix_config, interrupts, snapshot)
            .map_err(IvsmcError::RestoreState)?;
        if let Some(reaper) = fabric.reaper() {
            // Peers can keep it from ending: nobody joins it.
            self.start_ivsmc_thread(id, "reaper", Thread::IvsmcReaper, || reaper.run())?;
        }
        let thread = self.start_ivsmc_thread(id, "fabric", Thread::Ivsmc, || fabric.run())?;
        device.join_when_dropped(thread);
        Ok(device)
    }

    /// Starts one of a device's threads. Should it fail, the VMM ends.
    fn start_ivsmc_thread(
        &self,
        id: &str,
        kind: &str,
        thread: Thread,
        body: impl FnOnce() + Send + 'static,
    ) -> result::Result<JoinHandle<()>, IvsmcError> {
        let filter = get_seccomp_filter(&self.seccomp_action, thread, None)
            .map_err(IvsmcError::SeccompFilter)?;
        let exit_evt = self.exit_evt.try_clone().map_err(IvsmcError::SpawnThread)?;
        let name = format!("{id}_{kind}");
        let thread = thread::Builder::new().name(name.clone());
        let run = move || {
            if !filter.is_empty()
                && let Err(e) = apply_filter(&filter)
            {
                error!("{name}: cannot apply the seccomp filter: {e}");
                exit_evt.write(1).ok();
                return;
            }
            if panic::catch_unwind(AssertUnwindSafe(body)).is_err() {
                error!("{name}: the thread panicked");
                exit_evt.write(1).ok();
            }
        };
        thread.spawn(run).map_err(IvsmcError::SpawnThread)
    }

    /// Gives a device its BARs and its place on the bus.
    fn insert_ivsmc_device(
        &mut self,
        id: &str,
        device: &Arc<Mutex<IvsmcDevice>>,
        segment: u16,
        bdf: PciBdf,
        resources: Option<Vec<Resource>>,
    ) -> DeviceManagerResult<()> {
        let (bars, resources) = self.allocate_pci_bars(device.clone(), segment, resources)?;
        // Not while the allocators are locked: the device's thread may hold locks of its own.
        device
            .lock()
            .unwrap()
            .place_bars()
            .map_err(|e| DeviceManagerError::Ivsmc(IvsmcError::PlaceBars(e)))?;
        let mut node = DeviceNode::new(id.to_owned(), Some(device.clone()));
        node.resources = resources;
        node.pci_bdf = Some(bdf);
        node.pci_device_handle = Some(PciDeviceHandle::Ivsmc(device.clone()));
        self.device_tree.lock().unwrap().insert(id.to_owned(), node);
        self.commit_pci_device(device.clone(), device.clone(), segment, bdf, bars)
    }

    /// Undoes what [`Self::insert_ivsmc_device`] has done before it failed.
    fn remove_ivsmc_device(&mut self, id: &str, device: &Arc<Mutex<IvsmcDevice>>, segment: u16) {
        let segment = &self.pci_segments[segment as usize];
        let freed = device.lock().unwrap().free_bars(
            &mut self.address_manager.allocator.lock().unwrap(),
            &mut segment.mem32_allocator.lock().unwrap(),
            &mut segment.mem64_allocator.lock().unwrap(),
        );
        if let Err(e) = freed {
            error!("{id}: cannot free the BARs: {e}");
        }
        self.device_tree.lock().unwrap().remove(id);
        // What was not there is not removed.
        self.address_manager
            .mmio_bus
            .remove_by_device(device.as_ref())
            .ok();
        let device: Arc<dyn BusDeviceSync> = device.clone();
        self.bus_devices
            .retain(|other| !Arc::ptr_eq(other, &device));
    }

    fn ivsmc_devices(&self) -> Vec<(String, Arc<Mutex<IvsmcDevice>>)> {
        let mut devices = Vec::new();
        for (id, node) in self.device_tree.lock().unwrap().iter() {
            if let Some(PciDeviceHandle::Ivsmc(device)) = &node.pci_device_handle {
                devices.push((id.clone(), device.clone()));
            }
        }
        // A vCPU that moves a BAR takes the tree's lock while it holds the device's: not both here.
        devices
    }

    /// The devices' links.
    pub fn ivsmc_links(&self) -> Vec<IvsmcLinks> {
        let devices = self.ivsmc_devices().into_iter();
        let mut all: Vec<_> = devices
            .map(|(id, device)| IvsmcLinks {
                id,
                links: device.lock().unwrap().links(),
            })
            .collect();
        all.sort_by(|one, other| one.id.cmp(&other.id));
        all
    }

    /// Ends the link of a device to this peer, which gets no other one if it is to be refused.
    pub fn drop_ivsmc_link(&self, id: &str, peer: Gid, refuse: bool) -> DeviceManagerResult<()> {
        let devices = self.ivsmc_devices();
        let (_, device) = devices
            .iter()
            .find(|(other, _)| other == id)
            .ok_or_else(|| DeviceManagerError::UnknownDeviceId(id.to_owned()))?;
        let dropped = device.lock().unwrap().drop_link(peer, refuse);
        dropped.map_err(|e| DeviceManagerError::Ivsmc(e.into()))
    }

    /// Adds the devices' counters to those of other devices.
    pub(super) fn ivsmc_counters(
        &self,
        counters: &mut HashMap<String, HashMap<&'static str, Wrapping<u64>>>,
    ) {
        for (id, device) in self.ivsmc_devices() {
            counters.insert(id, device.lock().unwrap().counters());
        }
    }
}
