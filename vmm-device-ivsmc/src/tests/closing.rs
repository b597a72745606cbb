// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Descriptors whose close() takes long: whoever hands one over holds up nobody but itself.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::sync::mpsc;

use super::hostile::{ACCEPT, Client, HIGH, LOW, OFFER, Scene, eventfd, hello};
use super::*;
use crate::fabric::reaper::{Account, Reaping};
use crate::fabric::socket::{Socket, own_user};
use crate::fabric::wire::{Bye, Message};
use crate::peer::Lingering;
use crate::{EventKind, Window};

/// For how long the close() of a lingering socket blocks.
const LINGER: u16 = 60;
/// What is done within this time did not wait for one.
pub const PROMPT: Duration = Duration::from_secs(25);

/// Does something while the fabric's thread does nothing: it finds all of it afterwards.
fn while_it_stands(scene: &Scene, act: impl FnOnce()) {
    let errors = || scene.vm.device.counters().protocol_errors;
    let before = errors();
    let events = scene.vm.host.hold_events();
    let nonsense = scene.connect();
    nonsense.0.send(b"nonsense", &[]).unwrap();
    eventually("it is about to tell", || errors() > before);
    thread::sleep(Duration::from_millis(20));
    act();
    drop(events);
}

/// How long something takes.
pub fn time(act: impl FnOnce()) -> Duration {
    let start = Instant::now();
    act();
    start.elapsed()
}

/// What a hostile peer sends, in order: bytes and descriptors.
type Packets = Vec<(Vec<u8>, Vec<RawFd>)>;

/// A third peer's link comes up, and the guest reads registers, all without waiting.
pub fn nobody_waits(scene: &Scene, name: &str) {
    let mut slowest = Duration::ZERO;
    scene.vm.host.events();
    let late = Vm::start(options(scene.folder.path(), "late", &["a"]));
    let up = time(|| {
        eventually("a third peer's link", || {
            slowest = slowest.max(time(|| {
                scene.vm.read(0x20);
            }));
            late.links() == 1
        });
    });
    println!("{name}: the third link took {up:?}, a register's read {slowest:?} at most");
    assert!(up < PROMPT, "{name}: the third peer's link took {up:?}");
    assert!(
        slowest < PROMPT,
        "{name}: a register's read took {slowest:?}"
    );
    let end = time(|| late.stop());
    assert!(end < PROMPT, "{name}: the third peer's end took {end:?}");
    // While events are held, whoever tells of this one would wait.
    let is_down = |(kind, _): &(EventKind, Option<usize>)| *kind == EventKind::LinkDown;
    eventually("the third peer's end is told", || {
        scene.vm.host.event_kinds().iter().any(is_down)
    });
}

#[test]
fn a_descriptor_whose_close_blocks_holds_up_nobody() {
    alone_on_old_kernel("tests::closing::lingering_descriptors_in_every_place");
}

#[test]
#[ignore = "leaves threads behind; run by a_descriptor_whose_close_blocks_holds_up_nobody"]
fn lingering_descriptors_in_every_place() {
    let scene = Scene::new();
    let window = Window::create(WINDOW, false).unwrap();
    let bell = eventfd();
    let (window, bell) = (window.file().as_raw_fd(), bell.as_raw_fd());
    let places: [(&str, &dyn Fn(RawFd) -> Packets); 8] = [
        ("HELLO", &|fd| vec![(hello(LOW).encode(), vec![fd])]),
        ("OFFER's window", &|fd| {
            vec![
                (hello(LOW).encode(), vec![]),
                (OFFER.encode(), vec![fd, bell]),
            ]
        }),
        ("OFFER's doorbell", &|fd| {
            vec![
                (hello(LOW).encode(), vec![]),
                (OFFER.encode(), vec![window, fd]),
            ]
        }),
        ("ACCEPT's doorbell", &|fd| {
            vec![(hello(HIGH).encode(), vec![]), (ACCEPT.encode(), vec![fd])]
        }),
        ("BYE", &|fd| {
            vec![(Message::Bye(Bye::Closing).encode(), vec![fd])]
        }),
        ("in excess", &|fd| {
            let descriptors = [bell; 16].into_iter().chain([fd]).collect();
            vec![
                (hello(HIGH).encode(), vec![]),
                (ACCEPT.encode(), descriptors),
            ]
        }),
        ("no message", &|fd| vec![(vec![0x5a; 4000], vec![fd])]),
        ("never read", &|fd| {
            vec![(b"nonsense".to_vec(), vec![]), (vec![0], vec![fd])]
        }),
    ];
    for (name, packets) in places {
        let mut lingering = Lingering::new(LINGER).unwrap();
        let client = scene.connect();
        let packets = packets(lingering.as_raw_fd());
        while_it_stands(&scene, || {
            for (bytes, descriptors) in &packets {
                client.0.send(bytes, descriptors).unwrap();
            }
            lingering.let_go();
        });
        thread::sleep(Duration::from_millis(200));
        nobody_waits(&scene, name);
        drop(client);
    }
    // Several at once, and the device ends.
    let lingering: Vec<Lingering> = (0..3).map(|_| Lingering::new(LINGER).unwrap()).collect();
    let clients = [scene.connect(), scene.connect(), scene.connect()];
    while_it_stands(&scene, || {
        for (client, mut each) in clients.iter().zip(lingering) {
            client.send(hello(LOW), &[each.as_raw_fd()]);
            each.let_go();
        }
    });
    let end = time(|| scene.vm.stop());
    assert!(end < PROMPT, "shutdown took {end:?}");
}

#[test]
fn a_user_that_is_not_admitted_holds_up_nobody() {
    alone_on_old_kernel("tests::closing::lingering_descriptors_of_a_stranger");
}

/// Makes this thread's scene reachable for all, and connects as nobody.
fn connect_as_nobody(scene: &Scene) -> Client {
    for path in [scene.folder.path(), &scene.folder.path().join("a")] {
        fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
    }
    let connect = || {
        // SAFETY: plain system call. Made like this, and not by libc, it changes this thread alone.
        let changed = unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
        assert_eq!(changed, 0);
        scene.connect()
    };
    thread::scope(|scope| scope.spawn(connect).join()).unwrap()
}

#[test]
#[ignore = "leaves threads behind; run by a_user_that_is_not_admitted_holds_up_nobody"]
fn lingering_descriptors_of_a_stranger() {
    if own_user() != 0 {
        println!("SKIPPED: only root can be another user");
        return;
    }
    let scene = Scene::new();
    let mut lingering: Vec<Lingering> = (0..3).map(|_| Lingering::new(LINGER).unwrap()).collect();
    let mut clients = Vec::new();
    while_it_stands(&scene, || {
        for each in &mut lingering {
            let client = connect_as_nobody(&scene);
            client.0.send(b"anything", &[each.as_raw_fd()]).unwrap();
            each.let_go();
            clients.push(client);
        }
    });
    nobody_waits(&scene, "a stranger's");
    let end = time(|| scene.vm.stop());
    assert!(end < PROMPT, "shutdown took {end:?}");
}

/// From Linux 6.16 on.
#[test]
fn nobody_can_send_descriptors_before_it_is_admitted() {
    let scene = Scene::new();
    let socket = Socket::connect(&scene.folder.path().join("a")).unwrap();
    if !socket.is_without_rights() {
        println!("SKIPPED: this kernel cannot refuse descriptors");
        return;
    }
    let doorbell = eventfd();
    while_it_stands(&scene, || {
        let client = scene.connect();
        let sent = client.0.send(b"anything", &[doorbell.as_raw_fd()]);
        assert_eq!(sent.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    });
    drop(socket);
    scene.is_as_before();
}

/// Who has made closing block, as often as it may, is not served any more; others are.
#[test]
fn each_user_has_a_share_of_what_waits_to_be_closed() {
    let (reaping, reaper) = Reaping::new("test");
    let thread = thread::spawn(move || reaper.run());
    let (one, other) = (
        reaping.closer(Account::User(1)),
        reaping.closer(Account::User(2)),
    );
    let (release, blocked) = mpsc::channel::<()>();
    struct Blocks(mpsc::Receiver<()>);
    impl Drop for Blocks {
        fn drop(&mut self) {
            let _ = self.0.recv();
        }
    }
    drop(one.guard(Blocks(blocked)));
    for _ in 1..64 {
        assert!(!one.is_full());
        drop(one.guard(0));
    }
    assert!(one.is_full() && !other.is_full() && !reaping.is_full());
    let (sender, dropped) = mpsc::channel::<()>();
    drop(other.guard(sender));
    assert!(
        dropped
            .recv_timeout(PATIENCE)
            .is_err_and(|error| error == mpsc::RecvTimeoutError::Disconnected)
    );
    drop(release);
    eventually("all is closed", || !one.is_full());
    drop((reaping, one, other));
    eventually("the reaper ends", || thread.is_finished());
}
