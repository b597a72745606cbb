// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the guest and the VMM see of a single device.

use std::fs;

use super::*;
use crate::Error;
use proptest::collection;
use proptest::prelude::*;

fn make(config: Config) -> Result<Arc<Device>, Error> {
    Device::new("a", config, FakeHost::new(), None).map(|(device, _fabric)| device)
}

fn message(config: Config) -> String {
    make(config)
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default()
}

#[test]
fn a_guest_that_knows_ivshmem_finds_it() {
    let folder = tempfile::tempdir().unwrap();
    let vm = Vm::start(options(folder.path(), "a", &[]));
    let read = |at: usize| vm.device.config_read(at / 4);
    assert_eq!(read(0), 0x1110_1af4);
    assert_eq!(read(8), 0x0500_0001);
    assert_eq!(read(0x2c), 0x1100_1af4);
    assert_eq!(read(0x3c), 0);
    assert_eq!(read(0x34), 0x40);
    assert_eq!(read(0x40), 0x0001_5011);
    assert_eq!((read(0x44), read(0x48)), (1, 0x801));
    assert_eq!(read(0x50), 0x0110_0009);
    assert_eq!((read(0x54), read(0x58), read(0x5c)), (0x4d53_5649, 0x10, 0));
    assert_eq!(vm.device.bars()[2].size, 4 * WINDOW);
    assert_eq!(vm.device.lines(), 7);
    assert_eq!(read(0x18), (BAR2 as u32) | 0xc);
    assert_ne!(vm.read(8), 0);
    assert_eq!(vm.read_bar(2, 0), !0);
}

#[test]
fn every_error_of_the_socket_says_what_would_do() {
    let folder = tempfile::tempdir().unwrap();
    let config = options(folder.path(), "a", &[]);
    let first = make(config.clone()).unwrap();
    let (_device, _fabric) =
        Device::new("b", options(folder.path(), "b", &[]), FakeHost::new(), None).unwrap();
    for (name, words) in [
        ("b", "in use by another process"),
        ("no/a", "folder of"),
        ("b/a", "folder of"),
    ] {
        let message = message(options(folder.path(), name, &[]));
        assert!(
            message.contains(words) && message.contains("path="),
            "{message}"
        );
    }
    fs::write(folder.path().join("file"), "").unwrap();
    assert!(message(options(folder.path(), "file", &[])).contains("not a socket"));
    let message = message(Config::new("/sys/ivsmc-test"));
    assert!(
        message.contains("no permission") && message.contains("path=/sys/"),
        "{message}"
    );
    assert!(matches!(
        make(Config {
            vectors: 0,
            ..config
        }),
        Err(Error::Config(_))
    ));
    drop(first);
}

#[test]
fn the_socket_s_file_goes_with_the_device() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    let vm = Vm::start(options(folder.path(), "a", &[]));
    assert!(path.exists());
    vm.stop();
    assert!(!path.exists());
    drop(make(options(folder.path(), "a", &[])).unwrap());
    assert!(!path.exists(), "nor does a device leave it that never ran");
}

#[test]
fn a_state_of_another_device_does_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let big = Config {
        max_peers: 64,
        vectors: 16,
        ..options(folder.path(), "a", &[])
    };
    let state = Vm::start(big).device.state().unwrap();
    let vm = Vm::start_with(options(folder.path(), "a", &[]), Some(&state));
    assert_eq!((vm.read(0x18), vm.read(0x1c)), (3, 2));
    assert_eq!(vm.device.config_read(0x40 / 4), 0x0001_5011);
}

#[test]
fn options_and_state_survive_json() {
    let folder = tempfile::tempdir().unwrap();
    let vm = Vm::start(options(folder.path(), "a", &["b"]));
    vm.enable_msix();
    let state = vm.device.state().unwrap();
    let text = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<DeviceState>(&text).unwrap(), state);
    let config: Config = serde_json::from_str(r#"{"path":"/run/a"}"#).unwrap();
    assert_eq!(config, Config::new("/run/a"));
    assert!(serde_json::from_str::<Config>("{}").is_err(), "no path");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a guest does to a device, nothing panics and the device still says who it is.
    #[test]
    fn a_hostile_guest(
        accesses in collection::vec(
            (
                0usize..5,
                prop_oneof![0u64..0x100, 0x7f0u64..0x1100, 0u64..0x4010, any::<u64>()],
                collection::vec(any::<u8>(), 0..17),
            ),
            0..200,
        ),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let host = FakeHost::new();
        let (device, _fabric) =
            Device::new("a", options(folder.path(), "a", &[]), host.clone(), None).unwrap();
        for (bar, offset, mut data) in accesses {
            if bar == 4 {
                for each in device.config_write(offset as usize % 70, data.len() % 5, &data) {
                    prop_assert!(device.move_bar(each.bar, each.new).is_ok());
                }
                device.config_read(offset as usize);
            } else {
                device.bar_write(bar, offset, &data);
                device.bar_read(bar, offset, &mut data);
            }
        }
        prop_assert_eq!(device.config_read(0), 0x1110_1af4);
        prop_assert_eq!(device.config_read(0x44 / 4), 1);
        let mut data = [0; 4];
        device.bar_read(0, 0x10, &mut data);
        prop_assert_eq!(&data, b"IVSM");
    }
}
