// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `poll.c`: interrupts while nobody polls, polling while it pays.

use std::sync::Arc;

use loom::sync::Mutex;
use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::explore::reached;
use crate::kernel::{Event, Mark, Plain, Task, read_once};
use crate::link::ivpci_peer_there;
use crate::ring::{
    Ctrl, Rx, ivpci_event_take, ivpci_rx_arm, ivpci_rx_disarm, ivpci_rx_init, ivpci_rx_pending,
    ivpci_signal_take,
};
use crate::step::{Step, present};

const IVPCI_BATCH: u32 = 64;

/// What the driver leaves to time and chance, and a test has to choose.
#[derive(Clone, Copy, Debug)]
pub struct Choices {
    /// How often arming is tried. The driver tries 4 times; the less often, the fewer signals make it fail.
    pub tries: u32,
    /// How many polls without success do not end polling yet. Unless 0 each interrupt wakes the thread.
    pub poll_ns: u32,
    /// After which poll the thread gives way.
    pub give_way: Option<u32>,
    /// Having given way, the thread never gets the CPU again.
    pub starves: bool,
    /// SMC registers its DMBs when the link is up. If not, it has them before.
    pub registers: bool,
}

/// SMC. It looks into a DMB as soon as it is told that there are news.
pub struct Smc {
    /// What the peer has written to our DMBs: a word for each slot.
    dmbs: Arc<Vec<AtomicU32>>,
    /// What was found there.
    seen: Vec<u32>,
    /// The events that came.
    events: Vec<(u32, u64)>,
    /// What is to be found in the end.
    last: Vec<u32>,
    /// The events that are to come.
    last_events: Vec<(u32, u64)>,
}

impl Smc {
    /// Knows nothing yet.
    pub fn new(dmbs: Arc<Vec<AtomicU32>>, last: Vec<u32>, last_events: Vec<(u32, u64)>) -> Self {
        Self {
            dmbs,
            seen: vec![0; last.len()],
            events: Vec::new(),
            last,
            last_events,
        }
    }

    fn handle_irq(&mut self, slot: usize) {
        self.seen[slot] = read_once(&self.dmbs[slot]);
    }

    fn knows_all(&self) -> bool {
        self.seen == self.last && self.events == self.last_events
    }
}

/// What `dibs->lock` protects. The device has one link.
pub struct Receiving {
    /// The consumer.
    pub rx: Rx,
    /// The link's rings are consumed.
    pub receiving: bool,
    /// The link waits for its peer.
    pub attaching: bool,
    /// Doorbells are off since the thread polls.
    pub polling: bool,
    /// The thread has given way: `iv->away_since`.
    away: bool,
    /// The timer runs.
    guarded: bool,
    activity: usize,
    /// SMC has registered its DMBs: `s->slot_idx`.
    pub registered: bool,
    smc: Smc,
}

/// A device and its link: `struct ivpci`, `struct ivpci_link`.
pub struct Ivpci {
    /// `dibs->lock`, which an interrupt handler holds as well: so this is also what masks interrupts.
    pub lock: Mutex<Receiving>,
    /// Our control area.
    pub own: Arc<Ctrl>,
    /// The peer's.
    pub peer: Arc<Ctrl>,
    /// `link->epoch`
    pub epoch: Plain<u32>,
    /// `link->peer.epoch`
    pub peer_epoch: Plain<u32>,
    /// The link's work item.
    pub work: Event,
    /// The thread has to poll; with that it is also woken. `Handover` has the two apart.
    pub handover: Event,
    /// The timer is started.
    pub guard: Event,
    /// The peer has rung.
    pub doorbell: Event,
    /// A thread that starved gets the CPU.
    pub cpu: Event,
    /// The link can be used: `link->up`.
    pub up: Event,
    /// SMC knows all that it is to know.
    pub done: Event,
    known: Mark,
    /// All threads shall end.
    pub stop: Mark,
    /// What time and chance are to do.
    pub choices: Choices,
}

impl Ivpci {
    /// A device that takes what its peer posts; the epochs of its link are the caller's matter.
    pub fn new(own: &Arc<Ctrl>, peer: &Arc<Ctrl>, smc: Smc, choices: Choices) -> Arc<Self> {
        Arc::new(Self {
            lock: Mutex::new(Receiving {
                rx: ivpci_rx_init(own, peer),
                receiving: true,
                attaching: false,
                polling: false,
                away: false,
                guarded: false,
                activity: 0,
                registered: !choices.registers,
                smc,
            }),
            own: own.clone(),
            peer: peer.clone(),
            epoch: Plain::default(),
            peer_epoch: Plain::default(),
            work: Event::default(),
            handover: Event::default(),
            guard: Event::default(),
            doorbell: Event::default(),
            cpu: Event::default(),
            up: Event::default(),
            done: Event::default(),
            known: Mark::default(),
            stop: Mark::default(),
            choices,
        })
    }

    /// Runs a function in a thread each time that something has happened, until all shall end.
    pub fn each(
        self: &Arc<Self>,
        event: fn(&Self) -> &Event,
        function: fn(&Self),
    ) -> loom::thread::JoinHandle<()> {
        let iv = self.clone();
        loom::thread::spawn(move || {
            loop {
                event(&iv).wait();
                if iv.stop.is_set() {
                    break;
                }
                function(&iv);
            }
        })
    }

    /// Waits until SMC knows all, for ever if a wake-up is lost, and has all threads end. Nothing of interest can
    /// happen after that, so that is no longer explored.
    pub fn finish(&self, threads: Vec<loom::thread::JoinHandle<()>>) {
        self.done.wait();
        loom::stop_exploring();
        self.stop.set();
        self.cpu.set();
        for event in [&self.work, &self.handover, &self.doorbell, &self.guard] {
            event.set();
        }
        for thread in threads {
            thread.join().unwrap();
        }
    }
}

fn ivpci_drain_link(iv: &Ivpci, link: &mut Receiving) -> usize {
    let mut n = 0;

    if ivpci_rx_pending(&link.rx) {
        while n < iv.peer.signals.len() {
            let got = ivpci_signal_take(&mut link.rx, IVPCI_BATCH).expect("indices in order");
            if got.is_empty() {
                break;
            }
            if !link.registered {
                reached("a signal of no DMB");
            } else {
                for &signal in &got {
                    link.smc.handle_irq(signal as usize);
                }
            }
            n += got.len();
        }
        for _ in 0..iv.peer.events.len() {
            let Some(event) = ivpci_event_take(&mut link.rx).expect("indices in order") else {
                break;
            };
            link.smc.events.push(event);
            n += 1;
        }
    }
    if present(Step::DrainEpoch) && !ivpci_peer_there(iv) {
        reached("the peer has left");
        link.receiving = false;
        iv.work.set();
    }
    if link.smc.knows_all() && !iv.known.set() {
        iv.done.set();
    }
    n
}

fn ivpci_drain(iv: &Ivpci, link: &mut Receiving) -> usize {
    let n = if link.receiving {
        ivpci_drain_link(iv, link)
    } else {
        0
    };
    link.activity += n;
    n
}

fn ivpci_arm(iv: &Ivpci, link: &mut Receiving) -> bool {
    for _ in 0..iv.choices.tries {
        if !(link.receiving && ivpci_rx_arm(&link.rx)) {
            return true;
        }
        ivpci_drain(iv, link);
    }
    reached("arming failed");
    false
}

/// `ivpci_poll_kick()`
pub fn ivpci_poll_kick(iv: &Ivpci) {
    iv.handover.set();
}

fn ivpci_guard_rings(iv: &Ivpci, link: &mut Receiving) {
    if !link.guarded {
        link.guarded = true;
        iv.guard.set();
    }
}

/// Arming has failed.
fn ivpci_hand_over(iv: &Ivpci, link: &mut Receiving) {
    link.polling = true;
    link.away = true;
    if link.receiving {
        ivpci_rx_disarm(&link.rx);
    }
    if present(Step::HandOverGuard) {
        ivpci_guard_rings(iv, link);
    }
}

/// `ivpci_irq_doorbell()`
pub fn ivpci_irq_doorbell(iv: &Ivpci) {
    let mut kick = false;

    let mut link = iv.lock.lock().unwrap();
    if link.attaching {
        iv.work.set();
    }
    let n = ivpci_drain(iv, &mut link);
    if link.polling {
        reached("interrupt while polling");
    } else if link.away && n > 0 {
        reached("interrupt while away");
        link.polling = true;
        if link.receiving {
            ivpci_rx_disarm(&link.rx);
        }
        if present(Step::IrqGuard) {
            ivpci_guard_rings(iv, &mut link);
        }
    } else {
        reached("interrupt while asleep");
        if present(Step::IrqArm) {
            kick = !ivpci_arm(iv, &mut link);
            if kick {
                ivpci_hand_over(iv, &mut link);
            }
            kick &= present(Step::IrqKick);
        }
        if iv.choices.poll_ns > 0 {
            kick = true;
        }
    }
    drop(link);
    if kick {
        ivpci_poll_kick(iv);
    }
}

fn ivpci_begin_polling(iv: &Ivpci) {
    let mut link = iv.lock.lock().unwrap();
    link.polling = true;
    link.away = false;
    if link.receiving {
        ivpci_rx_disarm(&link.rx);
    }
}

fn ivpci_end_polling(iv: &Ivpci) {
    let mut link = iv.lock.lock().unwrap();
    if !present(Step::EndArm) || ivpci_arm(iv, &mut link) {
        link.polling = false;
    } else {
        ivpci_hand_over(iv, &mut link);
        if present(Step::EndHandover) {
            reached("polling goes on");
            iv.handover.set_quietly();
        }
    }
}

/// `ivpci_guard()`: the timer has expired, and not too early. That it is too early for the thread's last absence would
/// only have it expire once more.
pub fn ivpci_guard(iv: &Ivpci) {
    let mut link = iv.lock.lock().unwrap();
    link.guarded = false;
    if !link.away {
        reached("guard expires in vain");
        return;
    }
    reached("guard expires");
    let again = if ivpci_drain(iv, &mut link) > 0 {
        reached("guard finds something");
        present(Step::GuardAgain)
    } else if !present(Step::GuardArm) || ivpci_arm(iv, &mut link) {
        link.polling = false;
        false
    } else {
        reached("guard cannot arm");
        true
    };
    if again {
        link.guarded = true;
        iv.guard.set_quietly();
    }
}

fn ivpci_give_way(iv: &Ivpci) {
    let mut link = iv.lock.lock().unwrap();
    link.away = true;
    if present(Step::GiveWayGuard) {
        ivpci_guard_rings(iv, &mut link);
    }
    drop(link);
    if iv.choices.starves {
        iv.cpu.wait();
    }
    ivpci_begin_polling(iv);
}

fn ivpci_poll_once(iv: &Ivpci) -> (bool, usize) {
    let mut link = iv.lock.lock().unwrap();
    let n = ivpci_drain(iv, &mut link);
    if n > 0 {
        reached("poll finds something");
    }
    (n > 0, link.activity)
}

fn ivpci_poll_session(iv: &Ivpci) {
    let (mut polls, mut idle, mut activity) = (0, 0, 0);

    ivpci_begin_polling(iv);
    while !iv.stop.is_set() {
        let (success, now) = ivpci_poll_once(iv);
        if success {
            idle = 0;
        } else if activity != now {
            activity = now;
            idle = 0;
        } else {
            idle += 1;
            if idle > iv.choices.poll_ns {
                break;
            }
        }
        polls += 1;
        if iv.choices.give_way == Some(polls) {
            ivpci_give_way(iv);
        }
    }
    ivpci_end_polling(iv);
}

/// `ivpci_poller()`, each time that it has to poll.
pub fn ivpci_poller(iv: &Ivpci) {
    ivpci_poll_session(iv);
}

/// How the thread sleeps and is woken, which is one event in the rest of the model.
#[derive(Default)]
pub struct Handover {
    handover: AtomicBool,
    poller: Task,
}

impl Handover {
    /// `ivpci_poll_kick()`
    pub fn kick(&self) {
        if present(Step::KickHandover) {
            self.set();
            self.poller.wake_up_process();
        } else {
            self.poller.wake_up_process();
            self.set();
        }
    }

    /// `WRITE_ONCE(iv->handover, true)`. Loom does not know that a plain store cannot come between the two halves of
    /// another thread's exchange, and raises a false alarm. So it is an exchange, of no order, as well.
    fn set(&self) {
        self.handover.swap(true, Ordering::Relaxed);
    }

    /// One round of `ivpci_poller()` from where it looks for something to do to where it has it.
    pub fn wait(&self) {
        loop {
            self.poller.set_idle(Step::PollerMb);
            // xchg() is a full barrier as well, which is more than is needed
            if self.handover.swap(false, Ordering::Acquire) {
                self.poller.set_running();
                return;
            }
            self.poller.schedule();
        }
    }
}
