// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Two guests that share memory through ivsmc devices, without a driver for them: what one writes through BAR2, the
//! other one reads.

use std::process::Child;

use test_infra::{
    Guest, GuestCommand, UbuntuDiskConfig, handle_child_output, kill_child, remote_command,
    remote_command_w_output, wait_until,
};

use crate::*;

const SOON: Duration = Duration::from_secs(30);

fn new_guest() -> Guest {
    Guest::new(Box::new(UbuntuDiskConfig::new(
        JAMMY_IMAGE_NAME.to_string(),
    )))
}

/// The options of a device that listens in the first guest's folder, and has the other one for its peer.
fn device(folder: &TempDir, name: &str, peer: &str) -> String {
    let folder = folder.as_path().display();
    format!("path={folder}/{name},peer={folder}/{peer},size=2M,max_peers=2,id=ivsmc0")
}

fn boot(guest: &Guest, options: &[&str]) -> Child {
    let mut command = GuestCommand::new(guest);
    command
        .args(["--api-socket", &temp_api_path(&guest.tmp_dir)])
        .args(["--cpus", "boot=2"])
        .default_memory()
        .args(["--kernel", direct_kernel_boot_path().to_str().unwrap()])
        .args(["--cmdline", DIRECT_KERNEL_BOOT_CMDLINE])
        .default_disks()
        .default_net()
        .args(options)
        .capture_output();
    command.spawn().unwrap()
}

/// One of the device's counters, of a VM that has the device.
fn counter(guest: &Guest, name: &str) -> u64 {
    let api_socket = temp_api_path(&guest.tmp_dir);
    let (success, counters, _) = remote_command_w_output(&api_socket, "counters", None);
    assert!(success);
    let counters: serde_json::Value = serde_json::from_slice(&counters).unwrap();
    counters["ivsmc0"][name].as_u64().unwrap()
}

/// Where the guest has the device, if it has one.
fn address(guest: &Guest) -> Option<String> {
    let devices = guest.ssh_command("lspci -D -n -d 1af4:1110").unwrap();
    devices.split_whitespace().next().map(str::to_owned)
}

/// Runs a program in the guest in which `bar(number, size)` is the device's BAR as memory.
fn run(guest: &Guest, program: &str) -> String {
    let address = address(guest).unwrap();
    let program = format!(
        r#"
import mmap, os
def bar(number, size):
    file = os.open(f"/sys/bus/pci/devices/{address}/resource{{number}}", os.O_RDWR | os.O_SYNC)
    return mmap.mmap(file, size)
{program}
"#
    );
    guest
        .ssh_command(&format!(
            "cat >ivsmc.py <<'EOF'\n{program}EOF\nsudo setpci -s {address} COMMAND=2:2; sudo python3 ivsmc.py"
        ))
        .unwrap()
}

/// What one guest writes into its only link's window, the other one reads.
fn check_window(from: &Guest, to: &Guest) {
    for guest in [from, to] {
        assert!(wait_until(SOON, || counter(guest, "links_up") >= 1));
    }
    let text = format!("written by {}", from.network.guest_ip0);
    run(
        from,
        &format!("text = b'{text}\\0'\nbar(2, 4 << 20)[4096:4096 + len(text)] = text"),
    );
    let read = run(
        to,
        "print(bar(2, 4 << 20)[4096:4160].split(b'\\0')[0].decode())",
    );
    assert_eq!(read.trim(), text);
}

fn check(mut children: [Child; 2], test: impl FnOnce() + panic::UnwindSafe) {
    let r = panic::catch_unwind(test);
    for child in &mut children {
        kill_child(child);
    }
    let [first, second] = children.map(|child| child.wait_with_output().unwrap());
    // It panics if the test has, and the second one's output is to be told, too.
    let told = || handle_child_output(r, &first);
    let r = panic::catch_unwind(panic::AssertUnwindSafe(told));
    handle_child_output(r, &second);
}

#[test]
fn test_ivsmc() {
    let (a, b) = (new_guest(), new_guest());
    let folder = TempDir::new_with_prefix("/tmp/ivsmc").unwrap();
    let children = [
        boot(&a, &["--ivsmc", &device(&folder, "a", "b")]),
        boot(&b, &["--ivsmc", &device(&folder, "b", "a")]),
    ];
    check(
        children,
        panic::AssertUnwindSafe(|| {
            a.wait_vm_boot().unwrap();
            b.wait_vm_boot().unwrap();
            check_window(&a, &b);
            check_window(&b, &a);
        }),
    );
}

#[test]
fn test_ivsmc_hotplug() {
    let (a, b) = (new_guest(), new_guest());
    let folder = TempDir::new_with_prefix("/tmp/ivsmc").unwrap();
    let options = device(&folder, "a", "b");
    let children = [
        boot(&a, &[]),
        boot(&b, &["--ivsmc", &device(&folder, "b", "a")]),
    ];
    check(
        children,
        panic::AssertUnwindSafe(|| {
            a.wait_vm_boot().unwrap();
            b.wait_vm_boot().unwrap();
            let api_socket = temp_api_path(&a.tmp_dir);
            for _ in 0..3 {
                assert_eq!(address(&a), None);
                assert!(remote_command(&api_socket, "add-ivsmc", Some(&options)));
                assert!(wait_until(SOON, || address(&a).is_some()));
                check_window(&b, &a);
                assert!(remote_command(&api_socket, "remove-device", Some("ivsmc0")));
                assert!(wait_until(SOON, || address(&a).is_none()));
                assert!(wait_until(SOON, || counter(&b, "links") == 0));
            }
        }),
    );
}

#[test]
fn test_snapshot_restore_ivsmc() {
    let (a, b) = (new_guest(), new_guest());
    let folder = TempDir::new_with_prefix("/tmp/ivsmc").unwrap();
    let children = [
        boot(&a, &["--ivsmc", &device(&folder, "a", "b")]),
        boot(&b, &["--ivsmc", &device(&folder, "b", "a")]),
    ];
    let [mut source, peer] = children;
    let snapshot = temp_snapshot_dir_path(&a.tmp_dir);
    let api_socket = temp_api_path(&a.tmp_dir);
    let r = panic::catch_unwind(panic::AssertUnwindSafe(|| {
        a.wait_vm_boot().unwrap();
        b.wait_vm_boot().unwrap();
        check_window(&a, &b);
        assert!(remote_command(&api_socket, "pause", None));
        let url = format!("file://{snapshot}");
        assert!(remote_command(&api_socket, "snapshot", Some(&url)));
    }));
    kill_child(&mut source);
    let output = source.wait_with_output().unwrap();
    handle_child_output(r, &output);

    let restored = GuestCommand::new(&a)
        .args(["--api-socket", &api_socket])
        .args(["--restore", &format!("source_url=file://{snapshot}")])
        .capture_output()
        .spawn()
        .unwrap();
    check(
        [restored, peer],
        panic::AssertUnwindSafe(|| {
            assert!(wait_until(SOON, || remote_command(
                &api_socket,
                "info",
                None
            )));
            // It has joined nobody before it runs.
            assert_eq!(counter(&b, "links"), 0);
            assert!(remote_command(&api_socket, "resume", None));
            check_window(&b, &a);
        }),
    );
    fs::remove_dir_all(&snapshot).unwrap();
}
