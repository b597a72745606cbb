// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An ivsmc device on the PCI bus. Configuration space and MSI-X are those that other devices have.

use std::any::Any;
use std::collections::HashMap;
use std::num::Wrapping;
use std::sync::{Arc, Barrier, Mutex};
use std::thread::JoinHandle;
use std::{io, result};

use log::error;
use pci::{
    BarReprogrammingParams, MSIX_TABLE_ENTRY_SIZE, MsixCap, MsixConfig, MsixTableEntry,
    PCI_CONFIGURATION_ID, PciBarConfiguration, PciBarPrefetchable, PciBarRegionType, PciCapability,
    PciCapabilityId, PciClassCode, PciConfiguration, PciDevice, PciDeviceError, PciHeaderType,
    PciSubclass,
};
use vm_allocator::{AddressAllocator, SystemAllocator};
use vm_device::interrupt::{InterruptSourceConfig, InterruptSourceGroup, MsiIrqSourceConfig};
use vm_device::{BusDevice, Resource};
use vm_memory::{Address, GuestAddress};
use vm_migration::{
    Migratable, MigratableError, Pausable, Snapshot, Snapshottable, Transportable, state_from_id,
};
use vmm_device_ivsmc::{Device, Gid, Links, NoSuchPeer};

use super::memory::DeviceMemory;

/// Where BAR1 has the pending bits; the table is at its start.
const PBA_OFFSET: u64 = 0x800;
/// Size of BAR1 in bytes.
const MSIX_BAR_SIZE: u64 = 0x1000;

struct Subclass;

impl PciSubclass for Subclass {
    fn get_register_value(&self) -> u8 {
        Device::CLASS[1]
    }
}

/// The capability that tells a guest's driver of the registers that ivshmem does not have.
struct VendorCapability;

impl PciCapability for VendorCapability {
    fn bytes(&self) -> &[u8] {
        &Device::VENDOR_CAPABILITY
    }

    fn id(&self) -> PciCapabilityId {
        PciCapabilityId::VendorSpecific
    }
}

/// An ivsmc device on the PCI bus, and the thread that makes its links.
pub struct IvsmcDevice {
    id: String,
    device: Arc<Device>,
    /// What virtio devices reach.
    memory: Arc<DeviceMemory>,
    thread: Option<JoinHandle<()>>,
    configuration: PciConfiguration,
    msix_config: Arc<Mutex<MsixConfig>>,
    interrupts: Arc<dyn InterruptSourceGroup>,
    bar_regions: Vec<PciBarConfiguration>,
}

impl IvsmcDevice {
    pub fn new(
        id: &str,
        device: Arc<Device>,
        memory: Arc<DeviceMemory>,
        msix_config: Arc<Mutex<MsixConfig>>,
        interrupts: Arc<dyn InterruptSourceGroup>,
        snapshot: Option<&Snapshot>,
    ) -> result::Result<Self, MigratableError> {
        let configuration = PciConfiguration::new(
            Device::VENDOR,
            Device::DEVICE,
            Device::REVISION,
            PciClassCode::MemoryController,
            &Subclass,
            None,
            PciHeaderType::Device,
            Device::SUBSYSTEM_VENDOR,
            Device::SUBSYSTEM,
            Some(msix_config.clone()),
            state_from_id(snapshot, PCI_CONFIGURATION_ID)?,
        );
        Ok(IvsmcDevice {
            id: id.to_owned(),
            device,
            memory,
            thread: None,
            configuration,
            msix_config,
            interrupts,
            bar_regions: Vec::new(),
        })
    }

    pub fn join_when_dropped(&mut self, thread: JoinHandle<()>) {
        self.thread = Some(thread);
    }

    /// The VM runs: the device may join its peers. Again it does nothing.
    pub fn start(&self) {
        self.device.resume();
    }

    pub fn counters(&self) -> HashMap<&'static str, Wrapping<u64>> {
        let named = self.device.counters().named();
        named.map(|(name, count)| (name, Wrapping(count))).into()
    }

    pub fn links(&self) -> Links {
        self.device.links()
    }

    /// See [`Device::drop_link`].
    pub fn drop_link(&self, peer: Gid, refuse: bool) -> result::Result<(), NoSuchPeer> {
        self.device.drop_link(peer, refuse)
    }

    /// Tells the device where its BARs are, once they are allocated.
    pub fn place_bars(&self) -> io::Result<()> {
        let mut bars = self.bar_regions.iter();
        bars.try_for_each(|bar| self.place_bar(bar.idx(), bar.addr()))
    }

    fn place_bar(&self, index: usize, base: u64) -> io::Result<()> {
        match index {
            Device::REGISTERS_BAR => self.device.place_registers(Some(base)),
            Device::WINDOWS_BAR => {
                self.device.place_windows(Some(base))?;
                let memory = self.device.bar_memory();
                self.memory.place(&self.id, memory, base);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn bar_at(&self, base: u64) -> Option<usize> {
        let mut bars = self.bar_regions.iter();
        bars.find(|bar| bar.addr() == base)
            .map(PciBarConfiguration::idx)
    }

    /// What BARs it has, without addresses.
    fn bars(&self) -> [PciBarConfiguration; 3] {
        let registers = PciBarConfiguration::default()
            .set_region_type(PciBarRegionType::Memory32BitRegion)
            .set_prefetchable(PciBarPrefetchable::NotPrefetchable)
            .set_index(Device::REGISTERS_BAR)
            .set_size(Device::REGISTERS_SIZE);
        let msix = registers
            .set_index(Device::MSIX_BAR)
            .set_size(MSIX_BAR_SIZE);
        let windows = PciBarConfiguration::default()
            .set_region_type(PciBarRegionType::Memory64BitRegion)
            .set_prefetchable(PciBarPrefetchable::Prefetchable)
            .set_index(Device::WINDOWS_BAR)
            .set_size(self.device.windows_size());
        [registers, msix, windows]
    }

    /// A vector that the guest masks is not to be delivered. MSI-X leaves its route as it is, and does not trigger it;
    /// but a peer does. What it signals meanwhile stays in its eventfd, and is delivered when the route is back.
    fn write_msix_table(&mut self, offset: u64, data: &[u8]) {
        let mut msix_config = self.msix_config.lock().unwrap();
        let index = offset as usize / MSIX_TABLE_ENTRY_SIZE;
        let is_masked = |msix_config: &MsixConfig| {
            let entry = msix_config.table_entries.get(index);
            entry.is_none_or(MsixTableEntry::masked)
        };
        let was_masked = is_masked(&msix_config);
        msix_config.write_table(offset, data);
        if !was_masked && is_masked(&msix_config) {
            let entry = &msix_config.table_entries[index];
            let message = InterruptSourceConfig::MsiIrq(MsiIrqSourceConfig {
                high_addr: entry.msg_addr_hi,
                low_addr: entry.msg_addr_lo,
                data: entry.msg_data,
                devid: msix_config.devid,
            });
            if let Err(e) = self.interrupts.update(index as u32, message, true, true) {
                error!("{}: cannot mask vector {index}: {e}", self.id);
            }
        }
    }

    /// Makes BARs and capabilities in the configuration space, of a device that was not in a snapshot.
    fn add_to_configuration(&mut self) -> result::Result<(), PciDeviceError> {
        for bar in &self.bar_regions {
            self.configuration
                .add_pci_bar(bar)
                .map_err(|e| PciDeviceError::IoRegistrationFailed(bar.addr(), e))?;
        }
        let bar = Device::MSIX_BAR as u8;
        let msix = MsixCap::new(bar, self.device.vectors(), 0, bar, PBA_OFFSET as u32);
        let capabilities: [&dyn PciCapability; 2] = [&msix, &VendorCapability];
        for capability in capabilities {
            self.configuration
                .add_capability(capability)
                .map_err(PciDeviceError::CapabilitiesSetup)?;
        }
        Ok(())
    }
}

impl Drop for IvsmcDevice {
    fn drop(&mut self) {
        self.memory.remove(self.device.bar_memory());
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

impl PciDevice for IvsmcDevice {
    fn allocate_bars(
        &mut self,
        allocator: &mut SystemAllocator,
        mmio32_allocator: &mut AddressAllocator,
        mmio64_allocator: &mut AddressAllocator,
        resources: Option<Vec<Resource>>,
    ) -> result::Result<Vec<PciBarConfiguration>, PciDeviceError> {
        let restored = resources.map(|resources| {
            let bars = resources.into_iter().filter_map(|resource| match resource {
                Resource::PciBar { index, base, .. } => Some((index, GuestAddress(base))),
                _ => None,
            });
            bars.collect::<HashMap<_, _>>()
        });
        let mut allocate = |bar: &PciBarConfiguration| {
            let base = match &restored {
                Some(bars) => Some(
                    *bars
                        .get(&bar.idx())
                        .ok_or(PciDeviceError::MissingResource)?,
                ),
                None => None,
            };
            let allocator = match bar.region_type() {
                PciBarRegionType::Memory64BitRegion => &mut *mmio64_allocator,
                _ => &mut *mmio32_allocator,
            };
            allocator
                .allocate(base, bar.size(), Some(bar.size()))
                .ok_or(PciDeviceError::IoAllocationFailed(bar.size()))
        };
        let mut result = Ok(());
        for bar in self.bars() {
            match allocate(&bar) {
                Ok(base) => self.bar_regions.push(bar.set_address(base.raw_value())),
                Err(e) => {
                    result = Err(e);
                    break;
                }
            }
        }
        if result.is_ok() && restored.is_none() {
            result = self.add_to_configuration();
        }
        if let Err(e) = result {
            self.free_bars(allocator, mmio32_allocator, mmio64_allocator)?;
            return Err(e);
        }
        Ok(self.bar_regions.clone())
    }

    // The allocators are locked: the device must not be called here, its thread may hold a lock of its own and want
    // an allocator.
    fn free_bars(
        &mut self,
        _allocator: &mut SystemAllocator,
        mmio32_allocator: &mut AddressAllocator,
        mmio64_allocator: &mut AddressAllocator,
    ) -> result::Result<(), PciDeviceError> {
        for bar in self.bar_regions.drain(..) {
            let allocator = match bar.region_type() {
                PciBarRegionType::Memory64BitRegion => &mut *mmio64_allocator,
                _ => &mut *mmio32_allocator,
            };
            allocator.free(GuestAddress(bar.addr()), bar.size());
        }
        Ok(())
    }

    fn write_config_register(
        &mut self,
        reg_idx: usize,
        offset: u64,
        data: &[u8],
    ) -> (Vec<BarReprogrammingParams>, Option<Arc<Barrier>>) {
        (
            self.configuration
                .write_config_register(reg_idx, offset, data),
            None,
        )
    }

    fn read_config_register(&mut self, reg_idx: usize) -> u32 {
        self.configuration.read_reg(reg_idx)
    }

    fn read_bar(&mut self, base: u64, offset: u64, data: &mut [u8]) {
        match self.bar_at(base) {
            Some(Device::REGISTERS_BAR) => self.device.read(offset, data),
            Some(Device::MSIX_BAR) => {
                let mut msix_config = self.msix_config.lock().unwrap();
                match offset.checked_sub(PBA_OFFSET) {
                    Some(offset) => msix_config.read_pba(offset, data),
                    None => msix_config.read_table(offset, data),
                }
            }
            // Where a window is, the guest's access does not come here.
            _ => data.fill(0xff),
        }
    }

    fn write_bar(&mut self, base: u64, offset: u64, data: &[u8]) -> Option<Arc<Barrier>> {
        match self.bar_at(base) {
            Some(Device::REGISTERS_BAR) => self.device.write(offset, data),
            Some(Device::MSIX_BAR) if offset < PBA_OFFSET => {
                self.write_msix_table(offset, data);
            }
            _ => {}
        }
        None
    }

    fn move_bar(&mut self, old_base: u64, new_base: u64) -> io::Result<()> {
        let index = self.bar_at(old_base).ok_or(io::ErrorKind::NotFound)?;
        self.place_bar(index, new_base)?;
        for bar in &mut self.bar_regions {
            if bar.idx() == index {
                *bar = bar.set_address(new_base);
            }
        }
        Ok(())
    }

    fn restore_bar_addr(&mut self, params: &BarReprogrammingParams) {
        self.configuration.restore_bar_addr(params);
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }

    fn id(&self) -> Option<String> {
        Some(self.id.clone())
    }
}

// Nothing of the device runs while its VM does not, so there is nothing to pause; and it is not for resume() to start
// it, which is also called for a VM that never ran.
impl Pausable for IvsmcDevice {}

impl Snapshottable for IvsmcDevice {
    fn id(&self) -> String {
        self.id.clone()
    }

    fn snapshot(&mut self) -> result::Result<Snapshot, MigratableError> {
        let state = self.device.state();
        let state = state.map_err(|e| MigratableError::Snapshot(e.into()))?;
        let mut snapshot = Snapshot::new_from_state(&state)?;
        let mut msix_config = self.msix_config.lock().unwrap();
        snapshot.add_snapshot(self.configuration.id(), self.configuration.snapshot()?);
        snapshot.add_snapshot(msix_config.id(), msix_config.snapshot()?);
        Ok(snapshot)
    }
}

impl Transportable for IvsmcDevice {}
impl Migratable for IvsmcDevice {}

#[cfg(test)]
mod tests;
