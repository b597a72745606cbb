// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The call that is being answered, in memory that all of the supervisor's processes see: what one of them had begun when
//! it was killed another one can finish.

use super::listener::Listener;
use std::io;

/// An id that no call is expected to have: the kernel counts from a random number of 64 bits.
const CLOSED: u64 = u64::MAX;

#[repr(C)]
struct Content {
    /// Written by the kernel as it hands the call over. Its id is 0 between calls.
    call: libc::seccomp_notif,
    /// The inode of the socket that the caller is given, or 0.
    socket: u64,
    /// How often somebody has begun to find it a socket.
    tries: u64,
}

/// The memory. One process at a time uses it.
pub(super) struct Slot(*mut Content);

impl Slot {
    /// An empty one.
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: a new mapping, of all zeroes, that touches nothing else.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<Content>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
                -1,
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Slot(memory.cast()))
    }

    /// Takes the next call.
    pub(super) fn receive(&self, listener: &Listener) -> io::Result<libc::seccomp_notif> {
        self.clear();
        // SAFETY: the mapping stays for the life of the process and has room for a call. It has just been cleared, as the
        // kernel wants it.
        unsafe {
            listener.receive(&raw mut (*self.0).call)?;
            Ok((&raw const (*self.0).call).read_volatile())
        }
    }

    /// Notes which socket the caller is given.
    pub(super) fn note(&self, inode: u64) {
        // SAFETY: as above.
        unsafe { (&raw mut (*self.0).socket).write_volatile(inode) };
    }

    /// Counts an attempt; gives how many there were before.
    pub(super) fn count(&self) -> u64 {
        // SAFETY: as above.
        unsafe {
            let tries = (&raw const (*self.0).tries).read_volatile();
            (&raw mut (*self.0).tries).write_volatile(tries + 1);
            tries
        }
    }

    /// Forgets the call, which has its answer.
    pub(super) fn clear(&self) {
        // SAFETY: as above; all zeroes is a valid content. The call comes first: what is said of it is looked at only
        // while it is there.
        unsafe {
            (&raw mut (*self.0).call).write_volatile(std::mem::zeroed());
            (&raw mut (*self.0).socket).write_volatile(0);
            (&raw mut (*self.0).tries).write_volatile(0);
        }
    }

    /// Says that there is no use in going on.
    pub(super) fn close(&self) {
        // SAFETY: as above.
        unsafe { (&raw mut (*self.0).call.id).write_volatile(CLOSED) };
    }

    /// Whether somebody has said so.
    pub(super) fn is_closed(&self) -> bool {
        self.call().is_some_and(|call| call.id == CLOSED)
    }

    /// The call that has no answer yet, as far as one can see.
    pub(super) fn call(&self) -> Option<libc::seccomp_notif> {
        // SAFETY: as above; any bytes are a valid call.
        let call = unsafe { (&raw const (*self.0).call).read_volatile() };
        (call.id != 0).then_some(call)
    }

    /// The socket that its caller was to be given, and may have.
    pub(super) fn socket(&self) -> Option<u64> {
        // SAFETY: as above.
        let inode = unsafe { (&raw const (*self.0).socket).read_volatile() };
        (inode != 0).then_some(inode)
    }
}
