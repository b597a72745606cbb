// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Who may join: devices of the same user, of root, and of users that both ends allow.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;
use crate::fabric::socket::own_user;
use crate::{Allowed, EventKind};

/// How long to wait for what should not come.
const A_MOMENT: Duration = Duration::from_millis(400);

/// Starts a VM whose device, from its making to its end, is another user's.
fn start_as(user: u32, config: Config) -> Vm {
    start_in(user, user, &[], config)
}

/// Starts one whose device is that of a process of this group, with these supplementary ones.
fn start_in(user: u32, group: u32, groups: &'static [u32], config: Config) -> Vm {
    let host = FakeHost::new();
    let become_user = move || {
        // SAFETY: plain system calls for this thread alone; the list outlives its call.
        let changed = unsafe {
            let listed = libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr());
            listed | libc::syscall(libc::SYS_setresgid, group, group, group)
        };
        assert_eq!(changed, 0);
        // SAFETY: plain system call. Made like this, and not by libc, it changes this thread alone.
        let changed = unsafe { libc::syscall(libc::SYS_setresuid, user, user, user) };
        assert_eq!(changed, 0);
    };
    let make = || {
        become_user();
        Device::new("test", config, host.clone(), None).unwrap()
    };
    let (device, mut fabric) = thread::scope(|scope| scope.spawn(make).join()).unwrap();
    let reaper = fabric.reaper().unwrap();
    thread::spawn(move || reaper.run());
    place(&device);
    device.resume();
    let thread = Some(thread::spawn(move || {
        become_user();
        fabric.run();
    }));
    Vm {
        device,
        host,
        thread,
    }
}

/// Options of a device that allows these users.
fn allowing(folder: &Path, name: &str, peers: &[&str], allow: &[u32]) -> Config {
    Config {
        allow: allow.iter().copied().map(Allowed::from).collect(),
        ..options(folder, name, peers)
    }
}

/// A folder in which every user can make sockets.
fn open_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
    folder
}

/// Whether other users' devices can be started here.
fn is_root() -> bool {
    let is_root = own_user() == 0;
    if !is_root {
        println!("SKIPPED: only root can be another user");
    }
    is_root
}

#[test]
fn both_ends_have_to_allow_each_other() {
    if !is_root() {
        return;
    }
    let is_linked = |allow_b: &[u32], allow_a: &[u32], joins: bool, patience| {
        let folder = open_folder();
        let path = folder.path();
        let (a_joins, b_joins) = if joins {
            (&["b"][..], &[][..])
        } else {
            (&[][..], &["a"][..])
        };
        let a = start_as(1001, allowing(path, "a", a_joins, allow_b));
        let b = start_as(1002, allowing(path, "b", b_joins, allow_a));
        let is_linked = soon(patience, || a.links() == 1 && b.links() == 1);
        let refused = [&a, &b].map(|vm| {
            let events = vm.host.events();
            let mut refused = events
                .iter()
                .filter(|each| each.kind == EventKind::Refused)
                .map(|each| each.reason.clone());
            refused.next()
        });
        a.stop();
        b.stop();
        (is_linked, refused)
    };
    for joins in [true, false] {
        let both = is_linked(&[1002], &[1001], joins, PATIENCE);
        assert_eq!(both, (true, [None, None]));
        assert!(!is_linked(&[1002], &[1003, 1000], joins, A_MOMENT).0);
        assert!(!is_linked(&[1000], &[1001], joins, A_MOMENT).0);
    }
    // Who refuses says so, and how to admit the other one; it is not needed that the other one hears of it.
    let (linked, [a, b]) = is_linked(&[1003], &[1001], false, A_MOMENT);
    assert_eq!((linked, b), (false, None));
    let reason = a.unwrap();
    assert!(
        reason.contains("user 1002") && reason.contains("allow=1002"),
        "{reason}"
    );
}

/// By a range of users, by the process's group, and by one of its supplementary ones; each end looks for itself.
#[test]
fn ranges_and_groups_are_admitted() {
    if !is_root() {
        return;
    }
    if env::var_os(RUNNER).is_some() {
        eprintln!("skipped: qemu-user has no SO_PEERGROUPS");
        return;
    }
    let is_linked = |allow: &[&str], patience| {
        let folder = open_folder();
        let path = folder.path();
        let mut config = options(path, "a", &["b"]);
        config.allow = allow.iter().map(|text| text.parse().unwrap()).collect();
        let a = start_as(1001, config);
        let b = start_in(1002, 2002, &[990, 991], allowing(path, "b", &[], &[1001]));
        let is_linked = soon(patience, || a.links() == 1 && b.links() == 1);
        let events = a.host.events();
        a.stop();
        b.stop();
        let refused = events.iter().find(|each| each.kind == EventKind::Refused);
        (is_linked, refused.map(|each| each.reason.clone()))
    };
    for allow in [
        &["1002-1010"][..],
        &["group:2002"],
        &["group:990"],
        &["7", "group:980-995"],
    ] {
        assert_eq!(is_linked(allow, PATIENCE), (true, None), "{allow:?}");
    }
    for allow in [&["1003-1010"][..], &["2002"], &["990"], &["group:1002"]] {
        let (linked, refused) = is_linked(allow, A_MOMENT);
        let refused = refused.unwrap_or_default();
        assert!(!linked && refused.contains("of group 2002"), "{refused}");
    }
}

#[test]
fn root_is_admitted_and_admits_whom_it_allows() {
    if !is_root() {
        return;
    }
    let folder = open_folder();
    let path = folder.path();
    let user = start_as(1001, options(path, "user", &[]));
    let root = Vm::start(options(path, "root", &["user"]));
    eventually("refused by root", || {
        root.device.counters().handshakes_refused > 0
    });
    assert_eq!(root.links(), 0);
    root.stop();
    assert_eq!(user.device.counters().handshakes_refused, 0);
    let root = Vm::start(allowing(path, "root", &["user"], &[1000, 1001]));
    root.eventually_up(0);
    user.eventually_up(0);
    let same = start_as(1001, options(path, "same", &["user"]));
    same.eventually_up(0);
    user.stop();
    root.stop();
}

#[test]
fn the_file_lets_others_connect_only_if_any_are_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let mode = |config: &Config| {
        let vm = Vm::start(config.clone());
        let mode = || fs::metadata(&config.path).unwrap().mode() & 0o777;
        let first = mode();
        // Also after somebody has removed it.
        fs::remove_file(&config.path).unwrap();
        eventually("it is made again", || config.path.exists());
        thread::sleep(Duration::from_millis(20));
        assert_eq!(mode(), first);
        vm.stop();
        first
    };
    let umask = mode(&options(folder.path(), "a", &[]));
    assert_eq!(umask & 0o002, 0, "the tests run with a strange umask");
    assert_eq!(mode(&allowing(folder.path(), "a", &[], &[1000])), 0o666);
}
