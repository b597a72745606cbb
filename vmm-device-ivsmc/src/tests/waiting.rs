// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Neither the guest nor a snapshot waits for what a peer holds, nor the guest for what the VMM does.

use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::mpsc;

use super::hostile::{ACCEPT, Client, HIGH, LOW, OFFER, Scene, eventfd, hello};
use super::*;
use crate::Window;
use crate::fabric::wire::Message;
use crate::peer::{Fault, Lingering};

/// How long what is held is held at most: long enough to notice who waits for it.
const HOLD: Duration = Duration::from_secs(6);
/// How long what does not wait may take on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(3);

/// Runs something in a thread of its own; whether it is done before what is held is let go.
fn is_done_at_once<R: Send + 'static>(what: impl FnOnce() -> R + Send + 'static) -> Option<R> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(what()));
    receiver.recv_timeout(AT_ONCE).ok()
}

/// What a guest does to its device, all of which is to work at once.
fn guest(vm: &Vm) {
    let device = vm.device.clone();
    let done = is_done_at_once(move || {
        let mut data = [0; 4];
        device.read(0x1000, &mut data);
        device.write(0x1028, &1u32.to_le_bytes());
        device.read(0x1028, &mut data);
        assert_eq!(data, 1u32.to_le_bytes(), "it has claimed its link");
        device.counters();
    });
    assert!(done.is_some(), "the guest waits");
}

/// Finding 5.3: a read of BAR0 took as long as KVM took to bring a link up or down.
#[test]
fn a_guest_does_not_wait_for_calls_of_the_vmm() {
    let scene = Scene::new();
    let client = scene.joins_a_held_vmm();
    guest(&scene.vm);
    scene.vm.host.hold(false);
    eventually("the link is up", || scene.vm.links() == 2);
    // The same when it ends.
    scene.vm.host.hold(true);
    drop(client);
    eventually("the VMM is asked", || scene.vm.host.is_holding());
    guest(&scene.vm);
    scene.vm.host.hold(false);
    scene.is_as_before();
}

/// Finding 5.1: as a doorbell it was closed under the device's lock.
#[test]
fn a_descriptor_that_takes_long_to_close_holds_no_lock() {
    let scene = Scene::new();
    let mut stream = Lingering::new(HOLD.as_secs() as u16).unwrap();
    let client = scene.connect();
    client.hello(LOW);
    assert!(matches!(client.next(), Some((Message::Hello(_), _))));
    // The fabric thread is kept busy until all that follows is in its queue, so that it has the last descriptor.
    scene.vm.host.hold(true);
    let busy = scene.connect();
    busy.hello(HIGH);
    busy.next();
    busy.next();
    busy.send(ACCEPT, &[eventfd().as_raw_fd()]);
    eventually("the VMM is asked", || scene.vm.host.is_holding());
    let window = Window::create(WINDOW, false).unwrap();
    client.send(OFFER, &[window.file().as_raw_fd(), stream.as_raw_fd()]);
    stream.let_go();
    let start = Instant::now();
    scene.vm.host.hold(false);
    // Whether it is being closed now or not: no lock is held.
    while start.elapsed() < AT_ONCE {
        guest(&scene.vm);
        let device = scene.vm.device.clone();
        let done = is_done_at_once(move || device.place_registers(Some(BAR0)));
        assert!(done.is_some(), "a BAR that moves waits");
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(scene.vm.device.counters().links_up, 2, "it is no link");
    drop((stream, busy));
    scene.is_as_before();
}

/// Finding 5.2: a snapshot looked for data with lseek, which waits for a peer that is in the middle of a write.
#[test]
fn a_snapshot_does_not_wait_for_a_peer_that_is_held_in_a_write() {
    let scene = Scene::new();
    // It is dropped first, so that nothing is held any more when the rest is.
    let fault = match Fault::new() {
        Ok(fault) => fault,
        Err(error) => {
            println!("SKIPPED: no userfaultfd: {error}");
            return;
        }
    };
    let client = scene.connect();
    client.hello(LOW);
    client.next();
    let window = Window::create(WINDOW, false).unwrap();
    let bell = eventfd();
    client.send(OFFER, &[window.file().as_raw_fd(), bell.as_raw_fd()]);
    assert!(matches!(client.next(), Some((Message::Accept { .. }, _))));
    scene.vm.claim(1);
    window.file().write_all_at(&[7; 9], 12345).unwrap();

    // The peer writes to its window what is not there.
    let fd = window.file().as_raw_fd();
    let writer = fault.write_to(window.file().try_clone().unwrap());
    eventually("the writer has met the page", || fault.is_hit());
    // It is held now: seeking waits for it.
    let is_held = || {
        // SAFETY: plain system call on a descriptor that is open.
        is_done_at_once(move || unsafe { libc::lseek(fd, 0, libc::SEEK_DATA) }).is_none()
    };
    eventually("the writer is held", is_held);

    let device = scene.vm.device.clone();
    let state = is_done_at_once(move || device.state().unwrap());
    guest(&scene.vm);
    // Dropping the descriptor lets everybody go on; the page is zeros.
    drop(fault);
    writer.join().unwrap().unwrap();
    let state = state.expect("the snapshot waits for the peer");
    drop(client);
    let restored = Vm::start_with(options(scene.folder.path(), "restored", &[]), Some(&state));
    // SAFETY: the window is mapped, and the offset is in it.
    let kept = unsafe { restored.host.memory(BAR2 + WINDOW + 12345).read_volatile() };
    assert_eq!(kept, 7, "all that was there is in the snapshot");
    restored.stop();
}

/// Finding 5.4: windows shared 256 MiB, and what did not fit became zeros.
#[test]
fn a_window_that_is_too_full_for_a_snapshot_is_an_error_that_leaves_everybody_running() {
    let folder = tempfile::tempdir().unwrap();
    let config = || Config {
        gid: gid(0xff),
        window_size: 16 << 20,
        max_peers: 64,
        ..options(folder.path(), "a", &[])
    };
    let budget = 8 << 20;
    assert_eq!(config().snapshot_budget(), budget);
    let vm = Vm::start(config());
    let mut peers = Vec::new();
    for first in [1, 2] {
        let client = Client::connect(&config().path);
        let mut introduction = hello(first);
        if let Message::Hello(hello) = &mut introduction {
            hello.window_shift = 24;
        }
        client.send(introduction, &[]);
        client.next();
        let window = Window::create(16 << 20, false).unwrap();
        let bell = eventfd();
        let offer = Message::Offer {
            window_shift: 24,
            vectors: 1,
        };
        client.send(offer, &[window.file().as_raw_fd(), bell.as_raw_fd()]);
        client.next();
        vm.claim(peers.len() as u64);
        peers.push((client, window));
    }
    // Both have all that they may.
    let full = vec![7; budget as usize];
    for (_, window) in &peers {
        window.file().write_all_at(&full, budget).unwrap();
    }
    let state = vm.device.state().unwrap();
    // One has a byte more, and cannot have it of the other's.
    peers[1].1.file().write_all_at(&[1], 0).unwrap();
    // (What it would print otherwise is long.)
    let state_of = |vm: &Vm| vm.device.state().map(drop);
    let error = state_of(&vm).unwrap_err().to_string();
    for word in ["link 1", "16M", "8M", "max_peers=64", "size=8M"] {
        assert!(error.contains(word), "{error}");
    }
    assert_eq!((vm.links(), vm.link_state(1)), (2, UP));
    peers[1].1.file().write_all_at(&[0], 0).unwrap();
    assert!(vm.device.state().unwrap() == state, "it has changed");
    vm.stop();
    let restored = Vm::start_with(config(), Some(&state));
    for link in 0..2 {
        let at = |offset| restored.host.memory(BAR2 + (link << 24) + offset);
        // SAFETY: the windows are mapped, and the offsets are in them.
        let kept = unsafe { [0, budget, (16 << 20) - 1].map(|at_| at(at_).read_volatile()) };
        assert_eq!(kept, [0, 7, 7]);
    }
    restored.stop();
}

#[test]
fn all_of_a_default_device_s_windows_fits_into_a_snapshot() {
    let config = Config::default();
    assert!(config.snapshot_budget() >= config.window_size);
}
