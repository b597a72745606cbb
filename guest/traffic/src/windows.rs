// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The windows of an ivsmc device, as root sees them past any driver: marks in their memory, and a link that flaps.

use crate::ivshmem;
use crate::mapping::Mapping;
use crate::pattern::Pattern;
use crate::service::Failure;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Registers in BAR0, as docs/device.md has them.
mod register {
    pub(super) const MAX_PEERS: usize = 0x18;
    pub(super) const DEVICE_GID: usize = 0x20;
    pub(super) const WINDOW_SHIFT: usize = 0x34;
    pub(super) const LINK_TABLE: usize = 0x38;
    pub(super) const LINK_STRIDE: usize = 0x3c;
    pub(super) const DOORBELLS: usize = 0x40;
    pub(super) const DOORBELL_STRIDE: usize = 0x44;
    pub(super) const SIZE: usize = 16 << 10;
}

/// Words of a link in the link table.
mod link {
    pub(super) const STATE: usize = 0x00;
    pub(super) const SIDE: usize = 0x08;
    pub(super) const PEER_GID: usize = 0x10;
    pub(super) const WINDOW_SHIFT: usize = 0x24;
    pub(super) const UP: u32 = 1;
}

/// A window's control areas, as docs/window.md has them.
mod control {
    pub(super) const SIZE: usize = 64 << 10;
    /// peer_epoch and position.
    pub(super) const PEER_EPOCH: usize = 0x10;
    /// vector and window_shift.
    pub(super) const VECTOR: usize = 0x18;
}

const PAGE: usize = 4096;
/// Words of 8 bytes in a mark.
const WORDS: usize = 4;

/// A device and its links.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Device {
    /// Its GID, in hexadecimal digits.
    pub gid: String,
    /// Its links that are up.
    pub links: Vec<Link>,
}

/// A link that is up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Its place in the link table.
    pub number: usize,
    /// The peer device's GID, in hexadecimal digits.
    pub peer: String,
    /// Which side of the window this device is.
    pub side: usize,
    /// Bytes of the window.
    pub size: usize,
}

/// What was found in a device's memory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Search {
    /// The device.
    pub device: Device,
    /// Marks, and how often each is there.
    pub found: Vec<Found>,
    /// Places behind which there should be no memory, and how many of them were looked at.
    pub empty: u64,
    /// Those of them that did not read as all ones.
    pub not_empty: u64,
}

/// A mark that was found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Found {
    /// The link in whose window it is.
    pub at: usize,
    /// The seed of the guest that has written it.
    pub seed: u64,
    /// The number of that guest's link to which it was written.
    pub link: usize,
    /// How many of it are there.
    pub count: usize,
}

struct Registers {
    folder: PathBuf,
    bar: Mapping,
}

impl Registers {
    fn open() -> Result<Self, Failure> {
        let folder = ivshmem::find()?;
        enable(&folder)?;
        let bar = Mapping::of_bar(&folder, 0, 0, register::SIZE)?;
        Ok(Registers { folder, bar })
    }

    fn value(&self, register: usize) -> usize {
        self.bar.read::<u32>(register) as usize
    }

    fn gid(&self, register: usize) -> String {
        (0..16)
            .step_by(4)
            .flat_map(|at| self.bar.read::<u32>(register + at).to_le_bytes())
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    fn places(&self) -> usize {
        self.value(register::MAX_PEERS)
    }

    fn link(&self, number: usize) -> Option<Link> {
        let at = self.value(register::LINK_TABLE) + number * self.value(register::LINK_STRIDE);
        (self.bar.read::<u32>(at + link::STATE) == link::UP).then(|| Link {
            number,
            peer: self.gid(at + link::PEER_GID),
            side: self.value(at + link::SIDE),
            size: 1 << self.value(at + link::WINDOW_SHIFT),
        })
    }

    fn device(&self) -> Device {
        Device {
            gid: self.gid(register::DEVICE_GID),
            links: (0..self.places())
                .filter_map(|number| self.link(number))
                .collect(),
        }
    }

    /// Bytes from one window to the next.
    fn pitch(&self) -> usize {
        1 << self.value(register::WINDOW_SHIFT)
    }

    /// All of a link's place in BAR2, be there memory behind it or not.
    fn place(&self, number: usize) -> Result<Mapping, Failure> {
        let pitch = self.pitch();
        Ok(Mapping::of_memory(&self.folder, number * pitch, pitch)?)
    }
}

/// Has a device that no driver has used yet decode its BARs.
fn enable(folder: &Path) -> Result<(), Failure> {
    let file = folder.join("enable");
    if fs::read_to_string(&file)?.trim() == "0" {
        fs::write(&file, "1")?;
    }
    Ok(())
}

/// The mark that the guest with this seed writes to its link `number`.
fn mark(seed: u64, number: usize) -> [u64; WORDS] {
    let mut bytes = [0; 8 * WORDS];
    Pattern::new(seed ^ (number as u64 + 1) << 48).fill(&mut bytes);
    let mut words = bytes.chunks_exact(8);
    std::array::from_fn(|_| {
        words
            .next()
            .and_then(|word| word.try_into().ok())
            .map_or(0, u64::from_le_bytes)
    })
}

/// Where in each page the guest on this side writes.
fn place_in_page(side: usize) -> usize {
    side * PAGE / 2
}

/// The device and its links.
pub fn list() -> Result<Device, Failure> {
    Ok(Registers::open()?.device())
}

/// Writes a mark into each page of each window. Nothing else may use the windows.
pub fn fill(seed: u64) -> Result<Device, Failure> {
    let registers = Registers::open()?;
    let device = registers.device();
    for link in &device.links {
        let window = registers.place(link.number)?;
        let mark = mark(seed, link.number);
        for page in (0..link.size).step_by(PAGE) {
            for (at, word) in mark.into_iter().enumerate() {
                window.write(page + place_in_page(link.side) + 8 * at, word);
            }
        }
    }
    Ok(device)
}

/// Looks for the marks of all guests in all that the device has in memory, in each word of it; and that there is
/// nothing where no memory should be. There every access leaves the guest, so that one word of each page has to do.
pub fn search(seeds: &[u64]) -> Result<Search, Failure> {
    let registers = Registers::open()?;
    let mut marks = HashMap::new();
    for &seed in seeds {
        for number in 0..registers.places() {
            let mark = mark(seed, number);
            marks.insert(mark[0], (mark, seed, number));
        }
    }
    let device = registers.device();
    let (mut found, mut empty, mut not_empty) = (Vec::new(), 0, 0);
    for number in 0..registers.places() {
        let place = registers.place(number)?;
        let link = device.links.iter().find(|link| link.number == number);
        let size = link.map_or(0, |link| link.size);
        let mut counts: HashMap<(u64, usize), usize> = HashMap::new();
        for at in (0..size).step_by(8) {
            let Some(&(mark, seed, link)) = marks.get(&place.read::<u64>(at)) else {
                continue;
            };
            let whole = at + 8 * WORDS <= size
                && (1..WORDS).all(|word| place.read::<u64>(at + 8 * word) == mark[word]);
            if whole {
                *counts.entry((seed, link)).or_default() += 1;
            }
        }
        found.extend(counts.into_iter().map(|((seed, link), count)| Found {
            at: number,
            seed,
            link,
            count,
        }));
        for page in (size..place.size()).step_by(PAGE) {
            empty += 1;
            not_empty += u64::from(place.read::<u64>(page) != u64::MAX);
        }
    }
    found.sort();
    Ok(Search {
        device,
        found,
        empty,
        not_empty,
    })
}

/// Has a link end that ivpci uses, and come up again: to the peer it looks as if our ivpci had left.
pub fn flap(number: usize) -> Result<(), Failure> {
    let registers = Registers::open()?;
    let link = registers
        .link(number)
        .ok_or_else(|| format!("link {number} is not up"))?;
    let window = registers.place(number)?;
    let area = |side: usize| side * control::SIZE;
    let own = area(link.side) + control::PEER_EPOCH;
    // The upper half is our position, which stays.
    window.write(own, window.read::<u64>(own) & !u64::from(u32::MAX));
    let vector = window.read::<u64>(area(1 - link.side) + control::VECTOR) as u32 as usize;
    let doorbell = registers.value(register::DOORBELLS)
        + number * registers.value(register::DOORBELL_STRIDE)
        + 4 * vector;
    registers.bar.write(doorbell, 0u32);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn marks_differ() {
        let marks: HashSet<_> = (0..4)
            .flat_map(|seed| (0..64).map(move |number| mark(seed, number)))
            .collect();
        assert_eq!(marks.len(), 4 * 64);
        let firsts: HashSet<_> = marks.iter().map(|mark| mark[0]).collect();
        assert_eq!(firsts.len(), 4 * 64);
    }

    #[test]
    fn two_sides_do_not_write_to_the_same_place() {
        assert!(place_in_page(0) + 8 * WORDS <= place_in_page(1));
        assert!(place_in_page(1) + 8 * WORDS <= PAGE);
    }
}
