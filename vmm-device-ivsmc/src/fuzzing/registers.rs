// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device whose guest does to BAR0 and the BARs what it likes, while links come and go.

use std::fs::File;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::path::Path;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::Bytes;
use crate::fabric::handshake::Terms;
use crate::fabric::reaper::{Account, Closer, Reaping};
use crate::guest::registers::doorbell;
use crate::test_utils::FakeHost;
use crate::{Config, Device, Gid, Window};

const LINKS: u16 = 3;
const VECTORS: u16 = 2;
const WINDOW: u64 = 2 << 20;
const DOWN: u32 = 0;
const UP: u32 = 1;
const LOST: u32 = 2;

/// A device without a fabric, whose part the input plays.
struct Scene {
    device: Device,
    host: Arc<FakeHost>,
    closer: Closer,
    /// Where BAR0 and BAR2 are.
    registers_at: Option<u64>,
    windows_at: Option<u64>,
}

/// The input is accesses, BARs that move, and links that come and go. What is in the guest is at any time what the
/// registers say, and nothing else that the guest can read changes when it writes; the host itself sees to it that what is
/// taken out was put in, and that nothing overlaps. At the end nothing is left.
pub fn registers(input: &[u8]) {
    let (reaping, _reaper) = Reaping::new("fuzzed");
    let host = FakeHost::new();
    let config = Config {
        window_size: WINDOW,
        max_peers: LINKS,
        vectors: VECTORS,
        gid: Some(Gid::from_bytes([1; 16])),
        ..Config::new(Path::new("/nowhere"))
    };
    let device = Device::make("fuzzed", config, host.clone(), None, None);
    let mut scene = Scene {
        device: device.expect("there is no device"),
        host,
        closer: reaping.closer(Account::User(0)),
        registers_at: None,
        windows_at: None,
    };
    let mut bytes = Bytes(input);
    while !bytes.is_empty() {
        scene.step(&mut bytes);
        scene.check();
    }
    scene.host.fail_windows(false);
    scene.device.close();
    scene.check();
    assert!(scene.host.is_empty());
    assert!((0..LINKS).all(|link| scene.link(link, 0) == DOWN));
}

impl Scene {
    fn step(&mut self, bytes: &mut Bytes<'_>) {
        let device = &self.device;
        match bytes.u8() % 16 {
            0 => self.read_at(u64::from(bytes.u16()), usize::from(bytes.u8() % 16)),
            1 => self.read_at(bytes.u64(), usize::from(bytes.u8() % 16)),
            2 => {
                let offset = u64::from(bytes.u16());
                let len = usize::from(bytes.u8() % 16);
                self.write(offset, bytes.slice(len));
            }
            3 => {
                let offset = bytes.u64();
                let len = usize::from(bytes.u8() % 16);
                self.write(offset, bytes.slice(len));
            }
            4 => self.claim(u16::from(bytes.u8())),
            5 => self.write(Self::entry(u16::from(bytes.u8()), 0x28), &[0; 4]),
            6 => self.write(
                Self::entry(u16::from(bytes.u8()), 0x28),
                &bytes.u32().to_le_bytes(),
            ),
            7 | 8 => self.bring_up(bytes),
            9 => {
                let link = usize::from(bytes.u8() % 4);
                let generation = self.link(link as u16, 4);
                device.lose(link, generation, "the input says so");
            }
            10 => device.lose(usize::from(bytes.u8()), bytes.u32(), "the input says so"),
            11 => drop(device.reap()),
            12 => self.place_registers(bytes),
            13 => self.place_windows(bytes),
            14 => self.host.fail_windows(bytes.u8().is_multiple_of(2)),
            _ => match bytes.u8() % 4 {
                0 => device.reset(),
                1 => drop(device.state().map(drop)),
                2 => device.resume(),
                _ => {
                    let at = self.registers_at.unwrap_or(0);
                    self.host.store(at + u64::from(bytes.u16()), bytes.u32());
                    self.host.interrupts();
                }
            },
        }
    }

    /// Offset in BAR0 of a link's register.
    fn entry(link: u16, field: u64) -> u64 {
        0x1000 + 64 * u64::from(link) + field
    }

    fn read(&self, offset: u64) -> u32 {
        let mut word = [0; 4];
        self.device.read(offset, &mut word);
        u32::from_le_bytes(word)
    }

    fn link(&self, link: u16, field: u64) -> u32 {
        self.read(Self::entry(link, field))
    }

    /// An access that is not an aligned one of four bytes reads as ones.
    fn read_at(&self, offset: u64, len: usize) {
        let mut data = vec![0; len];
        self.device.read(offset, &mut data);
        let is_good = len == 4 && offset.is_multiple_of(4) && offset < Device::REGISTERS_SIZE;
        assert!(is_good || data.iter().all(|&byte| byte == 0xff));
    }

    /// All registers, with their offsets.
    fn dump(&self) -> Vec<(u64, u32)> {
        let ends = Self::entry(LINKS, 0);
        let offsets = (0..0x50).chain(0x1000..ends).step_by(4);
        offsets.map(|offset| (offset, self.read(offset))).collect()
    }

    /// Nothing can change but IntrMask and Claim, and with Claim a link that is lost is let go. Only a good access
    /// changes anything.
    fn write(&self, offset: u64, data: &[u8]) {
        let before = self.dump();
        self.device.write(offset, data);
        for ((at, before), (_, after)) in before.into_iter().zip(self.dump()) {
            let may = data.len() == 4 && offset == at;
            let is_writable = at == 0 || (at >= 0x1000 && at % 64 == 0x28);
            assert!(before == after || (may && is_writable), "{at:#x}");
        }
    }

    fn claim(&self, link: u16) {
        let generation = self.link(link, 4);
        self.write(Self::entry(link, 0x28), &generation.to_le_bytes());
        if link < LINKS && self.link(link, 0) == UP {
            assert_eq!(self.link(link, 0x28), generation);
        }
    }

    fn bring_up(&self, bytes: &mut Bytes<'_>) {
        // Few peers, so that they come back and share IVPositions.
        let who = bytes.u8();
        let gid = Gid::from_bytes([2 + who % 5; 16]);
        let how = bytes.u8();
        let Ok(link) = self.device.reserve(gid) else {
            return;
        };
        assert!(link < usize::from(LINKS));
        if how & 1 != 0 {
            self.device.cancel(link);
            return;
        }
        let vectors = 1 + u16::from(how >> 4);
        let is_eventfd = how & 2 == 0;
        let doorbell = || {
            let fd = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap();
            let null = || File::open("/dev/null").unwrap().into_raw_fd();
            // SAFETY: the descriptor is new and nobody else's.
            let other = || unsafe { EventFd::from_raw_fd(null()) };
            self.closer.guard(if is_eventfd { fd } else { other() })
        };
        let doorbells = (0..vectors).map(|_| doorbell()).collect();
        let ours = self.device.new_vectors().unwrap();
        let ours = ours.into_iter().map(|fd| self.closer.guard(fd)).collect();
        let terms = Terms {
            gid: if how & 4 == 0 {
                gid
            } else {
                Gid::from_bytes([9; 16])
            },
            position: 1 + u16::from(who / 5 % 3),
            vectors,
            window_shift: WINDOW.ilog2(),
            side: u32::from(how >> 3 & 1),
        };
        let window = Window::create(WINDOW, false).unwrap();
        let up = self.device.bring_up(link, terms, window, doorbells, ours);
        match up {
            Ok(generation) => {
                let link = link as u16;
                assert_eq!((self.link(link, 0), self.link(link, 4)), (UP, generation));
                assert_eq!(self.link(link, 0x28), 0);
            }
            // Its place is given back by who reserved it, as a connection does that ends.
            Err(_) => self.device.cancel(link),
        }
    }

    fn place_registers(&mut self, bytes: &mut Bytes<'_>) {
        let to = address(bytes, Device::REGISTERS_SIZE);
        if self.device.place_registers(to).is_ok() {
            self.registers_at = to;
        }
    }

    fn place_windows(&mut self, bytes: &mut Bytes<'_>) {
        let to = address(bytes, self.device.windows_size());
        if self.device.place_windows(to).is_ok() {
            self.windows_at = to;
        }
    }

    /// The registers and what is in the guest agree.
    fn check(&self) {
        let states: Vec<u32> = (0..LINKS).map(|link| self.link(link, 0)).collect();
        let ups = states.iter().filter(|&&state| state == UP).count();
        assert_eq!(self.device.counters().links, ups as u64);
        for (n, &state) in states.iter().enumerate() {
            let link = n as u16;
            let (generation, claim) = (self.link(link, 4), self.link(link, 0x28));
            assert!(claim == 0 || (claim == generation && state != DOWN));
            let fields = [0x08, 0x0c, 0x10, 0x20, 0x24];
            assert!(state != DOWN || fields.iter().all(|&field| self.link(link, field) == 0));
        }
        for (at, size, link) in self.host.windows() {
            let bar = self.windows_at.expect("a window of a BAR that is nowhere");
            assert_eq!((at, size), (bar + link as u64 * WINDOW, WINDOW));
            assert!([UP, LOST].contains(&states[link]));
        }
        for (at, value) in self.host.doorbells() {
            let bar = self
                .registers_at
                .expect("a doorbell of a BAR that is nowhere");
            let offset = at - bar;
            let first = doorbell(0, 0);
            match value {
                Some(_) => assert_eq!(offset, 0x0c),
                None => assert_eq!(states[((offset - first) / 64) as usize], UP),
            }
        }
        // Each link that is up has all of this device's vectors.
        let connected = self.host.connected();
        assert!(connected.values().all(|&count| count == ups));
        assert_eq!(connected.len(), if ups == 0 { 0 } else { VECTORS.into() });
    }
}

/// An address for a BAR: nowhere, one that fits, or any.
fn address(bytes: &mut Bytes<'_>, size: u64) -> Option<u64> {
    match bytes.u8() % 4 {
        0 => None,
        1 => Some(bytes.u64()),
        _ => Some((u64::from(bytes.u16()) + 1) * size),
    }
}
