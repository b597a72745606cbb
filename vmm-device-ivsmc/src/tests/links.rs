// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Links come up in any order, carry memory and doorbells, and end.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use super::*;

/// Two devices that know of each other as `a` and `b` say.
fn two(a_joins: &[&str], b_joins: &[&str]) -> (Vm, Vm, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let a = Vm::start(options(folder.path(), "a", a_joins));
    let b = Vm::start(options(folder.path(), "b", b_joins));
    a.eventually_up(0);
    b.eventually_up(0);
    (a, b, folder)
}

fn both_have_one_link(a: &Vm, b: &Vm) {
    assert_eq!((a.links(), b.links()), (1, 1));
    assert_eq!((a.generation(0), b.generation(0)), (1, 1));
    assert_eq!(a.link(0, 8) + b.link(0, 8), 1, "the sides differ");
    assert_eq!(
        a.link(0, 0x0c),
        b.read(8),
        "PeerPosition is the peer's IVPosition"
    );
    for word in 0..4 {
        assert_eq!(
            a.link(0, 0x10 + 4 * word),
            b.read(0x20 + 4 * word),
            "PeerGID"
        );
    }
    assert_eq!((a.link(0, 0x20), a.link(0, 0x24)), (2, 22));
}

#[test]
fn whoever_joins_and_whoever_starts_first() {
    for (a_joins, b_joins) in [
        (&["b"][..], &["a"][..]),
        (&["b"][..], &[][..]),
        (&[][..], &["a"][..]),
    ] {
        let (a, b, _folder) = two(a_joins, b_joins);
        both_have_one_link(&a, &b);
        // Connections that crossed must not end what is there, nor become a second link.
        thread::sleep(Duration::from_millis(300));
        both_have_one_link(&a, &b);
        a.stop();
        b.stop();
    }
}

#[test]
fn devices_that_start_at_once() {
    for _ in 0..20 {
        let folder = tempfile::tempdir().unwrap();
        let paths = [
            options(folder.path(), "a", &["b"]),
            options(folder.path(), "b", &["a"]),
        ];
        let starters = paths.map(|config| thread::spawn(|| Vm::start(config)));
        let [a, b] = starters.map(|starter| starter.join().unwrap());
        a.eventually_up(0);
        b.eventually_up(0);
        both_have_one_link(&a, &b);
    }
}

#[test]
fn memory_is_shared_and_doorbells_ring() {
    let (a, b, _folder) = two(&["b"], &[]);
    assert_eq!(a.vectors(), [0], "the link came up");
    assert_eq!(b.vectors(), [0]);
    // SAFETY: the windows are mapped, and 77 is in them.
    unsafe {
        assert_eq!(
            b.host.memory(BAR2 + 77).read_volatile(),
            0,
            "new memory is zero"
        );
        a.host.memory(BAR2 + 77).write_volatile(9);
        assert_eq!(b.host.memory(BAR2 + 77).read_volatile(), 9);
    }
    for vector in 0..2 {
        assert!(a.host.store(BAR0 + 0x2000 + 4 * vector as u64, 12345));
        assert_eq!(b.vectors(), [vector]);
        let value = b.link(0, 0x0c) << 16 | vector as u32;
        assert!(b.host.store(BAR0 + 0x0c, value));
        assert_eq!(a.vectors(), [vector]);
    }
    assert!(!a.host.store(BAR0 + 0x2008, 1), "the peer has two vectors");
    assert!(
        !a.host.store(BAR0 + 0x0c, a.read(8) << 16),
        "nobody rings itself"
    );
    assert!((a.vectors().is_empty()) && b.vectors().is_empty());
}

#[test]
fn a_claimed_window_outlives_its_peer_until_it_is_let_go() {
    let folder = tempfile::tempdir().unwrap();
    let a = Vm::start(options(folder.path(), "a", &["b"]));
    let b = Vm::start(options(folder.path(), "b", &[]));
    a.eventually_up(0);
    a.claim(0);
    a.vectors();
    // SAFETY: the window is mapped.
    unsafe { a.host.memory(BAR2).write_volatile(3) };
    b.stop();
    eventually("lost", || a.link_state(0) == LOST);
    assert_eq!(a.vectors(), [0]);
    assert_eq!(a.host.windows(), [(BAR2, WINDOW, 0)]);
    assert!(a.host.doorbells().is_empty());
    // SAFETY: the window is still mapped.
    assert_eq!(unsafe { a.host.memory(BAR2).read_volatile() }, 3);
    // A peer that comes back gets another place as long as this one is not free.
    let b = Vm::start(options(folder.path(), "b", &[]));
    a.eventually_up(1);
    assert_eq!((a.link_state(0), a.generation(1)), (LOST, 1));
    a.vectors();
    a.let_go(0);
    eventually("down", || a.link_state(0) == DOWN);
    assert_eq!(a.vectors(), [0]);
    assert_eq!(a.host.windows(), [(BAR2 + WINDOW, WINDOW, 1)]);
    assert_eq!((a.generation(0), a.link(0, 0x28)), (1, 0));
    a.stop();
    b.stop();
}

#[test]
fn a_window_that_is_not_claimed_goes_with_its_peer() {
    let (a, b, _folder) = two(&["b"], &[]);
    b.stop();
    eventually("down", || a.link_state(0) == DOWN);
    assert!(a.host.windows().is_empty());
    assert_eq!(a.device.counters().links_lost, 1);
    a.stop();
}

/// The guest may take for ever to let go of one window, but not of more.
#[test]
fn a_peer_of_the_same_gid_waits_only_if_two_of_its_windows_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let b_options = Config {
        gid: gid(1),
        ..options(folder.path(), "b", &[])
    };
    let a = Vm::start(options(folder.path(), "a", &["b"]));
    for place in 0..2 {
        let b = Vm::start(b_options.clone());
        a.eventually_up(place);
        a.claim(place);
        b.stop();
        eventually("lost", || a.link_state(place) == LOST);
    }
    let b = Vm::start(b_options);
    assert!(!soon(Duration::from_millis(300), || b.links() == 1));
    a.let_go(0);
    eventually("up again", || a.link_state(0) == UP && a.generation(0) == 2);
    a.stop();
    b.stop();
}

#[test]
fn a_peer_that_restarts_again_and_again() {
    let folder = tempfile::tempdir().unwrap();
    let a = Vm::start(options(folder.path(), "a", &["b"]));
    for generation in 1..=10 {
        let b = Vm::start(options(folder.path(), "b", &["a"]));
        eventually("up again", || {
            a.generation(0) == generation && a.link_state(0) == UP
        });
        b.eventually_up(0);
        if generation % 2 == 0 {
            b.stop();
        } else {
            drop(b);
        }
        eventually("down", || a.link_state(0) == DOWN);
    }
    a.stop();
}

#[test]
fn many_peers_have_private_windows() {
    let folder = tempfile::tempdir().unwrap();
    let hub = Vm::start(options(folder.path(), "hub", &["x", "y"]));
    let x = Vm::start(options(folder.path(), "x", &[]));
    let y = Vm::start(options(folder.path(), "y", &[]));
    let z = Vm::start(options(folder.path(), "z", &["hub"]));
    eventually("all three are up", || hub.links() == 3);
    let late = Vm::start(options(folder.path(), "late", &["hub"]));
    assert!(
        !soon(Duration::from_millis(300), || late.links() == 1),
        "the table is full"
    );
    for (n, peer) in [&x, &y, &z].into_iter().enumerate() {
        peer.eventually_up(0);
        peer.vectors();
        // SAFETY: the window is mapped.
        unsafe { peer.host.memory(BAR2).write_volatile(n as u8 + 1) };
    }
    let mut seen = Vec::new();
    for link in 0..3 {
        // SAFETY: the window is mapped.
        seen.push(unsafe { hub.host.memory(BAR2 + link * WINDOW).read_volatile() });
        assert!(hub.host.store(BAR0 + 0x2004 + 64 * link, 0));
        let rung = [&x, &y, &z].map(|peer| peer.vectors().len());
        assert_eq!(rung.iter().sum::<usize>(), 1, "one peer and no other");
        assert_eq!(rung[usize::from(*seen.last().unwrap()) - 1], 1);
    }
    seen.sort_unstable();
    assert_eq!(seen, [1, 2, 3]);
    z.stop();
    eventually("the one that waited has the free place", || {
        late.links() == 1 && hub.links() == 3
    });
}

#[test]
fn peers_with_one_position_share_the_doorbell_register_in_turn() {
    let folder = tempfile::tempdir().unwrap();
    let mut other = gid(1).unwrap().bytes();
    other.swap(2, 4);
    other[3] ^= 0x10;
    other[5] ^= 0x10;
    let twins = [gid(1), Some(Gid::from_bytes(other))];
    assert_ne!(twins[0], twins[1]);
    let hub = Vm::start(options(folder.path(), "hub", &[]));
    let start = |name: &str, gid| {
        let vm = Vm::start(Config {
            gid,
            ..options(folder.path(), name, &["hub"])
        });
        vm.eventually_up(0);
        vm.vectors();
        vm
    };
    let first = start("first", twins[0]);
    let second = start("second", twins[1]);
    assert_eq!(first.read(8), second.read(8));
    let ring = || assert!(hub.host.store(BAR0 + 0x0c, first.read(8) << 16 | 1));
    ring();
    assert_eq!((first.vectors(), second.vectors()), (vec![1], vec![]));
    let position = second.read(8);
    eventually("both are up", || hub.links() == 2);
    first.stop();
    eventually("the first is gone", || hub.links() == 1);
    assert!(hub.host.store(BAR0 + 0x0c, position << 16 | 1));
    assert_eq!(second.vectors(), [1]);
}

#[test]
fn a_reset_ends_all_links_and_they_come_up_anew() {
    let (a, b, _folder) = two(&["b"], &["a"]);
    a.claim(0);
    b.claim(0);
    a.device.reset();
    assert_eq!((a.link_state(0), a.link(0, 0x28)), (DOWN, 0));
    assert!(a.host.is_empty());
    eventually("lost", || b.link_state(0) == LOST);
    b.let_go(0);
    eventually("up anew", || a.link_state(0) == UP && b.link_state(0) == UP);
    assert_eq!((a.generation(0), b.generation(0)), (2, 2));
    assert_eq!(a.device.counters().resets, 1);
}

#[test]
fn windows_and_doorbells_move_with_their_bars() {
    let (a, b, _folder) = two(&["b"], &[]);
    b.vectors();
    let windows_at = |gpa| a.device.place_windows(gpa);
    a.device.place_registers(Some(BAR0 + 0x8000)).unwrap();
    windows_at(Some(2 * BAR2)).unwrap();
    assert_eq!(a.host.windows(), [(2 * BAR2, WINDOW, 0)]);
    assert!(!a.host.store(BAR0 + 0x2004, 0));
    assert!(a.host.store(BAR0 + 0x8000 + 0x2004, 0));
    assert_eq!(b.vectors(), [1]);
    assert!(a.host.store(BAR0 + 0x800c, b.read(8) << 16 | 1));
    assert_eq!(b.vectors(), [1]);
    a.host.fail_windows(true);
    assert!(windows_at(Some(BAR2)).is_err());
    a.host.fail_windows(false);
    windows_at(Some(BAR2)).unwrap();
    assert_eq!(a.host.windows(), [(BAR2, WINDOW, 0)]);
    windows_at(None).unwrap();
    assert!(a.host.windows().is_empty(), "the BAR is nowhere");
    windows_at(Some(BAR2)).unwrap();
    assert_eq!(a.host.windows(), [(BAR2, WINDOW, 0)]);
    a.device.place_registers(None).unwrap();
    assert!(a.host.doorbells().is_empty());
    a.device.place_registers(Some(BAR0)).unwrap();
    assert_eq!(a.host.doorbells().len(), 4);
    a.stop();
    b.stop();
}

#[test]
fn the_smaller_window_is_the_link_s() {
    let folder = tempfile::tempdir().unwrap();
    let a = Vm::start(options(folder.path(), "a", &["b"]));
    let small = Config {
        window_size: 2 << 20,
        ..options(folder.path(), "b", &[])
    };
    let b = Vm::start(small);
    a.eventually_up(0);
    b.eventually_up(0);
    assert_eq!((a.link(0, 0x24), b.link(0, 0x24)), (21, 21));
    assert_eq!((a.read(0x34), b.read(0x34)), (22, 21));
    assert_eq!(a.host.windows(), [(BAR2, 2 << 20, 0)]);
}

#[test]
fn other_fabrics_and_the_device_itself_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let other = Config {
        fabric_id: 0xff01,
        ..options(folder.path(), "other", &[])
    };
    symlink(folder.path().join("a"), folder.path().join("self")).unwrap();
    let a = Vm::start(options(folder.path(), "a", &["other", "self"]));
    let other = Vm::start(other);
    eventually("refused", || {
        a.device.counters().handshakes_refused >= 3
            && other.device.counters().handshakes_refused >= 1
    });
    assert_eq!((a.links(), other.links()), (0, 0));
}

#[test]
fn a_vmm_that_cannot_map_a_window_gets_no_link_and_stays_well() {
    let folder = tempfile::tempdir().unwrap();
    let a = Vm::start(options(folder.path(), "a", &["b"]));
    a.host.fail_windows(true);
    let b = Vm::start(options(folder.path(), "b", &[]));
    eventually("it fails", || a.device.counters().host_errors >= 2);
    assert!(a.host.is_empty());
    assert_eq!(a.links(), 0);
    a.host.fail_windows(false);
    eventually("up", || a.links() == 1 && b.links() == 1);
    a.stop();
    b.stop();
}

#[test]
fn a_restored_device_has_a_new_name_and_lets_its_guest_let_go() {
    let (a, b, folder) = two(&["b"], &[]);
    a.claim(0);
    let unread = |vm: &Vm| vm.host.memory(BAR2 + 0x12345);
    // SAFETY: it is in the window, which is mapped.
    unsafe { unread(&a).write_volatile(77) };
    let state = a.device.state().unwrap();
    let name = |vm: &Vm| [0x20, 0x24, 0x28, 0x2c].map(|at| vm.read(at));
    let old = name(&a);
    a.stop();
    eventually("the old link is gone", || b.links() == 0);
    let a = Vm::start_with(options(folder.path(), "a", &["b"]), Some(&state));
    assert_ne!(name(&a), old);
    assert_eq!(a.vectors(), [0], "the guest is told");
    assert_eq!((a.link_state(0), a.link(0, 0x28)), (LOST, 1));
    assert_eq!(a.host.windows(), [(BAR2, WINDOW, 0)]);
    // SAFETY: as above.
    let kept = unsafe { unread(&a).read_volatile() };
    assert_eq!(kept, 77, "what was received can still be read");
    // the peer is not kept away by that
    a.eventually_up(1);
    a.let_go(0);
    eventually("down", || a.link_state(0) == DOWN);
    a.stop();
    let named = Config {
        gid: gid(7),
        ..options(folder.path(), "a", &[])
    };
    let a = Vm::start_with(named, Some(&state));
    assert_eq!(a.read(0x20).to_le_bytes()[0], 7);
}

/// A VM that is restored from `state`, and does not run yet.
fn restore(config: Config, state: &DeviceState) -> Vm {
    let host = FakeHost::new();
    let (device, mut fabric) = Device::new("test", config, host.clone(), Some(state)).unwrap();
    let reaper = fabric.reaper().unwrap();
    thread::spawn(move || reaper.run());
    let thread = Some(thread::spawn(move || fabric.run()));
    Vm {
        device,
        host,
        thread,
    }
}

#[test]
fn a_device_that_is_held_has_no_links_until_its_vm_runs() {
    let (a, b, folder) = two(&["b"], &["a"]);
    let state = a.device.state().unwrap();
    a.stop();
    let a = restore(options(folder.path(), "a", &["b"]), &state);
    assert!(folder.path().join("a").exists());
    assert!(!soon(Duration::from_millis(500), || a.links() + b.links() > 0));
    let counters = a.device.counters();
    assert_eq!(counters.connections_accepted, 0);
    assert_eq!(counters.connections_made, 0);
    a.device.resume();
    eventually("up", || a.links() == 1 && b.links() == 1);
    a.device.resume();
    b.device.resume();
    assert_eq!((a.links(), b.links()), (1, 1));
    a.stop();
    let held = restore(options(folder.path(), "a", &["b"]), &state);
    held.stop();
    assert!(!folder.path().join("a").exists());
}

#[test]
fn a_vm_moves_to_another_process_of_the_host() {
    let (a, b, folder) = two(&["b"], &[]);
    let path = folder.path().join("a");
    let state = a.device.state().unwrap();
    let moved = restore(options(folder.path(), "a", &["b"]), &state);
    thread::sleep(Duration::from_millis(100));
    assert_eq!((moved.links(), b.links()), (0, 1));
    moved.device.resume();
    eventually("it joins meanwhile", || {
        moved.links() == 1 && b.links() == 2
    });
    a.stop();
    eventually("it listens", || path.exists());
    let late = Vm::start(options(folder.path(), "late", &["a"]));
    eventually("it accepts", || moved.links() == 2 && late.links() == 1);
    moved.stop();
    assert!(!path.exists());
    // The other order: it is gone before its path is free.
    let c = Vm::start(options(folder.path(), "a", &[]));
    let moved = restore(options(folder.path(), "a", &[]), &state);
    moved.device.resume();
    thread::sleep(Duration::from_millis(300));
    moved.stop();
    assert!(path.exists(), "it is another's");
    c.stop();
    assert!(!path.exists());
}

#[test]
fn the_end_of_the_old_process_leaves_the_new_one_s_socket_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    let a = Vm::start(options(folder.path(), "a", &[]));
    let state = a.device.state().unwrap();
    let moved = restore(options(folder.path(), "a", &[]), &state);
    moved.device.resume();
    // It would make the file again, but the other one is quicker.
    drop(UnixListener::bind(folder.path().join("stale")).unwrap());
    fs::rename(folder.path().join("stale"), &path).unwrap();
    let late = Vm::start(options(folder.path(), "late", &["a"]));
    eventually("it listens", || moved.links() == 1 && late.links() == 1);
    a.stop();
    assert!(path.exists());
    moved.stop();
    assert!(!path.exists());
}

#[test]
fn only_a_path_in_use_is_worth_waiting_for() {
    let folder = tempfile::tempdir().unwrap();
    let state = Vm::start(options(folder.path(), "a", &[]))
        .device
        .state()
        .unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    for name in ["file", "no/a", "file/a"] {
        let config = options(folder.path(), name, &[]);
        let made = Device::new("test", config, FakeHost::new(), Some(&state));
        assert!(made.is_err(), "{name}");
    }
}

#[test]
fn a_vmm_is_told_what_happens_to_links() {
    use crate::EventKind::{LinkDown, LinkReset, LinkUp};
    let folder = tempfile::tempdir().unwrap();
    let a = Vm::start(options(folder.path(), "a", &["b"]));
    let b = || Vm::start(options(folder.path(), "b", &[]));
    let told = |count| -> Vec<_> {
        let events = a.host.awaited_events(count);
        events.iter().map(|each| (each.kind, each.link)).collect()
    };
    let trapped = || a.device.counters().doorbells_trapped;
    a.write(0x2000, 1);
    a.write(0x0c, 1);
    a.write(0x08, 1);
    assert_eq!(trapped(), 2);
    // Not claimed: free at once.
    let peer = b();
    a.eventually_up(0);
    let up = a.host.awaited_events(1);
    assert_eq!((up.len(), up[0].kind, up[0].link), (1, LinkUp, Some(0)));
    let gid: Vec<u8> = (0..4)
        .flat_map(|word| peer.read(0x20 + 4 * word).to_le_bytes())
        .collect();
    assert_eq!(up[0].peer.unwrap().bytes().to_vec(), gid);
    peer.stop();
    eventually("down", || a.links() == 0);
    assert_eq!(told(1), [(LinkDown, Some(0))]);
    // Claimed: reset, and free once it is let go.
    let peer = b();
    a.eventually_up(0);
    a.claim(0);
    assert_eq!(told(1), [(LinkUp, Some(0))]);
    peer.stop();
    eventually("lost", || a.link_state(0) == LOST);
    let reset = a.host.awaited_events(1);
    assert_eq!((reset.len(), reset[0].kind), (1, LinkReset));
    assert!(reset[0].reason.contains("Closing"), "{}", reset[0].reason);
    assert_eq!(reset[0].peer, reset[0].peer.filter(|gid| !gid.is_null()));
    a.let_go(0);
    eventually("down", || a.link_state(0) == DOWN);
    assert_eq!(told(1), [(LinkDown, Some(0))]);
    // A reset, and the end.
    let peer = b();
    a.eventually_up(0);
    a.claim(0);
    assert_eq!(told(1), [(LinkUp, Some(0))]);
    a.device.reset();
    eventually("up anew", || a.links() == 1);
    assert_eq!(told(2), [(LinkDown, Some(0)), (LinkUp, Some(0))]);
    let counters = a.device.counters();
    assert_eq!((counters.links_up, counters.links_reset), (4, 1));
    assert_eq!(counters.links_lost, 2);
    assert_eq!(trapped(), 2);
    let host = a.host.clone();
    a.stop();
    let end = host.awaited_events(1);
    assert_eq!(
        (end.len(), end[0].kind, end[0].link),
        (1, LinkDown, Some(0))
    );
    peer.stop();
}
