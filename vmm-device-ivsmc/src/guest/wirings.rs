// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What all links have in the guest, and where the BARs are that it is in.

use std::io;
use std::mem;
use std::sync::Arc;

use crate::guest::wiring::{Remains, Wiring, WiringError};
use crate::{Host, Window};

/// All that the device has in the guest. This is what calls the VMM.
pub struct Wirings {
    host: Arc<dyn Host>,
    window_shift: u32,
    /// By link; there is one while the link is up or lost.
    links: Vec<Option<Wiring>>,
    /// Where BAR0 and BAR2 are.
    registers_at: Option<u64>,
    windows_at: Option<u64>,
    /// The fabric is gone: no link comes up any more.
    pub is_closed: bool,
    /// What was taken out of the guest, and has to be dropped where nobody waits.
    remains: Vec<Remains>,
}

impl Wirings {
    /// Nothing for `links` links, whose windows are 1 << `window_shift` apart. The BARs are nowhere.
    pub fn new(host: Arc<dyn Host>, links: u16, window_shift: u32) -> Self {
        Wirings {
            host,
            window_shift,
            links: (0..links).map(|_| None).collect(),
            registers_at: None,
            windows_at: None,
            is_closed: false,
            remains: Vec::new(),
        }
    }

    /// How many windows are in the guest.
    pub fn mapped(&self) -> u64 {
        let wirings = self.links.iter().flatten();
        wirings.filter(|wiring| wiring.is_mapped()).count() as u64
    }

    /// How many links there can be.
    pub fn len(&self) -> usize {
        self.links.len()
    }

    /// A link's window, if it has one.
    pub fn window(&self, link: usize) -> Option<Arc<Window>> {
        let wiring = self.links.get(link)?.as_ref()?;
        Some(wiring.window().clone())
    }

    /// What was taken out since the last call.
    pub fn take_remains(&mut self) -> Vec<Remains> {
        mem::take(&mut self.remains)
    }

    /// Keeps a link whose peer is gone already, from a snapshot.
    pub fn restore(&mut self, wiring: Wiring) {
        let link = wiring.link();
        if let Some(place) = self.links.get_mut(link) {
            *place = Some(wiring);
        }
    }

    /// Puts a link into the guest. If that cannot be, nothing of it is there.
    pub fn add(&mut self, wiring: Wiring) -> Result<(), WiringError> {
        let link = wiring.link();
        let is_free = self.links.get(link).is_some_and(Option::is_none);
        if self.is_closed || !is_free {
            // It has not been in the guest: this cannot fail.
            let (_, remains) = wiring.remove(self.host.as_ref());
            self.remains.push(remains);
            let why = if self.is_closed {
                "the device is closing"
            } else {
                "the place is taken"
            };
            return Err(WiringError::Host(io::Error::other(why)));
        }
        self.links[link] = Some(wiring);
        let wired = self.wire(link);
        if wired.is_err() {
            // What went wrong first is what is told.
            let _ = self.remove(link);
        }
        wired
    }

    fn wire(&mut self, link: usize) -> Result<(), WiringError> {
        self.place_window(link)?;
        self.place_doorbells_of(link)?;
        if self.lacks_register(link) {
            self.place_register(link)?;
        }
        if let Some(wiring) = &mut self.links[link] {
            wiring.connect(self.host.as_ref())?;
        }
        Ok(())
    }

    fn place_window(&mut self, link: usize) -> io::Result<()> {
        let offset = (link as u64) << self.window_shift;
        let address = self.windows_at.map(|bar| bar + offset);
        match &mut self.links[link] {
            Some(wiring) => wiring.map(self.host.as_ref(), address),
            None => Ok(()),
        }
    }

    fn place_all_windows(&mut self) -> io::Result<()> {
        (0..self.links.len()).try_for_each(|link| self.place_window(link))
    }

    /// BAR2 is at `address` now, or nowhere. If windows cannot be put there they stay where they were; the second
    /// result is whether that could be.
    pub fn place_windows(&mut self, address: Option<u64>) -> (io::Result<()>, io::Result<()>) {
        let old = mem::replace(&mut self.windows_at, address);
        let placed = self.place_all_windows();
        let mut back = Ok(());
        if placed.is_err() {
            self.windows_at = old;
            back = self.place_all_windows();
        }
        (placed, back)
    }

    fn place_doorbells_of(&mut self, link: usize) -> Result<(), WiringError> {
        match &mut self.links[link] {
            Some(wiring) => wiring.place_doorbells(self.host.as_ref(), self.registers_at),
            None => Ok(()),
        }
    }

    /// BAR0 is at `address` now, or nowhere. Returns the links whose doorbells cannot be there.
    pub fn place_doorbells(&mut self, address: Option<u64>) -> Vec<(usize, WiringError)> {
        self.registers_at = address;
        let links = 0..self.links.len();
        let place = |link| Some((link, self.place_doorbells_of(link).err()?));
        links.filter_map(place).collect()
    }

    fn place_register(&mut self, link: usize) -> Result<(), WiringError> {
        match &mut self.links[link] {
            Some(wiring) => wiring.place_register(self.host.as_ref(), self.registers_at),
            None => Ok(()),
        }
    }

    /// Whether the Doorbell register does not reach this link, and could: two peers can have the same IVPosition, and
    /// then one of them has the register.
    fn lacks_register(&self, link: usize) -> bool {
        let Some(wiring) = &self.links[link] else {
            return false;
        };
        let position = wiring.position();
        let has_it = |other: &Wiring| other.has_register() && other.position() == position;
        position.is_some() && !self.links.iter().flatten().any(has_it)
    }

    /// Gives the Doorbell register to links whose IVPosition no link that has it shares any more. Returns the first
    /// error, but tries all.
    pub fn hand_on_register(&mut self) -> Result<(), WiringError> {
        let mut result = Ok(());
        for link in 0..self.links.len() {
            if self.lacks_register(link) {
                result = result.and(self.place_register(link));
            }
        }
        result
    }

    /// The peer of a link is gone: takes everything but the window out of the guest.
    pub fn disconnect(&mut self, link: usize) -> io::Result<()> {
        let Some(Some(wiring)) = self.links.get_mut(link) else {
            return Ok(());
        };
        let (result, remains) = wiring.disconnect(self.host.as_ref());
        self.remains.push(remains);
        result
    }

    /// Takes everything of a link out of the guest.
    pub fn remove(&mut self, link: usize) -> io::Result<()> {
        let Some(wiring) = self.links.get_mut(link).and_then(Option::take) else {
            return Ok(());
        };
        let (result, remains) = wiring.remove(self.host.as_ref());
        self.remains.push(remains);
        result
    }
}
