// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What one link has in the guest: its window, its doorbells, its vectors.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use crate::fabric::reaper::Foreign;
use crate::guest::registers::{self, doorbell, doorbell_value};
use crate::{Host, Window};

/// Why a link cannot be put into the guest.
#[derive(Debug, Error)]
pub enum WiringError {
    /// The peer's fault: what should be a doorbell's eventfd is none.
    #[error("a doorbell that is no eventfd")]
    NotAnEventfd,
    /// The VMM's.
    #[error(transparent)]
    Host(#[from] io::Error),
}

/// Another descriptor of an eventfd, for a peer. It is closed on exec, as that of `EventFd::try_clone` is not.
pub fn share(fd: &EventFd) -> io::Result<OwnedFd> {
    // SAFETY: the descriptor is open as long as `fd` is there.
    unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }.try_clone_to_owned()
}

/// What a link leaves behind that a peer may hold, too: closing it can take as long as the peer likes. So it is
/// dropped where nobody waits, and never under a lock.
pub struct Remains {
    doorbells: Vec<Foreign<EventFd>>,
    _window: Option<Arc<Window>>,
}

impl Remains {
    /// Those of doorbells and a window.
    pub fn new(doorbells: Vec<Foreign<EventFd>>, window: Option<Arc<Window>>) -> Self {
        Remains {
            doorbells,
            _window: window,
        }
    }
}

/// One link's window, doorbells and vectors, and where in the guest they are.
pub struct Wiring {
    link: usize,
    /// The peer's IVPosition.
    position: u16,
    window: Arc<Window>,
    /// Where the window is in the guest.
    mapped: Option<u64>,
    /// The peer's eventfds, one for each of its vectors.
    doorbells: Vec<Foreign<EventFd>>,
    /// Where in BAR0's registers the doorbells are: address, value, which of them.
    placed: Vec<(u64, Option<u32>, usize)>,
    /// Whether the Doorbell register reaches this link.
    has_register: bool,
    /// This device's eventfds for the peer, one for each vector. The peer may do to them what it likes, clearing
    /// O_NONBLOCK included: the device neither reads nor writes them.
    vectors: Vec<Foreign<EventFd>>,
    /// How many of them, from the first on, are connected to their vectors.
    connected: usize,
}

impl Wiring {
    /// Nothing of it is in the guest yet.
    pub fn new(
        link: usize,
        position: u16,
        window: Window,
        doorbells: Vec<Foreign<EventFd>>,
        vectors: Vec<Foreign<EventFd>>,
    ) -> Self {
        Wiring {
            link,
            position,
            window: Arc::new(window),
            mapped: None,
            doorbells,
            placed: Vec::new(),
            has_register: false,
            vectors,
            connected: 0,
        }
    }

    /// The link's number.
    pub fn link(&self) -> usize {
        self.link
    }

    /// The peer's IVPosition, if there is a peer to be rung.
    pub fn position(&self) -> Option<u16> {
        (!self.doorbells.is_empty()).then_some(self.position)
    }

    /// Whether the window is in the guest.
    pub fn is_mapped(&self) -> bool {
        self.mapped.is_some()
    }

    /// The window.
    pub fn window(&self) -> &Arc<Window> {
        &self.window
    }

    /// Whether the Doorbell register reaches this link.
    pub fn has_register(&self) -> bool {
        self.has_register
    }

    /// Puts the window at a guest address, or nowhere.
    pub fn map(&mut self, host: &dyn Host, address: Option<u64>) -> io::Result<()> {
        self.unmap(host)?;
        if let Some(address) = address {
            host.map_window(self.link, address, &self.window)?;
        }
        self.mapped = address;
        Ok(())
    }

    /// Takes the window out of the guest.
    fn unmap(&mut self, host: &dyn Host) -> io::Result<()> {
        if let Some(address) = self.mapped {
            host.unmap_window(self.link, address, &self.window)?;
            self.mapped = None;
        }
        Ok(())
    }

    /// Puts the doorbells into BAR0, which is at `bar` or nowhere.
    pub fn place_doorbells(
        &mut self,
        host: &dyn Host,
        bar: Option<u64>,
    ) -> Result<(), WiringError> {
        self.remove_doorbells(host)?;
        let Some(bar) = bar else { return Ok(()) };
        for n in 0..self.doorbells.len() {
            self.place_doorbell(host, bar + doorbell(self.link, n), None, n)?;
        }
        if self.has_register {
            self.place_register(host, Some(bar))
        } else {
            Ok(())
        }
    }

    /// Makes the Doorbell register reach the peer, at once if BAR0 is somewhere.
    pub fn place_register(&mut self, host: &dyn Host, bar: Option<u64>) -> Result<(), WiringError> {
        self.has_register = true;
        let Some(bar) = bar else { return Ok(()) };
        for n in 0..self.doorbells.len() {
            let value = doorbell_value(self.position, n);
            self.place_doorbell(host, bar + registers::DOORBELL, Some(value), n)?;
        }
        Ok(())
    }

    fn place_doorbell(
        &mut self,
        host: &dyn Host,
        address: u64,
        value: Option<u32>,
        n: usize,
    ) -> Result<(), WiringError> {
        match host.set_doorbell(address, value, &self.doorbells[n]) {
            Ok(()) => {
                self.placed.push((address, value, n));
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                Err(WiringError::NotAnEventfd)
            }
            Err(error) => Err(WiringError::Host(error)),
        }
    }

    /// Takes the doorbells out of BAR0. Returns the first error, but tries all.
    fn remove_doorbells(&mut self, host: &dyn Host) -> io::Result<()> {
        let mut result = Ok(());
        for (address, value, n) in self.placed.drain(..) {
            result = result.and(host.clear_doorbell(address, value, &self.doorbells[n]));
        }
        result
    }

    /// Makes what the peer signals interrupts.
    pub fn connect(&mut self, host: &dyn Host) -> io::Result<()> {
        while let Some(fd) = self.vectors.get(self.connected) {
            host.connect_vector(self.connected, fd)?;
            self.connected += 1;
        }
        Ok(())
    }

    /// The peer is gone: takes everything but the window out of the guest. Returns the first error, but tries all.
    pub fn disconnect(&mut self, host: &dyn Host) -> (io::Result<()>, Remains) {
        let mut result = self.remove_doorbells(host);
        let doorbells = mem::take(&mut self.doorbells);
        self.has_register = false;
        for (vector, fd) in self.vectors.drain(..).enumerate().take(self.connected) {
            result = result.and(host.disconnect_vector(vector, &fd));
        }
        self.connected = 0;
        (result, Remains::new(doorbells, None))
    }

    /// Takes everything out of the guest. Returns the first error, but tries all.
    pub fn remove(mut self, host: &dyn Host) -> (io::Result<()>, Remains) {
        let (disconnected, remains) = self.disconnect(host);
        let unmapped = self.unmap(host);
        let window = if unmapped.is_err() {
            // The guest may still reach the memory: better to leak it than to have something else of this
            // process at its address.
            mem::forget(self.window);
            None
        } else {
            Some(self.window)
        };
        let doorbells = remains.doorbells;
        (disconnected.and(unmapped), Remains::new(doorbells, window))
    }
}
