// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Interrupts: pins of the I/O APIC, and vectors of MSI-X, each of which has a GSI of its own. Eventfds are connected
//! to GSIs (as irqfds), any number of them to each.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd};
use std::sync::{Arc, Mutex};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KvmIrqRouting,
    kvm_irq_routing_entry, kvm_msi,
};
use kvm_ioctls::VmFd;
use log::debug;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::lock;

/// Pins of KVM's I/O APIC, which are the first GSIs.
const IOAPIC_PINS: u32 = 24;

/// A message-signalled interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiMessage {
    /// Where it is written.
    pub address: u64,
    /// What is written.
    pub data: u32,
}

/// What interrupts need of KVM.
pub trait Kvm: Send + Sync {
    /// KVM_SET_GSI_ROUTING: KVM takes the whole table at once.
    fn set_routes(&self, routes: &KvmIrqRouting) -> io::Result<()>;
    /// KVM_IRQFD: what `fd` signals is an interrupt of `gsi`.
    fn connect(&self, fd: &EventFd, gsi: u32) -> io::Result<()>;
    /// KVM_IRQFD_FLAG_DEASSIGN.
    fn disconnect(&self, fd: &EventFd, gsi: u32) -> io::Result<()>;
    /// KVM_SIGNAL_MSI.
    fn signal(&self, message: kvm_msi) -> io::Result<()>;
}

impl Kvm for VmFd {
    fn set_routes(&self, routes: &KvmIrqRouting) -> io::Result<()> {
        Ok(self.set_gsi_routing(routes)?)
    }

    fn connect(&self, fd: &EventFd, gsi: u32) -> io::Result<()> {
        Ok(self.register_irqfd(fd, gsi)?)
    }

    fn disconnect(&self, fd: &EventFd, gsi: u32) -> io::Result<()> {
        Ok(self.unregister_irqfd(fd, gsi)?)
    }

    fn signal(&self, message: kvm_msi) -> io::Result<()> {
        Ok(self.signal_msi(message).map(drop)?)
    }
}

/// A new eventfd.
pub fn eventfd() -> io::Result<EventFd> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
}

/// Another descriptor of an eventfd. It is closed on exec, as that of `EventFd::try_clone` is not.
pub fn share(event: &EventFd) -> io::Result<EventFd> {
    // SAFETY: the descriptor is open as long as `event` is there.
    let fd = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }.try_clone_to_owned()?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) })
}

/// All interrupts of a VM.
pub struct Interrupts {
    kvm: Arc<dyn Kvm>,
    /// Where each GSI from [`IOAPIC_PINS`] on leads.
    routes: Mutex<Vec<Option<MsiMessage>>>,
}

impl Interrupts {
    /// Only the I/O APIC's pins lead anywhere at first.
    pub fn new(kvm: Arc<dyn Kvm>) -> io::Result<Arc<Self>> {
        let interrupts = Self {
            kvm,
            routes: Mutex::new(Vec::new()),
        };
        interrupts.apply(&[])?;
        Ok(Arc::new(interrupts))
    }

    /// An eventfd for pin `pin` of the I/O APIC.
    pub fn pin(&self, pin: u32) -> io::Result<EventFd> {
        let event = eventfd()?;
        self.kvm.connect(&event, pin)?;
        Ok(event)
    }

    /// A new vector for message-signalled interrupts; it leads nowhere yet.
    pub fn vector(self: &Arc<Self>) -> Vector {
        let mut routes = lock(&self.routes);
        routes.push(None);
        Vector {
            interrupts: self.clone(),
            index: routes.len() - 1,
        }
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
        self.kvm.set_routes(&table)
    }
}

/// One vector for message-signalled interrupts. However many eventfds are connected to it, it has one GSI and one route.
pub struct Vector {
    interrupts: Arc<Interrupts>,
    index: usize,
}

impl Vector {
    fn gsi(&self) -> u32 {
        IOAPIC_PINS + self.index as u32
    }

    /// From now on the vector is delivered as `message`; with `None` it is masked: what is signalled then gets lost.
    /// When it is unmasked and `was_used` before, it is delivered once, whether anything was signalled meanwhile or not.
    pub fn set(&self, message: Option<MsiMessage>, was_used: bool) -> io::Result<()> {
        let mut routes = lock(&self.interrupts.routes);
        let old = routes[self.index];
        if old == message {
            return Ok(());
        }
        routes[self.index] = message;
        if let Err(error) = self.interrupts.apply(&routes) {
            // KVM has the routes that it had.
            routes[self.index] = old;
            return Err(error);
        }
        if let (None, Some(message), true) = (old, message, was_used) {
            // After the route is there, so that nothing falls between.
            self.signal(message);
        }
        Ok(())
    }

    /// What `fd` signals is an interrupt of this vector from now on.
    pub fn connect(&self, fd: &EventFd) -> io::Result<()> {
        self.interrupts.kvm.connect(fd, self.gsi())
    }

    /// It is not any more. When this returns, none is under way.
    pub fn disconnect(&self, fd: &EventFd) -> io::Result<()> {
        self.interrupts.kvm.disconnect(fd, self.gsi())
    }

    /// An interrupt of this vector, now or when it is unmasked.
    pub fn raise(&self) {
        let routes = lock(&self.interrupts.routes);
        if let Some(message) = routes[self.index] {
            self.signal(message);
        }
    }

    fn signal(&self, message: MsiMessage) {
        let sent = self.interrupts.kvm.signal(kvm_msi {
            address_lo: message.address as u32,
            address_hi: (message.address >> 32) as u32,
            data: message.data,
            ..Default::default()
        });
        if let Err(error) = sent {
            // It is the guest that says where a message goes.
            debug!("a message to {:#x} goes nowhere: {error}", message.address);
        }
    }
}

#[cfg(any(test, fuzzing))]
pub mod test_utils {
    use std::mem;

    use super::*;

    /// What KVM was asked for.
    #[derive(Debug, PartialEq)]
    pub enum Call {
        /// Routes of these GSIs, beside the pins'.
        Routes(Vec<(u32, MsiMessage)>),
        Signal(MsiMessage),
        Connect(u32),
        Disconnect(u32),
    }

    #[derive(Default)]
    struct Inner {
        calls: Mutex<Vec<Call>>,
        fails: Mutex<bool>,
    }

    /// A KVM that notes what it is asked for.
    #[derive(Clone, Default)]
    pub struct FakeKvm(Arc<Inner>);

    impl FakeKvm {
        pub fn interrupts(&self) -> Arc<Interrupts> {
            let interrupts = Interrupts::new(Arc::new(self.clone())).unwrap();
            assert_eq!(self.calls(), [Call::Routes(vec![])]);
            interrupts
        }

        /// The calls since the last time.
        pub fn calls(&self) -> Vec<Call> {
            mem::take(&mut lock(&self.0.calls))
        }

        /// Whether routes cannot be set.
        pub fn fail(&self, fails: bool) {
            *lock(&self.0.fails) = fails;
        }

        fn note(&self, call: Call) -> io::Result<()> {
            lock(&self.0.calls).push(call);
            Ok(())
        }
    }

    fn message(address_lo: u32, address_hi: u32, data: u32) -> MsiMessage {
        MsiMessage {
            address: u64::from(address_hi) << 32 | u64::from(address_lo),
            data,
        }
    }

    impl Kvm for FakeKvm {
        fn set_routes(&self, routes: &KvmIrqRouting) -> io::Result<()> {
            if *lock(&self.0.fails) {
                return Err(io::ErrorKind::OutOfMemory.into());
            }
            let is_msi = |entry: &&kvm_irq_routing_entry| entry.type_ == KVM_IRQ_ROUTING_MSI;
            let routes = routes.as_slice().iter().filter(is_msi).map(|entry| {
                // SAFETY: that is what an entry of this type has.
                let msi = unsafe { entry.u.msi };
                (entry.gsi, message(msi.address_lo, msi.address_hi, msi.data))
            });
            self.note(Call::Routes(routes.collect()))
        }

        fn connect(&self, _: &EventFd, gsi: u32) -> io::Result<()> {
            self.note(Call::Connect(gsi))
        }

        fn disconnect(&self, _: &EventFd, gsi: u32) -> io::Result<()> {
            self.note(Call::Disconnect(gsi))
        }

        fn signal(&self, msi: kvm_msi) -> io::Result<()> {
            self.note(Call::Signal(message(
                msi.address_lo,
                msi.address_hi,
                msi.data,
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::test_utils::{Call, FakeKvm};
    use super::*;

    const MESSAGE: MsiMessage = MsiMessage {
        address: 0xfee0_0000,
        data: 0x41,
    };

    /// 64 links with 16 vectors each: finding 5.8.
    #[test]
    fn a_vector_has_one_route_and_a_mask_is_one_call_however_many_links() {
        let kvm = FakeKvm::default();
        let interrupts = kvm.interrupts();
        let vectors: Vec<Vector> = (0..16).map(|_| interrupts.vector()).collect();
        for vector in &vectors {
            vector.set(Some(MESSAGE), true).unwrap();
        }
        let fd = eventfd().unwrap();
        for vector in &vectors {
            for _link in 0..64 {
                vector.connect(&fd).unwrap();
            }
        }
        let calls = kvm.calls();
        let is_connect = |call: &&Call| matches!(call, Call::Connect(24..40));
        assert_eq!(calls.iter().filter(is_connect).count(), 64 * 16);
        for masked in [true, false] {
            vectors[3].set((!masked).then_some(MESSAGE), true).unwrap();
            let calls = kvm.calls();
            let Call::Routes(routes) = &calls[0] else {
                panic!("{calls:?}");
            };
            assert_eq!(routes.len(), 16 - usize::from(masked));
            let signals = if masked { 0 } else { 1 };
            assert_eq!(calls.len(), 1 + signals);
        }
    }

    /// Finding 5.10: a route was recorded before it was applied, so that it was never tried again.
    #[test]
    fn a_route_that_could_not_be_set_is_set_the_next_time() {
        let kvm = FakeKvm::default();
        let vector = kvm.interrupts().vector();
        kvm.fail(true);
        assert!(vector.set(Some(MESSAGE), true).is_err());
        vector.raise();
        assert_eq!(kvm.calls(), [], "it still leads nowhere");
        kvm.fail(false);
        vector.set(Some(MESSAGE), true).unwrap();
        let expected = [Call::Routes(vec![(24, MESSAGE)]), Call::Signal(MESSAGE)];
        assert_eq!(kvm.calls(), expected);
        vector.raise();
        assert_eq!(kvm.calls(), [Call::Signal(MESSAGE)]);
    }

    #[test]
    fn descriptors_are_closed_on_exec() {
        let first = eventfd().unwrap();
        for fd in [&first, &share(&first).unwrap()] {
            // SAFETY: plain system call on a descriptor that is open.
            let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFD) };
            assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
        }
    }
}
