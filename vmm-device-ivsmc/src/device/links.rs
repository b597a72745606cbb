// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Links come up and end: what the fabric thread, and who resets the device, do to them.
//!
//! Both locks are taken for that: a link's state changes under that of the registers, and what is in the guest under that
//! of the wirings alone. Only Claim is written without the latter, so that the guest never waits for it. A link that
//! ends is *let go* until all of it is out of the guest, and *down* only then.

use std::io;
use std::path::Path;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::fabric::handshake::Terms;
use crate::fabric::reaper::Foreign;
use crate::fabric::wire::Bye;
use crate::guest::link::{Action, Input};
use crate::guest::wiring::{Wiring, WiringError};
use crate::guest::wirings::Wirings;
use crate::{Device, Event, EventKind, Gid, Window};

impl Device {
    /// Resets the device, as on a reset of the VM: all links end, and are made anew. BARs stay in place.
    pub fn reset(&self) {
        self.count(|counters| counters.resets += 1);
        self.wired(|wirings| {
            self.registers().intr_mask = 0;
            self.end_all(wirings, "the device is reset");
        });
        self.wake_fabric();
    }

    /// Whether there is a link to this GID, or about to be.
    pub(crate) fn is_joined(&self, gid: Gid) -> bool {
        self.registers().links.is_joined(gid)
    }

    /// Reserves a place for a link to this GID, or says what to tell the peer.
    pub(crate) fn reserve(&self, gid: Gid) -> Result<usize, Bye> {
        self.registers().links.reserve(gid)
    }

    /// Gives a reserved place back.
    pub(crate) fn cancel(&self, link: usize) {
        self.registers().links.on(link, Input::Cancel);
    }

    /// The peers whose links are to end.
    pub(crate) fn take_dropped(&self) -> Vec<Gid> {
        self.registers().links.take_dropped()
    }

    /// A device of this GID has answered at this socket.
    pub(crate) fn found_at(&self, gid: Gid, path: &Path) {
        self.registers()
            .links
            .found_at(gid, &path.to_string_lossy());
    }

    /// Fresh eventfds for a link's vectors, so that the peer of an earlier one has nothing to do with them.
    pub(crate) fn new_vectors(&self) -> io::Result<Vec<EventFd>> {
        (0..self.config.vectors)
            .map(|_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC))
            .collect()
    }

    /// Brings a link up at its reserved place. Returns its generation.
    pub(crate) fn bring_up(
        &self,
        link: usize,
        peer: Terms,
        window: Window,
        doorbells: Vec<Foreign<EventFd>>,
        vectors: Vec<Foreign<EventFd>>,
    ) -> Result<u32, WiringError> {
        let wiring = Wiring::new(link, peer.position, window, doorbells, vectors);
        self.wired(|wirings| {
            if let Err(error) = wirings.add(wiring) {
                if matches!(error, WiringError::Host(_)) {
                    self.count(|counters| counters.host_errors += 1);
                }
                return Err(error);
            }
            let mut registers = self.registers();
            let action = registers.links.on(link, Input::Join(peer));
            let generation = registers.links.generation(link);
            drop(registers);
            if action != Action::Announce {
                self.check(wirings.remove(link), "take a link out of the guest");
                return Err(WiringError::Host(io::Error::other(
                    "the place is another's",
                )));
            }
            self.count(|counters| counters.links_up += 1);
            self.raise();
            let size = (1u64 << peer.window_shift) >> 20;
            self.tell(&Event {
                kind: EventKind::LinkUp,
                link: Some(link),
                peer: Some(peer.gid),
                reason: format!("a window of {size} MiB, side {}", peer.side),
            });
            Ok(generation)
        })
    }

    /// Whether this generation of a link is up.
    pub(crate) fn is_up(&self, link: usize, generation: u32) -> bool {
        self.registers().links.is_up(link, generation)
    }

    /// The peer of this generation of a link is gone, for the reason given.
    pub(crate) fn lose(&self, link: usize, generation: u32, why: &str) {
        self.wired(|wirings| {
            if self.is_up(link, generation) {
                self.lose_wired(wirings, link, why);
            }
        });
    }

    /// Takes out of the guest the windows that it has let go of. Returns whether there were any.
    pub(crate) fn reap(&self) -> bool {
        self.wired(|wirings| {
            let mut has_let_go = false;
            for link in 0..wirings.len() {
                if self.registers().links.is_let_go(link) {
                    self.take_out(wirings, link, "the guest has let go");
                    self.raise();
                    has_let_go = true;
                }
            }
            has_let_go
        })
    }

    /// Ends all links, for good.
    pub(crate) fn close(&self) {
        self.wired(|wirings| {
            wirings.is_closed = true;
            self.end_all(wirings, "the device closes");
        });
    }

    /// The peer of a link that is up is gone.
    pub(super) fn lose_wired(&self, wirings: &mut Wirings, link: usize, why: &str) {
        match self.change(link, Input::Lose) {
            Action::Remove => self.take_out(wirings, link, why),
            Action::Disconnect => {
                self.check(wirings.disconnect(link), "disconnect a link");
                self.count(|counters| counters.links_reset += 1);
                self.tell_of(EventKind::LinkReset, link, why);
            }
            _ => return,
        }
        self.count(|counters| counters.links_lost += 1);
        match wirings.hand_on_register() {
            // KVM has taken this eventfd before.
            Ok(()) | Err(WiringError::NotAnEventfd) => {}
            Err(WiringError::Host(error)) => self.check(Err(error), "place a doorbell"),
        }
        self.raise();
    }

    fn change(&self, link: usize, input: Input) -> Action {
        self.registers().links.on(link, input)
    }

    /// Takes all of a link that is let go out of the guest.
    fn take_out(&self, wirings: &mut Wirings, link: usize, why: &str) {
        self.check(wirings.remove(link), "take a link out of the guest");
        // While it still has a peer to tell of.
        self.tell_of(EventKind::LinkDown, link, why);
        self.change(link, Input::Reap);
    }

    fn tell_of(&self, kind: EventKind, link: usize, why: &str) {
        let peer = self.registers().links.peer(link);
        self.tell(&Event {
            kind,
            link: Some(link),
            peer,
            reason: why.into(),
        });
    }

    /// Makes all links down.
    fn end_all(&self, wirings: &mut Wirings, why: &str) {
        for link in 0..wirings.len() {
            if self.change(link, Input::End) == Action::Remove {
                self.take_out(wirings, link, why);
            }
        }
    }
}
