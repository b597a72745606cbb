// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A type 0 configuration space: identity, BARs that can be sized and moved, capabilities.

const REGISTERS: usize = 64;
const BARS: usize = 6;

const COMMAND: usize = 0x04;
const COMMAND_MEMORY: u8 = 1 << 1;
/// Memory decoding, bus mastering, parity error response, SERR#, INTx disable.
const COMMAND_WRITABLE: u16 = 0x0546;
const STATUS: usize = 0x06;
const STATUS_CAPABILITIES: u8 = 1 << 4;
const BAR0: usize = 0x10;
const FIRST_CAPABILITY: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;

/// What a device is, as the configuration space's header says it.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
    /// Revision ID.
    pub revision: u8,
    /// Base class, subclass, programming interface.
    pub class: [u8; 3],
}

/// One memory BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarSpec {
    /// Its number, 0 to 5. A 64-bit BAR takes the next number as well.
    pub index: usize,
    /// Its size in bytes: a power of two of at least 16.
    pub size: u64,
    /// Whether it can be anywhere in 64 bits of address space.
    pub is_64bit: bool,
    /// Whether it is prefetchable.
    pub prefetchable: bool,
}

/// The guest wants a BAR elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarMove {
    /// The BAR's number.
    pub bar: usize,
    /// Where it is.
    pub old: u64,
    /// Where the guest wants it.
    pub new: u64,
    /// Its size in bytes.
    pub size: u64,
}

#[derive(Clone, Copy, Debug)]
struct Bar {
    spec: BarSpec,
    /// Where the VMM has put it.
    placed: u64,
}

/// A PCI function's configuration space of 256 bytes.
///
/// A BAR answers where the VMM has [placed](Self::place) it. What the guest writes to a BAR's registers becomes a
/// [`BarMove`] as soon as memory decoding is enabled, and never while the guest only sizes the BAR.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: [u8; 4 * REGISTERS],
    writable: [u8; 4 * REGISTERS],
    bars: Vec<Bar>,
    /// Which of the BAR registers have all ones written to them, to ask for the size.
    sizing: [bool; BARS],
    /// Where the number of the next capability goes.
    next_capability: usize,
}

impl ConfigSpace {
    /// A configuration space without capabilities, whose BARs are at 0.
    pub fn new(identity: Identity, bars: &[BarSpec]) -> Self {
        let mut space = ConfigSpace {
            bytes: [0; 4 * REGISTERS],
            writable: [0; 4 * REGISTERS],
            bars: bars.iter().map(|&spec| Bar { spec, placed: 0 }).collect(),
            sizing: [false; BARS],
            next_capability: FIRST_CAPABILITY,
        };
        let [class, subclass, interface] = identity.class;
        space.put(0x00, &identity.vendor.to_le_bytes());
        space.put(0x02, &identity.device.to_le_bytes());
        space.put(0x08, &[identity.revision, interface, subclass, class]);
        space.put(0x2c, &identity.subsystem_vendor.to_le_bytes());
        space.put(0x2e, &identity.subsystem.to_le_bytes());
        space.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        space.allow(INTERRUPT_LINE, &[0xff]);
        for BarSpec {
            index,
            size,
            is_64bit,
            prefetchable,
        } in bars.iter().copied()
        {
            let address = !(size - 1);
            let flags = u8::from(is_64bit) << 2 | u8::from(prefetchable) << 3;
            space.put(BAR0 + 4 * index, &[flags]);
            space.allow(BAR0 + 4 * index, &(address as u32 & !0xf).to_le_bytes());
            if is_64bit {
                space.allow(
                    BAR0 + 4 * index + 4,
                    &((address >> 32) as u32).to_le_bytes(),
                );
            }
        }
        space
    }

    /// Appends a capability at offset `at`: its ID, and what follows ID and next pointer, with a mask
    /// of the bits that the guest can write (shorter than `body` where the rest is read-only).
    pub fn add_capability(&mut self, at: u8, id: u8, body: &[u8], writable: &[u8]) {
        self.put(self.next_capability, &[at]);
        self.put(STATUS, &[STATUS_CAPABILITIES]);
        let at = usize::from(at);
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        self.allow(at + 2, writable);
        self.next_capability = at + 1;
    }

    fn put(&mut self, at: usize, data: &[u8]) {
        for (byte, value) in self.bytes.iter_mut().skip(at).zip(data) {
            *byte = *value;
        }
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        for (byte, value) in self.writable.iter_mut().skip(at).zip(mask) {
            *byte = *value;
        }
    }

    /// The 32-bit register number `register`; all ones where there is none.
    pub fn read(&self, register: usize) -> u32 {
        match self.bytes.chunks_exact(4).nth(register) {
            Some(&[a, b, c, d]) => u32::from_le_bytes([a, b, c, d]),
            _ => u32::MAX,
        }
    }

    /// The 16 bits at offset `at`; all ones where there are none.
    pub fn read_u16(&self, at: usize) -> u16 {
        (self.read(at / 4) >> (8 * (at & 2))) as u16
    }

    /// The guest writes `data` at byte `offset` of register number `register`. Returns the BARs that it
    /// wants elsewhere: the VMM does that, or calls [`keep`](Self::keep).
    pub fn write(&mut self, register: usize, offset: usize, data: &[u8]) -> Vec<BarMove> {
        if register >= REGISTERS || offset >= 4 || data.len() > 4 - offset {
            return Vec::new();
        }
        let at = 4 * register + offset;
        for (n, &value) in data.iter().enumerate() {
            let mask = self.writable[at + n];
            self.bytes[at + n] = self.bytes[at + n] & !mask | value & mask;
        }
        if let Some(sizing) = (4 * register)
            .checked_sub(BAR0)
            .and_then(|n| self.sizing.get_mut(n / 4))
        {
            *sizing = data == [0xff; 4];
        }
        self.moves()
    }

    fn moves(&self) -> Vec<BarMove> {
        if self.bytes[COMMAND] & COMMAND_MEMORY == 0 {
            return Vec::new();
        }
        let is_moved = |bar: &&Bar| {
            let registers = bar.spec.index..=bar.spec.index + usize::from(bar.spec.is_64bit);
            self.address(bar.spec) != bar.placed
                && !registers
                    .into_iter()
                    .any(|n| self.sizing.get(n) == Some(&true))
        };
        let to_move = |bar: &Bar| BarMove {
            bar: bar.spec.index,
            old: bar.placed,
            new: self.address(bar.spec),
            size: bar.spec.size,
        };
        self.bars.iter().filter(is_moved).map(to_move).collect()
    }

    /// The address in a BAR's registers.
    fn address(&self, spec: BarSpec) -> u64 {
        let register = BAR0 / 4 + spec.index;
        let high = if spec.is_64bit {
            self.read(register + 1)
        } else {
            0
        };
        u64::from(high) << 32 | u64::from(self.read(register) & !0xf)
    }

    /// Where the BAR has been placed; `None` if there is no such BAR.
    pub fn placed(&self, bar: usize) -> Option<u64> {
        self.bars
            .iter()
            .find(|each| each.spec.index == bar)
            .map(|bar| bar.placed)
    }

    /// The BAR has been placed at `address`: its registers say so, and so does [`placed`](Self::placed), both less
    /// the bits that an address of this BAR cannot have.
    pub fn place(&mut self, bar: usize, address: u64) {
        let Some(n) = self.bars.iter().position(|each| each.spec.index == bar) else {
            return;
        };
        self.bars[n].placed = address;
        self.keep(bar);
        self.bars[n].placed = self.address(self.bars[n].spec);
    }

    /// The BAR stays where it is, whatever the guest wrote: its registers say so again.
    pub fn keep(&mut self, bar: usize) {
        let Some(Bar { spec, placed }) = self
            .bars
            .iter()
            .find(|each| each.spec.index == bar)
            .copied()
        else {
            return;
        };
        let at = BAR0 + 4 * bar;
        let width = if spec.is_64bit { 8 } else { 4 };
        for (n, byte) in placed.to_le_bytes().into_iter().take(width).enumerate() {
            let mask = self.writable[at + n];
            self.bytes[at + n] = self.bytes[at + n] & !mask | byte & mask;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BARS: [BarSpec; 2] = [
        BarSpec {
            index: 0,
            size: 0x4000,
            is_64bit: false,
            prefetchable: false,
        },
        BarSpec {
            index: 2,
            size: 1 << 33,
            is_64bit: true,
            prefetchable: true,
        },
    ];

    fn space() -> ConfigSpace {
        let identity = Identity {
            vendor: 0x1af4,
            device: 0x1110,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
            revision: 1,
            class: [5, 0, 0],
        };
        let mut space = ConfigSpace::new(identity, &BARS);
        space.add_capability(0x40, 0x11, &[3, 0, 1, 0, 0, 0, 1, 8, 0, 0], &[0, 0xc0]);
        space.add_capability(0x50, 0x09, &[16, 1], &[]);
        space.place(0, 0xc000_0000);
        space.place(2, 0x10_0000_0000);
        space
    }

    fn write(space: &mut ConfigSpace, at: usize, value: u32) -> Vec<BarMove> {
        space.write(at / 4, 0, &value.to_le_bytes())
    }

    #[test]
    fn header_and_capabilities() {
        let space = space();
        assert_eq!(space.read(0), 0x1110_1af4);
        assert_eq!(space.read(1), 0x0010_0000);
        assert_eq!(space.read(2), 0x0500_0001);
        assert_eq!(space.read(0x2c / 4), 0x1100_1af4);
        assert_eq!(space.read(0x34 / 4), 0x40);
        assert_eq!(space.read(0x40 / 4), 0x0003_5011);
        assert_eq!(space.read(0x50 / 4), 0x0110_0009);
        assert_eq!(space.read_u16(0x42), 3);
        assert_eq!(space.read(64), u32::MAX);
    }

    #[test]
    fn sizing_moves_nothing_with_decoding_on_or_off() {
        for command in [0, 2] {
            let mut space = space();
            assert!(write(&mut space, 4, command).is_empty());
            assert!(write(&mut space, 0x10, u32::MAX).is_empty());
            assert_eq!(space.read(4), 0xffff_c000);
            assert!(write(&mut space, 0x10, 0xc000_0000).is_empty());
            assert!(write(&mut space, 0x18, u32::MAX).is_empty());
            assert!(write(&mut space, 0x1c, u32::MAX).is_empty());
            assert_eq!((space.read(6), space.read(7)), (0xc, 0xffff_fffe));
            assert!(write(&mut space, 0x18, 0).is_empty());
            assert!(write(&mut space, 0x1c, 0x10).is_empty());
        }
    }

    #[test]
    fn a_bar_moves_when_decoding_is_on() {
        let mut space = space();
        assert!(write(&mut space, 0x10, 0xd000_0000).is_empty());
        assert!(write(&mut space, 0x1c, 0x20).is_empty());
        let moves = write(&mut space, 4, 2);
        assert_eq!(
            moves,
            [
                BarMove {
                    bar: 0,
                    old: 0xc000_0000,
                    new: 0xd000_0000,
                    size: 0x4000
                },
                BarMove {
                    bar: 2,
                    old: 0x10_0000_0000,
                    new: 0x20_0000_0000,
                    size: 1 << 33
                },
            ]
        );
        space.place(0, 0xd000_0000);
        space.keep(2);
        assert_eq!(space.read(7), 0x10);
        space.place(0, 0x12_d000_0234);
        assert_eq!(space.placed(0), Some(0xd000_0000), "no other address fits");
        assert!(write(&mut space, 4, 2).is_empty());
        assert_eq!(write(&mut space, 0x10, 0xe000_1234)[0].new, 0xe000_0000);
    }

    #[test]
    fn writes_that_do_not_fit_are_dropped() {
        let mut space = space();
        space.write(0, 3, &[1, 2]);
        space.write(64, 0, &[1]);
        space.write(usize::MAX, usize::MAX, &[1; 9]);
        assert_eq!(space.read(0), 0x1110_1af4);
    }
}
