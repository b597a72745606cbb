// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! BAR0: ivshmem's registers, ivsmc's on top, the link table and the doorbells, as docs/device.md has them.

use crate::guest::link::{Action, Input, LinkTable};
use crate::{Gid, LinkState};

/// Size of BAR0 in bytes.
pub const SIZE: u64 = 0x4000;
/// Offset of ivshmem's Doorbell register.
pub const DOORBELL: u64 = 0x0c;
/// Offset in BAR0 of what ivshmem does not have, for the vendor-specific capability.
pub const EXTENSION: u32 = 0x10;
/// The bytes `IVSM`.
pub const SIGNATURE: u32 = u32::from_le_bytes(*b"IVSM");

const INTR_MASK: u64 = 0x00;
const LINK_TABLE: u32 = 0x1000;
const LINK_STRIDE: u32 = 64;
const DOORBELLS: u32 = 0x2000;
const DOORBELL_STRIDE: u32 = 64;
/// Offset in a link's entry of Claim.
const CLAIM: u64 = 0x28;

/// Offset of the doorbell of a link's vector.
pub fn doorbell(link: usize, vector: usize) -> u64 {
    u64::from(DOORBELLS) + link as u64 * u64::from(DOORBELL_STRIDE) + 4 * vector as u64
}

/// What is written to the Doorbell register to ring a peer's vector.
pub fn doorbell_value(position: u16, vector: usize) -> u32 {
    u32::from(position) << 16 | vector as u32
}

/// The registers behind BAR0.
#[derive(Clone, Debug)]
pub struct Registers {
    pub gid: Gid,
    pub fabric_id: u16,
    pub vectors: u16,
    pub window_shift: u32,
    pub max_peers: u16,
    pub intr_mask: u32,
    pub links: LinkTable,
}

impl Registers {
    /// The guest reads `data.len()` bytes at `offset`.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(value) = self.value(offset)
            && data.len() == 4
        {
            data.copy_from_slice(&value.to_le_bytes());
        }
    }

    /// The register at `offset`; `None` if there is none that can be read.
    fn value(&self, offset: u64) -> Option<u32> {
        if !offset.is_multiple_of(4) {
            return None;
        }
        Some(match offset {
            INTR_MASK => self.intr_mask,
            0x04 => 0,
            0x08 => u32::from(self.gid.position()),
            0x10 => SIGNATURE,
            0x14 => 1,
            0x18 => u32::from(self.max_peers),
            0x1c => u32::from(self.vectors),
            0x20..0x30 => gid_word(self.gid, offset - 0x20),
            0x30 => u32::from(self.fabric_id),
            0x34 => self.window_shift,
            0x38 => LINK_TABLE,
            0x3c => LINK_STRIDE,
            0x40 => DOORBELLS,
            0x44 => DOORBELL_STRIDE,
            _ => {
                let (index, field) = locate(offset)?;
                return self.link_value(index, field);
            }
        })
    }

    fn link_value(&self, index: usize, field: u64) -> Option<u32> {
        let link = self.links.get(index)?;
        let peer = link.peer();
        Some(match field {
            0x00 => match link.state() {
                LinkState::Down => 0,
                LinkState::Up => 1,
                LinkState::Lost => 2,
            },
            0x04 => link.generation(),
            0x08 => peer.map_or(0, |peer| peer.side),
            0x0c => peer.map_or(0, |peer| u32::from(peer.position)),
            0x10..0x20 => peer.map_or(0, |peer| gid_word(peer.gid, field - 0x10)),
            0x20 => peer.map_or(0, |peer| u32::from(peer.vectors)),
            0x24 => peer.map_or(0, |peer| peer.window_shift),
            CLAIM => link.claim(),
            _ => return None,
        })
    }

    /// Whether a store to `offset` is one to a doorbell, be there a link behind it or not.
    pub fn is_doorbell(&self, offset: u64) -> bool {
        let first = doorbell(0, 0);
        let end = doorbell(usize::from(self.max_peers), 0);
        offset == DOORBELL || (first..end).contains(&offset)
    }

    /// The guest writes `data` at `offset`. Returns whether it has let go of a window thereby.
    ///
    /// Doorbells do nothing here: of a link that is up, KVM sees the write before the VMM does.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> bool {
        let &[a, b, c, d] = data else { return false };
        let value = u32::from_le_bytes([a, b, c, d]);
        if offset == INTR_MASK {
            self.intr_mask = value;
        } else if let Some((index, CLAIM)) = locate(offset) {
            return self.links.on(index, Input::Claim(value)) == Action::Wake;
        }
        false
    }
}

/// The link and the offset in its entry that an offset in BAR0 is at.
fn locate(offset: u64) -> Option<(usize, u64)> {
    let offset = offset.checked_sub(u64::from(LINK_TABLE))?;
    let stride = u64::from(LINK_STRIDE);
    Some((usize::try_from(offset / stride).ok()?, offset % stride))
}

/// The 32 bits at `offset` of a GID.
fn gid_word(gid: Gid, offset: u64) -> u32 {
    let bytes = gid.bytes();
    let byte = |n: u64| bytes.get((offset + n) as usize).copied().unwrap_or(0);
    u32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fabric::handshake::Terms;
    use proptest::collection;
    use proptest::prelude::*;

    const US: Gid = Gid::from_bytes([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
    const PEER: Gid = Gid::from_bytes([0x22; 16]);

    fn registers() -> Registers {
        let mut links = LinkTable::new(2);
        let peer = Terms {
            gid: PEER,
            position: 0x2222,
            vectors: 3,
            window_shift: 21,
            side: 1,
        };
        assert_eq!(links.reserve(peer.gid), Ok(0));
        assert_eq!(links.on(0, Input::Join(peer)), Action::Announce);
        Registers {
            gid: US,
            fabric_id: 0xff00,
            vectors: 4,
            window_shift: 26,
            max_peers: 2,
            intr_mask: 0,
            links,
        }
    }

    fn read(registers: &Registers, offset: u64) -> u32 {
        let mut data = [0; 4];
        registers.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn every_register() {
        let registers = registers();
        for (offset, value) in [
            (0x00, 0),
            (0x04, 0),
            (0x08, u32::from(US.position())),
            (0x0c, !0),
            (0x10, 0x4d53_5649),
            (0x14, 1),
            (0x18, 2),
            (0x1c, 4),
            (0x20, 0x0403_0201),
            (0x2c, 0x100f_0e0d),
            (0x30, 0xff00),
            (0x34, 26),
            (0x38, 0x1000),
            (0x3c, 64),
            (0x40, 0x2000),
            (0x44, 64),
            (0x48, !0),
            (0xffc, !0),
            (0x1000, 1),
            (0x1004, 1),
            (0x1008, 1),
            (0x100c, 0x2222),
            (0x1010, 0x2222_2222),
            (0x101c, 0x2222_2222),
            (0x1020, 3),
            (0x1024, 21),
            (0x1028, 0),
            (0x102c, !0),
            (0x1040, 0),
            (0x1044, 0),
            (0x104c, 0),
            (0x1080, !0),
            (0x2000, !0),
            (0x3ffc, !0),
            (0x4000, !0),
            (1, !0),
            (0x1002, !0),
        ] {
            assert_eq!(read(&registers, offset), value, "{offset:#x}");
        }
    }

    #[test]
    fn claim_and_let_go() {
        let mut registers = registers();
        assert!(!registers.write(0x1028, &1u32.to_le_bytes()));
        assert_eq!(read(&registers, 0x1028), 1);
        assert!(!registers.write(0x1028, &2u32.to_le_bytes()));
        assert_eq!(read(&registers, 0x1028), 1);
        registers.links.on(0, Input::Lose);
        assert_eq!(read(&registers, 0x1000), 2);
        assert!(registers.write(0x1028, &[0; 4]));
        assert!(!registers.write(0x1028, &[0; 4]), "once is enough");
    }

    #[test]
    fn doorbells_do_not_overlap() {
        assert_eq!(doorbell(0, 0), 0x2000);
        assert_eq!(doorbell(1, 3), 0x204c);
        assert!(doorbell(63, 15) < SIZE);
        assert_eq!(doorbell_value(0x1234, 5), 0x1234_0005);
        let registers = registers();
        let is_doorbell = |offset| registers.is_doorbell(offset);
        assert!([0x0c, 0x2000, 0x2004, 0x207c].into_iter().all(is_doorbell));
        assert!(
            ![0, 0x08, 0x1028, 0x1ffc, 0x2080]
                .into_iter()
                .any(is_doorbell)
        );
    }

    proptest! {
        /// Whatever is written, only IntrMask and Claim can change, and nothing panics.
        #[test]
        fn read_only_stays_read_only(
            writes in collection::vec(
                (
                    prop_oneof![0u64..0x50, 0x1000u64..0x1090, 0u64..0x4100, any::<u64>()],
                    collection::vec(any::<u8>(), 0..9),
                ),
                0..64,
            ),
        ) {
            let before = registers();
            let mut after = before.clone();
            for (offset, data) in writes {
                after.write(offset, &data);
                let mut read = data.clone();
                after.read(offset, &mut read);
                if data.len() != 4 || offset % 4 != 0 {
                    prop_assert!(read.iter().all(|&byte| byte == 0xff));
                }
            }
            for offset in (4..SIZE).step_by(4).filter(|&offset| offset != 0x1028) {
                prop_assert_eq!(read(&before, offset), read(&after, offset), "{:#x}", offset);
            }
            prop_assert!([0, 1].contains(&read(&after, 0x1028)));
        }
    }
}
