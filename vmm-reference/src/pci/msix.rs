// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! MSI-X: the table, the masks, and the vectors whose routes follow them.

use std::sync::Arc;

use log::warn;

use crate::interrupts::{MsiMessage, Vector};

/// Size in bytes of the BAR that has table and pending bits.
pub const BAR_SIZE: u64 = 0x1000;
/// Where in that BAR the pending bits are. The table is at 0.
const PENDING_BITS: u64 = 0x800;

const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;
const VECTOR_MASK: u32 = 1;
const ENTRY_SIZE: usize = 16;

/// One entry of the table, as the guest sees it: message address, upper address, data, vector control.
type Entry = [u32; 4];

/// The MSI-X table and control of a function.
///
/// A masked vector is one without a route. What is signalled meanwhile gets lost in KVM, so a vector that was in use is
/// delivered once whenever it is unmasked; and that is what its pending bit says. One that has not been in use since
/// MSI-X was enabled is not: who has just enabled it waits for nothing yet.
pub struct Msix {
    /// What to call the function in the log.
    name: String,
    control: u16,
    entries: Vec<Entry>,
    vectors: Vec<Arc<Vector>>,
    /// Which vectors have been unmasked since MSI-X was enabled.
    used: Vec<bool>,
}

impl Msix {
    /// The capability's ID.
    pub const CAPABILITY: u8 = 0x11;
    /// Where in the capability the guest finds the message control register.
    pub const CONTROL: usize = 2;
    /// Of the capability's body, what the guest can write: enable and function mask.
    pub const WRITABLE: [u8; 2] = [0, 0xc0];

    /// A table of masked entries for these vectors; MSI-X is off.
    pub fn new(name: String, vectors: Vec<Arc<Vector>>) -> Self {
        Msix {
            name,
            control: 0,
            entries: vec![[0, 0, 0, VECTOR_MASK]; vectors.len()],
            used: vec![false; vectors.len()],
            vectors,
        }
    }

    /// The capability's body (what follows its ID and next pointer), with all of it in BAR number `bar`.
    pub fn capability(&self, bar: u8) -> [u8; 10] {
        let mut body = [0; 10];
        let last = self.entries.len().saturating_sub(1) as u16;
        body[0..2].copy_from_slice(&last.to_le_bytes());
        body[2..6].copy_from_slice(&u32::from(bar).to_le_bytes());
        body[6..10].copy_from_slice(&(PENDING_BITS as u32 | u32::from(bar)).to_le_bytes());
        body
    }

    /// The guest wrote the message control register.
    pub fn set_control(&mut self, control: u16) {
        self.control = control & (ENABLE | FUNCTION_MASK);
        if control & ENABLE == 0 {
            self.used.fill(false);
        }
        (0..self.vectors.len()).for_each(|vector| self.update(vector));
    }

    /// Makes a vector's route what the table says.
    fn update(&mut self, vector: usize) {
        let message = self.message(vector);
        let Some(each) = self.vectors.get(vector) else {
            return;
        };
        if let Err(error) = each.set(message, self.used[vector]) {
            warn!("{}: vector {vector} cannot be set: {error}", self.name);
        }
        self.used[vector] |= message.is_some();
    }

    /// The message that the vector sends now; `None` while it must not send any.
    fn message(&self, vector: usize) -> Option<MsiMessage> {
        let &[low, high, data, control] = self.entries.get(vector)?;
        let may = self.control & (ENABLE | FUNCTION_MASK) == ENABLE && control & VECTOR_MASK == 0;
        may.then_some(MsiMessage {
            address: u64::from(high) << 32 | u64::from(low),
            data,
        })
    }

    /// The guest reads the BAR. All ones if the access is not an aligned one of 4 or 8 bytes.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(offset) = offset.checked_sub(PENDING_BITS) {
            self.read_pending(offset, data);
        } else if let Some((vector, first)) = self.locate(offset, data.len()) {
            for (bytes, word) in data.chunks_exact_mut(4).zip(&self.entries[vector][first..]) {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
        }
    }

    /// The guest writes the BAR; nothing happens if the access is not an aligned one of 4 or 8 bytes.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let Some((vector, first)) = self.locate(offset, data.len()) else {
            return;
        };
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
        self.update(vector);
    }

    /// The entry and the word in it that an access to the table begins at.
    fn locate(&self, offset: u64, len: usize) -> Option<(usize, usize)> {
        let offset = usize::try_from(offset).ok()?;
        let (vector, byte) = (offset / ENTRY_SIZE, offset % ENTRY_SIZE);
        (is_good(offset, len) && vector < self.entries.len()).then_some((vector, byte / 4))
    }

    fn read_pending(&self, offset: u64, data: &mut [u8]) {
        let Ok(offset) = usize::try_from(offset) else {
            return;
        };
        if !is_good(offset, data.len()) {
            return;
        }
        for (n, byte) in data.iter_mut().enumerate() {
            let is_pending = |&bit: &usize| {
                let vector = offset
                    .saturating_add(n)
                    .saturating_mul(8)
                    .saturating_add(bit);
                self.used.get(vector) == Some(&true) && self.message(vector).is_none()
            };
            *byte = (0..8)
                .filter(is_pending)
                .fold(0, |bits, bit| bits | 1 << bit);
        }
    }
}

/// Whether an access is one that table and pending bits take.
fn is_good(offset: usize, len: usize) -> bool {
    (len == 4 || len == 8) && offset.is_multiple_of(len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interrupts::test_utils::{Call, FakeKvm};

    const MESSAGE: MsiMessage = MsiMessage {
        address: 0xfee0_1000,
        data: 0x41,
    };

    /// A table of three vectors, of which number 1 sends the message as soon as it may.
    fn set_up() -> (Msix, FakeKvm) {
        let kvm = FakeKvm::default();
        let interrupts = kvm.interrupts();
        let vectors = (0..3).map(|_| Arc::new(interrupts.vector())).collect();
        let mut msix = Msix::new("test".into(), vectors);
        msix.write(16, &0xfee0_1000u64.to_le_bytes());
        msix.write(24, &0x41u64.to_le_bytes());
        kvm.calls();
        (msix, kvm)
    }

    #[test]
    fn a_message_needs_all_three_masks_clear() {
        let (mut msix, _kvm) = set_up();
        assert_eq!(msix.message(1), None);
        msix.set_control(ENABLE);
        assert_eq!(msix.message(1), Some(MESSAGE));
        assert_eq!(msix.message(0), None, "vectors are masked at first");
        assert_eq!(msix.message(3), None);
        msix.set_control(ENABLE | FUNCTION_MASK);
        assert_eq!(msix.message(1), None);
        msix.set_control(ENABLE);
        msix.write(28, &[1, 0, 0, 0]);
        assert_eq!(msix.message(1), None);
    }

    #[test]
    fn unmasking_delivers_once_in_all_the_ways_there_are() {
        let (mut msix, kvm) = set_up();
        let unmasked = [Call::Routes(vec![(25, MESSAGE)]), Call::Signal(MESSAGE)];
        for _ in 0..2 {
            msix.set_control(ENABLE);
            assert_eq!(kvm.calls(), unmasked[..1], "nobody waits for it yet");
            msix.set_control(ENABLE);
            assert_eq!(kvm.calls(), [], "nothing has changed");
            msix.set_control(ENABLE | FUNCTION_MASK);
            assert_eq!(kvm.calls(), [Call::Routes(vec![])]);
            msix.set_control(ENABLE);
            assert_eq!(kvm.calls(), unmasked);
            msix.write(28, &[1, 0, 0, 0]);
            assert_eq!(kvm.calls(), [Call::Routes(vec![])]);
            msix.write(28, &[0, 0, 0, 0]);
            assert_eq!(kvm.calls(), unmasked);
            msix.set_control(0);
            assert_eq!(kvm.calls(), [Call::Routes(vec![])]);
        }
    }

    #[test]
    fn accesses_of_other_widths_do_nothing() {
        let (mut msix, kvm) = set_up();
        let before = msix.entries.clone();
        for (offset, len) in [
            (0, 1),
            (0, 2),
            (2, 4),
            (4, 8),
            (0, 16),
            (48, 4),
            (u64::MAX - 3, 4),
        ] {
            msix.write(offset, &vec![0x55; len]);
            let mut data = vec![0; len];
            msix.read(offset, &mut data);
            // Where there are no pending bits they are not set.
            let expected = if offset > PENDING_BITS { 0 } else { 0xff };
            assert_eq!(data, vec![expected; len], "{offset} {len}");
        }
        assert_eq!(msix.entries, before);
        assert_eq!(kvm.calls(), []);
        let mut data = [0; 8];
        msix.read(24, &mut data);
        assert_eq!(data, 0x41u64.to_le_bytes());
    }

    #[test]
    fn pending_is_said_of_what_was_in_use_and_is_masked() {
        let (mut msix, _kvm) = set_up();
        let pending = |msix: &Msix| {
            let mut data = [0; 8];
            msix.read(PENDING_BITS, &mut data);
            data
        };
        assert_eq!(pending(&msix), [0; 8]);
        msix.set_control(ENABLE);
        assert_eq!(pending(&msix), [0; 8]);
        msix.set_control(ENABLE | FUNCTION_MASK);
        assert_eq!(pending(&msix), [0b010, 0, 0, 0, 0, 0, 0, 0]);
        msix.set_control(0);
        assert_eq!(pending(&msix), [0; 8]);
        let mut data = [0; 8];
        msix.read(u64::MAX - 7, &mut data);
        assert_eq!(data, [0; 8]);
        msix.read(PENDING_BITS + 4, &mut data);
        assert_eq!(data, [0xff; 8]);
    }
}
