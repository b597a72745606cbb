// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The scenarios.

use std::sync::Arc;

use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;

use crate::explore::{Bound, Scenario, reached};
use crate::kernel::{read_once, write_once};
use crate::link::{Machine, State};
use crate::poll::{Choices, Handover, Ivpci, Smc, ivpci_guard, ivpci_irq_doorbell, ivpci_poller};
use crate::ring::{
    Ctrl, Posted, Refused, Rx, Tx, ivpci_copy, ivpci_event_post, ivpci_event_take, ivpci_rx_init,
    ivpci_signal_post, ivpci_signal_take, ivpci_tx_init,
};
use crate::step::{Step, present};

/// A producer and a consumer on rings of so many entries.
fn rings(signals: usize, events: usize, slots: usize) -> (Tx, Rx) {
    let a = Arc::new(Ctrl::new(1, 2, signals, events));
    let b = Arc::new(Ctrl::new(2, 1, signals, events));
    (ivpci_tx_init(&a, &b, slots), ivpci_rx_init(&b, &a))
}

/// Signals of three slots through a ring of two entries.
#[test]
fn signals_come_once_and_in_order() {
    Scenario {
        name: "signals in order",
        bound: Bound::None,
        run: || {
            let (mut tx, mut rx) = rings(2, 1, 3);
            let consumer = thread::spawn(move || {
                let mut taken = ivpci_signal_take(&mut rx, 1).expect("indices in order");
                taken.extend(ivpci_signal_take(&mut rx, 2).expect("indices in order"));
                (rx, taken)
            });
            let mut posted = Vec::new();
            for slot in 0..3 {
                match ivpci_signal_post(&mut tx, slot, 0) {
                    Err(refused) => {
                        assert_eq!(refused, Refused::Busy);
                        reached("refused");
                    }
                    Ok(_) => posted.push(slot as u32),
                }
            }
            let (mut rx, mut taken) = consumer.join().unwrap();
            if taken.len() < posted.len() {
                reached("some are left");
            }
            taken.extend(ivpci_signal_take(&mut rx, 2).expect("indices in order"));
            assert_eq!(taken, posted);
        },
    }
    .check(
        &["refused", "some are left"],
        &[
            Step::PostFull,
            Step::PostRelease,
            Step::TakeAcquire,
            Step::TakeRelease,
        ],
    );
}

/// Three signals of one slot, and a consumer that looks into the DMB after it has taken one.
#[test]
fn coalescing_loses_no_news() {
    Scenario {
        name: "coalescing",
        bound: Bound::None,
        run: || {
            let (mut tx, mut rx) = rings(2, 1, 1);
            let dmb = Arc::new(AtomicU32::new(0));
            let news = dmb.clone();
            let consumer = thread::spawn(move || {
                let mut seen = 0;
                for _ in 0..2 {
                    if !ivpci_signal_take(&mut rx, 2)
                        .expect("indices in order")
                        .is_empty()
                    {
                        seen = read_once(&news);
                    }
                }
                (rx, seen)
            });
            for version in 1..=3 {
                write_once(&dmb, version);
                if ivpci_signal_post(&mut tx, 0, 0).expect("room") == Posted::Coalesced {
                    reached("coalesced");
                }
            }
            let (mut rx, mut seen) = consumer.join().unwrap();
            if !ivpci_signal_take(&mut rx, 2)
                .expect("indices in order")
                .is_empty()
            {
                seen = read_once(&dmb);
            } else {
                reached("all was taken");
            }
            assert_eq!(seen, 3);
        },
    }
    .check(
        &["coalesced", "all was taken"],
        &[Step::PostMbBefore, Step::PostUnconsumed, Step::TakeMb],
    );
}

/// Three events through a ring of two entries.
#[test]
fn events_come_once_and_in_order() {
    Scenario {
        name: "events in order",
        bound: Bound::None,
        run: || {
            let (mut tx, mut rx) = rings(1, 2, 1);
            let consumer = thread::spawn(move || {
                let mut taken = Vec::new();
                for _ in 0..2 {
                    taken.extend(ivpci_event_take(&mut rx).expect("indices in order"));
                }
                (rx, taken)
            });
            let mut posted = Vec::new();
            for code in 0..3 {
                match ivpci_event_post(&mut tx, code, 7) {
                    Err(refused) => {
                        assert_eq!(refused, Refused::Busy);
                        reached("refused");
                    }
                    Ok(()) => posted.push((code, 7)),
                }
            }
            let (mut rx, mut taken) = consumer.join().unwrap();
            while let Some(event) = ivpci_event_take(&mut rx).expect("indices in order") {
                reached("some are left");
                taken.push(event);
            }
            assert_eq!(taken, posted);
        },
    }
    .check(
        &["refused", "some are left"],
        &[
            Step::EventPostAcquire,
            Step::EventPostFull,
            Step::EventPostRelease,
            Step::EventTakeAcquire,
            Step::EventTakeRelease,
        ],
    );
}

/// The thread is kicked twice, each time when it has been left something to do. It must not sleep before that is done.
#[test]
fn the_thread_is_woken() {
    Scenario {
        name: "handover",
        bound: Bound::None,
        run: || {
            let handover = Arc::new(Handover::default());
            let left = Arc::new(AtomicU32::new(0));
            let kicker = {
                let (handover, left) = (handover.clone(), left.clone());
                thread::spawn(move || {
                    for _ in 0..2 {
                        left.fetch_add(1, Ordering::Relaxed);
                        handover.kick();
                    }
                })
            };
            let mut done = 0;
            while done < 2 {
                handover.wait();
                reached(if done == 0 { "first" } else { "second" });
                done += left.swap(0, Ordering::Relaxed);
            }
            kicker.join().unwrap();
        },
    }
    .check(&["first", "second"], &[Step::PollerMb, Step::KickHandover]);
}

/// What a producer does, and how the consumer begins.
struct Wake {
    /// The slots that are signalled.
    posts: &'static [usize],
    /// How many events are sent then.
    events: u32,
    /// An interrupt without news is on its way.
    stray: bool,
    /// The thread has to poll at first.
    polls: bool,
    /// There is a thread that polls, and a timer that looks after it.
    poller: (bool, bool),
    /// The timer has expired when the thread gave way, but its handler has yet to begin.
    late: bool,
    choices: Choices,
}

/// One execution: whatever is posted is taken in the end, or loom finds that all threads wait.
fn wake(wake: &Wake) {
    let slots = 1 + wake.posts.iter().max().copied().unwrap_or(0);
    let a = Arc::new(Ctrl::new(1, 2, 2, 1));
    let b = Arc::new(Ctrl::new(2, 1, 2, 1));
    let dmbs: Arc<Vec<_>> = Arc::new((0..slots).map(|_| AtomicU32::new(0)).collect());
    let mut versions = vec![0; slots];
    for &slot in wake.posts {
        versions[slot] += 1;
    }
    let events = (0..wake.events).map(|code| (code, 7)).collect();
    let smc = Smc::new(dmbs.clone(), versions, events);
    let iv = Ivpci::new(&b, &a, smc, wake.choices);
    iv.epoch.set(2);
    iv.peer_epoch.set(1);

    if wake.stray {
        iv.doorbell.set();
    }
    if wake.late {
        iv.guard.set();
    }
    if wake.polls {
        iv.handover.set();
    }
    let mut threads = vec![iv.each(|iv| &iv.doorbell, ivpci_irq_doorbell)];
    if wake.poller.0 {
        threads.push(iv.each(|iv| &iv.handover, ivpci_poller));
    }
    if wake.poller.1 {
        threads.push(iv.each(|iv| &iv.guard, ivpci_guard));
    }

    let mut tx = ivpci_tx_init(&a, &b, slots);
    let mut versions = vec![0; slots];
    for &slot in wake.posts {
        versions[slot] += 1;
        dmbs[slot].store(versions[slot], Ordering::Relaxed);
        match ivpci_signal_post(&mut tx, slot, 0).expect("room") {
            Posted::Coalesced => reached("coalesced"),
            Posted::Awake => reached("not rung"),
            Posted::Ring => {
                reached("rung");
                iv.doorbell.set();
            }
        }
    }
    for code in 0..wake.events {
        ivpci_event_post(&mut tx, code, 7).expect("room");
        iv.doorbell.set();
    }
    iv.finish(threads);
}

const ASLEEP: Wake = Wake {
    posts: &[],
    events: 0,
    stray: false,
    polls: false,
    poller: (false, false),
    late: false,
    choices: Choices {
        tries: 4,
        poll_ns: 0,
        give_way: None,
        starves: false,
        registers: false,
    },
};

/// Nobody polls. The first signal interrupts, the second may come while the handler runs.
#[test]
fn a_sleeper_is_woken() {
    Scenario {
        name: "asleep",
        bound: Bound::None,
        run: || {
            wake(&Wake {
                posts: &[0, 1],
                ..ASLEEP
            });
        },
    }
    .check(
        &["rung", "not rung"],
        &[
            Step::PostMbAfter,
            Step::ArmMb,
            Step::ArmPending,
            Step::IrqArm,
        ],
    );
}

/// As above, with an interrupt without news, and a slot that is signalled twice.
#[test]
fn a_sleeper_is_woken_again() {
    Scenario {
        name: "asleep, three signals",
        bound: Bound::Preemptions(3),
        run: || {
            wake(&Wake {
                posts: &[0, 1, 0],
                stray: true,
                ..ASLEEP
            });
        },
    }
    .check(
        &["rung", "not rung", "coalesced"],
        &[
            Step::PostMbBefore,
            Step::PostMbAfter,
            Step::TakeMb,
            Step::ArmMb,
            Step::ArmPending,
        ],
    );
}

/// A signal and an event, which always rings.
#[test]
fn a_sleeper_gets_events() {
    Scenario {
        name: "asleep, events",
        bound: Bound::Preemptions(5),
        run: || {
            wake(&Wake {
                posts: &[0],
                events: 1,
                stray: true,
                ..ASLEEP
            });
        },
    }
    .check(&["rung", "not rung"], &[]);
}

/// The handler cannot arm, and hands over to the thread.
#[test]
fn the_interrupt_hands_over() {
    Scenario {
        name: "interrupt hands over",
        bound: Bound::Preemptions(3),
        run: || {
            wake(&Wake {
                posts: &[0, 1, 0],
                poller: (true, false),
                choices: Choices {
                    tries: 1,
                    ..ASLEEP.choices
                },
                ..ASLEEP
            });
        },
    }
    .check(
        &["rung", "not rung", "arming failed", "poll finds something"],
        &[Step::IrqKick],
    );
}

/// The thread polls, stops, and cannot always arm.
#[test]
fn polling_ends() {
    Scenario {
        name: "polling ends",
        bound: Bound::Preemptions(2),
        run: || {
            wake(&Wake {
                posts: &[0, 1],
                polls: true,
                poller: (true, false),
                choices: Choices {
                    tries: 1,
                    ..ASLEEP.choices
                },
                ..ASLEEP
            });
        },
    }
    .check(
        &[
            "rung",
            "not rung",
            "poll finds something",
            "polling goes on",
            "interrupt while polling",
            "interrupt while asleep",
        ],
        &[
            Step::PostMbAfter,
            Step::ArmMb,
            Step::ArmPending,
            Step::EndArm,
            Step::EndHandover,
        ],
    );
}

/// The thread gives way and does not come back: the timer has to be enough.
#[test]
fn a_starving_thread_is_replaced() {
    Scenario {
        name: "the thread starves",
        bound: Bound::Preemptions(2),
        run: || {
            wake(&Wake {
                posts: &[0, 1],
                polls: true,
                poller: (true, true),
                choices: Choices {
                    poll_ns: 1,
                    give_way: Some(1),
                    starves: true,
                    ..ASLEEP.choices
                },
                ..ASLEEP
            });
        },
    }
    .check(
        &[
            "rung",
            "not rung",
            "guard expires",
            "guard finds something",
            "interrupt while away",
            "interrupt while asleep",
        ],
        &[
            Step::IrqGuard,
            Step::GuardAgain,
            Step::GuardArm,
            Step::GiveWayGuard,
        ],
    );
}

/// The thread gives way and comes back: before the timer expires, or while its handler runs.
#[test]
fn the_thread_comes_back() {
    Scenario {
        name: "the thread comes back",
        bound: Bound::Preemptions(2),
        run: || {
            wake(&Wake {
                posts: &[0],
                polls: true,
                poller: (true, true),
                choices: Choices {
                    tries: 1,
                    give_way: Some(1),
                    poll_ns: 1,
                    ..ASLEEP.choices
                },
                ..ASLEEP
            });
        },
    }
    .check(
        &[
            "rung",
            "not rung",
            "guard expires",
            "guard expires in vain",
            "guard cannot arm",
        ],
        &[],
    );
}

/// The thread has come back and sleeps again when the handler of the timer begins, which may not be able to arm.
#[test]
fn the_guard_may_be_late() {
    Scenario {
        name: "late guard",
        bound: Bound::Preemptions(2),
        run: || {
            wake(&Wake {
                posts: &[0, 1],
                late: true,
                poller: (true, true),
                choices: Choices {
                    tries: 1,
                    ..ASLEEP.choices
                },
                ..ASLEEP
            });
        },
    }
    .check(&["rung", "not rung", "guard expires in vain"], &[]);
}

/// Two sides attach, or one ends the link that is up and both attach again. Then this one posts a signal to the other,
/// whether or not that is up already. Its own interrupts have no rings to look into, so they are its work item.
fn attach(up: bool) {
    let a = Arc::new(Ctrl::new(1, 2, 1, 1));
    let b = Arc::new(Ctrl::new(2, 1, 1, 1));
    if !up {
        // what is left of an attachment of old: not asleep, and not in order
        write_once(&a.signal_prod, 77);
        write_once(&b.signal_cons, 76);
        write_once(&b.signal_wake, 75);
    }
    let choices = Choices {
        tries: 4,
        poll_ns: 0,
        give_way: None,
        starves: false,
        registers: false,
    };
    let dmbs: Arc<Vec<_>> = Arc::new(vec![AtomicU32::new(0)]);
    let sender = Ivpci::new(
        &a,
        &b,
        Smc::new(dmbs.clone(), vec![], vec![(0, 0)]),
        choices,
    );
    let iv = Ivpci::new(&b, &a, Smc::new(dmbs.clone(), vec![1], vec![]), choices);
    sender.epoch.set(1);
    iv.epoch.set(2);
    if up {
        sender.peer_epoch.set(2);
        iv.peer_epoch.set(1);
    } else {
        iv.lock.lock().unwrap().receiving = false;
        sender.lock.lock().unwrap().receiving = false;
    }
    let state = if up { State::Up } else { State::Down };

    let mut machine = Machine {
        iv: iv.clone(),
        rings: |a| &a.work,
        other: sender.clone(),
        state,
        faulty: false,
    };
    let threads = vec![
        iv.each(|iv| &iv.doorbell, ivpci_irq_doorbell),
        iv.each(|iv| &iv.handover, ivpci_poller),
        thread::spawn(move || {
            while !machine.iv.stop.is_set() {
                machine.ivpci_link_work();
                machine.iv.work.wait();
            }
        }),
    ];
    let mut machine = Machine {
        iv: sender.clone(),
        rings: |b| &b.doorbell,
        other: iv.clone(),
        state,
        faulty: up,
    };
    loop {
        machine.ivpci_link_work();
        if machine.state == State::Up {
            break;
        }
        sender.work.wait();
    }
    let mut tx = ivpci_tx_init(&a, &b, 1);
    write_once(&dmbs[0], 1);
    match ivpci_signal_post(&mut tx, 0, 0).expect("room") {
        Posted::Coalesced => panic!("the first cannot"),
        Posted::Awake => reached("not rung"),
        Posted::Ring => {
            reached("rung");
            iv.doorbell.set();
        }
    }
    iv.finish(threads);
}

/// Two sides with stale control areas attach at the same time.
#[test]
fn links_attach() {
    Scenario {
        name: "attach",
        bound: Bound::Preemptions(2),
        run: || attach(false),
    }
    .check(
        &[
            "rung",
            "not rung",
            "a signal is there when the link goes up",
        ],
        &[
            Step::BeginWmb,
            Step::BeginRelease,
            Step::BeginMb,
            Step::BeginAttaching,
            Step::HeaderAcquire,
            Step::HeaderRmb,
            Step::HeaderAgain,
            Step::AcceptRing,
            Step::GoUpPending,
        ],
    );
}

/// One side ends the link and begins again.
#[test]
fn links_attach_again() {
    Scenario {
        name: "attach again",
        bound: Bound::Preemptions(1),
        run: || attach(true),
    }
    .check(
        &["rung", "the peer has left"],
        &[Step::ThereAcquire, Step::ThereOrder, Step::DrainEpoch],
    );
}

/// SMC registers a DMB as soon as the link is up, while it is still going up, and the peer signals it at once.
#[test]
fn a_dmb_registered_while_the_link_comes_up_is_not_deaf() {
    Scenario {
        name: "register while going up",
        bound: Bound::Preemptions(2),
        run: || {
            let a = Arc::new(Ctrl::new(1, 2, 1, 1));
            let b = Arc::new(Ctrl::new(2, 1, 1, 1));
            let dmbs: Arc<Vec<_>> = Arc::new(vec![AtomicU32::new(0)]);
            let choices = Choices {
                registers: true,
                ..ASLEEP.choices
            };
            let sender = Ivpci::new(
                &a,
                &b,
                Smc::new(dmbs.clone(), vec![], vec![(0, 0)]),
                choices,
            );
            let iv = Ivpci::new(&b, &a, Smc::new(dmbs.clone(), vec![1], vec![]), choices);
            iv.epoch.set(2);
            iv.lock.lock().unwrap().receiving = false;

            let mut machine = Machine {
                iv: iv.clone(),
                rings: |a| &a.work,
                other: sender.clone(),
                state: State::Attaching,
                faulty: false,
            };
            let threads = vec![
                iv.each(|iv| &iv.doorbell, ivpci_irq_doorbell),
                iv.each(|iv| &iv.handover, ivpci_poller),
                thread::spawn(move || machine.ivpci_link_work()),
            ];
            // ivpci_register_dmb(), and the peer that is given the token
            iv.up.wait();
            iv.lock.lock().unwrap().registered = true;
            let mut tx = ivpci_tx_init(&a, &b, 1);
            write_once(&dmbs[0], 1);
            if ivpci_signal_post(&mut tx, 0, 0).expect("room") == Posted::Ring {
                reached("rung");
                iv.doorbell.set();
            }
            iv.finish(threads);
        },
    }
    .check(&["rung"], &[Step::GoUpLast]);
}

/// A message is a producer's cursor and flags: who sees the flag that all was sent sees how much that is, and the data.
#[test]
fn flags_are_no_newer_than_cursors_and_data() {
    Scenario {
        name: "a message's order",
        bound: Bound::None,
        run: || {
            let message: Arc<Vec<_>> = Arc::new((0..2).map(|_| AtomicU32::new(0)).collect());
            let data = Arc::new(AtomicU32::new(0));
            let (seen, news) = (message.clone(), data.clone());
            let receiver = thread::spawn(move || {
                // the order that a receiver has to keep is SMC's matter
                let flags = seen[1].load(Ordering::Acquire);
                let cursor = seen[0].load(Ordering::Acquire);
                (flags, cursor, read_once(&news))
            });
            // SMC stores to a DMB that is attached itself
            write_once(&data, 1);
            ivpci_copy(&message, &[1, 1]);
            let (flags, cursor, data) = receiver.join().unwrap();
            if flags == 1 {
                reached("the flag is there");
                assert_eq!((cursor, data), (1, 1), "cut short");
            }
        },
    }
    .check(&["the flag is there"], &[Step::CopyRelease]);
}

/// A consumer's cursor says that its part of a buffer was read.
#[test]
fn what_a_cursor_gives_back_was_read() {
    Scenario {
        name: "a cursor's order",
        bound: Bound::None,
        run: || {
            let cursor: Arc<Vec<_>> = Arc::new(vec![AtomicU32::new(0)]);
            let data = Arc::new(AtomicU32::new(1));
            let (seen, buffer) = (cursor.clone(), data.clone());
            let producer = thread::spawn(move || {
                if seen[0].load(Ordering::Acquire) == 1 {
                    reached("used again");
                    write_once(&buffer, 2);
                }
            });
            // loom has no load that takes effect late: without the step the two change places
            let mut read = 0;
            if present(Step::CopyRelease) {
                read = read_once(&data);
            }
            ivpci_copy(&cursor, &[1]);
            if !present(Step::CopyRelease) {
                read = read_once(&data);
            }
            producer.join().unwrap();
            assert_eq!(read, 1, "read after it was given back");
        },
    }
    .check(&["used again"], &[Step::CopyRelease]);
}

/// The handler cannot arm, and the thread that it hands over to never gets the CPU: the timer has to be enough.
#[test]
fn a_handover_to_a_starving_thread_is_taken_by_the_timer() {
    Scenario {
        name: "handover to nobody",
        bound: Bound::Preemptions(3),
        run: || {
            wake(&Wake {
                posts: &[0, 1, 0],
                poller: (false, true),
                choices: Choices {
                    tries: 1,
                    ..ASLEEP.choices
                },
                ..ASLEEP
            });
        },
    }
    .check(
        &["rung", "not rung", "arming failed", "guard expires"],
        &[Step::HandOverGuard],
    );
}
