// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a device tells of its links, and links that its user drops.

use std::os::fd::AsRawFd;

use super::hostile::{ACCEPT, HIGH, LOW, MIDDLE, OFFER, Scene, eventfd};
use super::*;
use crate::peer::Bye;
use crate::{EventKind, LinkInfo, LinkState, Links, NoSuchPeer, Window};

/// For how long to look whether a link comes up that must not: tries are a second apart at most.
const TRIES: Duration = Duration::from_millis(2500);

/// A device's link to another one that is up or lost.
fn link_to(vm: &Vm, peer: &Vm) -> Option<LinkInfo> {
    let links = vm.device.links().links;
    links.into_iter().find(|link| link.peer == peer.device.gid)
}

fn is_up(vm: &Vm, peer: &Vm) -> bool {
    link_to(vm, peer).is_some_and(|link| link.state == LinkState::Up)
}

/// Three devices that join each other by their folder.
fn three() -> ([Vm; 3], tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    // The first one's GID is between the others', so that it is side 0 of one link and side 1 of the other.
    let names = [("a", MIDDLE), ("b", LOW), ("c", HIGH)];
    let vms = names.map(|(name, first)| {
        Vm::start(Config {
            gid: gid(first),
            ..options(folder.path(), name, &[""])
        })
    });
    for vm in &vms {
        eventually("all have links", || vm.links() == 2);
    }
    (vms, folder)
}

#[test]
fn links_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let a = Vm::start(options(folder.path(), "a", &["b"]));
    let nothing = a.device.links();
    assert_eq!((nothing.path, nothing.gid), (path("a"), a.device.gid));
    assert!(nothing.links.is_empty() && nothing.refused.is_empty());
    let b = Vm::start(options(folder.path(), "b", &[]));
    a.eventually_up(0);
    b.eventually_up(0);
    eventually("the path is known", || {
        link_to(&a, &b).is_some_and(|link| link.path == Some(path("b")))
    });
    let (ours, theirs) = (link_to(&a, &b).unwrap(), link_to(&b, &a).unwrap());
    assert_eq!(theirs.path, None, "it does not join a");
    assert_eq!(ours.side + theirs.side, 1);
    let side = ours.side;
    let expected = |link: LinkInfo| LinkInfo {
        link: 0,
        state: LinkState::Up,
        peer: b.device.gid,
        path: Some(path("b")),
        side,
        size: WINDOW,
        vectors: 2,
        generation: 1,
        claimed: false,
        up_seconds: link.up_seconds.filter(|&seconds| seconds < 60),
    };
    assert_eq!(ours, expected(ours.clone()));
    a.claim(0);
    assert!(link_to(&a, &b).unwrap().claimed);
    let told = a.device.links();
    let text = serde_json::to_string(&told).unwrap();
    assert!(text.contains(r#""state":"up""#), "{text}");
    assert_eq!(serde_json::from_str::<Links>(&text).unwrap(), told);
    a.write(0x2000 + 64, 1);
    assert_eq!(a.device.links().doorbells_trapped, 1);
    let peer = b.device.gid;
    b.stop();
    eventually("lost", || a.link_state(0) == LOST);
    let links = a.device.links().links;
    let [lost] = links.as_slice() else {
        panic!("{links:?}")
    };
    assert_eq!((lost.state, lost.peer), (LinkState::Lost, peer));
    assert_eq!((lost.claimed, lost.up_seconds), (true, None));
    a.let_go(0);
    eventually("down", || a.device.links().links.is_empty());
    a.stop();
}

#[test]
fn in_a_folder_all_paths_are_known() {
    let ([a, b, c], folder) = three();
    let all = [(&a, "a"), (&b, "b"), (&c, "c")];
    for (vm, _) in all {
        for (peer, name) in all
            .iter()
            .filter(|(peer, _)| peer.device.gid != vm.device.gid)
        {
            let path = folder.path().join(name).display().to_string();
            eventually("the path is known", || {
                link_to(vm, peer).is_some_and(|link| link.path.as_ref() == Some(&path))
            });
        }
    }
}

#[test]
fn a_peer_whose_link_is_dropped_gets_no_other_one_until_it_is_allowed() {
    for dropped in [1, 2] {
        let (vms, _folder) = three();
        let (a, b, c) = (&vms[0], &vms[dropped], &vms[3 - dropped]);
        let peer = b.device.gid;
        eventually("the path is known", || {
            link_to(a, b).unwrap().path.is_some()
        });
        let link = link_to(a, b).unwrap();
        a.claim(link.link as u64);
        a.host.events();
        a.device.drop_link(peer, true).unwrap();
        eventually("lost", || a.link_state(link.link as u64) == LOST);
        eventually("gone at the other end", || link_to(b, a).is_none());
        let event = a.host.awaited_events(1).remove(0);
        assert_eq!((event.kind, event.peer), (EventKind::LinkReset, Some(peer)));
        assert!(event.reason.contains("has dropped it"), "{}", event.reason);
        let is_again = || is_up(a, b) || is_up(b, a);
        assert!(!soon(TRIES, is_again), "while the window is kept");
        a.let_go(link.link as u64);
        eventually("down", || link_to(a, b).is_none());
        assert!(!soon(TRIES, is_again), "when it is not");
        let refused = a.device.links().refused;
        let [refused] = refused.as_slice() else {
            panic!("{refused:?}")
        };
        assert_eq!((refused.peer, &refused.path), (peer, &link.path));
        // Again it is the same, and a guest that resets the device does not change it.
        a.device.drop_link(peer, true).unwrap();
        a.device.reset();
        eventually("others are joined anew", || {
            is_up(a, c) && is_up(c, a) && is_up(b, c)
        });
        assert!(!soon(TRIES, is_again), "after a reset");
        assert_eq!(a.device.counters().handshakes_refused, 0);
        a.device.drop_link(peer, false).unwrap();
        assert!(a.device.links().refused.is_empty());
        eventually("it may again", || is_up(a, b) && is_up(b, a));
    }
}

#[test]
fn a_link_that_is_dropped_and_not_refused_comes_again() {
    let ([a, b, c], _folder) = three();
    let generation = |peer: &Vm| link_to(&a, peer).map(|link| link.generation);
    a.device.drop_link(b.device.gid, false).unwrap();
    eventually("it has come again", || {
        is_up(&a, &b) && is_up(&b, &a) && generation(&b) == Some(2)
    });
    assert_eq!(generation(&c), Some(1));
}

#[test]
fn what_is_not_there_is_not_dropped() {
    let ([a, _b, _c], _folder) = three();
    let stranger = gid(77).unwrap();
    for refuse in [false, true] {
        let error = a.device.drop_link(stranger, refuse).unwrap_err();
        assert_eq!(error, NoSuchPeer(stranger));
        assert!(error.to_string().contains(&stranger.to_string()));
    }
    assert!(a.device.links().refused.is_empty());
    assert_eq!(a.links(), 2);
}

/// A link that is about to come up does not, and a peer's handshake that has begun before ends as a later one does.
#[test]
fn a_handshake_that_is_under_way_ends() {
    let scene = Scene::new();
    let device = &scene.vm.device;
    let window = Window::create(WINDOW, false).unwrap();
    let doorbell = eventfd();
    let high = scene.connect();
    high.hello(HIGH);
    high.next();
    high.next();
    // Its place is reserved; that of a peer of side 0 is not yet.
    device.drop_link(gid(HIGH).unwrap(), true).unwrap();
    let _ = high.try_send(&ACCEPT.encode(), &[doorbell.as_raw_fd()]);
    assert_eq!(high.end(), Some(Bye::Busy));
    let high = scene.connect();
    high.hello(HIGH);
    assert_eq!(high.end(), Some(Bye::Busy));
    let offer = || {
        let low = scene.connect();
        low.hello(LOW);
        let descriptors = [window.file().as_raw_fd(), doorbell.as_raw_fd()];
        low.send(OFFER, &descriptors);
        low
    };
    let low = offer();
    eventually("it has a link", || scene.vm.links() == 2);
    device.drop_link(gid(LOW).unwrap(), true).unwrap();
    assert_eq!(low.end(), Some(Bye::Busy));
    assert_eq!(offer().end(), Some(Bye::Busy));
    assert_eq!(device.links().refused.len(), 2);
    scene.is_as_before();
}

/// The VMM's thread asks for links and drops them: it must not stand still with the device's own.
#[test]
fn neither_waits_for_the_fabric_thread() {
    let scene = Scene::new();
    let client = scene.joins_a_held_vmm();
    let device = &scene.vm.device;
    assert_eq!(device.links().links.len(), 1);
    device.drop_link(gid(HIGH).unwrap(), true).unwrap();
    assert!(scene.vm.host.is_holding(), "it is still at it");
    scene.vm.host.hold(false);
    assert_eq!(client.end(), Some(Bye::Busy));
    scene.is_as_before();
}
