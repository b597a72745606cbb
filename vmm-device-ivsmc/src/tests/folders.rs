// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Peers that are found in folders.

use std::fs;
use std::os::unix::net::UnixListener;

use super::*;

/// Options of a device in `folder` that joins whoever is there.
fn member(folder: &Path, name: &str) -> Config {
    options(folder, name, &[""])
}

#[test]
fn all_in_a_folder_join_each_other() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    fs::create_dir(folder.path().join("sub")).unwrap();
    let mut vms = Vec::new();
    for name in ["a", "b", "c", "d"] {
        vms.push(Vm::start(member(folder.path(), name)));
        let others = vms.len() as u64 - 1;
        for vm in &vms {
            eventually("all have links", || vm.links() == others);
        }
    }
    // It neither joins itself nor what is no socket.
    for vm in &vms {
        assert_eq!(vm.device.counters().handshakes_refused, 0);
    }
    vms.remove(1).stop();
    for vm in &vms {
        eventually("it is gone", || vm.links() == 2);
    }
    vms.push(Vm::start(options(folder.path(), "b", &[])));
    for vm in &vms {
        eventually("it is found again", || vm.links() == 3);
    }
    vms.into_iter().for_each(Vm::stop);
}

#[test]
fn sockets_and_folders_can_be_mixed_and_need_not_exist_yet() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let a = Vm::start(options(folder.path(), "a", &["folder", "socket", "either"]));
    thread::sleep(Duration::from_millis(200));
    let b = Vm::start(options(folder.path(), "socket", &[]));
    b.eventually_up(0);
    fs::create_dir(at("folder")).unwrap();
    let c = Vm::start(options(&at("folder"), "c", &[]));
    c.eventually_up(0);
    let d = Vm::start(options(folder.path(), "either", &[]));
    d.eventually_up(0);
    eventually("all three", || a.links() == 3);
    // What was a socket becomes a folder, and a socket again.
    d.stop();
    fs::create_dir(at("either")).unwrap();
    let d = Vm::start(options(&at("either"), "d", &[]));
    d.eventually_up(0);
    d.stop();
    eventually("down", || a.links() == 2);
    fs::remove_dir(at("either")).unwrap();
    let d = Vm::start(options(folder.path(), "either", &[]));
    d.eventually_up(0);
}

#[test]
fn a_folder_that_goes_or_is_replaced_is_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("folder")).unwrap();
    let a = Vm::start(options(folder.path(), "a", &["folder"]));
    let b = Vm::start(options(&at("folder"), "b", &[]));
    b.eventually_up(0);
    fs::rename(at("folder"), at("old")).unwrap();
    thread::sleep(Duration::from_millis(200));
    assert_eq!((a.links(), b.links()), (1, 1), "a link that is up stays");
    // In the new folder there is something else where b would make its socket again.
    fs::create_dir_all(at("new/b")).unwrap();
    fs::rename(at("new"), at("folder")).unwrap();
    let c = Vm::start(options(&at("folder"), "c", &[]));
    c.eventually_up(0);
    // It is not in the folder any more: nobody joins it again.
    b.device.reset();
    eventually("gone", || a.links() == 1);
    assert!(!soon(Duration::from_millis(1500), || b.links() == 1));
    c.stop();
    fs::remove_dir_all(at("folder")).unwrap();
    fs::rename(at("old"), at("folder")).unwrap();
    eventually("it is in the folder again", || b.links() == 1);
    assert_eq!(a.device.counters().handshakes_refused, 0);
}

#[test]
fn a_busy_folder_does_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let a = Vm::start(member(folder.path(), "a"));
    // Nobody listens on these any more.
    for n in 0..200 {
        drop(UnixListener::bind(folder.path().join(format!("stale{n}"))).unwrap());
    }
    for n in 0..20000 {
        let file = folder.path().join(format!("file{}", n % 7));
        fs::write(&file, "").unwrap();
        fs::remove_file(&file).unwrap();
    }
    let b = Vm::start(options(folder.path(), "b", &[]));
    b.eventually_up(0);
    a.eventually_up(0);
    a.stop();
}
