// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The ivsmc device: memory and doorbells that are shared with other VMs of the host, for SMC-D and other drivers.
//!
//! The device is the crate `vmm-device-ivsmc`, which knows no VMM. Here is what it needs of this one ([`VmHost`]),
//! what makes a PCI device of it ([`IvsmcDevice`]), and its options ([`IvsmcConfig`]). See `docs/ivsmc.md`.

use std::any::Any;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::num::Wrapping;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Barrier, Mutex};
use std::thread::JoinHandle;
use std::{io, panic, result, thread};

use event_monitor::event;
use hypervisor::{DataMatch, IoEventAddress};
use log::{error, info};
use option_parser::OptionParser;
use pci::{
    BarReprogrammingParams, PciBarConfiguration, PciBarPrefetchable, PciBarRegionType, PciDevice,
    PciDeviceError,
};
use seccompiler::{SeccompRule, apply_filter};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;
use vm_allocator::{AddressAllocator, MemorySlotAllocator, SystemAllocator};
use vm_device::interrupt::{
    InterruptManager, InterruptSourceConfig, InterruptSourceGroup, MsiIrqGroupConfig,
    MsiIrqSourceConfig,
};
use vm_device::{BusDevice, Resource};
use vm_memory::{Address, GuestAddress};
use vm_migration::{
    Migratable, MigratableError, Pausable, Snapshot, Snapshottable, Transportable, state_from_id,
};
use vmm_device_ivsmc::{
    BarSpec, Config, ConfigError, Device, DeviceState, Event, Fabric, Host, MsiMessage, Window,
};
use vmm_sys_util::eventfd::EventFd;

use super::{DeviceManager, DeviceManagerError, DeviceManagerResult, PciDeviceHandle};
use crate::config::{self, ValidationError};
use crate::device_tree::DeviceNode;
use crate::landlock::Landlock;
use crate::seccomp_filters::{Thread, get_seccomp_filter};
use crate::vm_config::{ApplyLandlock, LandlockResult, PciDeviceCommonConfig, VmConfig};
use crate::{PciDeviceInfo, device_node};

const IVSMC_DEVICE_NAME_PREFIX: &str = "_ivsmc";

/// Why an ivsmc device cannot be made.
#[derive(Debug, Error)]
pub enum IvsmcError {
    /// An option or the socket is not right.
    #[error(transparent)]
    Device(#[from] vmm_device_ivsmc::Error),
    /// The snapshot has no state of this device.
    #[error("ivsmc: cannot read the device's state in the snapshot")]
    RestoreState(#[source] MigratableError),
    /// No seccomp filter for the device's thread.
    #[error("ivsmc: cannot make the seccomp filter of the device's thread")]
    SeccompFilter(#[source] seccompiler::Error),
    /// The device's thread cannot be started.
    #[error("ivsmc: cannot start the device's thread")]
    SpawnThread(#[source] io::Error),
}

/// The options of an ivsmc device.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct IvsmcConfig {
    #[serde(flatten)]
    pub pci_common: PciDeviceCommonConfig,
    #[serde(flatten)]
    pub device: Config,
    /// What else was given, which is an error.
    #[serde(flatten)]
    unknown: BTreeMap<String, Value>,
}

impl IvsmcConfig {
    pub const SYNTAX: &'static str = "ivsmc device, memory and doorbells shared with other VMs \
        \"path=<socket_to_listen_on>,peer=<socket_to_join|folder_of_sockets|[list,of,them]>,\
        size=<window_size>,max_peers=<1..64>,vectors=<1..16>,gid=<uuid>,\
        fabric_id=<0xff00..0xfffe>,hugepages=on|off,allow=<user_id|[list,of,them]>,\
        id=<device_id>,pci_segment=<segment_id>,pci_device_id=<pci_slot>\" \
        \nThe <window_size> is that of the memory shared with each peer, a power of two from 2M. \
        Default size is 64M, default max_peers is 8.";

    pub fn parse(ivsmc: &str) -> config::Result<Self> {
        let mut parser = OptionParser::new();
        parser
            .add_all(Config::OPTIONS)
            .add_all(&["id", "pci_segment", "pci_device_id"]);
        parser.parse(ivsmc).map_err(config::Error::ParseIvsmc)?;
        let mut device = Config::default();
        for option in Config::OPTIONS {
            if let Some(value) = parser.get(option) {
                device
                    .set(option, &value)
                    .map_err(config::Error::ParseIvsmcOption)?;
            }
        }
        let pci_common = PciDeviceCommonConfig::parse(ivsmc)?;
        Ok(IvsmcConfig {
            pci_common,
            device,
            unknown: BTreeMap::new(),
        })
    }

    pub fn validate(&self, vm_config: &VmConfig) -> result::Result<(), ValidationError> {
        if self.pci_common.iommu {
            return Err(ValidationError::IommuNotSupported);
        }
        self.pci_common.validate(vm_config)?;
        if let Some(option) = self.unknown.keys().next() {
            let error = ConfigError::UnknownOption(option.clone());
            return Err(ValidationError::Ivsmc(error));
        }
        self.device.validate().map_err(ValidationError::Ivsmc)?;
        let path = &self.device.path;
        let devices = vm_config.ivsmc.iter().flatten();
        if devices.filter(|other| other.device.path == *path).count() > 1 {
            return Err(ValidationError::IvsmcPathNotUnique(path.clone()));
        }
        Ok(())
    }
}

impl ApplyLandlock for IvsmcConfig {
    fn apply_landlock(&self, landlock: &mut Landlock) -> LandlockResult<()> {
        // The socket is made and removed in its folder; a peer can be a folder to look into.
        if let Some(folder) = self.device.path.parent() {
            landlock.add_rule_with_access(folder, "rw")?;
        }
        for peer in &self.device.peers {
            landlock.add_rule_with_access(peer, "r")?;
        }
        Ok(())
    }
}

/// What an ivsmc device lets threads do in addition to what they may do anyway.
pub(crate) fn seccomp_rules(thread: &Thread) -> Vec<(i64, Vec<SeccompRule>)> {
    let syscalls: &[&[i64]] = match thread {
        // Whatever the VMM's thread starts has to live with its filter, too.
        Thread::Vmm => &[
            Device::NEW_SYSCALLS,
            Device::STATE_SYSCALLS,
            Device::SYSCALLS,
            Fabric::SYSCALLS,
        ],
        // Makes the guest's accesses, and removes devices. Each interrupt source begins with an eventfd of its own.
        Thread::Vcpu => &[Device::SYSCALLS, &[libc::SYS_eventfd2]],
        // Takes snapshots, and ends the VM that has moved away.
        Thread::MigrationWorker => &[Device::STATE_SYSCALLS, Device::SYSCALLS],
        // The event monitor's properties are in a HashMap, which wants random numbers.
        Thread::Ivsmc => &[Fabric::SYSCALLS, &[libc::SYS_getrandom]],
        _ => &[],
    };
    let syscalls = syscalls.iter().copied().flatten();
    syscalls.map(|&syscall| (syscall, vec![])).collect()
}

/// An interrupt line: what delivers it, and whether it does.
struct Line {
    group: Arc<Mutex<dyn InterruptSourceGroup>>,
    is_on: bool,
}

/// What a device needs of this VMM.
struct VmHost {
    id: String,
    vm: Arc<dyn hypervisor::Vm>,
    interrupt_manager: Arc<dyn InterruptManager<GroupConfig = MsiIrqGroupConfig>>,
    slot_allocator: Mutex<MemorySlotAllocator>,
    devid: u32,
    /// The memory slots of windows, by link.
    slots: Mutex<HashMap<usize, u32>>,
    /// Made when they are first used: of many a device never has need.
    lines: Mutex<HashMap<usize, Line>>,
}

impl VmHost {
    fn line(&self) -> io::Result<Line> {
        let group = MsiIrqGroupConfig { base: 0, count: 1 };
        Ok(Line {
            group: self.interrupt_manager.create_group_mut(group)?,
            is_on: false,
        })
    }
}

impl Host for VmHost {
    fn map_window(&self, link: usize, gpa: u64, window: &Window) -> io::Result<()> {
        let mut allocator = self.slot_allocator.lock().unwrap();
        let slot = allocator.next_memory_slot();
        // SAFETY: the window is a mapping of this size, which the device keeps until it has called unmap_window.
        let created = unsafe {
            self.vm.create_user_memory_region(
                slot,
                gpa,
                window.len() as usize,
                window.host_addr(),
                false,
                false,
            )
        };
        if let Err(error) = created {
            allocator.free_memory_slot(slot);
            return Err(io::Error::other(error));
        }
        self.slots.lock().unwrap().insert(link, slot);
        Ok(())
    }

    fn unmap_window(&self, link: usize, gpa: u64, window: &Window) -> io::Result<()> {
        let mut slots = self.slots.lock().unwrap();
        let slot = *slots.get(&link).ok_or(io::ErrorKind::NotFound)?;
        // SAFETY: it is what map_window has put there.
        unsafe {
            self.vm.remove_user_memory_region(
                slot,
                gpa,
                window.len() as usize,
                window.host_addr(),
                false,
                false,
            )
        }
        .map_err(io::Error::other)?;
        slots.remove(&link);
        self.slot_allocator.lock().unwrap().free_memory_slot(slot);
        Ok(())
    }

    fn set_doorbell(&self, gpa: u64, value: Option<u32>, fd: &EventFd) -> io::Result<()> {
        let value = value.map(DataMatch::DataMatch32);
        self.vm
            .register_ioevent(fd, &IoEventAddress::Mmio(gpa), value)
            .map_err(io::Error::other)
    }

    fn clear_doorbell(&self, gpa: u64, value: Option<u32>, fd: &EventFd) -> io::Result<()> {
        let value = value.map(DataMatch::DataMatch32);
        self.vm
            .unregister_ioevent_datamatch(fd, &IoEventAddress::Mmio(gpa), value)
            .map_err(io::Error::other)
    }

    fn set_line(&self, line: usize, fd: &EventFd, message: Option<MsiMessage>) -> io::Result<()> {
        let mut lines = self.lines.lock().unwrap();
        let line = match lines.entry(line) {
            Entry::Occupied(line) => line.into_mut(),
            Entry::Vacant(place) => place.insert(self.line()?),
        };
        let mut group = line.group.lock().unwrap();
        let Some(message) = message else {
            let nowhere = InterruptSourceConfig::MsiIrq(MsiIrqSourceConfig::default());
            group.update(0, nowhere, true, true)?;
            line.is_on = false;
            return group.set_notifier(0, None, self.vm.as_ref());
        };
        if !line.is_on {
            group.set_notifier(0, Some(fd.try_clone()?), self.vm.as_ref())?;
        }
        let message = MsiIrqSourceConfig {
            high_addr: (message.address >> 32) as u32,
            low_addr: message.address as u32,
            data: message.data,
            devid: self.devid,
        };
        group.update(0, InterruptSourceConfig::MsiIrq(message), false, true)?;
        line.is_on = true;
        Ok(())
    }

    fn event(&self, event: &Event) {
        let peer = event.peer.map_or_else(String::new, |gid| gid.to_string());
        event!(
            "ivsmc",
            event.kind.name(),
            "id",
            &self.id,
            "peer",
            peer,
            "reason",
            &event.reason
        );
    }
}

/// An ivsmc device on the PCI bus, and the thread that makes its links.
pub struct IvsmcDevice {
    id: String,
    device: Arc<Device>,
    thread: Option<JoinHandle<()>>,
}

impl IvsmcDevice {
    fn bar_at(&self, base: u64) -> Option<usize> {
        let bars = self.device.bars();
        let mut indices = bars.iter().map(|bar| bar.index);
        indices.find(|&index| self.device.bar_address(index) == base)
    }

    pub(super) fn counters(&self) -> HashMap<&'static str, Wrapping<u64>> {
        let named = self.device.counters().named();
        named.map(|(name, count)| (name, Wrapping(count))).into()
    }
}

impl Drop for IvsmcDevice {
    fn drop(&mut self) {
        self.device.shutdown();
        if self.thread.take().is_some_and(|t| t.join().is_err()) {
            error!("{}: the device's thread has panicked", self.id);
        }
    }
}

impl BusDevice for IvsmcDevice {
    fn read(&mut self, base: u64, offset: u64, data: &mut [u8]) {
        self.read_bar(base, offset, data);
    }

    fn write(&mut self, base: u64, offset: u64, data: &[u8]) -> Option<Arc<Barrier>> {
        self.write_bar(base, offset, data)
    }
}

fn region_type(bar: &BarSpec) -> PciBarRegionType {
    if bar.is_64bit {
        PciBarRegionType::Memory64BitRegion
    } else {
        PciBarRegionType::Memory32BitRegion
    }
}

impl PciDevice for IvsmcDevice {
    fn allocate_bars(
        &mut self,
        _allocator: &mut SystemAllocator,
        mmio32_allocator: &mut AddressAllocator,
        mmio64_allocator: &mut AddressAllocator,
        resources: Option<Vec<Resource>>,
    ) -> result::Result<Vec<PciBarConfiguration>, PciDeviceError> {
        let mut restored = HashMap::new();
        let is_restored = resources.is_some();
        for resource in resources.into_iter().flatten() {
            if let Resource::PciBar { index, base, .. } = resource {
                restored.insert(index, GuestAddress(base));
            }
        }
        let mut bars = Vec::new();
        for bar in self.device.bars() {
            let address = restored.get(&bar.index).copied();
            if is_restored && address.is_none() {
                return Err(PciDeviceError::MissingResource);
            }
            let allocator = if bar.is_64bit {
                &mut *mmio64_allocator
            } else {
                &mut *mmio32_allocator
            };
            let address = allocator
                .allocate(address, bar.size, Some(bar.size))
                .ok_or(PciDeviceError::IoAllocationFailed(bar.size))?;
            self.device
                .move_bar(bar.index, address.raw_value())
                .map_err(|_| PciDeviceError::IoAllocationFailed(bar.size))?;
            let prefetchable = if bar.prefetchable {
                PciBarPrefetchable::Prefetchable
            } else {
                PciBarPrefetchable::NotPrefetchable
            };
            bars.push(
                PciBarConfiguration::default()
                    .set_index(bar.index)
                    .set_address(address.raw_value())
                    .set_size(bar.size)
                    .set_region_type(region_type(&bar))
                    .set_prefetchable(prefetchable),
            );
        }
        Ok(bars)
    }

    fn free_bars(
        &mut self,
        _allocator: &mut SystemAllocator,
        mmio32_allocator: &mut AddressAllocator,
        mmio64_allocator: &mut AddressAllocator,
    ) -> result::Result<(), PciDeviceError> {
        for bar in self.device.bars() {
            let allocator = if bar.is_64bit {
                &mut *mmio64_allocator
            } else {
                &mut *mmio32_allocator
            };
            allocator.free(GuestAddress(self.device.bar_address(bar.index)), bar.size);
        }
        Ok(())
    }

    fn write_config_register(
        &mut self,
        reg_idx: usize,
        offset: u64,
        data: &[u8],
    ) -> (Vec<BarReprogrammingParams>, Option<Arc<Barrier>>) {
        let moves = self.device.config_write(reg_idx, offset as usize, data);
        let bars = self.device.bars();
        let params = moves.iter().filter_map(|to| {
            let bar = bars.iter().find(|bar| bar.index == to.bar)?;
            Some(BarReprogrammingParams {
                old_base: to.old,
                new_base: to.new,
                len: to.size,
                region_type: region_type(bar),
            })
        });
        (params.collect(), None)
    }

    fn read_config_register(&mut self, reg_idx: usize) -> u32 {
        self.device.config_read(reg_idx)
    }

    fn read_bar(&mut self, base: u64, offset: u64, data: &mut [u8]) {
        match self.bar_at(base) {
            Some(bar) => self.device.bar_read(bar, offset, data),
            None => data.fill(0xff),
        }
    }

    fn write_bar(&mut self, base: u64, offset: u64, data: &[u8]) -> Option<Arc<Barrier>> {
        if let Some(bar) = self.bar_at(base) {
            self.device.bar_write(bar, offset, data);
        }
        None
    }

    fn move_bar(&mut self, old_base: u64, new_base: u64) -> result::Result<(), io::Error> {
        let bar = self.bar_at(old_base).ok_or(io::ErrorKind::NotFound)?;
        self.device.move_bar(bar, new_base)
    }

    fn restore_bar_addr(&mut self, params: &BarReprogrammingParams) {
        if let Some(bar) = self.bar_at(params.old_base) {
            self.device.keep_bar(bar);
        }
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }

    fn id(&self) -> Option<String> {
        Some(self.id.clone())
    }
}

// Nothing of the device runs while its VM does not, so there is nothing to pause.
impl Pausable for IvsmcDevice {
    fn resume(&mut self) -> result::Result<(), MigratableError> {
        // After a restore it waits for this with making links.
        self.device.resume();
        Ok(())
    }
}

impl Snapshottable for IvsmcDevice {
    fn id(&self) -> String {
        self.id.clone()
    }

    fn snapshot(&mut self) -> result::Result<Snapshot, MigratableError> {
        let state = self.device.state();
        Snapshot::new_from_state(&state.map_err(|e| MigratableError::Snapshot(e.into()))?)
    }
}

impl Transportable for IvsmcDevice {}
impl Migratable for IvsmcDevice {}

impl DeviceManager {
    /// Makes the devices of the VM's configuration.
    pub(super) fn add_ivsmc_devices(
        &mut self,
        snapshot: Option<&Snapshot>,
    ) -> DeviceManagerResult<()> {
        let mut configs = self.config.lock().unwrap().ivsmc.take();
        for config in configs.iter_mut().flatten() {
            self.make_ivsmc_device(config, snapshot)?;
        }
        self.config.lock().unwrap().ivsmc = configs;
        Ok(())
    }

    /// Adds a device to the VM.
    pub fn add_ivsmc(&mut self, config: &mut IvsmcConfig) -> DeviceManagerResult<PciDeviceInfo> {
        self.validate_identifier(&config.pci_common.id)?;
        let info = self.make_ivsmc_device(config, None)?;
        self.pci_segments[config.pci_common.pci_segment as usize].pci_devices_up |=
            1 << info.bdf.device();
        Ok(info)
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

        let (pci_segment_id, bdf, resources) = self.pci_resources(
            &id,
            config.pci_common.pci_segment,
            config.pci_common.pci_device_id,
        )?;
        let host = VmHost {
            id: id.clone(),
            vm: self.address_manager.vm.clone(),
            interrupt_manager: self.msi_interrupt_manager.clone(),
            slot_allocator: Mutex::new(self.memory_manager.lock().unwrap().memory_slot_allocator()),
            devid: bdf.into(),
            slots: Mutex::default(),
            lines: Mutex::default(),
        };
        let made = self
            .start_ivsmc(&id, config.device.clone(), host, snapshot)
            .map_err(DeviceManagerError::Ivsmc)
            .and_then(|device| {
                let device = Arc::new(Mutex::new(device));
                let bars = self.allocate_pci_bars(device.clone(), pci_segment_id, resources)?;
                Ok((device, bars))
            });
        let (device, (bars, resources)) = made.inspect_err(|_| {
            // There are few slots, and a user may try often.
            let bus = &self.pci_segments[pci_segment_id as usize].pci_bus;
            bus.lock().unwrap().free_device_id(bdf.device()).ok();
        })?;

        let mut node = device_node!(id, device);
        node.resources = resources;
        node.pci_bdf = Some(bdf);
        node.pci_device_handle = Some(PciDeviceHandle::Ivsmc(device.clone()));
        self.device_tree.lock().unwrap().insert(id.clone(), node);
        self.commit_pci_device(device.clone(), device, pci_segment_id, bdf, bars)?;
        Ok(PciDeviceInfo { id, bdf })
    }

    /// Makes a device and starts its thread.
    fn start_ivsmc(
        &self,
        id: &str,
        config: Config,
        host: VmHost,
        snapshot: Option<&Snapshot>,
    ) -> result::Result<IvsmcDevice, IvsmcError> {
        let state: Option<DeviceState> =
            state_from_id(snapshot, id).map_err(IvsmcError::RestoreState)?;
        let filter = get_seccomp_filter(&self.seccomp_action, Thread::Ivsmc, None)
            .map_err(IvsmcError::SeccompFilter)?;
        let exit_evt = self.exit_evt.try_clone().map_err(IvsmcError::SpawnThread)?;
        let (device, fabric) = Device::new(id, config, Arc::new(host), state.as_ref())?;
        let mut ivsmc = IvsmcDevice {
            id: id.to_owned(),
            device,
            thread: None,
        };
        let name = id.to_owned();
        let run = move || {
            if !filter.is_empty()
                && let Err(e) = apply_filter(&filter)
            {
                error!("{name}: cannot apply the seccomp filter: {e}");
                exit_evt.write(1).ok();
                return;
            }
            if panic::catch_unwind(AssertUnwindSafe(|| fabric.run())).is_err() {
                error!("{name}: the device's thread panicked");
                exit_evt.write(1).ok();
            }
        };
        let thread = thread::Builder::new().name(format!("{id}_fabric"));
        ivsmc.thread = Some(thread.spawn(run).map_err(IvsmcError::SpawnThread)?);
        Ok(ivsmc)
    }

    /// Adds the devices' counters to those of other devices.
    pub(super) fn ivsmc_counters(
        &self,
        counters: &mut HashMap<String, HashMap<&'static str, Wrapping<u64>>>,
    ) {
        let mut devices = Vec::new();
        for (id, node) in self.device_tree.lock().unwrap().iter() {
            if let Some(PciDeviceHandle::Ivsmc(device)) = &node.pci_device_handle {
                devices.push((id.clone(), device.clone()));
            }
        }
        // A vCPU that moves a BAR takes the tree's lock while it holds the device's.
        for (id, device) in devices {
            counters.insert(id, device.lock().unwrap().counters());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn test_parse_ivsmc() {
        let config = IvsmcConfig::parse(
            "path=/run/a,peer=[/run/b,/run/c],size=16M,id=ivsmc0,pci_segment=1,pci_device_id=7",
        )
        .unwrap();
        assert_eq!(config.device.path, PathBuf::from("/run/a"));
        assert_eq!(config.device.peers, ["/run/b", "/run/c"].map(PathBuf::from));
        assert_eq!(config.device.window_size, 16 << 20);
        assert_eq!(config.pci_common.id.as_deref(), Some("ivsmc0"));
        assert_eq!(config.pci_common.pci_segment, 1);
        assert_eq!(config.pci_common.pci_device_id, Some(7));

        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<IvsmcConfig>(&json).unwrap(), config);
        assert!(config.unknown.is_empty());
        let json = r#"{"path": "/run/a"}"#;
        let default = IvsmcConfig::parse("path=/run/a").unwrap();
        assert_eq!(serde_json::from_str::<IvsmcConfig>(json).unwrap(), default);
    }

    #[test]
    fn test_parse_ivsmc_errors() {
        for (text, said) in [
            ("path=/run/a,colour=red", "colour"),
            ("path=/run/a,size=big", "size=big"),
            ("path=/run/a,max_peers=many", "max_peers=many"),
            ("path=/run/a,gid=me", "gid=me"),
        ] {
            let error = IvsmcConfig::parse(text).unwrap_err();
            let source = error.source().unwrap().to_string();
            assert!(source.contains(said), "{text}: {source}");
        }
        let json = r#"{"path": "/run/a", "id": "x", "pci_segment": 0, "colour": "red"}"#;
        let config: IvsmcConfig = serde_json::from_str(json).unwrap();
        assert_eq!(config.unknown.keys().collect::<Vec<_>>(), ["colour"]);
    }
}
