// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A bus whose guest writes to configuration spaces and MSI-X what it likes: what the fuzz target in `fuzz/` runs, and,
//! with the corpus that is kept there, a test.

use std::io;
use std::sync::{Arc, Mutex};

use super::{BarMove, BarSpec, ConfigSpace, Function, Identity, MSIX_BAR_SIZE, Msix, Pci};
use crate::interrupts::test_utils::{Call, FakeKvm};
use crate::interrupts::{Interrupts, MsiMessage};
use crate::{layout, lock};

const MSIX_CAPABILITY: u8 = 0x40;
const VECTORS: usize = 3;
const BARS: [BarSpec; 3] = [
    bar(0, 0x4000, false),
    bar(1, MSIX_BAR_SIZE, false),
    bar(2, 1 << 24, true),
];

const fn bar(index: usize, size: u64, wide: bool) -> BarSpec {
    BarSpec {
        index,
        size,
        is_64bit: wide,
        prefetchable: wide,
    }
}

/// A device with the BARs and capabilities of an ivsmc device, whose BARs go anywhere but where `refused` says.
struct Probe {
    config: Mutex<(ConfigSpace, Msix)>,
    /// BARs do not go where these bits of an address are set.
    refused: u64,
}

impl Probe {
    fn new(interrupts: &Arc<Interrupts>, refused: u64) -> Self {
        let identity = Identity {
            vendor: 0x1af4,
            device: 0x1110,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
            revision: 1,
            class: [5, 0, 0],
        };
        let vectors = (0..VECTORS).map(|_| Arc::new(interrupts.vector()));
        let msix = Msix::new("fuzzed".into(), vectors.collect());
        let mut space = ConfigSpace::new(identity, &BARS);
        let body = msix.capability(1);
        space.add_capability(MSIX_CAPABILITY, Msix::CAPABILITY, &body, &Msix::WRITABLE);
        space.add_capability(0x50, 9, &[16, 1], &[]);
        let config = Mutex::new((space, msix));
        Probe { config, refused }
    }
}

impl Function for Probe {
    fn name(&self) -> String {
        "fuzzed".into()
    }

    fn bars(&self) -> Vec<BarSpec> {
        BARS.to_vec()
    }

    fn config_read(&self, register: usize) -> u32 {
        lock(&self.config).0.read(register)
    }

    fn config_write(&self, register: usize, offset: usize, data: &[u8]) -> Vec<BarMove> {
        let (space, msix) = &mut *lock(&self.config);
        let moves = space.write(register, offset, data);
        msix.set_control(space.read_u16(usize::from(MSIX_CAPABILITY) + Msix::CONTROL));
        moves
    }

    fn move_bar(&self, bar: usize, address: u64) -> io::Result<()> {
        if address & self.refused != 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        lock(&self.config).0.place(bar, address);
        Ok(())
    }

    fn keep_bar(&self, bar: usize) {
        lock(&self.config).0.keep(bar);
    }

    fn bar_read(&self, bar: usize, offset: u64, data: &mut [u8]) {
        assert!(offset < BARS[bar].size);
        if bar == 1 {
            lock(&self.config).1.read(offset, data);
        }
    }

    fn bar_write(&self, bar: usize, offset: u64, data: &[u8]) {
        assert!(offset < BARS[bar].size);
        if bar == 1 {
            lock(&self.config).1.write(offset, data);
        }
    }
}

/// The input is accesses to a bus with one device. The BARs are where the device has them, in its registers as well when
/// the guest does not size them; what is read-only stays as it is; and KVM has the routes that the MSI-X table says.
pub fn pci(input: &[u8]) {
    let mut bytes = Bytes(input);
    let kvm = FakeKvm::default();
    let interrupts = kvm.interrupts();
    // Above those where BARs are put first.
    let refused = u64::from(bytes.next()) << 20 & 0x0ff0_0000;
    let probe = Arc::new(Probe::new(&interrupts, refused));
    let mut bus = Pci::new((0x10_0000_0000, 0x20_0000_0000));
    bus.add(probe.clone()).expect("there is no room");
    let before = fixed(&bus);
    let mut routes = Vec::new();
    while !bytes.0.is_empty() {
        let address = bytes.address(&probe);
        let mut data: Vec<u8> = (0..bytes.next() % 9).map(|_| bytes.next()).collect();
        if bytes.next() % 4 == 0 {
            bus.read(address, &mut data);
        } else {
            bus.write(address, &data);
        }
        assert_eq!(fixed(&bus), before);
        check_bars(&bus, &probe);
        for call in kvm.calls() {
            if let Call::Routes(new) = call {
                routes = new;
            }
        }
        assert_eq!(routes, expected_routes(&probe));
    }
}

struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    /// The next byte; zero at the end.
    fn next(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        first
    }

    fn word(&mut self) -> u64 {
        (0..8).fold(0, |word, _| word << 8 | u64::from(self.next()))
    }

    /// Somewhere in a configuration space, in a BAR, or anywhere.
    fn address(&mut self, probe: &Probe) -> u64 {
        let device = layout::ECAM + (1 << 15);
        match self.next() % 8 {
            0..3 => device + u64::from(self.next()),
            3..6 => {
                let msix = lock(&probe.config).0.placed(1).unwrap_or(0);
                msix.saturating_add(u64::from(self.next()) * if self.next() == 0 { 8 } else { 1 })
            }
            6 => layout::ECAM + (self.word() & (layout::ECAM_SIZE - 1)),
            _ => self.word(),
        }
    }
}

fn register(bus: &Pci, at: u64) -> u32 {
    let mut data = [0xff; 4];
    bus.read(layout::ECAM + (1 << 15) + at, &mut data);
    u32::from_le_bytes(data)
}

/// Of each register of the configuration space, the bits that nothing changes.
fn fixed(bus: &Pci) -> Vec<u32> {
    let registers = (0..0x100).step_by(4).map(|at| {
        let writable = match at {
            0x04 => 0x0546,
            0x10 => !0x3fff,
            0x14 => !0xfff,
            0x18 => !0xff_ffff,
            0x1c => !0,
            0x3c => 0xff,
            0x40 => 0xc000_0000,
            _ => 0,
        };
        register(bus, at) & !writable
    });
    registers.collect()
}

/// The guest's accesses go where the device has its BARs.
fn check_bars(bus: &Pci, probe: &Probe) {
    let ranges = bus.ranges.read().expect("a panic");
    for range in ranges.iter() {
        let spec = BARS[range.bar];
        let space = &lock(&probe.config).0;
        assert_eq!(space.placed(range.bar), Some(range.start));
        assert!(range.start.is_multiple_of(spec.size) && range.size == spec.size);
        assert_eq!(range.start & probe.refused, 0, "it was refused");
        assert!(spec.is_64bit || range.start < 1 << 32);
    }
}

fn expected_routes(probe: &Probe) -> Vec<(u32, MsiMessage)> {
    let (space, msix) = &*lock(&probe.config);
    let control = space.read_u16(usize::from(MSIX_CAPABILITY) + Msix::CONTROL);
    let words = |vector: usize| {
        let word = |n: usize| {
            let mut data = [0; 4];
            msix.read((16 * vector + 4 * n) as u64, &mut data);
            u32::from_le_bytes(data)
        };
        [0, 1, 2, 3].map(word)
    };
    let routed = (0..VECTORS).filter_map(|vector| {
        let [low, high, data, masked] = words(vector);
        let address = u64::from(high) << 32 | u64::from(low);
        let may = control & 0xc000 == 0x8000 && masked == 0;
        may.then_some((24 + vector as u32, MsiMessage { address, data }))
    });
    routed.collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    #[test]
    fn corpus_of_pci() {
        let files = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/pci")).unwrap();
        let mut count = 0;
        for file in files {
            let path = file.unwrap().path();
            // The one that it fails at is the last one.
            println!("{}", path.display());
            super::pci(&fs::read(path).unwrap());
            count += 1;
        }
        assert!(count >= 10, "{count} files are no corpus");
    }
}
