// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The ivsmc device's host: its windows are KVM memory slots, its doorbells ioeventfds, its interrupt
//! lines irqfds.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use log::error;
use vmm_device_ivsmc::pci::{BarMove, BarSpec};
use vmm_device_ivsmc::{Device, Host, MsiMessage, Window};
use vmm_sys_util::eventfd::EventFd;

use crate::interrupts::{Interrupts, Line};
use crate::lock;
use crate::memory::DeviceMemory;
use crate::options::{self, Seccomp};
use crate::pci::Function;
use crate::seccomp::Thread;

/// The BAR with the windows.
const WINDOWS: usize = 2;

/// KVM, as a device needs it.
pub struct KvmHost {
    vm: Arc<VmFd>,
    interrupts: Arc<Interrupts>,
    /// The memory slot of link 0's window; the other links' follow.
    first_slot: u32,
    /// Lines are made when they are first used: of many a device never has need.
    lines: Mutex<HashMap<usize, Line>>,
}

impl KvmHost {
    /// The device's windows take as many memory slots as it can have peers, from `first_slot` on.
    pub fn new(vm: Arc<VmFd>, interrupts: Arc<Interrupts>, first_slot: u32) -> Self {
        KvmHost {
            vm,
            interrupts,
            first_slot,
            lines: Mutex::default(),
        }
    }

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

    fn set_line(&self, line: usize, fd: &EventFd, message: Option<MsiMessage>) -> io::Result<()> {
        let mut lines = lock(&self.lines);
        match (lines.get(&line), message) {
            (Some(line), _) => line.set(fd, message),
            (None, Some(_)) => lines
                .entry(line)
                .or_insert_with(|| self.interrupts.line())
                .set(fd, message),
            (None, None) => Ok(()),
        }
    }
}

/// An ivsmc device on the PCI bus.
pub struct Ivsmc {
    name: String,
    device: Arc<Device>,
    /// What the VM's other devices reach.
    memory: DeviceMemory,
}

/// The thread that makes a device's links. Dropping it ends the device.
pub struct FabricThread {
    device: Arc<Device>,
    thread: Option<JoinHandle<()>>,
}

impl Ivsmc {
    /// Makes the device and starts its thread. `memory` is told where its BAR2 is.
    pub fn new(
        host: KvmHost,
        memory: DeviceMemory,
        options: &options::Ivsmc,
        seccomp: Seccomp,
    ) -> Result<(Self, FabricThread)> {
        let options::Ivsmc { id, config } = options;
        let (device, fabric) = Device::new(id, config.clone(), Arc::new(host), None)?;
        let body = move || match Thread::Fabric.confine(seccomp) {
            Ok(()) => fabric.run(),
            Err(error) => error!("an ivsmc device gets no links: {error:#}"),
        };
        let thread = thread::Builder::new().name("fabric".into()).spawn(body);
        let thread = FabricThread {
            device: device.clone(),
            thread: Some(thread.context("an ivsmc device's thread")?),
        };
        let name = format!("--ivsmc path={}", config.path.display());
        let ivsmc = Ivsmc {
            name,
            device,
            memory,
        };
        Ok((ivsmc, thread))
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
        self.device.bars().to_vec()
    }

    fn config_read(&self, register: usize) -> u32 {
        self.device.config_read(register)
    }

    fn config_write(&self, register: usize, offset: usize, data: &[u8]) -> Vec<BarMove> {
        self.device.config_write(register, offset, data)
    }

    fn move_bar(&self, bar: usize, address: u64) -> io::Result<()> {
        self.device.move_bar(bar, address)?;
        if bar == WINDOWS {
            self.memory.place(&self.device.bar_memory(), address);
        }
        Ok(())
    }

    fn keep_bar(&self, bar: usize) {
        self.device.keep_bar(bar);
    }

    fn bar_read(&self, bar: usize, offset: u64, data: &mut [u8]) {
        self.device.bar_read(bar, offset, data);
    }

    fn bar_write(&self, bar: usize, offset: u64, data: &[u8]) {
        self.device.bar_write(bar, offset, data);
    }
}
