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
fn a_vmm_finds_what_its_configuration_space_says() {
    let folder = tempfile::tempdir().unwrap();
    let vm = Vm::start(options(folder.path(), "a", &[]));
    assert_eq!((Device::VENDOR, Device::DEVICE), (0x1af4, 0x1110));
    let capability = [16, 1, b'I', b'V', b'S', b'M', 0x10, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(Device::VENDOR_CAPABILITY, capability);
    assert_eq!(vm.device.windows_size(), 4 * WINDOW);
    assert_eq!(vm.device.vectors(), 2);
    assert_ne!(vm.read(8), 0);
    assert_eq!(vm.read(Device::REGISTERS_SIZE), !0);
}

#[test]
fn a_bar_is_only_where_it_can_be() {
    let folder = tempfile::tempdir().unwrap();
    let vm = Vm::start(options(folder.path(), "a", &[]));
    for wrong in [0, BAR0 + 0x1000, u64::MAX - 0x3fff] {
        assert!(vm.device.place_registers(Some(wrong)).is_err());
    }
    for wrong in [0, BAR2 + WINDOW, !(4 * WINDOW - 1)] {
        assert!(vm.device.place_windows(Some(wrong)).is_err());
    }
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
}

#[test]
fn options_and_state_survive_json() {
    let folder = tempfile::tempdir().unwrap();
    let vm = Vm::start(options(folder.path(), "a", &["b"]));
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
                0usize..4,
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
        for (kind, offset, mut data) in accesses {
            match kind {
                0 => drop(device.place_registers(Some(offset))),
                1 => drop(device.place_windows(Some(offset))),
                2 => device.write(offset, &data),
                _ => device.read(offset, &mut data),
            }
        }
        let mut data = [0; 4];
        device.read(0x10, &mut data);
        prop_assert_eq!(&data, b"IVSM");
    }
}
