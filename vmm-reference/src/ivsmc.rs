// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The ivsmc device on the PCI bus, and its host: windows are KVM memory slots, doorbells ioeventfds, and what peers
//! signal are irqfds of the vectors' GSIs.

use std::io;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use anyhow::{Context, Result};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use log::{error, info, warn};
use vmm_device_ivsmc::{Device, Fabric, Host, Window};
use vmm_sys_util::eventfd::EventFd;

use crate::interrupts::{Interrupts, Vector};
use crate::lock;
use crate::memory::DeviceMemory;
use crate::options::{self, Seccomp};
use crate::pci::{self, BarMove, BarSpec, ConfigSpace, Function, Identity, Msix};
use crate::seccomp::Thread;

const MSIX_CAPABILITY: u8 = 0x40;
const VENDOR_CAPABILITY: u8 = 0x50;

/// KVM, as a device needs it.
struct KvmHost {
    vm: Arc<VmFd>,
    /// The memory slot of link 0's window; the other links' follow.
    first_slot: u32,
    vectors: Vec<Arc<Vector>>,
}

impl KvmHost {
    fn set_slot(&self, link: usize, gpa: u64, window: &Window, size: u64) -> io::Result<()> {
        let region = kvm_userspace_memory_region {
            slot: self.first_slot + link as u32,
            flags: 0,
            guest_phys_addr: gpa,
            memory_size: size,
            userspace_addr: window.host_addr() as u64,
        };
        // SAFETY: the window is a mapping of at least this size, and the device keeps it until it has taken
        // it out of the guest or the guest's processors have ended.
        Ok(unsafe { self.vm.set_user_memory_region(region) }?)
    }
}

impl KvmHost {
    fn vector(&self, vector: usize) -> io::Result<&Vector> {
        let vector = self.vectors.get(vector);
        Ok(vector.ok_or(io::ErrorKind::InvalidInput)?)
    }
}

impl Host for KvmHost {
    fn map_window(&self, link: usize, gpa: u64, window: &Window) -> io::Result<()> {
        self.set_slot(link, gpa, window, window.len())
    }

    fn unmap_window(&self, link: usize, gpa: u64, window: &Window) -> io::Result<()> {
        self.set_slot(link, gpa, window, 0)
    }

    fn set_doorbell(&self, gpa: u64, value: Option<u32>, fd: &EventFd) -> io::Result<()> {
        let at = IoEventAddress::Mmio(gpa);
        Ok(match value {
            Some(value) => self.vm.register_ioevent(fd, &at, value),
            None => self.vm.register_ioevent(fd, &at, NoDatamatch),
        }?)
    }

    fn clear_doorbell(&self, gpa: u64, value: Option<u32>, fd: &EventFd) -> io::Result<()> {
        let at = IoEventAddress::Mmio(gpa);
        Ok(match value {
            Some(value) => self.vm.unregister_ioevent(fd, &at, value),
            None => self.vm.unregister_ioevent(fd, &at, NoDatamatch),
        }?)
    }

    fn connect_vector(&self, vector: usize, fd: &EventFd) -> io::Result<()> {
        self.vector(vector)?.connect(fd)
    }

    fn disconnect_vector(&self, vector: usize, fd: &EventFd) -> io::Result<()> {
        self.vector(vector)?.disconnect(fd)
    }

    fn raise(&self) -> io::Result<()> {
        self.vector(0)?.raise();
        Ok(())
    }
}

/// An ivsmc device on the PCI bus.
pub struct Ivsmc {
    name: String,
    device: Arc<Device>,
    /// What the VM's other devices reach.
    memory: DeviceMemory,
    bars: [BarSpec; 3],
    config: Mutex<Config>,
}

/// What of PCI the guest can write. Its lock is not held while the device is called.
struct Config {
    space: ConfigSpace,
    msix: Msix,
}

/// The thread that makes a device's links. Dropping it ends the device.
pub struct FabricThread {
    device: Arc<Device>,
    thread: Option<JoinHandle<()>>,
}

impl Ivsmc {
    /// Makes the device and starts its thread. Its windows take as many memory slots as it can have
    /// peers, from `first_slot` on. `memory` is told where BAR2 is. It has no links before [`FabricThread::resume`].
    pub fn new(
        vm: Arc<VmFd>,
        interrupts: &Arc<Interrupts>,
        memory: DeviceMemory,
        options: &options::Ivsmc,
        first_slot: u32,
        seccomp: Seccomp,
    ) -> Result<(Self, FabricThread)> {
        let options::Ivsmc { id, config } = options;
        let name = format!("--ivsmc path={}", config.path.display());
        let vectors: Vec<_> = (0..config.vectors)
            .map(|_| Arc::new(interrupts.vector()))
            .collect();
        let host = KvmHost {
            vm,
            first_slot,
            vectors: vectors.clone(),
        };
        let (device, mut fabric) = Device::new(id, config.clone(), Arc::new(host), None)?;
        let bars = bars(&device);
        let config = Config::new(name.clone(), &bars, vectors);
        start_reaper(&mut fabric, seccomp)?;
        let body = move || match Thread::Fabric.confine(seccomp) {
            Ok(()) => fabric.run(),
            Err(error) => error!("an ivsmc device gets no links: {error:#}"),
        };
        let thread = thread::Builder::new().name("fabric".into()).spawn(body);
        let thread = FabricThread {
            device: device.clone(),
            thread: Some(thread.context("an ivsmc device's thread")?),
        };
        let config = Mutex::new(config);
        let ivsmc = Ivsmc {
            name,
            device,
            memory,
            bars,
            config,
        };
        Ok((ivsmc, thread))
    }
}

/// Starts the thread that closes what peers supplied. A peer can keep it from ending: nobody waits for it.
fn start_reaper(fabric: &mut Fabric, seccomp: Seccomp) -> Result<()> {
    let Some(reaper) = fabric.reaper() else {
        return Ok(());
    };
    let body = move || match Thread::Reaper.confine(seccomp) {
        Ok(()) => reaper.run(),
        Err(error) => error!("an ivsmc device's descriptors are not closed: {error:#}"),
    };
    let thread = thread::Builder::new().name("reaper".into()).spawn(body);
    thread.context("the thread that closes an ivsmc device's descriptors")?;
    Ok(())
}

fn bars(device: &Device) -> [BarSpec; 3] {
    let bar = |index, size, wide| BarSpec {
        index,
        size,
        is_64bit: wide,
        prefetchable: wide,
    };
    [
        bar(Device::REGISTERS_BAR, Device::REGISTERS_SIZE, false),
        bar(Device::MSIX_BAR, pci::MSIX_BAR_SIZE, false),
        bar(Device::WINDOWS_BAR, device.windows_size(), true),
    ]
}

impl Config {
    fn new(name: String, bars: &[BarSpec], vectors: Vec<Arc<Vector>>) -> Self {
        let identity = Identity {
            vendor: Device::VENDOR,
            device: Device::DEVICE,
            subsystem_vendor: Device::SUBSYSTEM_VENDOR,
            subsystem: Device::SUBSYSTEM,
            revision: Device::REVISION,
            class: Device::CLASS,
        };
        let msix = Msix::new(name, vectors);
        let mut space = ConfigSpace::new(identity, bars);
        let body = msix.capability(Device::MSIX_BAR as u8);
        space.add_capability(MSIX_CAPABILITY, Msix::CAPABILITY, &body, &Msix::WRITABLE);
        let (id, body) = (Device::VENDOR_CAPABILITY_ID, Device::VENDOR_CAPABILITY);
        space.add_capability(VENDOR_CAPABILITY, id, &body, &[]);
        Config { space, msix }
    }
}

impl FabricThread {
    /// The VM runs: the device accepts and joins peers.
    pub fn resume(&self) {
        self.device.resume();
    }

    /// Takes what a snapshot would have of the device, and logs how that went: so that it can be tried here what peers
    /// can do to it. As the processors go on meanwhile, it is good for nothing else.
    pub fn take_state(&self) {
        let start = Instant::now();
        match self.device.state() {
            Ok(_) => info!("the state of an ivsmc device: {:.1?}", start.elapsed()),
            Err(error) => warn!("no state of an ivsmc device: {error}"),
        }
    }
}

impl Drop for FabricThread {
    fn drop(&mut self) {
        self.device.shutdown();
        if self
            .thread
            .take()
            .is_some_and(|thread| thread.join().is_err())
        {
            error!("an ivsmc device's thread has panicked");
        }
    }
}

impl Function for Ivsmc {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn bars(&self) -> Vec<BarSpec> {
        self.bars.to_vec()
    }

    fn config_read(&self, register: usize) -> u32 {
        lock(&self.config).space.read(register)
    }

    fn config_write(&self, register: usize, offset: usize, data: &[u8]) -> Vec<BarMove> {
        let mut config = lock(&self.config);
        let moves = config.space.write(register, offset, data);
        if register == usize::from(MSIX_CAPABILITY) / 4 {
            let control = usize::from(MSIX_CAPABILITY) + Msix::CONTROL;
            let control = config.space.read_u16(control);
            config.msix.set_control(control);
        }
        moves
    }

    fn move_bar(&self, bar: usize, address: u64) -> io::Result<()> {
        // At zero it is nowhere.
        let somewhere = Some(address).filter(|&address| address != 0);
        match bar {
            Device::REGISTERS_BAR => self.device.place_registers(somewhere)?,
            Device::WINDOWS_BAR => {
                self.device.place_windows(somewhere)?;
                self.memory.place(self.device.bar_memory(), somewhere);
            }
            _ => {}
        }
        lock(&self.config).space.place(bar, address);
        Ok(())
    }

    fn keep_bar(&self, bar: usize) {
        lock(&self.config).space.keep(bar);
    }

    fn bar_read(&self, bar: usize, offset: u64, data: &mut [u8]) {
        match bar {
            Device::REGISTERS_BAR => self.device.read(offset, data),
            Device::MSIX_BAR => lock(&self.config).msix.read(offset, data),
            // No memory stands behind what the guest reads of BAR2 here.
            _ => {}
        }
    }

    fn bar_write(&self, bar: usize, offset: u64, data: &[u8]) {
        match bar {
            Device::REGISTERS_BAR => self.device.write(offset, data),
            Device::MSIX_BAR => lock(&self.config).msix.write(offset, data),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interrupts::test_utils::FakeKvm;

    #[test]
    fn a_guest_that_knows_ivshmem_finds_it() {
        let bar = |index, size, is_64bit| BarSpec {
            index,
            size,
            is_64bit,
            prefetchable: is_64bit,
        };
        let bars = [
            bar(0, 0x4000, false),
            bar(1, 0x1000, false),
            bar(2, 1 << 24, true),
        ];
        let interrupts = FakeKvm::default().interrupts();
        let vectors = (0..2).map(|_| Arc::new(interrupts.vector())).collect();
        let mut config = Config::new("test".into(), &bars, vectors);
        config.space.place(2, 0x40_0000_0000);
        let read = |at: usize| config.space.read(at / 4);
        assert_eq!(read(0), 0x1110_1af4);
        assert_eq!(read(8), 0x0500_0001);
        assert_eq!(read(0x2c), 0x1100_1af4);
        assert_eq!(read(0x3c), 0);
        assert_eq!(read(0x34), 0x40);
        assert_eq!(read(0x40), 0x0001_5011);
        assert_eq!((read(0x44), read(0x48)), (1, 0x801));
        assert_eq!(read(0x50), 0x0110_0009);
        assert_eq!((read(0x54), read(0x58), read(0x5c)), (0x4d53_5649, 0x10, 0));
        assert_eq!((read(0x18), read(0x1c)), (0xc, 0x40));
    }
}
