// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One packet.

use crate::fabric::wire::{MAX_DESCRIPTORS, MAX_MESSAGE, Message};

/// The input is a packet. It is no message, or one that has the packet's bytes, but for the reserved ones.
pub fn wire(packet: &[u8]) {
    let Ok(message) = Message::decode(packet) else {
        return;
    };
    let bytes = message.encode();
    assert!(bytes.len() <= MAX_MESSAGE);
    assert_eq!(bytes.len(), packet.len());
    assert_eq!(Message::decode(&bytes), Ok(message));
    let reserved: &[usize] = match message {
        Message::Hello(_) => &[12, 13, 14, 15, 48, 49, 50, 51, 52, 53, 54, 55],
        Message::Offer { .. } => &[12, 13, 14, 15],
        Message::Accept { .. } | Message::Bye(_) => &[12, 13, 14, 15, 20, 21, 22, 23],
    };
    for (n, (ours, theirs)) in bytes.iter().zip(packet).enumerate() {
        assert!(ours == theirs || reserved.contains(&n), "byte {n}");
    }
    // What it says that it has is a number and no more: no message has more than MAX_DESCRIPTORS taken.
    let most = u64::from(u32::MAX) + 1;
    assert!(message.descriptors() <= most && MAX_DESCRIPTORS == 17);
}
