// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What an ivsmc device needs of this VMM: memory slots, ioeventfds, interrupts, the event monitor.

use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::sync::{Arc, Mutex};

use event_monitor::event;
use hypervisor::{DataMatch, HypervisorVmError, IoEventAddress, Vm};
use pci::MsixConfig;
use vm_allocator::MemorySlotAllocator;
use vm_device::interrupt::InterruptSourceGroup;
use vmm_device_ivsmc::{Event, Host, Window};
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::EventFd;

/// This VMM, for one device. What is locked here is locked last: the device holds locks of its own when it calls.
pub(super) struct VmHost {
    id: String,
    vm: Arc<dyn Vm>,
    slot_allocator: Mutex<MemorySlotAllocator>,
    /// The memory slots of windows, by link.
    slots: Mutex<HashMap<usize, u32>>,
    /// One source for each vector, whatever the number of links.
    interrupts: Arc<dyn InterruptSourceGroup>,
    msix_config: Arc<Mutex<MsixConfig>>,
}

impl VmHost {
    pub fn new(
        id: &str,
        vm: Arc<dyn Vm>,
        slot_allocator: MemorySlotAllocator,
        interrupts: Arc<dyn InterruptSourceGroup>,
        msix_config: Arc<Mutex<MsixConfig>>,
    ) -> Self {
        VmHost {
            id: id.to_owned(),
            vm,
            slot_allocator: Mutex::new(slot_allocator),
            slots: Mutex::default(),
            interrupts,
            msix_config,
        }
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
            return Err(io_error(error));
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
        .map_err(io_error)?;
        slots.remove(&link);
        self.slot_allocator.lock().unwrap().free_memory_slot(slot);
        Ok(())
    }

    fn set_doorbell(&self, gpa: u64, value: Option<u32>, fd: &EventFd) -> io::Result<()> {
        let value = value.map(DataMatch::DataMatch32);
        self.vm
            .register_ioevent(fd, &IoEventAddress::Mmio(gpa), value)
            .map_err(io_error)
    }

    fn clear_doorbell(&self, gpa: u64, value: Option<u32>, fd: &EventFd) -> io::Result<()> {
        let value = value.map(DataMatch::DataMatch32);
        self.vm
            .unregister_ioevent_datamatch(fd, &IoEventAddress::Mmio(gpa), value)
            .map_err(io_error)
    }

    fn connect_vector(&self, vector: usize, fd: &EventFd) -> io::Result<()> {
        self.interrupts.add_notifier(vector as u32, fd)
    }

    fn disconnect_vector(&self, vector: usize, fd: &EventFd) -> io::Result<()> {
        self.interrupts.remove_notifier(vector as u32, fd)
    }

    fn raise(&self) -> io::Result<()> {
        let mut msix_config = self.msix_config.lock().unwrap();
        if msix_config.masked() || msix_config.table_entries[0].masked() {
            // It is delivered when the guest lets it be.
            msix_config.set_pba_bit(0, false);
            return Ok(());
        }
        self.interrupts.trigger(0)
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

/// An error whose kind is that of the system call's: the device wants to know a peer's fault from another.
fn io_error(error: HypervisorVmError) -> io::Error {
    let mut source: Option<&(dyn Error + 'static)> = Some(&error);
    while let Some(cause) = source {
        if let Some(errno) = cause.downcast_ref::<errno::Error>() {
            let kind = io::Error::from_raw_os_error(errno.errno()).kind();
            return io::Error::new(kind, error);
        }
        source = cause.source();
    }
    io::Error::other(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_io_error_keeps_the_kind() {
        let error = |errno| HypervisorVmError::RegisterIoEvent(errno::Error::new(errno).into());
        let kind = |errno| io_error(error(errno)).kind();
        assert_eq!(kind(libc::EINVAL), io::ErrorKind::InvalidInput);
        assert_eq!(kind(libc::EEXIST), io::ErrorKind::AlreadyExists);
        let error = HypervisorVmError::RegisterIoEvent(anyhow::anyhow!("no errno"));
        assert_eq!(io_error(error).kind(), io::ErrorKind::Other);
    }
}
