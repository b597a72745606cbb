// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What can be taken out of the model, and where it is in the driver.

use std::cell::Cell;

/// Steps of the driver that can be taken out of the model. Without any of them a test must fail: so the test would
/// notice if the driver lacked it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// What is announced is stored before the peer's signal_cons is read.
    PostMbBefore,
    /// A signal that was consumed does not stand for a new one.
    PostUnconsumed,
    /// A full ring takes no more signals.
    PostFull,
    /// Who sees signal_prod sees the entry.
    PostRelease,
    /// signal_prod is stored before the peer's signal_wake is read.
    PostMbAfter,
    /// An event's entry was read before it is used again: the producer's half.
    EventPostAcquire,
    /// A full ring takes no more events.
    EventPostFull,
    /// Who sees event_prod sees the entry.
    EventPostRelease,
    /// The entries are signal_prod's.
    TakeAcquire,
    /// The entries were read before they are used again. Loom knows no load that takes effect late: without this step
    /// signal_cons is stored before the entries are read, which is what the release forbids.
    TakeRelease,
    /// signal_cons is stored before the DMBs are read.
    TakeMb,
    /// The entry is event_prod's.
    EventTakeAcquire,
    /// An event's entry was read before it is used again: the consumer's half.
    EventTakeRelease,
    /// signal_wake is stored before the peer's signal_prod is read.
    ArmMb,
    /// Arming looks again.
    ArmPending,
    /// The interrupt arms before it returns.
    IrqArm,
    /// The interrupt wakes the thread if it could not arm.
    IrqKick,
    /// The thread arms before it sleeps.
    EndArm,
    /// The thread polls again if it could not arm.
    EndHandover,
    /// The interrupt starts the timer if the thread waits for its turn.
    IrqGuard,
    /// The timer expires once more if there were news.
    GuardAgain,
    /// The timer arms if the thread does not come back and there are no news.
    GuardArm,
    /// The thread starts the timer when it gives way.
    GiveWayGuard,
    /// The thread says that it will sleep before it looks whether it may.
    PollerMb,
    /// The thread is told that there is something to do before it is woken.
    KickHandover,
    /// Who sees the cleared control area sees that the old epoch is gone.
    BeginWmb,
    /// Who sees the epoch sees the header and the cleared rings.
    BeginRelease,
    /// Our epoch is published before the peer's is read, and before we accept one.
    BeginMb,
    /// An interrupt has the link looked after while it waits for the peer.
    BeginAttaching,
    /// The header and the rings are the epoch's.
    HeaderAcquire,
    /// The header is read before the epoch is read again.
    HeaderRmb,
    /// The header is not used if the epoch has changed.
    HeaderAgain,
    /// The peer is rung when it has been accepted.
    AcceptRing,
    /// The peer's epoch is as new as what it has accepted.
    ThereAcquire,
    /// The peer's epoch is read after what it has accepted.
    ThereOrder,
    /// What came before the link was up is taken.
    GoUpPending,
    /// The link can be used only when all is ready to receive.
    GoUpLast,
    /// Who receives sees that the peer has left.
    DrainEpoch,
    /// The timer is started when arming has failed: the thread may get no CPU.
    HandOverGuard,
    /// Who sees a word of a message sees what SMC stored before it; what SMC read before it is not overwritten.
    CopyRelease,
}

/// All steps: function of the driver, and what the step is there.
pub const STEPS: [(Step, &str, &str); 40] = [
    (
        Step::PostMbBefore,
        "ivpci_signal_post",
        "virt_mb(); /* the stores before",
    ),
    (
        Step::PostUnconsumed,
        "ivpci_signal_post",
        "tx->posted[slot] > tx->prod - used",
    ),
    (
        Step::PostFull,
        "ivpci_signal_post",
        "if (used == IVPCI_SIGNALS)",
    ),
    (
        Step::PostRelease,
        "ivpci_signal_post",
        "virt_store_release(&tx->own->signal_prod",
    ),
    (
        Step::PostMbAfter,
        "ivpci_signal_post",
        "virt_mb(); /* signal_prod before signal_wake",
    ),
    (
        Step::EventPostAcquire,
        "ivpci_event_post",
        "virt_load_acquire(&tx->peer->event_cons",
    ),
    (
        Step::EventPostFull,
        "ivpci_event_post",
        "if (used == IVPCI_EVENTS)",
    ),
    (
        Step::EventPostRelease,
        "ivpci_event_post",
        "virt_store_release(&tx->own->event_prod",
    ),
    (
        Step::TakeAcquire,
        "ivpci_signal_take",
        "virt_load_acquire(&rx->peer->signal_prod",
    ),
    (
        Step::TakeRelease,
        "ivpci_signal_take",
        "virt_store_release(&rx->own->signal_cons",
    ),
    (
        Step::TakeMb,
        "ivpci_signal_take",
        "virt_mb(); /* then the DMBs",
    ),
    (
        Step::EventTakeAcquire,
        "ivpci_event_take",
        "virt_load_acquire(&rx->peer->event_prod",
    ),
    (
        Step::EventTakeRelease,
        "ivpci_event_take",
        "virt_store_release(&rx->own->event_cons",
    ),
    (
        Step::ArmMb,
        "ivpci_rx_arm",
        "virt_mb(); /* signal_wake before signal_prod",
    ),
    (
        Step::ArmPending,
        "ivpci_rx_arm",
        "return ivpci_rx_pending(rx)",
    ),
    (Step::IrqArm, "ivpci_irq_doorbell", "!ivpci_arm(iv,"),
    (Step::IrqKick, "ivpci_irq_doorbell", "kick = !ivpci_arm(iv,"),
    (Step::EndArm, "ivpci_end_polling", "if (ivpci_arm(iv,"),
    (
        Step::EndHandover,
        "ivpci_end_polling",
        "WRITE_ONCE(iv->handover, true)",
    ),
    (
        Step::IrqGuard,
        "ivpci_irq_doorbell",
        "ivpci_guard_rings(iv)",
    ),
    (
        Step::GuardAgain,
        "ivpci_guard",
        "if (ivpci_drain(iv, iv->receiving) && limit)",
    ),
    (Step::GuardArm, "ivpci_guard", "ivpci_arm(iv,"),
    (
        Step::GiveWayGuard,
        "ivpci_give_way",
        "ivpci_guard_rings(iv)",
    ),
    (
        Step::PollerMb,
        "ivpci_poller",
        "set_current_state(TASK_IDLE)",
    ),
    (
        Step::KickHandover,
        "ivpci_poll_kick",
        "WRITE_ONCE(iv->handover, true)",
    ),
    (Step::BeginWmb, "ivpci_begin", "virt_wmb();"),
    (
        Step::BeginRelease,
        "ivpci_begin",
        "virt_store_release(&s->own->epoch",
    ),
    (
        Step::BeginAttaching,
        "ivpci_begin",
        "ivpci_bit(link, iv->attaching, true)",
    ),
    (Step::BeginMb, "ivpci_begin", "virt_mb();"),
    (
        Step::HeaderAcquire,
        "ivpci_read_header",
        "virt_load_acquire(&peer->epoch)",
    ),
    (Step::HeaderRmb, "ivpci_read_header", "virt_rmb();"),
    (
        Step::HeaderAgain,
        "ivpci_read_header",
        "READ_ONCE(peer->epoch)) != hdr->epoch",
    ),
    (Step::AcceptRing, "ivpci_accept", "ivpci_link_ring(link)"),
    (
        Step::ThereAcquire,
        "ivpci_peer_there",
        "virt_load_acquire(&peer->peer_epoch)",
    ),
    (Step::GoUpPending, "ivpci_go_up", "if (pending)"),
    (
        Step::ThereOrder,
        "ivpci_peer_there",
        "== link->epoch &&\n\t       le32_to_cpu(READ_ONCE(peer->epoch))",
    ),
    (
        Step::DrainEpoch,
        "ivpci_drain_link",
        "!ivpci_peer_there(link)",
    ),
    (
        Step::GoUpLast,
        "ivpci_go_up",
        "/* last: who finds the link up registers DMBs at once */\n\tlink->up = true",
    ),
    (
        Step::HandOverGuard,
        "ivpci_hand_over",
        "ivpci_guard_rings(iv)",
    ),
    (
        Step::CopyRelease,
        "ivpci_copy",
        "virt_store_release((u64 *)dst, word)",
    ),
];

thread_local! {
    // Loom runs all threads of a model on the thread that explores it.
    static WITHOUT: Cell<Option<Step>> = const { Cell::new(None) };
}

/// Takes a step out of what this thread explores from now on.
pub fn take_out(step: Option<Step>) {
    WITHOUT.set(step);
}

/// Whether a step is to be taken.
pub fn present(step: Step) -> bool {
    WITHOUT.get() != Some(step)
}

/// The body of a function of the driver.
fn body<'a>(source: &'a str, function: &str) -> Option<&'a str> {
    let name = format!("{function}(");
    source.match_indices(&name).find_map(|(start, _)| {
        let (head, rest) = source[start..].split_once("\n{\n")?;
        // a call, or a function before the one whose body was found
        if head.contains([';', '{', '}']) {
            return None;
        }
        rest.split_once("\n}").map(|(body, _)| body)
    })
}

/// The model is of no use if it is not of the driver as it is.
#[test]
fn steps_are_those_of_the_driver() {
    let driver: [&str; 5] = [
        include_str!("../../ivpci/ring.c"),
        include_str!("../../ivpci/poll.c"),
        include_str!("../../ivpci/link.c"),
        include_str!("../../ivpci/attach.c"),
        include_str!("../../ivpci/dmb.c"),
    ];
    for (step, function, text) in STEPS {
        let body = driver.iter().find_map(|source| body(source, function));
        let body = body.unwrap_or_else(|| panic!("there is no {function}()"));
        assert_eq!(
            body.matches(text).count(),
            1,
            "{step:?}: `{text}` in {function}()"
        );
        // and each is taken out by a test
        assert!(
            include_str!("tests.rs").contains(&format!("Step::{step:?}")),
            "{step:?}"
        );
    }

    // every barrier of the rings is one of them
    for line in driver[0].lines().filter(|line| !line.starts_with(" *")) {
        let barrier = line.find("virt_").map(|at| &line[at..]);
        assert!(
            barrier.is_none_or(|barrier| STEPS.iter().any(|(.., text)| barrier.starts_with(text))),
            "no step: {line}"
        );
    }
}
