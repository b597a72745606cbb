// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! MSI-X: the table, the masks, and which message a vector sends when it may send one.

use serde::{Deserialize, Serialize};

const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;
const VECTOR_MASK: u32 = 1;
const ENTRY_SIZE: usize = 16;

/// A message-signalled interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MsiMessage {
    /// Where it is written.
    pub address: u64,
    /// What is written.
    pub data: u32,
}

/// One entry of the table, as the guest sees it: message address, upper address, data, vector control.
type Entry = [u32; 4];

/// The state of a function's MSI-X, for a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState {
    control: u16,
    entries: Vec<Entry>,
}

/// The MSI-X table and control of a function.
#[derive(Clone, Debug)]
pub struct Msix {
    control: u16,
    entries: Vec<Entry>,
}

impl Msix {
    /// The capability's ID.
    pub const CAPABILITY: u8 = 0x11;
    /// Where in the capability the guest finds the message control register.
    pub const CONTROL: usize = 2;
    /// Of the capability's body, what the guest can write: enable and function mask.
    pub const WRITABLE: [u8; 2] = [0, 0xc0];

    /// A table of `vectors` masked entries; MSI-X is off.
    pub fn new(vectors: u16) -> Self {
        let mut msix = Msix {
            control: 0,
            entries: vec![[0; 4]; usize::from(vectors)],
        };
        msix.reset();
        msix
    }

    /// As after a reset.
    pub fn reset(&mut self) {
        self.control = 0;
        self.entries.fill([0, 0, 0, VECTOR_MASK]);
    }

    /// The capability's body (what follows its ID and next pointer), with table and pending bits at these
    /// offsets (multiples of 8) in BAR number `bar`.
    pub fn capability(&self, bar: u8, table: u32, pending: u32) -> [u8; 10] {
        let mut body = [0; 10];
        let last = self.entries.len().saturating_sub(1) as u16;
        body[0..2].copy_from_slice(&last.to_le_bytes());
        body[2..6].copy_from_slice(&(table & !7 | u32::from(bar)).to_le_bytes());
        body[6..10].copy_from_slice(&(pending & !7 | u32::from(bar)).to_le_bytes());
        body
    }

    /// How many vectors there are.
    pub fn vectors(&self) -> usize {
        self.entries.len()
    }

    /// The guest wrote the message control register.
    pub fn set_control(&mut self, control: u16) {
        self.control = control & (ENABLE | FUNCTION_MASK);
    }

    /// The message that the vector sends now; `None` while it must not send any.
    pub fn message(&self, vector: usize) -> Option<MsiMessage> {
        let &[low, high, data, control] = self.entries.get(vector)?;
        let may = self.control & (ENABLE | FUNCTION_MASK) == ENABLE && control & VECTOR_MASK == 0;
        may.then_some(MsiMessage {
            address: u64::from(high) << 32 | u64::from(low),
            data,
        })
    }

    /// The guest reads the table. All ones if the access is not an aligned one of 4 or 8 bytes.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let Some((vector, first)) = self.locate(offset, data.len()) else {
            return;
        };
        for (bytes, word) in data.chunks_exact_mut(4).zip(&self.entries[vector][first..]) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
    }

    /// The guest writes the table. Returns the vector that it wrote; `None` if the access was not an
    /// aligned one of 4 or 8 bytes, which has no effect.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) -> Option<usize> {
        let (vector, first) = self.locate(offset, data.len())?;
        for (bytes, n) in data.chunks_exact(4).zip(first..4) {
            if let &[a, b, c, d] = bytes {
                let word = u32::from_le_bytes([a, b, c, d]);
                self.entries[vector][n] = match n {
                    0 => word & !3,
                    3 => word & VECTOR_MASK,
                    _ => word,
                };
            }
        }
        Some(vector)
    }

    /// The entry and the word in it that an access begins at.
    fn locate(&self, offset: u64, len: usize) -> Option<(usize, usize)> {
        let offset = usize::try_from(offset).ok()?;
        let good = (len == 4 || len == 8) && offset % len == 0;
        let (vector, byte) = (offset / ENTRY_SIZE, offset % ENTRY_SIZE);
        (good && vector < self.entries.len()).then_some((vector, byte / 4))
    }

    /// The guest reads the pending bits; `pending` says of a vector that must not send whether it
    /// would. All ones if the access is not an aligned one of 4 or 8 bytes.
    pub fn read_pending(&self, offset: u64, data: &mut [u8], pending: impl Fn(usize) -> bool) {
        data.fill(0xff);
        let len = data.len();
        let Ok(offset) = usize::try_from(offset) else {
            return;
        };
        if (len != 4 && len != 8) || offset % len != 0 {
            return;
        }
        for (n, byte) in data.iter_mut().enumerate() {
            *byte = 0;
            for bit in 0..8 {
                let vector = offset
                    .saturating_add(n)
                    .saturating_mul(8)
                    .saturating_add(bit);
                let waits = vector < self.entries.len() && self.message(vector).is_none();
                if waits && pending(vector) {
                    *byte |= 1 << bit;
                }
            }
        }
    }

    /// What a snapshot needs.
    pub fn state(&self) -> MsixState {
        MsixState {
            control: self.control,
            entries: self.entries.clone(),
        }
    }

    /// Takes over a snapshot's state, as far as there are vectors here.
    pub fn restore(&mut self, state: &MsixState) {
        self.set_control(state.control);
        for (entry, saved) in self.entries.iter_mut().zip(&state.entries) {
            *entry = [saved[0] & !3, saved[1], saved[2], saved[3] & VECTOR_MASK];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: MsiMessage = MsiMessage {
        address: 0xfee0_1000,
        data: 0x41,
    };

    fn set_up() -> Msix {
        let mut msix = Msix::new(3);
        msix.write_table(16, &0xfee0_1000u64.to_le_bytes());
        msix.write_table(24, &0x41u64.to_le_bytes());
        msix
    }

    #[test]
    fn a_message_needs_all_three_masks_clear() {
        let mut msix = set_up();
        assert_eq!(msix.message(1), None);
        msix.set_control(ENABLE);
        assert_eq!(msix.message(1), Some(MESSAGE));
        assert_eq!(msix.message(0), None, "vectors are masked at first");
        assert_eq!(msix.message(3), None);
        msix.set_control(ENABLE | FUNCTION_MASK);
        assert_eq!(msix.message(1), None);
        msix.set_control(ENABLE);
        assert_eq!(msix.write_table(28, &[1, 0, 0, 0]), Some(1));
        assert_eq!(msix.message(1), None);
    }

    #[test]
    fn accesses_of_other_widths_do_nothing() {
        let mut msix = set_up();
        let before = msix.state();
        for (offset, len) in [
            (0, 1),
            (0, 2),
            (2, 4),
            (4, 8),
            (0, 16),
            (48, 4),
            (u64::MAX - 3, 4),
        ] {
            assert_eq!(msix.write_table(offset, &vec![0x55; len]), None);
            let mut data = vec![0; len];
            msix.read_table(offset, &mut data);
            assert!(data.iter().all(|&byte| byte == 0xff), "{offset} {len}");
        }
        assert_eq!(msix.state(), before);
        let mut data = [0; 8];
        msix.read_table(24, &mut data);
        assert_eq!(data, 0x41u64.to_le_bytes());
    }

    #[test]
    fn pending_is_said_only_of_what_is_masked() {
        let mut msix = set_up();
        msix.set_control(ENABLE);
        let mut data = [0; 8];
        msix.read_pending(0, &mut data, |_| true);
        assert_eq!(data, [0b101, 0, 0, 0, 0, 0, 0, 0]);
        msix.read_pending(0, &mut data, |vector| vector == 1);
        assert_eq!(data, [0; 8]);
        msix.read_pending(u64::MAX - 7, &mut data, |_| true);
        assert_eq!(data, [0; 8]);
        msix.read_pending(4, &mut data, |_| true);
        assert_eq!(data, [0xff; 8]);
    }

    #[test]
    fn a_state_of_other_size_is_taken_as_far_as_it_goes() {
        let state = MsixState {
            control: 0xffff,
            entries: vec![[!0; 4]; 9],
        };
        let mut msix = Msix::new(2);
        msix.restore(&state);
        assert_eq!(msix.state().control, ENABLE | FUNCTION_MASK);
        assert_eq!(msix.state().entries, [[!3, !0, !0, 1]; 2]);
    }
}
