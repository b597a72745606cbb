// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the device needs of the VMM that hosts it.

use std::io;

use vmm_sys_util::eventfd::EventFd;

use crate::{Event, Window};

/// What the device needs of a VMM: memory in the guest, doorbells out of it, interrupts into it.
///
/// The methods are called one at a time, from the fabric thread and from whichever thread calls
/// [`Device::place_registers`](crate::Device::place_registers), [`Device::place_windows`](crate::Device::place_windows),
/// [`Device::reset`](crate::Device::reset) or [`Device::resume`](crate::Device::resume), under a lock of the device. So they
/// must not call the device, and must not wait for a lock under which the VMM calls one of these, as that of an
/// allocator may be: GSIs and memory slots are better taken before the device is made. A guest's accesses
/// ([`Device::read`](crate::Device::read), [`Device::write`](crate::Device::write)) do not wait for these calls.
pub trait Host: Send + Sync {
    /// Makes `window`, of link number `link`, guest memory at `gpa`. A link has one window at a
    /// time, so that `link` can serve to pick a memory slot.
    fn map_window(&self, link: usize, gpa: u64, window: &Window) -> io::Result<()>;

    /// Takes out what [`map_window`](Self::map_window) put in. When it returns, no vCPU can reach the memory.
    fn unmap_window(&self, link: usize, gpa: u64, window: &Window) -> io::Result<()>;

    /// Makes a guest's 4-byte store to `gpa` signal `fd`: a store of any value, or of exactly `value`.
    /// (Without a value a store of any width may: KVM matches an ioeventfd of no length fastest.)
    ///
    /// # Errors
    /// `fd` was sent by a peer. If it is no eventfd, the error's kind has to be `InvalidInput`, which is what becomes
    /// of KVM_IOEVENTFD's EINVAL: the link then ends as the peer's fault. Any other error is the VMM's.
    fn set_doorbell(&self, gpa: u64, value: Option<u32>, fd: &EventFd) -> io::Result<()>;

    /// Undoes [`set_doorbell`](Self::set_doorbell) with the same arguments.
    fn clear_doorbell(&self, gpa: u64, value: Option<u32>, fd: &EventFd) -> io::Result<()>;

    /// From now on a signal through `fd` is an interrupt of MSI-X vector `vector`: KVM_IRQFD on that vector's GSI. All
    /// links share a vector's GSI, so there is one route for each vector, however many links. `fd` is also held by a
    /// peer.
    ///
    /// Masking is no matter of `fd`: what is signalled while the vector cannot be delivered may be dropped, if the VMM
    /// delivers the vector once when it can be again. (So the pending bit of every masked vector may be set.)
    fn connect_vector(&self, vector: usize, fd: &EventFd) -> io::Result<()>;

    /// Undoes [`connect_vector`](Self::connect_vector) with the same arguments. When it returns, no interrupt of `fd` is
    /// under way.
    fn disconnect_vector(&self, vector: usize, fd: &EventFd) -> io::Result<()>;

    /// An interrupt of vector 0: a link has changed. If it cannot be delivered now, it has to be delivered later.
    fn raise(&self) -> io::Result<()>;

    /// Something happened that the VMM may want to tell its user. Unlike the other methods it is called with or
    /// without the device's lock held, so that calls from two threads may overlap. It must not call the device
    /// either, nor wait for a thread that does.
    fn event(&self, _event: &Event) {}
}
