// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Options as text and as JSON, and states from a file.

use std::path::Path;

use super::Bytes;
use crate::test_utils::FakeHost;
use crate::{Config, Device, DeviceState, Gid, StateError};

/// The first byte says what the others are: a command line's options, options in JSON, or a device's state in JSON.
pub fn configuration(input: &[u8]) {
    let mut bytes = Bytes(input);
    let kind = bytes.u8();
    let Ok(text) = str::from_utf8(bytes.0) else {
        return;
    };
    match kind {
        b'o' => options(text),
        b'j' => json(text),
        b's' => state(text),
        _ => {}
    }
}

/// Options are refused with a message that names the device, or they are ones that a device can be made of.
fn options(text: &str) {
    let mut own = Vec::new();
    let parsed = Config::parse_with(text, |option, value| {
        let is_own = option == "id";
        if is_own {
            own.push(value.to_owned());
        }
        is_own
    });
    assert!(own.len() <= 1, "an option twice");
    match parsed {
        Ok(config) => check(&config),
        Err(error) => assert!(error.to_string().starts_with("ivsmc: ")),
    }
}

fn json(text: &str) {
    if let Ok(config) = serde_json::from_str::<Config>(text) {
        check(&config);
    }
}

/// What holds of options that are valid, and that JSON keeps them all.
fn check(config: &Config) {
    if let Err(error) = config.validate() {
        assert!(error.to_string().starts_with("ivsmc: "));
        return;
    }
    let json = serde_json::to_string(config).unwrap();
    assert_eq!(&serde_json::from_str::<Config>(&json).unwrap(), config);
    assert!(config.path.as_os_str().len() <= 107);
    assert!(config.peers.len() <= usize::from(config.max_peers));
    assert!(config.window_size.is_power_of_two() && config.window_shift() >= 21);
    assert!(config.snapshot_budget() >= 8 << 20);
    // As BAR2 has it.
    let windows = u64::from(config.max_peers) * config.window_size;
    assert!(windows.next_power_of_two() <= 1 << 40);
    assert_ne!(config.gid.map(|gid| gid.is_null()), Some(true));
}

/// A state is refused, or a device of it has one that is the same ever after, in which nothing is up.
fn state(text: &str) {
    let Ok(state) = serde_json::from_str::<DeviceState>(text) else {
        return;
    };
    let Some(first) = restored(&state) else {
        return;
    };
    let second = restored(&first).expect("a device's own state is refused");
    assert_eq!(first, second);
    let json = serde_json::to_string(&first).unwrap();
    assert_eq!(serde_json::from_str::<DeviceState>(&json).unwrap(), first);
}

/// The state of a device that was restored from a state.
fn restored(state: &DeviceState) -> Option<DeviceState> {
    let config = Config {
        window_size: 4 << 20,
        max_peers: 3,
        gid: Some(Gid::from_bytes([1; 16])),
        ..Config::new(Path::new("/nowhere"))
    };
    let host = FakeHost::new();
    let device = Device::make("fuzzed", config, host.clone(), Some(state), None).ok()?;
    device.place_registers(Some(0xe000_0000)).unwrap();
    device.place_windows(Some(0x40_0000_0000)).unwrap();
    device.resume();
    let read = |offset: u64| {
        let mut word = [0; 4];
        device.read(offset, &mut word);
        u32::from_le_bytes(word)
    };
    let links = (0..3).map(|link| read(0x1000 + 64 * link));
    let lost = links.inspect(|state| assert_ne!(*state, 1)).sum::<u32>() / 2;
    assert_eq!(host.windows().len() as u32, lost);
    assert_eq!((host.doorbells().len(), device.counters().links), (0, 0));
    let taken = match device.state() {
        Ok(state) => Some(state),
        Err(StateError::TooFull { .. }) => None,
        Err(error) => panic!("{error}"),
    };
    device.close();
    assert!(host.is_empty());
    taken
}
