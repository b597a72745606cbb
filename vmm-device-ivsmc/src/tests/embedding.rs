// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a VMM can rely on: a device that never ran leaves nothing behind, its descriptors go to no other program, and
//! what a peer does wrong is not counted as its fault.

use std::fs;
use std::os::fd::AsRawFd;

use super::hostile::{ACCEPT, HIGH, LOW, OFFER, Scene, eventfd};
use super::*;
use crate::Window;
use crate::fabric::wire::Bye;
use crate::test_utils::{keep_log, logged};

/// Finding 5.5: a VM that was restored and deleted, or that never came to run, joined its peers as it went.
#[test]
fn a_device_whose_vm_never_ran_joins_and_accepts_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let peer = Vm::start(options(folder.path(), "peer", &["a"]));
    let host = FakeHost::new();
    let config = options(folder.path(), "a", &["peer"]);
    let (device, fabric) = Device::new("test", config, host.clone(), None).unwrap();
    let thread = Some(thread::spawn(move || fabric.run()));
    let vm = Vm {
        device,
        host,
        thread,
    };
    place(&vm.device);
    assert!(!soon(Duration::from_millis(500), || {
        let counters = vm.device.counters();
        counters.connections_made + counters.connections_accepted > 0
    }));
    let host = vm.host.clone();
    vm.stop();
    assert_eq!(host.event_kinds(), [], "nothing has happened to it");
    let counters = peer.device.counters();
    assert_eq!((counters.connections_accepted, counters.links_up), (0, 0));
    assert!(!folder.path().join("a").exists());
    peer.stop();
}

/// Finding 5.10.
#[test]
fn a_device_that_cannot_be_made_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let peer = Vm::start(options(folder.path(), "peer", &["a"]));
    let a = Vm::start(options(folder.path(), "a", &[]));
    a.eventually_up(0);
    a.claim(0);
    // SAFETY: the window is mapped.
    unsafe { a.host.memory(BAR2).write_volatile(1) };
    let text = serde_json::to_string(&a.device.state().unwrap()).unwrap();
    a.stop();
    let text = text.replace("\"offset\":0", "\"offset\":4194304");
    let state = serde_json::from_str(&text).unwrap();
    let config = options(folder.path(), "a", &["peer"]);
    let made = Device::new("test", config, FakeHost::new(), Some(&state));
    let error = made.map(drop).unwrap_err().to_string();
    assert!(error.contains("larger than the window"), "{error}");
    assert!(!folder.path().join("a").exists());
    assert_eq!(peer.device.counters().connections_accepted, 0);
    peer.stop();
}

/// Finding 5.10.
#[test]
fn no_descriptor_goes_to_another_program() {
    alone("tests::embedding::every_descriptor_is_closed_on_exec");
}

#[test]
#[ignore = "looks at all descriptors of the process; run by no_descriptor_goes_to_another_program"]
fn every_descriptor_is_closed_on_exec() {
    let numbers = || {
        let entries = fs::read_dir("/proc/self/fd").unwrap();
        let number = |entry: fs::DirEntry| entry.file_name().to_string_lossy().parse().unwrap();
        let numbers: Vec<i32> = entries.map(|entry| number(entry.unwrap())).collect();
        numbers
    };
    let before = numbers();
    let folder = tempfile::tempdir().unwrap();
    let a = Vm::start(options(folder.path(), "a", &["b"]));
    let b = Vm::start(options(folder.path(), "b", &[]));
    a.eventually_up(0);
    b.eventually_up(0);
    let mut checked = 0;
    for fd in numbers() {
        // SAFETY: plain system call.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
        // (The one of the folder has been closed.)
        if flags >= 0 && !before.contains(&fd) {
            let what = fs::read_link(format!("/proc/self/fd/{fd}")).unwrap_or_default();
            assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC, "{what:?}");
            checked += 1;
        }
    }
    assert!(checked > 10, "{checked}");
    a.stop();
    b.stop();
}

/// Finding 5.3: a hundred of them silenced the log of failures that are the VMM's.
#[test]
fn what_is_no_eventfd_is_the_peers_fault_and_hides_nothing() {
    keep_log();
    let scene = Scene::new();
    let null = fs::File::open("/dev/null").unwrap();
    let window = Window::create(WINDOW, false).unwrap();
    for n in 0..120 {
        let client = scene.connect();
        if n % 2 == 0 {
            client.hello(LOW);
            client.send(OFFER, &[window.file().as_raw_fd(), null.as_raw_fd()]);
        } else {
            client.hello(HIGH);
            client.send(ACCEPT, &[null.as_raw_fd()]);
        }
        assert_eq!(client.end(), Some(Bye::Protocol));
    }
    let counters = || scene.vm.device.counters();
    assert_eq!(
        (counters().protocol_errors, counters().host_errors),
        (120, 0)
    );
    // And one of which KVM finds it out only when the BAR comes to its place, as it can be without /proc.
    scene.vm.device.place_registers(None).unwrap();
    let client = scene.connect();
    client.hello(LOW);
    let bell = eventfd();
    client.send(OFFER, &[window.file().as_raw_fd(), bell.as_raw_fd()]);
    eventually("it is a link", || scene.vm.links() == 2);
    scene.vm.host.refuse_doorbell(BAR0 + 0x2040);
    scene.vm.device.place_registers(Some(BAR0)).unwrap();
    eventually("it is none any more", || scene.vm.links() == 1);
    assert_eq!(
        (counters().protocol_errors, counters().host_errors),
        (121, 0)
    );
    // A failure of the VMM's is still logged.
    let words = ["put the windows back", "out of memory"];
    let before = logged(&words);
    scene.vm.host.fail_windows(true);
    scene.vm.device.place_windows(Some(2 * BAR2)).unwrap_err();
    assert_eq!(logged(&words), before + 1);
    scene.vm.host.fail_windows(false);
    scene.vm.device.place_windows(Some(BAR2)).unwrap();
    scene.is_as_before();
}
