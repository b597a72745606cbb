// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a peer can repeat has a rate, and others do not notice.

use std::fs::File;
use std::os::fd::AsRawFd;

use super::hostile::{ACCEPT, LOW, MIDDLE, OFFER, Scene, eventfd};
use super::*;
use crate::fabric::wire::{Bye, Hello, Message};
use crate::test_utils::{keep_log, logged};
use crate::{EventKind, Window};

/// For how long a peer tries.
const TRIES: Duration = Duration::from_secs(5);

/// A client that becomes a link, if the device lets it, and ends at once.
fn come_and_go(scene: &Scene, own: Gid) {
    let client = scene.connect();
    let hello = Hello {
        gid: own,
        position: 7,
        vectors: 1,
        fabric_id: 0xff00,
        window_shift: 22,
    };
    // It may have been refused.
    if client.0.send(&Message::Hello(hello).encode(), &[]).is_err() {
        return;
    }
    let doorbell = eventfd();
    let window = Window::create(WINDOW, false).unwrap();
    let offered = [window.file().as_raw_fd(), doorbell.as_raw_fd()];
    // It is side 0 or side 1, as its GID has it.
    if own < gid(MIDDLE).unwrap() {
        let _ = client.try_send(&OFFER.encode(), &offered);
    }
    while let Some((message, _)) = client.next() {
        match message {
            Message::Offer { .. } => {
                let _ = client.try_send(&ACCEPT.encode(), &offered[1..]);
                return;
            }
            Message::Accept { .. } => return,
            _ => {}
        }
    }
}

/// Links come and go as fast as the device lets them. Returns how often one came up, how often the guest (by vector 0) or the
/// VMM (by an event) was told of one, and how many seconds began meanwhile.
fn flood(scene: &Scene, name: impl Fn(u128) -> Gid) -> (u64, u64, u64) {
    scene.vm.host.events();
    let up = || scene.vm.device.counters().links_up;
    let (before, raised) = (up(), scene.vm.host.raised());
    let start = Instant::now();
    let mut tries = 0;
    while start.elapsed() < TRIES {
        come_and_go(scene, name(tries));
        tries += 1;
    }
    eventually("it is gone", || scene.vm.links() == 1);
    let seconds = start.elapsed().as_secs() + 1;
    let of_links = |kind| {
        matches!(
            kind,
            EventKind::LinkUp | EventKind::LinkDown | EventKind::LinkReset
        )
    };
    let kinds = scene.vm.host.event_kinds();
    let events = kinds.iter().filter(|(kind, _)| of_links(*kind)).count();
    let (links, events) = (up() - before, events as u64);
    let raised = scene.vm.host.raised() - raised;
    println!("{tries} tries, {links} links, {events} events, {raised} interrupts");
    (links, events.max(raised), seconds)
}

#[test]
fn a_peer_s_links_cannot_come_and_go_as_fast_as_it_likes() {
    let scene = Scene::new();
    let (links, events, seconds) = flood(&scene, |_| gid(9).unwrap());
    // 100 ms, 200, 400, 800, 1600, 3200, 6400 between them, and then 10 s.
    let most = 7 + seconds / 10;
    assert!((2..=most).contains(&links), "{links} links");
    assert!(events <= 2 * most, "{events} events");
    // Under as many GIDs as it likes: a burst, and two in a second.
    let name = |n: u128| Gid::from_bytes((n + (1 << 64)).to_le_bytes());
    let (links, events, seconds) = flood(&scene, name);
    let more = 32 + 2 * seconds;
    assert!((most + 1..=more).contains(&links), "{links} links");
    assert!(events <= 2 * more, "{events} events");
    scene.is_as_before();
}

#[test]
fn complaints_about_one_user_do_not_silence_errors() {
    keep_log();
    let scene = Scene::new();
    // What is no eventfd is the peer's fault, and no failure of the VMM.
    let window = Window::create(WINDOW, false).unwrap();
    let null = File::open("/dev/null").unwrap();
    for _ in 0..150 {
        let client = scene.connect();
        client.hello(LOW);
        client.send(OFFER, &[window.file().as_raw_fd(), null.as_raw_fd()]);
        assert_eq!(client.end(), Some(Bye::Protocol));
    }
    let counters = scene.vm.device.counters();
    assert_eq!((counters.host_errors, counters.protocol_errors), (0, 150));
    // A real failure is logged all the same.
    let before = logged(&["cannot place"]);
    scene.vm.host.fail_windows(true);
    let client = scene.connect();
    client.hello(LOW);
    let doorbell = eventfd();
    client.send(OFFER, &[window.file().as_raw_fd(), doorbell.as_raw_fd()]);
    assert_eq!(client.end(), Some(Bye::Internal));
    scene.vm.host.fail_windows(false);
    assert_eq!(scene.vm.device.counters().host_errors, 1);
    eventually("it is logged", || logged(&["cannot place"]) > before);
    scene.is_as_before();
}

/// What is in a queue of the peer's is charged to this user, who could offer nothing to anybody in the end.
#[test]
fn a_peer_that_takes_no_offers_gets_no_more_of_them() {
    let scene = Scene::new();
    // They are offered a window, end with a fault, and stay as they are.
    let refused = || scene.vm.device.counters().handshakes_refused;
    let faults = || scene.vm.device.counters().protocol_errors;
    let mut unread = Vec::new();
    for n in 0..8 {
        let client = scene.connect();
        client.hello(100 + n);
        client.0.send(b"nonsense", &[]).unwrap();
        unread.push(client);
        eventually("it ends", || faults() == u64::from(n) + 1);
    }
    assert_eq!(refused(), 0);
    let client = scene.connect();
    assert_eq!(client.end(), Some(Bye::Full));
    assert_eq!(refused(), 1);
    // One is read to its end, and another one is closed.
    assert_eq!(unread.pop().unwrap().end(), Some(Bye::Protocol));
    drop(unread.pop());
    let late = Vm::start(options(scene.folder.path(), "late", &["a"]));
    late.eventually_up(0);
    late.stop();
    // So it is for one that is a link, and takes no ACCEPT.
    let window = Window::create(WINDOW, false).unwrap();
    let doorbell = eventfd();
    for n in 0..2 {
        let client = scene.connect();
        client.hello(LOW - n);
        client
            .try_send(
                &OFFER.encode(),
                &[window.file().as_raw_fd(), doorbell.as_raw_fd()],
            )
            .unwrap();
        client.0.send(b"nonsense", &[]).unwrap();
        unread.push(client);
        eventually("it ends", || faults() == u64::from(n) + 9);
    }
    let client = scene.connect();
    assert_eq!(client.end(), Some(Bye::Full));
    drop((client, unread));
    scene.is_as_before();
}
