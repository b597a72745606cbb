// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `ring.c`: signal rings and event rings.

use std::sync::Arc;

use loom::sync::atomic::AtomicU32;

use crate::kernel::{
    Plain, read_once, virt_load_acquire, virt_mb, virt_rmb, virt_store_release, write_once,
};
use crate::step::{Step, present};

/// Where indices begin. The driver has 0 here; with this they wrap in each test.
pub const START: u32 = u32::MAX;

/// A control area without directory: `struct ivpci_ctrl`.
pub struct Ctrl {
    /// Names this attachment.
    pub epoch: AtomicU32,
    /// The peer's epoch that this side has accepted.
    pub peer_epoch: AtomicU32,
    /// All other words of the header. They are as good as one: each attachment has another.
    pub header: AtomicU32,
    /// Producer index of this side's signal ring.
    pub signal_prod: AtomicU32,
    /// Consumer index in the peer's signal ring.
    pub signal_cons: AtomicU32,
    /// This side wants a doorbell when the peer's signal_prod passes this.
    pub signal_wake: AtomicU32,
    /// Producer index of this side's event ring.
    pub event_prod: AtomicU32,
    /// Consumer index in the peer's event ring.
    pub event_cons: AtomicU32,
    /// This side's event ring. The driver's entries are words that cannot tear; here each use has to be ordered.
    pub events: Vec<Plain<(u32, u64)>>,
    /// This side's signal ring.
    pub signals: Vec<AtomicU32>,
}

impl Ctrl {
    /// The control area of a side that has this epoch, sleeps, and has posted and consumed nothing.
    pub fn new(epoch: u32, peer_epoch: u32, signals: usize, events: usize) -> Self {
        Self {
            epoch: AtomicU32::new(epoch),
            peer_epoch: AtomicU32::new(peer_epoch),
            header: AtomicU32::new(header_of(epoch)),
            signal_prod: AtomicU32::new(START),
            signal_cons: AtomicU32::new(START),
            signal_wake: AtomicU32::new(START),
            event_prod: AtomicU32::new(START),
            event_cons: AtomicU32::new(START),
            events: (0..events).map(|_| Plain::default()).collect(),
            signals: (0..signals).map(|_| AtomicU32::new(u32::MAX)).collect(),
        }
    }
}

/// The header that a side writes for an epoch.
pub fn header_of(epoch: u32) -> u32 {
    epoch << 8
}

/// `ivpci_read_header()`: epoch and header, or nothing if the peer is not attached or just attaching.
pub fn ivpci_read_header(peer: &Ctrl) -> Option<(u32, u32)> {
    let epoch = virt_load_acquire(&peer.epoch, Step::HeaderAcquire);
    if epoch == 0 {
        return None;
    }
    let header = read_once(&peer.header);
    virt_rmb(Step::HeaderRmb);
    if read_once(&peer.epoch) != epoch && present(Step::HeaderAgain) {
        return None;
    }
    Some((epoch, header))
}

/// What became of a signal: `enum ivpci_posted`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Posted {
    /// The peer has yet to consume one for the same slot.
    Coalesced,
    /// Posted; the peer is awake.
    Awake,
    /// Posted; the peer's doorbell has to be rung.
    Ring,
}

/// Why not: the error numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// `-EBUSY`: the ring is full.
    Busy,
    /// `-EPROTO`: the peer makes no sense.
    Proto,
}

/// The producer of our rings: `struct ivpci_tx`.
pub struct Tx {
    own: Arc<Ctrl>,
    peer: Arc<Ctrl>,
    prod: u64,
    event_prod: u32,
    posted: Vec<u64>,
    index: Vec<u8>,
}

/// `ivpci_tx_init()`
pub fn ivpci_tx_init(own: &Arc<Ctrl>, peer: &Arc<Ctrl>, slots: usize) -> Tx {
    Tx {
        own: own.clone(),
        peer: peer.clone(),
        prod: START.into(),
        event_prod: START,
        posted: vec![0; slots],
        index: vec![0; slots],
    }
}

/// `ivpci_signal_post()`
pub fn ivpci_signal_post(tx: &mut Tx, slot: usize, index: u8) -> Result<Posted, Refused> {
    let signals = tx.own.signals.len() as u32;

    virt_mb(Step::PostMbBefore);
    let cons = read_once(&tx.peer.signal_cons);
    let used = (tx.prod as u32).wrapping_sub(cons);
    if used > signals {
        return Err(Refused::Proto);
    }
    let consumed = if present(Step::PostUnconsumed) {
        tx.prod - u64::from(used)
    } else {
        0
    };
    if tx.posted[slot] > consumed && tx.index[slot] == index {
        return Ok(Posted::Coalesced);
    }
    if used == signals && present(Step::PostFull) {
        return Err(Refused::Busy);
    }

    let entry = slot as u32 | u32::from(index) << 16;
    write_once(
        &tx.own.signals[tx.prod as u32 as usize % signals as usize],
        entry,
    );
    tx.prod += 1;
    tx.posted[slot] = tx.prod;
    tx.index[slot] = index;
    virt_store_release(&tx.own.signal_prod, tx.prod as u32, Step::PostRelease);

    virt_mb(Step::PostMbAfter);
    if read_once(&tx.peer.signal_wake) == (tx.prod as u32).wrapping_sub(1) {
        return Ok(Posted::Ring);
    }
    Ok(Posted::Awake)
}

/// `ivpci_event_post()`
pub fn ivpci_event_post(tx: &mut Tx, code: u32, info: u64) -> Result<(), Refused> {
    let events = tx.own.events.len() as u32;
    let event = &tx.own.events[(tx.event_prod % events) as usize];

    let used = tx.event_prod.wrapping_sub(virt_load_acquire(
        &tx.peer.event_cons,
        Step::EventPostAcquire,
    ));
    if used > events {
        return Err(Refused::Proto);
    }
    if used == events && present(Step::EventPostFull) {
        return Err(Refused::Busy);
    }

    event.set((code, info));
    tx.event_prod = tx.event_prod.wrapping_add(1);
    virt_store_release(&tx.own.event_prod, tx.event_prod, Step::EventPostRelease);
    Ok(())
}

/// The consumer of the peer's rings: `struct ivpci_rx`.
pub struct Rx {
    own: Arc<Ctrl>,
    peer: Arc<Ctrl>,
    cons: u32,
    event_cons: u32,
}

/// `ivpci_rx_init()`
pub fn ivpci_rx_init(own: &Arc<Ctrl>, peer: &Arc<Ctrl>) -> Rx {
    Rx {
        own: own.clone(),
        peer: peer.clone(),
        cons: START,
        event_cons: START,
    }
}

/// `ivpci_rx_pending()`
pub fn ivpci_rx_pending(rx: &Rx) -> bool {
    read_once(&rx.peer.signal_prod) != rx.cons || read_once(&rx.peer.event_prod) != rx.event_cons
}

/// `ivpci_signal_take()`
pub fn ivpci_signal_take(rx: &mut Rx, max: u32) -> Result<Vec<u32>, Refused> {
    let signals = rx.peer.signals.len() as u32;

    let n = virt_load_acquire(&rx.peer.signal_prod, Step::TakeAcquire).wrapping_sub(rx.cons);
    if n == 0 {
        return Ok(Vec::new());
    }
    if n > signals {
        return Err(Refused::Proto);
    }
    let n = n.min(max);
    if !present(Step::TakeRelease) {
        // the place that a CPU may choose without the release
        write_once(&rx.own.signal_cons, rx.cons.wrapping_add(n));
    }
    let taken = (0..n)
        .map(|i| rx.cons.wrapping_add(i) % signals)
        .map(|at| read_once(&rx.peer.signals[at as usize]))
        .collect();
    rx.cons = rx.cons.wrapping_add(n);
    if present(Step::TakeRelease) {
        virt_store_release(&rx.own.signal_cons, rx.cons, Step::TakeRelease);
    }
    virt_mb(Step::TakeMb);
    Ok(taken)
}

/// `ivpci_event_take()`
pub fn ivpci_event_take(rx: &mut Rx) -> Result<Option<(u32, u64)>, Refused> {
    let events = rx.peer.events.len() as u32;
    let event = &rx.peer.events[(rx.event_cons % events) as usize];

    let n =
        virt_load_acquire(&rx.peer.event_prod, Step::EventTakeAcquire).wrapping_sub(rx.event_cons);
    if n == 0 {
        return Ok(None);
    }
    if n > events {
        return Err(Refused::Proto);
    }
    let taken = event.get();
    rx.event_cons = rx.event_cons.wrapping_add(1);
    virt_store_release(&rx.own.event_cons, rx.event_cons, Step::EventTakeRelease);
    Ok(Some(taken))
}

/// `ivpci_rx_arm()`
pub fn ivpci_rx_arm(rx: &Rx) -> bool {
    write_once(&rx.own.signal_wake, rx.cons);
    virt_mb(Step::ArmMb);
    present(Step::ArmPending) && ivpci_rx_pending(rx)
}

/// `ivpci_rx_disarm()`
pub fn ivpci_rx_disarm(rx: &Rx) {
    write_once(&rx.own.signal_wake, rx.cons.wrapping_sub(1));
}

/// `ivpci_copy()` of words that SMC has beside each other, such as a cursor and flags.
pub fn ivpci_copy(dst: &[AtomicU32], src: &[u32]) {
    for (word, &value) in dst.iter().zip(src) {
        virt_store_release(word, value, Step::CopyRelease);
    }
}
