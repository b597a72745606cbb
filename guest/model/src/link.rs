// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `link.c`: attaching, going up, ending and beginning again.

use std::sync::Arc;

use crate::explore::reached;
use crate::kernel::{
    Event, read_once, virt_load_acquire, virt_mb, virt_store_release, virt_wmb, write_once,
};
use crate::poll::{Ivpci, ivpci_poll_kick};
use crate::ring::{
    START, header_of, ivpci_read_header, ivpci_rx_arm, ivpci_rx_disarm, ivpci_rx_init,
};
use crate::step::{Step, present};

/// The states of a link: `enum ivpci_state`. The window is always there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing is published yet.
    Down,
    /// Our epoch is published, the peer has not accepted it.
    Attaching,
    /// Both sides have accepted each other.
    Up,
    /// SMC has let go.
    Ending,
}

/// The state machine of a link, which its work item alone runs.
pub struct Machine {
    /// The device.
    pub iv: Arc<Ivpci>,
    /// What the peer's doorbell is.
    pub rings: fn(&Ivpci) -> &Event,
    /// The peer's device.
    pub other: Arc<Ivpci>,
    /// Of the link.
    pub state: State,
    /// What ends the link when it is up.
    pub faulty: bool,
}

/// `ivpci_peer_there()`
pub fn ivpci_peer_there(iv: &Ivpci) -> bool {
    if !present(Step::ThereOrder) {
        return virt_load_acquire(&iv.peer.epoch, Step::ThereAcquire) == iv.peer_epoch.get()
            && read_once(&iv.peer.peer_epoch) == iv.epoch.get();
    }
    virt_load_acquire(&iv.peer.peer_epoch, Step::ThereAcquire) == iv.epoch.get()
        && read_once(&iv.peer.epoch) == iv.peer_epoch.get()
}

impl Machine {
    fn ivpci_link_ring(&self) {
        if self.iv.peer_epoch.get() != 0 {
            (self.rings)(&self.other).set();
        }
    }

    fn ivpci_begin(&mut self) {
        let iv = &self.iv;
        let own = &iv.own;
        // the driver's is random
        let epoch = iv.epoch.get() + 2;

        write_once(&own.peer_epoch, 0);
        write_once(&own.epoch, 0);
        virt_wmb(Step::BeginWmb);
        for word in [
            &own.signal_prod,
            &own.signal_cons,
            &own.event_prod,
            &own.event_cons,
            &own.signal_wake,
        ] {
            write_once(word, START);
        }
        write_once(&own.header, header_of(epoch));

        iv.peer_epoch.set(0);
        self.faulty = false;
        iv.epoch.set(epoch);
        virt_store_release(&own.epoch, epoch, Step::BeginRelease);
        if present(Step::BeginAttaching) {
            iv.lock.lock().unwrap().attaching = true;
        }
        virt_mb(Step::BeginMb);
    }

    fn ivpci_accept(&self) {
        let iv = &self.iv;
        let header = ivpci_read_header(&iv.peer);

        if header.is_some_and(|(epoch, _)| epoch == iv.peer_epoch.get()) {
            return;
        }
        if let Some((epoch, header)) = header {
            assert_eq!(header, header_of(epoch), "another epoch's header");
        }
        iv.peer_epoch.set(header.map_or(0, |(epoch, _)| epoch));
        write_once(&iv.own.peer_epoch, iv.peer_epoch.get());
        if present(Step::AcceptRing) {
            self.ivpci_link_ring();
        }
    }

    fn ivpci_go_up(&self) {
        let iv = &self.iv;
        let mut pending = false;

        if !present(Step::GoUpLast) {
            iv.up.set();
        }
        let mut link = iv.lock.lock().unwrap();
        link.rx = ivpci_rx_init(&iv.own, &iv.peer);
        link.registered = !iv.choices.registers;
        if link.polling {
            reached("goes up while polling");
            ivpci_rx_disarm(&link.rx);
        } else {
            pending = ivpci_rx_arm(&link.rx);
        }
        link.attaching = false;
        link.receiving = true;
        drop(link);
        if present(Step::GoUpLast) {
            iv.up.set();
        }
        if pending {
            reached("a signal is there when the link goes up");
            if present(Step::GoUpPending) {
                ivpci_poll_kick(iv);
            }
        }
    }

    fn ivpci_go_down(&self) {
        let iv = &self.iv;

        iv.lock.lock().unwrap().receiving = false;
        write_once(&iv.own.peer_epoch, 0);
        self.ivpci_link_ring();
    }

    fn ivpci_step(&mut self) -> bool {
        match self.state {
            State::Down | State::Ending => {
                self.ivpci_begin();
                self.state = State::Attaching;
                true
            }
            State::Attaching => {
                self.ivpci_accept();
                if self.iv.peer_epoch.get() == 0 || !ivpci_peer_there(&self.iv) {
                    return false;
                }
                self.ivpci_go_up();
                self.state = State::Up;
                true
            }
            State::Up => {
                if !self.faulty && ivpci_peer_there(&self.iv) {
                    return false;
                }
                self.ivpci_go_down();
                self.state = State::Ending;
                true
            }
        }
    }

    /// `ivpci_link_work()`
    pub fn ivpci_link_work(&mut self) {
        while self.ivpci_step() {}
    }
}
