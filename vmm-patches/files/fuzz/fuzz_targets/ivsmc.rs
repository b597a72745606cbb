// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a guest does to an ivsmc device: accesses of any width anywhere in BAR0, and BARs that move.

#![no_main]

use std::io;
use std::sync::{Arc, LazyLock};
use std::thread;

use libfuzzer_sys::fuzz_target;
use vmm_device_ivsmc::{Config, Device, Host, Window};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::tempdir::TempDir;

/// A VMM without a VM.
struct NoHost;

impl Host for NoHost {
    fn map_window(&self, _: usize, _: u64, _: &Window) -> io::Result<()> {
        Ok(())
    }

    fn unmap_window(&self, _: usize, _: u64, _: &Window) -> io::Result<()> {
        Ok(())
    }

    fn set_doorbell(&self, _: u64, _: Option<u32>, _: &EventFd) -> io::Result<()> {
        Ok(())
    }

    fn clear_doorbell(&self, _: u64, _: Option<u32>, _: &EventFd) -> io::Result<()> {
        Ok(())
    }

    fn connect_vector(&self, _: usize, _: &EventFd) -> io::Result<()> {
        Ok(())
    }

    fn disconnect_vector(&self, _: usize, _: &EventFd) -> io::Result<()> {
        Ok(())
    }

    fn raise(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Two devices that are each other's peers, so that the first one has a link most of the time.
static DEVICES: LazyLock<[Arc<Device>; 2]> = LazyLock::new(|| {
    let folder = TempDir::new_with_prefix("/tmp/ivsmc_fuzz").unwrap();
    let path = |name: &str| folder.as_path().join(name);
    let devices = [("a", "b"), ("b", "a")].map(|(name, peer)| {
        let mut config = Config::new(path(name));
        config.peers = vec![path(peer)];
        config.window_size = 2 << 20;
        let (device, mut fabric) = Device::new(name, config, Arc::new(NoHost), None).unwrap();
        let reaper = fabric.reaper().unwrap();
        thread::spawn(|| reaper.run());
        thread::spawn(|| fabric.run());
        device.resume();
        device
    });
    // They use it as long as they live.
    std::mem::forget(folder);
    devices
});

/// Takes the first bytes as a number.
fn number(bytes: &mut &[u8]) -> Option<u64> {
    let (first, rest) = bytes.split_first_chunk::<4>()?;
    *bytes = rest;
    Some(u32::from_le_bytes(*first).into())
}

fuzz_target!(|bytes: &[u8]| {
    let device = &DEVICES[0];
    let mut bytes = bytes;
    while let Some(what) = number(&mut bytes) {
        let offset = (what >> 8) % (Device::REGISTERS_SIZE + 16);
        let width = 1 << (what >> 4 & 3);
        match what & 0xf {
            0 => {
                let gpa = number(&mut bytes).map(|gpa| gpa << 12);
                device.place_registers(gpa).ok();
            }
            1 => {
                let gpa = number(&mut bytes).map(|gpa| gpa << 16);
                device.place_windows(gpa).ok();
            }
            2..=7 => device.read(offset, &mut vec![0; width]),
            _ => {
                let Some(data) = number(&mut bytes) else {
                    return;
                };
                device.write(offset, &data.to_le_bytes()[..width]);
            }
        }
    }
});
