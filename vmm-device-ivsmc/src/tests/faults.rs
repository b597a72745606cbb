// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What goes wrong around links: files and folders that go, descriptors and memory that are used up, peers that
//! come and go at bad times or under wrong names. Whatever it is, other links stay as they are, and what was lost
//! comes back when it can.

use std::fs::{self, File};
use std::mem::zeroed;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;

use super::hostile::{HIGH, LOW, OFFER, Scene, eventfd, settled_descriptors};
use super::*;
use crate::fabric::wire::{Bye, Message};
use crate::sys::page_size;
use crate::test_utils::{keep_log, logged};
use crate::{EventKind, Window};

/// How soon a device notices what has become of its socket's file.
const NOTICE: Duration = Duration::from_secs(20);

/// A device and a peer with a link between them, which stays whatever becomes of files.
struct Linked {
    folder: tempfile::TempDir,
    vm: Vm,
    peer: Vm,
    late: Vec<Vm>,
}

impl Linked {
    /// The device's socket is `run/a`.
    fn new() -> Self {
        keep_log();
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("run")).unwrap();
        let vm = Vm::start(options(folder.path(), "run/a", &[]));
        let peer = Vm::start(options(folder.path(), "peer", &["run/a"]));
        vm.eventually_up(0);
        peer.eventually_up(0);
        let late = Vec::new();
        Linked {
            folder,
            vm,
            peer,
            late,
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("run/a")
    }

    fn said(&self, words: &str) -> usize {
        logged(&[self.path().to_str().unwrap(), words])
    }

    /// A peer that comes now finds the device.
    fn can_be_joined(&mut self) {
        let name = format!("late{}", self.late.len());
        let late = Vm::start(options(self.folder.path(), &name, &["run/a"]));
        eventually("a late peer is linked", || {
            late.links() == 1 && self.vm.links() == 2
        });
        late.stop();
        eventually("it is gone", || self.vm.links() == 1);
        assert_eq!((self.vm.link_state(0), self.vm.generation(0)), (UP, 1));
        assert_eq!((self.peer.link_state(0), self.peer.generation(0)), (UP, 1));
    }

    fn is_made_again(&self) {
        let path = self.path();
        assert!(soon(NOTICE, || path.exists()), "it is not made again");
    }

    fn stop(self) {
        let path = self.path();
        self.vm.stop();
        assert!(!path.exists());
        self.peer.stop();
    }
}

#[test]
fn a_socket_s_file_that_was_removed_is_made_again() {
    let mut linked = Linked::new();
    for time in 1..=3 {
        fs::remove_file(linked.path()).unwrap();
        linked.is_made_again();
        linked.can_be_joined();
        assert_eq!(linked.said("was gone and is made again"), time);
    }
    // It was moved, and not by who cares.
    fs::rename(linked.path(), linked.folder.path().join("moved")).unwrap();
    linked.is_made_again();
    linked.can_be_joined();
    linked.stop();
}

#[test]
fn another_file_in_the_socket_s_place_is_left_alone() {
    let mut linked = Linked::new();
    let path = linked.path();
    let staged = linked.folder.path().join("staged");
    for (time, kind) in ["file", "stale", "listening"].iter().enumerate() {
        let mut listening = None;
        match *kind {
            "file" => fs::write(&staged, "precious").unwrap(),
            "stale" => drop(UnixListener::bind(&staged).unwrap()),
            _ => listening = Some(UnixListener::bind(&staged).unwrap()),
        }
        fs::rename(&staged, &path).unwrap();
        eventually("it says so", || {
            linked.said("another file is there") == time + 1
        });
        thread::sleep(Duration::from_millis(1200));
        assert!(path.exists(), "the {kind} is gone");
        assert_eq!(linked.said("another file is there"), time + 1, "said twice");
        assert_eq!(linked.vm.links(), 1);
        fs::remove_file(&path).unwrap();
        linked.is_made_again();
        linked.can_be_joined();
        drop(listening);
    }
    // What is somebody else's when the device ends stays.
    fs::write(&staged, "precious").unwrap();
    fs::rename(&staged, &path).unwrap();
    linked.vm.stop();
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

#[test]
fn a_folder_that_was_removed_may_come_back() {
    let mut linked = Linked::new();
    let folder = linked.folder.path().join("run");
    fs::remove_dir_all(&folder).unwrap();
    eventually("it says so", || linked.said("is made again as soon") == 1);
    thread::sleep(Duration::from_millis(1200));
    fs::create_dir(&folder).unwrap();
    linked.is_made_again();
    linked.can_be_joined();
    // And at once, so that it is only seen that it is another one.
    let old = linked.folder.path().join("old");
    fs::rename(&folder, &old).unwrap();
    fs::create_dir(&folder).unwrap();
    linked.is_made_again();
    linked.can_be_joined();
    // It can end without, too.
    fs::remove_dir_all(&folder).unwrap();
    linked.stop();
}

#[test]
fn a_folder_of_peers_that_was_removed_may_come_back_with_all_sockets() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    fs::create_dir(&run).unwrap();
    let start = |name: &str| Vm::start(options(&run, name, &[""]));
    let vms = ["a", "b", "c"].map(start);
    let all_have = |links: u64| {
        eventually("all have links", || {
            vms.iter().all(|vm| vm.links() == links)
        });
    };
    all_have(2);
    fs::remove_dir_all(&run).unwrap();
    thread::sleep(Duration::from_millis(300));
    all_have(2);
    fs::create_dir(&run).unwrap();
    for name in ["a", "b", "c"] {
        assert!(soon(NOTICE, || run.join(name).exists()), "{name}");
    }
    // They find each other as before.
    let d = start("d");
    eventually("one more", || d.links() == 3);
    all_have(3);
    d.stop();
    eventually("it is gone", || vms.iter().all(|vm| vm.links() == 2));
    for vm in &vms {
        vm.device.reset();
        all_have(2);
    }
    for vm in vms {
        vm.stop();
    }
}

fn limit(resource: i32, limit: u64) {
    // SAFETY: a limit of zeros is a valid one, and it outlives the calls.
    unsafe {
        let mut now: libc::rlimit = zeroed();
        assert_eq!(libc::getrlimit(resource as _, &mut now), 0);
        now.rlim_cur = limit.min(now.rlim_max);
        assert_eq!(libc::setrlimit(resource as _, &now), 0);
    }
}

/// A VM whose device is made, but makes no links before `resume`.
fn held(folder: &Path, name: &str, peers: &[&str]) -> Vm {
    let state = Vm::start(options(folder, name, peers)).device.state();
    let host = FakeHost::new();
    let config = options(folder, name, peers);
    let made = Device::new("test", config, host.clone(), Some(&state.unwrap()));
    let (device, mut fabric) = made.unwrap();
    let reaper = fabric.reaper().unwrap();
    thread::spawn(move || reaper.run());
    let thread = Some(thread::spawn(move || fabric.run()));
    Vm {
        device,
        host,
        thread,
    }
}

/// As many descriptors as a handshake needs, and some.
const LAST: usize = 24;
/// By then it has been tried again.
const NEXT_TRY: Duration = Duration::from_millis(250);

#[test]
fn whenever_descriptors_run_out_in_a_handshake_the_rest_goes_on() {
    alone("tests::faults::descriptors_run_out");
}

#[test]
#[ignore = "uses up the process's descriptors; run by whenever_descriptors_run_out_in_a_handshake_the_rest_goes_on"]
fn descriptors_run_out() {
    let scene = Scene::new();
    limit(libc::RLIMIT_NOFILE as i32, 256);
    let before = settled_descriptors();
    let mut attempts = 0;
    let mut counts = Vec::new();
    for free in 0..=LAST {
        let late = held(scene.folder.path(), "late", &["a"]);
        let mut hoard = Vec::new();
        while let Ok(file) = File::open("/dev/null") {
            hoard.push(file);
        }
        // There are just so many descriptors when it joins.
        let left = hoard.len().saturating_sub(free);
        hoard.truncate(left);
        late.device.resume();
        // The last ones are enough.
        let patience = if free == LAST { PATIENCE } else { NEXT_TRY };
        let is_up = soon(patience, || late.links() == 1 && scene.vm.links() == 2);
        attempts += late.device.counters().connections_made;
        counts.push(u8::from(is_up));
        assert_eq!((scene.vm.link_state(0), scene.vm.generation(0)), (UP, 1));
        assert!(scene.vm.host.store(BAR0 + 0x2004, 0));
        assert_eq!(scene.good.vectors(), scene.expected);
        drop(hoard);
        eventually("it joins when there are some", || {
            late.links() == 1 && scene.vm.links() == 2
        });
        let errors = [&scene.vm, &late].map(|vm| vm.device.counters().protocol_errors);
        assert_eq!(errors, [0, 0], "nobody broke the protocol");
        late.stop();
        eventually("it is gone", || scene.vm.links() == 1);
    }
    println!("links with 0, 1, .. descriptors: {counts:?}; {attempts} attempts");
    assert_eq!((counts[0], *counts.last().unwrap()), (0, 1));
    assert!(settled_descriptors() <= before);
    scene.is_as_before();
}

/// What this process has mapped, in bytes.
fn mapped() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').next().unwrap().parse().unwrap();
    pages * page_size().unwrap() as u64
}

#[test]
fn without_memory_for_a_window_a_peer_waits_and_the_rest_goes_on() {
    alone("tests::faults::no_memory");
}

#[test]
#[ignore = "limits the process's memory; run by without_memory_for_a_window_a_peer_waits_and_the_rest_goes_on"]
fn no_memory() {
    let scene = Scene::new();
    let late = held(scene.folder.path(), "late", &["a"]);
    let window = Window::create(WINDOW, false).unwrap();
    let bell = eventfd();
    let (low, high) = (scene.connect(), scene.connect());
    let before = settled_descriptors();
    // Enough for all but a window.
    limit(libc::RLIMIT_AS as i32, mapped() + WINDOW / 2);
    // The device is to make a window, and to map one.
    high.hello(HIGH);
    assert_eq!(high.end(), Some(Bye::Internal));
    low.hello(LOW);
    assert!(matches!(low.next(), Some((Message::Hello(_), _))));
    let offered = [window.file().as_raw_fd(), bell.as_raw_fd()];
    low.send(OFFER, &offered);
    assert_eq!(low.end(), Some(Bye::Internal));
    late.device.resume();
    let made = || late.device.counters().connections_made;
    eventually("it tries again and again", || made() >= 3);
    assert_eq!(late.links(), 0);
    assert_eq!(scene.vm.links(), 1);
    scene.is_unharmed();
    limit(libc::RLIMIT_AS as i32, u64::MAX);
    eventually("there is memory", || {
        late.links() == 1 && scene.vm.links() == 2
    });
    let counters = scene.vm.device.counters();
    assert_eq!((counters.protocol_errors, counters.host_errors), (0, 0));
    late.stop();
    drop((low, high));
    eventually("it is gone", || scene.vm.links() == 1);
    assert!(settled_descriptors() < before);
    scene.is_as_before();
}

#[test]
fn without_huge_pages_there_is_no_link_and_the_rest_goes_on() {
    let free = fs::read_to_string("/proc/meminfo").unwrap();
    let free = free
        .lines()
        .find(|line| line.starts_with("HugePages_Free:"));
    if free.is_some_and(|line| !line.ends_with(" 0")) {
        println!("SKIPPED: this host has free huge pages");
        return;
    }
    keep_log();
    let folder = tempfile::tempdir().unwrap();
    let start = |name: &str, first, hugepages, peers: &[&str]| {
        Vm::start(Config {
            hugepages,
            gid: gid(first),
            ..options(folder.path(), name, peers)
        })
    };
    let b = start("b", 9, true, &[]);
    // The smaller GID makes the window, of pages that its options say.
    let normal = start("normal", 1, false, &["b"]);
    normal.eventually_up(0);
    b.eventually_up(0);
    let a = start("a", 2, true, &["b"]);
    let made = || a.device.counters().connections_made;
    eventually("it tries again and again", || made() >= 3);
    assert_eq!((a.links(), b.links()), (0, 1));
    let path = folder.path().join("b");
    let words = ["huge pages (are there enough?)", path.to_str().unwrap()];
    assert!(logged(&words) >= 1, "it says why");
    a.stop();
    assert_eq!((b.link_state(0), b.generation(0)), (UP, 1));
    assert_eq!(b.device.counters().protocol_errors, 0);
    b.stop();
    normal.stop();
}

#[test]
fn both_ends_restart_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let a = || options(folder.path(), "a", &["b"]);
    let b = || options(folder.path(), "b", &["a"]);
    let third = Vm::start(options(folder.path(), "c", &["a", "b"]));
    let mut vms = [Vm::start(a()), Vm::start(b())];
    for round in 0..20 {
        eventually("all are linked", || {
            vms.iter().all(|vm| vm.links() == 2) && third.links() == 2
        });
        for vm in &vms {
            vm.claim(0);
        }
        let [old_a, old_b] = vms;
        let restart = |vm: Vm, config: Config| {
            thread::spawn(move || {
                // By turns orderly and not.
                if round % 2 == 0 {
                    vm.stop();
                } else {
                    drop(vm);
                }
                Vm::start(config)
            })
        };
        let restarted = [restart(old_a, a()), restart(old_b, b())];
        vms = restarted.map(|thread| thread.join().unwrap());
    }
    // The same without the processes' end: both are reset while both hold the window.
    for round in 1..=6 {
        eventually("all are linked", || {
            vms.iter().all(|vm| vm.links() == 2) && third.links() == 2
        });
        for vm in &vms {
            vm.claim(0);
            vm.claim(1);
        }
        thread::scope(|scope| {
            for vm in &vms {
                scope.spawn(|| vm.device.reset());
            }
        });
        for vm in &vms {
            assert_eq!(vm.device.counters().resets, round);
        }
    }
    eventually("all are linked", || {
        vms.iter().all(|vm| vm.links() == 2) && third.links() == 2
    });
    for vm in vms {
        vm.stop();
    }
    third.stop();
}

#[test]
fn a_link_that_flaps() {
    alone("tests::faults::up_and_down_again_and_again");
}

#[test]
#[ignore = "counts the process's descriptors; run by a_link_that_flaps"]
fn up_and_down_again_and_again() {
    let folder = tempfile::tempdir().unwrap();
    // The same GID all the time, so that the place in the table is the same, too.
    let hub = Vm::start(options(folder.path(), "hub", &[]));
    let calm = Vm::start(options(folder.path(), "calm", &["hub"]));
    hub.eventually_up(0);
    let flapping = Vm::start(Config {
        gid: gid(9),
        ..options(folder.path(), "flapping", &["hub"])
    });
    let before = settled_descriptors();
    let start = Instant::now();
    // Each time it has to wait twice as long: 12.7 s in all.
    for generation in 1..=7 {
        eventually("up", || {
            hub.link_state(1) == UP && hub.generation(1) == generation && flapping.links() == 1
        });
        let claims = generation % 3 == 0;
        if claims {
            hub.claim(1);
        }
        flapping.device.reset();
        if claims {
            eventually("lost", || hub.link_state(1) == LOST);
            hub.let_go(1);
        }
    }
    eventually("up", || hub.generation(1) == 8 && flapping.links() == 1);
    println!("7 times down and up in {:?}", start.elapsed());
    let counters = hub.device.counters();
    assert_eq!((counters.links_up, counters.links_lost), (9, 7));
    assert_eq!(counters.links_reset, 2);
    assert_eq!((counters.host_errors, counters.protocol_errors), (0, 0));
    assert_eq!((hub.link_state(0), hub.generation(0)), (UP, 1));
    assert_eq!((calm.link_state(0), calm.generation(0)), (UP, 1));
    assert_eq!(settled_descriptors(), before);
    let (mut ups, mut downs) = (0, 0);
    eventually("all are told", || {
        for (kind, link) in hub.host.event_kinds() {
            match kind {
                EventKind::LinkUp if link == Some(1) => ups += 1,
                EventKind::LinkDown if link == Some(1) => downs += 1,
                _ => {}
            }
        }
        (ups, downs) == (8, 7)
    });
    for vm in [hub, calm, flapping] {
        vm.stop();
    }
}

#[test]
fn a_peer_comes_back_under_another_name() {
    let folder = tempfile::tempdir().unwrap();
    let a = Vm::start(options(folder.path(), "a", &["b"]));
    let start = |first| {
        Vm::start(Config {
            gid: gid(first),
            ..options(folder.path(), "b", &[])
        })
    };
    let name = |link| (a.link(link, 0x10) & 0xff, a.generation(link));
    let first = start(1);
    a.eventually_up(0);
    assert_eq!(name(0), (1, 1));
    a.claim(0);
    first.stop();
    eventually("lost", || a.link_state(0) == LOST);
    // The old name stays as long as the guest holds the window.
    let second = start(2);
    a.eventually_up(1);
    assert_eq!((name(0), name(1)), ((1, 1), (2, 1)));
    a.let_go(0);
    eventually("down", || a.link_state(0) == DOWN);
    second.stop();
    eventually("down", || a.link_state(1) == DOWN);
    // Not claimed: the next name gets the first place that is free. The last name's place is the second.
    let third = start(3);
    a.eventually_up(0);
    assert_eq!(name(0), (3, 2));
    third.stop();
    eventually("down", || a.link_state(0) == DOWN);
    let second = start(2);
    a.eventually_up(1);
    assert_eq!(name(1), (2, 2));
    second.stop();
    a.stop();
}

#[test]
fn two_peers_of_one_name_have_a_link_in_turn() {
    let folder = tempfile::tempdir().unwrap();
    let hub = Vm::start(options(folder.path(), "hub", &["x", "y"]));
    let start = |name: &str| {
        Vm::start(Config {
            gid: gid(1),
            ..options(folder.path(), name, &["hub"])
        })
    };
    let x = start("x");
    x.eventually_up(0);
    hub.eventually_up(0);
    let y = start("y");
    assert!(!soon(Duration::from_millis(1500), || y.links() == 1));
    let is_first = |vm: &Vm| (vm.link_state(0), vm.generation(0)) == (UP, 1);
    assert!(
        is_first(&x) && is_first(&hub),
        "the first one is not harmed"
    );
    assert_eq!(hub.links(), 1);
    assert_eq!(hub.device.counters().handshakes_refused, 0);
    x.stop();
    eventually("the other one's turn", || {
        y.links() == 1 && hub.generation(0) == 2
    });
    y.stop();
    hub.stop();
}
