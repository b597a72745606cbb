// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a client of a device's socket sends that does not behave as a peer does (docs/fabric.md).

use vmm_device_ivsmc::Gid;
use vmm_device_ivsmc::peer::{Hello, Message};

/// A HELLO of a device that there is not.
pub fn hello(fabric_id: u32) -> Vec<u8> {
    let hello = Hello {
        // The largest: the other end is side 0, and offers a window.
        gid: Gid::from_bytes([0xff; 16]),
        position: 77,
        vectors: 4,
        fabric_id,
        window_shift: 21,
    };
    Message::Hello(hello).encode()
}

/// Bytes that mean nothing, the same each time.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    })
    .take(length)
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_has_all_kinds_of_bytes() {
        let noise = noise(10_000);
        assert!((0..=255).all(|byte| noise.contains(&byte)));
    }
}
