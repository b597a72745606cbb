// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices of one process over real sockets, each with a VMM that is not one.

mod byes;
mod closing;
mod device;
mod drops;
mod embedding;
mod faults;
mod folders;
mod fuse;
mod hostile;
mod limits;
mod links;
mod mesh;
mod rates;
mod sandbox;
mod users;
mod waiting;

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::test_utils::{FakeHost, OLD_KERNEL};
use crate::{Config, Device, DeviceState, Gid};

/// How long to wait for what should be a matter of milliseconds.
const PATIENCE: Duration = Duration::from_secs(60);

const BAR0: u64 = 0xe000_0000;
const BAR2: u64 = 0x40_0000_0000;
const WINDOW: u64 = 4 << 20;

const DOWN: u32 = 0;
const UP: u32 = 1;
const LOST: u32 = 2;

/// A VM, as far as the device can tell.
struct Vm {
    device: Arc<Device>,
    host: Arc<FakeHost>,
    thread: Option<JoinHandle<()>>,
}

/// Options of a device named `name` in `folder`, which joins `peers` there.
fn options(folder: &Path, name: &str, peers: &[&str]) -> Config {
    let peers: Vec<PathBuf> = peers.iter().map(|peer| folder.join(peer)).collect();
    Config {
        peers,
        window_size: WINDOW,
        vectors: 2,
        max_peers: 3,
        ..Config::new(folder.join(name))
    }
}

fn gid(first: u8) -> Option<Gid> {
    let mut bytes = [0x5a; 16];
    bytes[0] = first;
    Some(Gid::from_bytes(bytes))
}

fn eventually(what: &str, is_so: impl FnMut() -> bool) {
    assert!(soon(PATIENCE, is_so), "not so in time: {what}");
}

fn soon(patience: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + patience;
    while !is_so() {
        if Instant::now() > end {
            return false;
        }
        thread::sleep(Duration::from_millis(2));
    }
    true
}

/// Places a device's BARs.
fn place(device: &Device) {
    device.place_registers(Some(BAR0)).unwrap();
    device.place_windows(Some(BAR2)).unwrap();
}

impl Vm {
    fn start(config: Config) -> Self {
        Self::start_with(config, None)
    }

    fn start_with(config: Config, state: Option<&DeviceState>) -> Self {
        Self::start_as(config, state, true)
    }

    /// One that has the limits of a real device, which a busy machine may run into.
    fn start_strict(config: Config) -> Self {
        Self::start_as(config, None, false)
    }

    fn start_as(config: Config, state: Option<&DeviceState>, is_relaxed: bool) -> Self {
        let host = FakeHost::new();
        let (device, mut fabric) = Device::new("test", config, host.clone(), state).unwrap();
        if is_relaxed {
            fabric.relax();
        }
        let reaper = fabric.reaper().unwrap();
        thread::spawn(move || reaper.run());
        place(&device);
        device.resume();
        let thread = thread::Builder::new().name("fabric".into());
        let thread = Some(thread.spawn(move || fabric.run()).unwrap());
        Vm {
            device,
            host,
            thread,
        }
    }

    fn read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.device.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, offset: u64, value: u32) {
        self.device.write(offset, &value.to_le_bytes());
    }

    fn link(&self, link: u64, field: u64) -> u32 {
        self.read(0x1000 + 64 * link + field)
    }

    fn link_state(&self, link: u64) -> u32 {
        self.link(link, 0)
    }

    fn generation(&self, link: u64) -> u32 {
        self.link(link, 4)
    }

    fn links(&self) -> u64 {
        self.device.counters().links
    }

    /// Claims the link, as a driver does.
    fn claim(&self, link: u64) {
        let generation = self.generation(link);
        self.write(0x1028 + 64 * link, generation);
        assert_eq!(self.link(link, 0x28), generation);
    }

    fn let_go(&self, link: u64) {
        self.write(0x1028 + 64 * link, 0);
    }

    /// The vectors that were interrupted since the last call.
    fn vectors(&self) -> Vec<usize> {
        self.host.interrupts()
    }

    fn eventually_up(&self, link: u64) {
        eventually("the link is up", || self.link_state(link) == UP);
    }

    /// Ends the VM; the fabric thread ends, and nothing is left of it.
    fn stop(mut self) {
        self.device.shutdown();
        self.thread.take().unwrap().join().unwrap();
        assert!(self.host.is_empty(), "something is left in the guest");
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.device.shutdown();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The variable with the command that runs this program, if it is for another processor than this machine's: qemu-user.
const RUNNER: &str = "IVSMC_TEST_RUNNER";

/// Runs an ignored test of this crate in a process of its own, because it counts what the process has, or may
/// end it.
fn alone(test: &str) {
    run_alone(test, &[]);
}

/// The same, as if on a kernel that cannot keep others from sending descriptors.
fn alone_on_old_kernel(test: &str) {
    run_alone(test, &[(OLD_KERNEL, "1")]);
}

fn run_alone(test: &str, variables: &[(&str, &str)]) {
    let program = env::current_exe().unwrap();
    // What runs programs that are for another processor.
    let runner = env::var(RUNNER).unwrap_or_default();
    let words = runner.split_whitespace().map(OsString::from);
    let mut words = words.chain([program.into()]);
    let output = Command::new(words.next().unwrap())
        .args(words)
        .args(["--exact", "--ignored", "--nocapture", test])
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}
