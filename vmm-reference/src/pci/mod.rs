// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! PCI bus 0: its configuration space (ECAM only) and the BARs of what is on it. Configuration spaces and MSI-X of what
//! is on it are in the modules here.

mod config_space;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod msix;

use std::io;
use std::sync::{Arc, Mutex, RwLock};

use anyhow::{Result, bail};
use log::info;

pub use config_space::{BarMove, BarSpec, ConfigSpace, Identity};
pub use msix::{BAR_SIZE as MSIX_BAR_SIZE, Msix};

use crate::{layout, lock};

/// The host bridge and what else is on the bus; it has room for 32.
const MAX_FUNCTIONS: usize = 32;

/// A device on the bus, of one function.
pub trait Function: Send + Sync {
    /// What it is called in messages.
    fn name(&self) -> String;
    /// Its BARs.
    fn bars(&self) -> Vec<BarSpec>;
    /// The 32-bit register number `register` of its configuration space.
    fn config_read(&self, register: usize) -> u32;
    /// A write of `data` at byte `offset` of a register. Returns the BARs that the guest wants elsewhere.
    fn config_write(&self, register: usize, offset: usize, data: &[u8]) -> Vec<BarMove>;
    /// Puts a BAR at `address`.
    fn move_bar(&self, bar: usize, address: u64) -> io::Result<()>;
    /// A BAR stays where it is.
    fn keep_bar(&self, bar: usize);
    /// A read at `offset` in a BAR.
    fn bar_read(&self, bar: usize, offset: u64, data: &mut [u8]);
    /// A write at `offset` in a BAR.
    fn bar_write(&self, bar: usize, offset: u64, data: &[u8]);
}

/// Where a BAR is.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Range {
    function: usize,
    bar: usize,
    start: u64,
    size: u64,
}

/// The bus.
pub struct Pci {
    functions: Vec<Arc<dyn Function>>,
    ranges: RwLock<Vec<Range>>,
    /// What is free for BARs: below 4 GiB and above.
    free32: (u64, u64),
    free64: (u64, u64),
}

impl Pci {
    /// A bus with nothing but a host bridge. 64-bit BARs go to `mmio64`.
    pub fn new(mmio64: (u64, u64)) -> Self {
        Pci {
            functions: vec![Arc::new(HostBridge::new())],
            ranges: RwLock::new(Vec::new()),
            free32: (layout::MMIO32, layout::MMIO32_END),
            free64: mmio64,
        }
    }

    /// Puts `function` into the next slot and places its BARs, as a firmware would.
    pub fn add(&mut self, function: Arc<dyn Function>) -> Result<()> {
        if self.functions.len() == MAX_FUNCTIONS {
            bail!(
                "{}: the PCI bus is full; {} devices would do",
                function.name(),
                MAX_FUNCTIONS - 1
            );
        }
        for spec in function.bars() {
            let free = if spec.is_64bit {
                &mut self.free64
            } else {
                &mut self.free32
            };
            let start = free.0.checked_next_multiple_of(spec.size);
            let end = start.and_then(|start| start.checked_add(spec.size));
            let (Some(start), Some(end)) = (start, end.filter(|end| *end <= free.1)) else {
                bail!(
                    "{}: there is no room for its {} MiB of PCI memory; a smaller size would do",
                    function.name(),
                    spec.size >> 20
                );
            };
            free.0 = end;
            function.move_bar(spec.index, start)?;
            let range = Range {
                function: self.functions.len(),
                bar: spec.index,
                start,
                size: spec.size,
            };
            self.ranges
                .get_mut()
                .unwrap_or_else(|poison| poison.into_inner())
                .push(range);
        }
        self.functions.push(function);
        Ok(())
    }

    /// A read from `address`; leaves `data` as it is if nothing is there.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        if let Some((function, register, offset)) = self.config(address) {
            let value = function.config_read(register).to_le_bytes();
            if let Some(value) = value.get(offset..offset + data.len()) {
                data.copy_from_slice(value);
            }
        } else if let Some((range, offset)) = self.find(address) {
            self.functions[range.function].bar_read(range.bar, offset, data);
        }
    }

    /// A write to `address`.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((function, register, offset)) = self.config(address) {
            for wish in function.config_write(register, offset, data) {
                self.relocate(function, wish);
            }
        } else if let Some((range, offset)) = self.find(address) {
            self.functions[range.function].bar_write(range.bar, offset, data);
        }
    }

    /// Whose configuration space `address` is in, the register and the byte in it.
    fn config(&self, address: u64) -> Option<(&Arc<dyn Function>, usize, usize)> {
        let offset = address
            .checked_sub(layout::ECAM)
            .filter(|it| *it < layout::ECAM_SIZE)? as usize;
        // Function number 0 is all that a device has.
        let function = self
            .functions
            .get(offset >> 15)
            .filter(|_| offset >> 12 & 7 == 0)?;
        Some((function, (offset & 0xfff) / 4, offset % 4))
    }

    /// The BAR at `address`, and the offset in it.
    fn find(&self, address: u64) -> Option<(Range, u64)> {
        let ranges = self
            .ranges
            .read()
            .unwrap_or_else(|poison| poison.into_inner());
        ranges.iter().find_map(|range| {
            let offset = address.checked_sub(range.start)?;
            (offset < range.size).then_some((*range, offset))
        })
    }

    /// Moves a BAR. Where it ends up is the guest's business: what it puts over its own memory or over another
    /// BAR, it loses.
    fn relocate(&self, function: &Arc<dyn Function>, wish: BarMove) {
        if let Err(error) = function.move_bar(wish.bar, wish.new) {
            info!(
                "{}: BAR {} stays at {:#x}, it cannot go to {:#x}: {error}",
                function.name(),
                wish.bar,
                wish.old,
                wish.new
            );
            function.keep_bar(wish.bar);
            return;
        }
        let mut ranges = self
            .ranges
            .write()
            .unwrap_or_else(|poison| poison.into_inner());
        let range = ranges.iter_mut().find(|range| {
            range.bar == wish.bar && Arc::ptr_eq(&self.functions[range.function], function)
        });
        if let Some(range) = range {
            range.start = wish.new;
        }
    }
}

/// Linux wants to find a host bridge in slot 0.
struct HostBridge(Mutex<ConfigSpace>);

impl HostBridge {
    fn new() -> Self {
        let identity = Identity {
            vendor: 0x8086,
            device: 0x0d57,
            subsystem_vendor: 0,
            subsystem: 0,
            revision: 0,
            class: [6, 0, 0],
        };
        HostBridge(Mutex::new(ConfigSpace::new(identity, &[])))
    }
}

impl Function for HostBridge {
    fn name(&self) -> String {
        "host bridge".into()
    }

    fn bars(&self) -> Vec<BarSpec> {
        Vec::new()
    }

    fn config_read(&self, register: usize) -> u32 {
        lock(&self.0).read(register)
    }

    fn config_write(&self, register: usize, offset: usize, data: &[u8]) -> Vec<BarMove> {
        lock(&self.0).write(register, offset, data)
    }

    fn move_bar(&self, _: usize, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn keep_bar(&self, _: usize) {}

    fn bar_read(&self, _: usize, _: u64, _: &mut [u8]) {}

    fn bar_write(&self, _: usize, _: u64, _: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// BARs hold one byte, the same everywhere.
    struct Probe {
        space: Mutex<ConfigSpace>,
        byte: Mutex<u8>,
        bars: Vec<BarSpec>,
    }

    const SMALL: BarSpec = BarSpec {
        index: 0,
        size: 0x1000,
        is_64bit: false,
        prefetchable: false,
    };
    const LARGE: BarSpec = BarSpec {
        index: 2,
        size: 1 << 33,
        is_64bit: true,
        prefetchable: true,
    };
    const MMIO64: (u64, u64) = (0x11_0000_0000, 0x100_0000_0000);

    impl Probe {
        fn new(bars: &[BarSpec]) -> Arc<Self> {
            let identity = Identity {
                vendor: 0x1234,
                device: 0x5678,
                subsystem_vendor: 0,
                subsystem: 0,
                revision: 0,
                class: [0xff, 0, 0],
            };
            let space = Mutex::new(ConfigSpace::new(identity, bars));
            Arc::new(Probe {
                space,
                byte: Mutex::new(0),
                bars: bars.to_vec(),
            })
        }
    }

    impl Function for Probe {
        fn name(&self) -> String {
            "probe".into()
        }
        fn bars(&self) -> Vec<BarSpec> {
            self.bars.clone()
        }
        fn config_read(&self, register: usize) -> u32 {
            lock(&self.space).read(register)
        }
        fn config_write(&self, register: usize, offset: usize, data: &[u8]) -> Vec<BarMove> {
            lock(&self.space).write(register, offset, data)
        }
        fn move_bar(&self, bar: usize, address: u64) -> io::Result<()> {
            if address == 0xdead_0000 {
                return Err(io::ErrorKind::AddrInUse.into());
            }
            lock(&self.space).place(bar, address);
            Ok(())
        }
        fn keep_bar(&self, bar: usize) {
            lock(&self.space).keep(bar);
        }
        fn bar_read(&self, _: usize, _: u64, data: &mut [u8]) {
            data.fill(*lock(&self.byte));
        }
        fn bar_write(&self, _: usize, _: u64, data: &[u8]) {
            *lock(&self.byte) = data[0];
        }
    }

    fn read(pci: &Pci, address: u64) -> u32 {
        let mut data = [0xff; 4];
        pci.read(address, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(pci: &Pci, address: u64, value: u32) {
        pci.write(address, &value.to_le_bytes());
    }

    #[test]
    fn devices_are_found_and_their_bars_placed() {
        let mut pci = Pci::new(MMIO64);
        pci.add(Probe::new(&[SMALL, LARGE])).unwrap();
        pci.add(Probe::new(&[SMALL])).unwrap();
        let slot = |slot: u64| layout::ECAM + (slot << 15);
        assert_eq!(read(&pci, slot(0)), 0x0d57_8086);
        assert_eq!(read(&pci, slot(1)), 0x5678_1234);
        assert_eq!(read(&pci, slot(3)), u32::MAX);
        assert_eq!(read(&pci, slot(1) + 0x1000), u32::MAX, "function 1");
        assert_eq!(read(&pci, slot(1) + 0x10), layout::MMIO32 as u32);
        assert_eq!(read(&pci, slot(2) + 0x10), layout::MMIO32 as u32 + 0x1000);
        assert_eq!(
            (read(&pci, slot(1) + 0x18), read(&pci, slot(1) + 0x1c)),
            (0xc, 0x12)
        );
    }

    #[test]
    fn bars_move_and_stay() {
        let mut pci = Pci::new(MMIO64);
        pci.add(Probe::new(&[SMALL])).unwrap();
        let config = layout::ECAM + (1 << 15);
        write(&pci, layout::MMIO32 + 0xffc, 0x5a);
        assert_eq!(read(&pci, layout::MMIO32), 0x5a5a_5a5a);
        write(&pci, config + 4, 2);
        write(&pci, config + 0x10, 0xd000_0000);
        assert_eq!(read(&pci, layout::MMIO32), u32::MAX);
        assert_eq!(read(&pci, 0xd000_0000), 0x5a5a_5a5a);
        write(&pci, config + 0x10, 0xdead_0000);
        assert_eq!(read(&pci, config + 0x10), 0xd000_0000);
        assert_eq!(read(&pci, 0xd000_0ffc), 0x5a5a_5a5a);
        assert_eq!(read(&pci, 0xd000_1000), u32::MAX);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut pci = Pci::new(MMIO64);
        let huge = BarSpec {
            size: 1 << 41,
            ..LARGE
        };
        assert!(
            pci.add(Probe::new(&[huge]))
                .unwrap_err()
                .to_string()
                .contains("would do")
        );
        for _ in 1..MAX_FUNCTIONS {
            pci.add(Probe::new(&[])).unwrap();
        }
        assert!(
            pci.add(Probe::new(&[]))
                .unwrap_err()
                .to_string()
                .contains("would do")
        );
    }
}
