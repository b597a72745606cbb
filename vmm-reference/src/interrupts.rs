// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Interrupt lines: eventfds that KVM delivers as interrupts (irqfds), each with a GSI of its own.

use std::io;
use std::sync::{Arc, Mutex};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KvmIrqRouting,
    kvm_irq_routing_entry,
};
use kvm_ioctls::VmFd;
use vmm_device_ivsmc::MsiMessage;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::lock;

/// Pins of KVM's I/O APIC, which are the first GSIs.
const IOAPIC_PINS: u32 = 24;

/// All interrupt lines of a VM.
pub struct Interrupts {
    vm: Arc<VmFd>,
    /// Where each GSI from [`IOAPIC_PINS`] on leads.
    routes: Mutex<Vec<Option<MsiMessage>>>,
}

impl Interrupts {
    /// Only the I/O APIC's pins lead anywhere at first.
    pub fn new(vm: Arc<VmFd>) -> io::Result<Arc<Self>> {
        let interrupts = Self {
            vm,
            routes: Mutex::new(Vec::new()),
        };
        interrupts.apply(&[])?;
        Ok(Arc::new(interrupts))
    }

    /// A line to pin `pin` of the I/O APIC.
    pub fn pin(&self, pin: u32) -> io::Result<EventFd> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        self.vm.register_irqfd(&event, pin)?;
        Ok(event)
    }

    /// A new line for message-signalled interrupts; it leads nowhere yet.
    pub fn line(self: &Arc<Self>) -> Line {
        let mut routes = lock(&self.routes);
        let gsi = IOAPIC_PINS + routes.len() as u32;
        routes.push(None);
        Line {
            interrupts: self.clone(),
            gsi,
            connected: Mutex::new(false),
        }
    }

    /// Sets where `gsi` leads. KVM takes the whole table at once.
    fn route(&self, gsi: u32, msi: MsiMessage) -> io::Result<()> {
        let mut routes = lock(&self.routes);
        let route = &mut routes[(gsi - IOAPIC_PINS) as usize];
        if *route != Some(msi) {
            *route = Some(msi);
            self.apply(&routes)?;
        }
        Ok(())
    }

    fn apply(&self, routes: &[Option<MsiMessage>]) -> io::Result<()> {
        let pins = (0..IOAPIC_PINS).map(|pin| {
            let mut entry = kvm_irq_routing_entry {
                gsi: pin,
                type_: KVM_IRQ_ROUTING_IRQCHIP,
                ..Default::default()
            };
            entry.u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
            entry.u.irqchip.pin = pin;
            entry
        });
        let messages = (IOAPIC_PINS..).zip(routes).filter_map(|(gsi, msi)| {
            let msi = (*msi)?;
            let mut entry = kvm_irq_routing_entry {
                gsi,
                type_: KVM_IRQ_ROUTING_MSI,
                ..Default::default()
            };
            entry.u.msi.address_lo = msi.address as u32;
            entry.u.msi.address_hi = (msi.address >> 32) as u32;
            entry.u.msi.data = msi.data;
            Some(entry)
        });
        let entries: Vec<_> = pins.chain(messages).collect();
        let table = KvmIrqRouting::from_entries(&entries)
            .map_err(|error| io::Error::other(format!("interrupt routes: {error:?}")))?;
        Ok(self.vm.set_gsi_routing(&table)?)
    }
}

/// One line for message-signalled interrupts.
pub struct Line {
    interrupts: Arc<Interrupts>,
    gsi: u32,
    connected: Mutex<bool>,
}

impl Line {
    /// Delivers what `event` signals as `msi`, or keeps it in `event` while that is `None`.
    pub fn set(&self, event: &EventFd, msi: Option<MsiMessage>) -> io::Result<()> {
        let mut connected = lock(&self.connected);
        let vm = &self.interrupts.vm;
        match msi {
            Some(msi) => {
                self.interrupts.route(self.gsi, msi)?;
                if !*connected {
                    vm.register_irqfd(event, self.gsi)?;
                    *connected = true;
                }
            }
            None if *connected => {
                vm.unregister_irqfd(event, self.gsi)?;
                *connected = false;
            }
            None => {}
        }
        Ok(())
    }
}
