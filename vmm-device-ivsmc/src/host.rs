// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the device needs of the VMM that hosts it.

use std::io;

use vmm_sys_util::eventfd::EventFd;

pub use crate::pci::MsiMessage;
use crate::{Event, Window};

/// What the device needs of a VMM: memory in the guest, doorbells out of it, interrupts into it.
///
/// The methods (but for [`event`](Self::event)) are called from vCPU threads (in [`Device::config_write`](crate::Device::config_write),
/// [`Device::bar_write`](crate::Device::bar_write) and [`Device::move_bar`](crate::Device::move_bar)) and
/// from the fabric thread, one at a time, while the device's lock is held: they must not call the device,
/// nor wait for a thread that does.
pub trait Host: Send + Sync {
    /// Makes `window`, of link number `link`, guest memory at `gpa`. A link has one window at a
    /// time, so that `link` can serve to pick a memory slot.
    fn map_window(&self, link: usize, gpa: u64, window: &Window) -> io::Result<()>;

    /// Takes out what [`map_window`](Self::map_window) put in. When it returns, no vCPU can reach the memory.
    fn unmap_window(&self, link: usize, gpa: u64, window: &Window) -> io::Result<()>;

    /// Makes a guest's 4-byte store to `gpa` signal `fd`: a store of any value, or of exactly `value`.
    /// (Without a value a store of any width may: KVM matches an ioeventfd of no length fastest.)
    ///
    /// `fd` was sent by a peer. It must be an error if it is no eventfd, as KVM_IOEVENTFD has it.
    fn set_doorbell(&self, gpa: u64, value: Option<u32>, fd: &EventFd) -> io::Result<()>;

    /// Undoes [`set_doorbell`](Self::set_doorbell) with the same arguments.
    fn clear_doorbell(&self, gpa: u64, value: Option<u32>, fd: &EventFd) -> io::Result<()>;

    /// With `Some`: from now on what is signalled through `fd` is delivered as this message (`fd` becomes the
    /// irqfd of interrupt line `line`, or already is and only the message changes). With `None`: it is
    /// not any more (the irqfd is taken off), and when this returns no interrupt of it is under way.
    ///
    /// There are [`Device::lines`](crate::Device::lines) lines, counted from 0, each of which wants a GSI of
    /// its own. A line has at most one `fd` at a time: before it gets another, the first is taken off.
    /// After an error the line has to be as it was before.
    fn set_line(&self, line: usize, fd: &EventFd, message: Option<MsiMessage>) -> io::Result<()>;

    /// Something happened that the VMM may want to tell its user. Unlike the other methods it is called with or
    /// without the device's lock held, so that calls from two threads may overlap. It must not call the device
    /// either, nor wait for a thread that does.
    fn event(&self, _event: &Event) {}
}
