// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices without a VM: their host does nothing.

use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};
use std::{fs, mem, thread};

use pci::MaybeMutInterruptSourceGroup;
use vm_device::interrupt::{self, InterruptIndex, InterruptSourceConfig, InterruptSourceGroup};
use vm_memory::{Bytes, GuestAddressSpace, GuestMemoryAtomic};
use vmm_device_ivsmc::{Config, Host, Window};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::tempdir::TempDir;

use super::*;
use crate::GuestMemoryMmap;

/// How long something may take that has to happen.
const SOON: Duration = Duration::from_secs(20);

/// Notes which vectors are masked and which are not, in this order.
#[derive(Default)]
struct TestInterrupts {
    updates: Mutex<Vec<(InterruptIndex, bool)>>,
}

impl InterruptSourceGroup for TestInterrupts {
    fn trigger(&self, _: InterruptIndex) -> interrupt::Result<()> {
        Ok(())
    }

    fn notifier(&self, _: InterruptIndex) -> Option<EventFd> {
        None
    }

    fn update(
        &self,
        index: InterruptIndex,
        _: InterruptSourceConfig,
        masked: bool,
        _: bool,
    ) -> interrupt::Result<()> {
        self.updates.lock().unwrap().push((index, masked));
        Ok(())
    }

    fn set_gsi(&self) -> interrupt::Result<()> {
        Ok(())
    }
}

/// Lets everything be; a link's first vector waits for the gate, if there is one.
struct TestHost {
    gate: Option<(Sender<()>, Mutex<Receiver<()>>)>,
}

impl Host for TestHost {
    fn map_window(&self, _: usize, _: u64, _: &Window) -> io::Result<()> {
        Ok(())
    }

    fn unmap_window(&self, _: usize, _: u64, _: &Window) -> io::Result<()> {
        Ok(())
    }

    fn set_doorbell(&self, _: u64, _: Option<u32>, _: &EventFd) -> io::Result<()> {
        Ok(())
    }

    fn clear_doorbell(&self, _: u64, _: Option<u32>, _: &EventFd) -> io::Result<()> {
        Ok(())
    }

    fn connect_vector(&self, vector: usize, _: &EventFd) -> io::Result<()> {
        if let (0, Some((arrived, gate))) = (vector, &self.gate) {
            arrived.send(()).unwrap();
            gate.lock().unwrap().recv().unwrap();
        }
        Ok(())
    }

    fn disconnect_vector(&self, _: usize, _: &EventFd) -> io::Result<()> {
        Ok(())
    }

    fn raise(&self) -> io::Result<()> {
        Ok(())
    }
}

fn config(folder: &TempDir, name: &str, peer: &str) -> Config {
    let path = |name: &str| folder.as_path().join(name);
    let mut config = Config::new(path(name));
    config.peers = vec![path(peer)];
    config.window_size = 2 << 20;
    config
}

fn device_with(config: Config, host: TestHost, snapshot: Option<&Snapshot>) -> IvsmcDevice {
    let interrupts = Arc::new(TestInterrupts::default());
    device_on(config, host, interrupts, snapshot)
}

fn device_on(
    config: Config,
    host: TestHost,
    interrupts: Arc<TestInterrupts>,
    snapshot: Option<&Snapshot>,
) -> IvsmcDevice {
    let group = MaybeMutInterruptSourceGroup::Immutable(interrupts.clone());
    let state = state_from_id(snapshot, pci::MSIX_CONFIG_ID).unwrap();
    let msix_config = MsixConfig::new(config.vectors, group, 8, state).unwrap();
    let state = snapshot.map(|snapshot| snapshot.to_state().unwrap());
    let (device, mut fabric) = Device::new("test", config, Arc::new(host), state.as_ref()).unwrap();
    let msix_config = Arc::new(Mutex::new(msix_config));
    let memory = DeviceMemory::with_ram(ram());
    let mut device =
        IvsmcDevice::new("test", device, memory, msix_config, interrupts, snapshot).unwrap();
    let reaper = fabric.reaper().unwrap();
    thread::spawn(|| reaper.run());
    device.join_when_dropped(thread::spawn(|| fabric.run()));
    device
}

fn device(folder: &TempDir, name: &str, peer: &str) -> IvsmcDevice {
    let host = TestHost { gate: None };
    device_with(config(folder, name, peer), host, None)
}

/// The allocators of BARs: system, 32-bit and 64-bit memory.
struct Allocators(SystemAllocator, AddressAllocator, AddressAllocator);

impl Allocators {
    const BASE_32: u64 = 0x1000_0000;
    const BASE_64: u64 = 1 << 40;

    fn new(size_64: u64) -> Self {
        let space = |base, size| AddressAllocator::new(GuestAddress(base), size).unwrap();
        let system = SystemAllocator::new(
            GuestAddress(0),
            1 << 16,
            GuestAddress(0),
            1 << 20,
            #[cfg(target_arch = "x86_64")]
            &[vm_allocator::GsiApic::new(5, 19)],
        );
        Allocators(
            system.unwrap(),
            space(Self::BASE_32, 1 << 20),
            space(Self::BASE_64, size_64),
        )
    }

    fn allocate(
        &mut self,
        device: &mut IvsmcDevice,
        resources: Option<Vec<Resource>>,
    ) -> result::Result<Vec<PciBarConfiguration>, PciDeviceError> {
        device.allocate_bars(&mut self.0, &mut self.1, &mut self.2, resources)
    }

    fn free(&mut self, device: &mut IvsmcDevice) {
        device
            .free_bars(&mut self.0, &mut self.1, &mut self.2)
            .unwrap();
    }

    /// Whether nothing is taken of the 32-bit space.
    fn is_free(&mut self) -> bool {
        let base = GuestAddress(Self::BASE_32);
        let all = self.1.allocate(Some(base), 1 << 20, None);
        all.inspect(|&base| self.1.free(base, 1 << 20)).is_some()
    }
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < SOON, "not after {SOON:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn links(device: &IvsmcDevice) -> u64 {
    device.counters()["links_up"].0
}

#[test]
fn test_configuration_space() {
    let folder = TempDir::new_with_prefix("/tmp/ivsmc").unwrap();
    let mut device = device(&folder, "a", "b");
    let mut allocators = Allocators::new(1 << 32);
    let bars = allocators.allocate(&mut device, None).unwrap();
    device.place_bars().unwrap();
    assert_eq!(device.read_config_register(0), 0x1110_1af4);
    assert_eq!(device.read_config_register(2), 0x0500_0001);
    assert_eq!(device.read_config_register(11), 0x1100_1af4);
    for (bar, (index, register, kind)) in bars.iter().zip([(0, 4, 0), (1, 5, 0), (2, 6, 0xc)]) {
        assert_eq!(bar.idx(), index);
        assert_eq!(
            u64::from(device.read_config_register(register)),
            (bar.addr() & 0xffff_fff0) | kind
        );
    }
    assert_eq!(device.read_config_register(7), 1 << 8);
    // The list of capabilities has MSI-X, and the one that says what there is beyond ivshmem.
    let mut ids = Vec::new();
    let mut next = device.read_config_register(13) as u8;
    while next != 0 {
        let register = device.read_config_register(usize::from(next) / 4);
        ids.push(register as u8);
        next = (register >> 8) as u8;
    }
    assert_eq!(ids, [0x11, Device::VENDOR_CAPABILITY_ID]);
    // Registers are read through BAR0, the table of vectors through BAR1; where no window is there is nothing.
    let mut data = [0; 4];
    device.read_bar(bars[1].addr(), 12, &mut data);
    assert_eq!(data, [1, 0, 0, 0]);
    device.read_bar(bars[2].addr(), 12, &mut data);
    assert_eq!(data, [0xff; 4]);
}

#[test]
fn test_snapshot_has_all_that_the_guest_sees() {
    let folder = TempDir::new_with_prefix("/tmp/ivsmc").unwrap();
    let mut allocators = Allocators::new(1 << 32);
    let mut before = device(&folder, "a", "b");
    let bars = allocators.allocate(&mut before, None).unwrap();
    before.place_bars().unwrap();
    let message: [u32; 4] = [0xfee0_0000, 0, 0x4321, 0];
    for (offset, word) in (0..).step_by(4).zip(message) {
        before.write_bar(bars[1].addr(), offset, &word.to_le_bytes());
    }
    before.write_config_register(1, 0, &[6, 0]);
    // Enabled, in the upper half of the capability's first register.
    before.write_config_register(16, 2, &[0, 0x80]);
    let snapshot = before.snapshot().unwrap();
    let json = serde_json::to_string(&snapshot).unwrap();
    let resources = bars.iter().map(|bar| Resource::PciBar {
        index: bar.idx(),
        base: bar.addr(),
        size: bar.size(),
        type_: bar.region_type().into(),
        prefetchable: bar.prefetchable().into(),
    });
    let resources: Vec<_> = resources.collect();
    let registers = |device: &mut IvsmcDevice| -> Vec<u32> {
        (0..64)
            .map(|register| device.read_config_register(register))
            .collect()
    };
    let seen = registers(&mut before);
    allocators.free(&mut before);
    drop(before);

    let snapshot: Snapshot = serde_json::from_str(&json).unwrap();
    let host = TestHost { gate: None };
    let mut after = device_with(config(&folder, "a", "b"), host, Some(&snapshot));
    let restored = allocators.allocate(&mut after, Some(resources)).unwrap();
    after.place_bars().unwrap();
    assert_eq!(registers(&mut after), seen);
    assert!(
        bars.iter()
            .zip(&restored)
            .all(|(a, b)| a.addr() == b.addr())
    );
    for (offset, word) in (0..).step_by(4).zip(message) {
        let mut data = [0; 4];
        after.read_bar(bars[1].addr(), offset, &mut data);
        assert_eq!(data, word.to_le_bytes());
    }
    assert!(after.msix_config.lock().unwrap().enabled());
}

#[test]
fn test_a_masked_vector_has_no_route() {
    let folder = TempDir::new_with_prefix("/tmp/ivsmc").unwrap();
    let interrupts = Arc::new(TestInterrupts::default());
    let host = TestHost { gate: None };
    let mut device = device_on(config(&folder, "a", "b"), host, interrupts.clone(), None);
    let mut allocators = Allocators::new(1 << 32);
    let bars = allocators.allocate(&mut device, None).unwrap();
    let control = |device: &mut IvsmcDevice, vector: u64, value: u32| {
        device.write_bar(bars[1].addr(), vector * 16 + 12, &value.to_le_bytes());
        mem::take(&mut *interrupts.updates.lock().unwrap())
    };
    assert_eq!(control(&mut device, 2, 0), []);
    assert_eq!(control(&mut device, 2, 1), [(2, true)]);
    assert_eq!(control(&mut device, 2, 1), []);
    // There are four.
    assert_eq!(control(&mut device, 4, 0), []);
    assert_eq!(control(&mut device, 4, 1), []);
    device.write_config_register(16, 2, &[0, 0x80]);
    interrupts.updates.lock().unwrap().clear();
    assert_eq!(control(&mut device, 3, 0), [(3, false)]);
    assert_eq!(control(&mut device, 3, 1), [(3, true)]);
    assert_eq!(control(&mut device, 3, 0), [(3, false)]);
}

#[test]
fn test_bars_that_do_not_fit_take_nothing() {
    let folder = TempDir::new_with_prefix("/tmp/ivsmc").unwrap();
    let mut device = device(&folder, "a", "b");
    let mut allocators = Allocators::new(1 << 20);
    let error = allocators.allocate(&mut device, None).err().unwrap();
    assert!(
        matches!(error, PciDeviceError::IoAllocationFailed(_)),
        "{error}"
    );
    assert!(allocators.is_free());
    // So it is if a snapshot does not have all of them.
    let bar0 = Resource::PciBar {
        index: 0,
        base: Allocators::BASE_32,
        size: Device::REGISTERS_SIZE,
        type_: PciBarRegionType::Memory32BitRegion.into(),
        prefetchable: PciBarPrefetchable::NotPrefetchable.into(),
    };
    let error = allocators
        .allocate(&mut device, Some(vec![bar0]))
        .err()
        .unwrap();
    assert!(matches!(error, PciDeviceError::MissingResource), "{error}");
    assert!(allocators.is_free());
}

#[test]
fn test_a_device_joins_when_it_is_started_and_not_when_it_is_resumed() {
    let folder = TempDir::new_with_prefix("/tmp/ivsmc").unwrap();
    let mut never_ran = device(&folder, "a", "b");
    let peer = device(&folder, "b", "a");
    peer.start();
    never_ran.resume().unwrap();
    thread::sleep(Duration::from_millis(500));
    assert_eq!((links(&never_ran), links(&peer)), (0, 0));
    never_ran.start();
    wait_until("they have a link", || {
        links(&never_ran) == 1 && links(&peer) == 1
    });
}

#[test]
fn test_bars_are_freed_while_a_peer_joins() {
    let folder = TempDir::new_with_prefix("/tmp/ivsmc").unwrap();
    let (arrived, has_arrived) = channel();
    let (open, gate) = channel();
    let host = TestHost {
        gate: Some((arrived, Mutex::new(gate))),
    };
    let mut leaving = device_with(config(&folder, "a", "b"), host, None);
    let mut allocators = Allocators::new(1 << 32);
    let bars = allocators.allocate(&mut leaving, None).unwrap();
    leaving.place_bars().unwrap();
    let peer = device(&folder, "b", "a");
    leaving.start();
    peer.start();
    // The device's thread is in the host, where it may want an allocator. It gets on only when the BARs are freed, for
    // which the allocators are locked.
    has_arrived.recv_timeout(SOON).unwrap();
    let (freed, is_freed) = channel();
    let base = bars[0].addr();
    let freeing = thread::spawn(move || {
        allocators.free(&mut leaving);
        freed.send(allocators.is_free()).unwrap();
        leaving
    });
    let result = is_freed.recv_timeout(SOON);
    // Whatever has come of it, nobody is to wait for ever.
    drop(open);
    assert_eq!(result, Ok(true), "BAR0 was at {base:#x}");
    drop(freeing.join().unwrap());
    assert!(!Path::new(&folder.as_path().join("a")).exists());
}

/// Where a VM has RAM, besides 0.
const HIGH_RAM: u64 = 1 << 42;

/// The memory of a VM without ivsmc devices.
fn ram() -> GuestMemoryAtomic<GuestMemoryMmap> {
    let ranges = [0, HIGH_RAM].map(|start| (GuestAddress(start), 1 << 20));
    GuestMemoryAtomic::new(GuestMemoryMmap::from_ranges(&ranges).unwrap())
}

fn reaches(view: &GuestMemoryAtomic<GuestMemoryMmap>, address: u64) -> bool {
    let byte = |address| view.memory().read_obj::<u8>(GuestAddress(address));
    byte(address).is_ok() && byte(address + 0xfff).is_ok()
}

#[test]
fn test_virtio_devices_reach_bar2_where_it_is() {
    let folder = TempDir::new_with_prefix("/tmp/ivsmc").unwrap();
    let device = device(&folder, "a", "b");
    let view = device.memory.of_device("disk", ram());
    let [here, there] = [1 << 40, 1 << 41];
    assert!(!reaches(&view, here));
    device.place_bar(Device::WINDOWS_BAR, here).unwrap();
    view.memory()
        .write_obj(0x1234_5678_u32, GuestAddress(here))
        .unwrap();
    let end = here + device.device.windows_size();
    assert!(reaches(&view, end - 0x1000) && !reaches(&view, end));
    device.place_bar(Device::WINDOWS_BAR, there).unwrap();
    assert!(!reaches(&view, here));
    let read: u32 = view.memory().read_obj(GuestAddress(there)).unwrap();
    assert_eq!(read, 0x1234_5678);
    // Over RAM it is not reached, and RAM is.
    device.place_bar(Device::WINDOWS_BAR, HIGH_RAM).unwrap();
    assert!(!reaches(&view, there) && !reaches(&view, HIGH_RAM + (1 << 20)));
    let read: u32 = view.memory().read_obj(GuestAddress(HIGH_RAM)).unwrap();
    assert_eq!(read, 0);
    device.place_bar(Device::WINDOWS_BAR, here).unwrap();
    assert!(reaches(&view, here) && reaches(&view, 0));
    let memory = device.memory.clone();
    drop(device);
    assert!(!reaches(&view, here) && reaches(&view, 0));
    drop(memory);
}

#[test]
fn test_devices_in_other_processes_do_not_reach_bar2() {
    let folder = TempDir::new_with_prefix("/tmp/ivsmc").unwrap();
    let device = device(&folder, "a", "b");
    device.place_bar(Device::WINDOWS_BAR, 1 << 40).unwrap();
    device.memory.keep_from("disk");
    let view = device.memory.of_device("disk", ram());
    assert!(!reaches(&view, 1 << 40) && reaches(&view, 0));
    // The next with that id can be another kind of device.
    let view = device.memory.of_device("disk", ram());
    assert!(reaches(&view, 1 << 40));
}

#[test]
fn test_nothing_gets_to_the_addresses_of_a_bar2_that_is_gone() {
    let folder = TempDir::new_with_prefix("/tmp/ivsmc").unwrap();
    let device = device(&folder, "a", "b");
    device.place_bar(Device::WINDOWS_BAR, 1 << 40).unwrap();
    let memory = device.memory.clone();
    // A disk's request that the host's kernel has in hand has such an address.
    let start = device.device.bar_memory().host_addr() as usize;
    let end = start + device.device.windows_size() as usize;
    drop(device);
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mut at = start;
    for line in maps.lines() {
        let (range, rest) = line.split_once(' ').unwrap();
        let (from, to) = range.split_once('-').unwrap();
        let [from, to] = [from, to].map(|hex| usize::from_str_radix(hex, 16).unwrap());
        if from <= at && at < to.min(end) {
            assert!(rest.starts_with("---p"), "{line}");
            at = to;
        }
    }
    assert!(at >= end, "{start:#x}-{end:#x}, to {at:#x}");
    drop(memory);
}
