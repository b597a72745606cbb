// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pseudo-random data made from a seed, which a receiver can make again and compare.
//!
//! Unlike a checksum it tells where the first wrong byte is, and finds every one.

/// A stream of bytes that depends on its seed and on the position only.
#[derive(Debug, Clone)]
pub struct Pattern {
    seed: u64,
    position: u64,
    scratch: Vec<u8>,
}

/// The first byte that is not as it was sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("byte {position} of stream {seed:#x} is {found:#04x}, should be {expected:#04x}")]
pub struct Mismatch {
    seed: u64,
    position: u64,
    found: u8,
    expected: u8,
}

/// Mixes a counter into 64 bits that look random (the finaliser of splitmix64).
fn mix(counter: u64) -> u64 {
    let mut z = counter.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Pseudo-random numbers that follow from a seed.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Those of this seed, from their beginning.
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// Any number.
    pub fn next_number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mix(self.0)
    }

    /// One below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next_number() % limit
    }
}

impl Pattern {
    /// The stream of this seed, from its beginning.
    pub fn new(seed: u64) -> Self {
        Pattern {
            seed,
            position: 0,
            scratch: Vec::new(),
        }
    }

    /// How many bytes have been made or compared.
    pub fn position(&self) -> u64 {
        self.position
    }

    fn word(&self, index: u64) -> [u8; 8] {
        mix(self
            .seed
            .rotate_left(32)
            .wrapping_add(index)
            .wrapping_add(1))
        .to_le_bytes()
    }

    /// Fills `buffer` with the bytes that come next.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        let skip = (self.position % 8) as usize;
        let mut index = self.position / 8;
        self.position += buffer.len() as u64;
        let head = if skip == 0 {
            0
        } else {
            buffer.len().min(8 - skip)
        };
        let (head, words) = buffer.split_at_mut(head);
        if !head.is_empty() {
            head.copy_from_slice(&self.word(index)[skip..skip + head.len()]);
            index += 1;
        }
        for piece in words.chunks_mut(8) {
            piece.copy_from_slice(&self.word(index)[..piece.len()]);
            index += 1;
        }
    }

    /// Compares `data` with the bytes that come next.
    pub fn check(&mut self, data: &[u8]) -> Result<(), Mismatch> {
        let mut expected = std::mem::take(&mut self.scratch);
        expected.resize(data.len(), 0);
        let start = self.position;
        self.fill(&mut expected);
        let wrong = if expected == data {
            None
        } else {
            data.iter()
                .zip(&expected)
                .enumerate()
                .find(|(_, (found, expected))| found != expected)
        };
        let result = match wrong {
            None => Ok(()),
            Some((at, (&found, &expected))) => Err(Mismatch {
                seed: self.seed,
                position: start + at as u64,
                found,
                expected,
            }),
        };
        self.scratch = expected;
        result
    }
}

/// Sizes from 1 to `max` that depend on the seed: for reads and writes of every length.
#[derive(Debug, Clone)]
pub struct Sizes {
    seed: u64,
    max: usize,
}

impl Sizes {
    /// Sizes up to `max`, which is not 0.
    pub fn new(seed: u64, max: usize) -> Self {
        Sizes {
            seed: mix(seed ^ 0x5eed),
            max,
        }
    }

    /// The next size.
    pub fn next_size(&mut self) -> usize {
        self.seed = self.seed.wrapping_add(1);
        let random = mix(self.seed);
        // Half of them small, where the corner cases are.
        let limit = if random & 1 == 0 {
            self.max
        } else {
            self.max.min(1000)
        };
        (random >> 8) as usize % limit.max(1) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_the_whole() {
        let mut whole = vec![0; 1000];
        Pattern::new(7).fill(&mut whole);
        let (mut pattern, mut sizes) = (Pattern::new(7), Sizes::new(7, 50));
        let mut rest = &whole[..];
        while !rest.is_empty() {
            let (piece, tail) = rest.split_at(sizes.next_size().min(rest.len()));
            pattern.check(piece).unwrap();
            rest = tail;
        }
        assert_eq!(pattern.position(), 1000);
    }

    #[test]
    fn a_wrong_byte_is_found() {
        let mut data = vec![0; 300];
        Pattern::new(1).fill(&mut data);
        data[123] ^= 1;
        let error = Pattern::new(1).check(&data).unwrap_err();
        assert_eq!(error.position, 123);
        assert!(Pattern::new(2).check(&data[..8]).is_err());
    }
}
