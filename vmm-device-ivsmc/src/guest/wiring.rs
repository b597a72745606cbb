// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a link has in the guest: its window, its doorbells, its interrupt lines.

use std::io;

use vmm_sys_util::eventfd::EventFd;

use crate::lines::Line;
use crate::registers::{self, doorbell, doorbell_value};
use crate::window::Piece;
use crate::{Host, Window};

/// One link's window, doorbells and lines, and where in the guest they are.
pub struct Wiring {
    link: usize,
    /// The peer's IVPosition.
    position: u16,
    window: Window,
    /// Where the window is in the guest.
    mapped: Option<u64>,
    /// The peer's eventfds, one for each of its vectors.
    bells: Vec<EventFd>,
    /// Where in BAR0's registers the bells are: address, value, which bell.
    placed: Vec<(u64, Option<u32>, usize)>,
    /// Whether the Doorbell register reaches this link.
    classic: bool,
    /// This device's lines for the link, one for each of its vectors.
    pub lines: Vec<Line>,
}

impl Wiring {
    /// Nothing of it is in the guest yet. With `classic`, the Doorbell register reaches the peer as well.
    pub fn new(
        link: usize,
        position: u16,
        classic: bool,
        window: Window,
        bells: Vec<EventFd>,
        lines: Vec<Line>,
    ) -> Self {
        let (mapped, placed) = (None, Vec::new());
        Wiring {
            link,
            position,
            window,
            mapped,
            bells,
            placed,
            classic,
            lines,
        }
    }

    /// The peer's IVPosition, if there is a peer to be rung.
    pub fn position(&self) -> Option<u16> {
        (!self.bells.is_empty()).then_some(self.position)
    }

    /// Whether the window is in the guest.
    pub fn is_mapped(&self) -> bool {
        self.mapped.is_some()
    }

    /// The window's content, see [`Window::content`].
    pub fn content(&self, limit: usize) -> io::Result<(Vec<Piece>, bool)> {
        self.window.content(limit)
    }

    /// Whether the Doorbell register reaches this link.
    pub fn is_classic(&self) -> bool {
        self.classic
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
    pub fn place_bells(&mut self, host: &dyn Host, bar: Option<u64>) -> io::Result<()> {
        self.remove_bells(host)?;
        let Some(bar) = bar else { return Ok(()) };
        for n in 0..self.bells.len() {
            self.place_bell(host, bar + doorbell(self.link, n), None, n)?;
        }
        if self.classic {
            self.place_classic(host, Some(bar))
        } else {
            Ok(())
        }
    }

    /// Makes the Doorbell register reach the peer, at once if BAR0 is somewhere.
    pub fn place_classic(&mut self, host: &dyn Host, bar: Option<u64>) -> io::Result<()> {
        self.classic = true;
        let Some(bar) = bar else { return Ok(()) };
        for n in 0..self.bells.len() {
            let value = doorbell_value(self.position, n);
            self.place_bell(host, bar + registers::DOORBELL, Some(value), n)?;
        }
        Ok(())
    }

    fn place_bell(
        &mut self,
        host: &dyn Host,
        address: u64,
        value: Option<u32>,
        bell: usize,
    ) -> io::Result<()> {
        host.set_doorbell(address, value, &self.bells[bell])?;
        self.placed.push((address, value, bell));
        Ok(())
    }

    /// Takes the doorbells out of BAR0. Returns the first error, but tries all.
    fn remove_bells(&mut self, host: &dyn Host) -> io::Result<()> {
        let mut result = Ok(());
        for (address, value, bell) in self.placed.drain(..) {
            result = result.and(host.clear_doorbell(address, value, &self.bells[bell]));
        }
        result
    }

    /// The peer is gone: takes everything but the window out of the guest.
    pub fn disconnect(&mut self, host: &dyn Host) -> io::Result<()> {
        let mut result = self.remove_bells(host);
        self.bells.clear();
        self.classic = false;
        for line in &mut self.lines {
            result = result.and(line.set(host, None));
        }
        self.lines.clear();
        result
    }

    /// Takes everything out of the guest. Returns the first error, but tries all.
    pub fn remove(mut self, host: &dyn Host) -> io::Result<()> {
        let disconnected = self.disconnect(host);
        disconnected.and(self.unmap(host))
    }
}
