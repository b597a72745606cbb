// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A hostile guest: it writes cursors of its own choice into the buffers in which its peer receives, while its kernel
//! and the peer's use them for connections.
//!
//! docs/window.md says where those buffers are. Each begins with SMC-D's CDC header, which the sender writes: two
//! words of 8 bytes, the producer's cursor and the consumer's. The peer looks at them whenever our kernel says that
//! there is something new; so there has to be traffic meanwhile.

use crate::ivshmem;
use crate::mapping::Mapping;
use crate::pattern::Random;
use crate::service::Failure;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fs;
use std::time::{Duration, Instant};

const CONTROL_AREA: usize = 64 << 10;
const DIRECTORY: usize = 0x2000;
const SLOTS: u64 = 1024;
/// The producer's cursor in a CDC header; the consumer's is behind it.
const CURSORS: usize = 8;
/// The CDC header's size, by which a buffer is smaller than its DMB.
const HEADER: u32 = 32;
/// For so long there may be no buffer to write to.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was done.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Mutations {
    /// Cursors written.
    pub mutations: u64,
    /// Buffers of the peer's that were written to.
    pub buffers: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// Writes `count` cursors, all of which follow from the seed.
pub fn mutate(count: u64, seed: u64) -> Result<Mutations, Failure> {
    let window = Window::open()?;
    let mut random = Random::new(seed);
    let start = Instant::now();
    let (mut done, mut slot, mut last) = (Mutations::default(), 0, Instant::now());
    let mut seen = HashSet::new();
    while done.mutations < count {
        let Some(buffer) = window.next_buffer(&mut slot) else {
            if last.elapsed() > PATIENCE {
                return Err(format!("the peer has had no buffer for {PATIENCE:?}").into());
            }
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        last = Instant::now();
        if seen.insert(buffer.token) {
            done.buffers += 1;
        }
        // A few in a row, so that one is there when the peer looks.
        for _ in 0..1 + random.below(16) {
            let at = buffer.offset + CURSORS + 8 * random.below(2) as usize;
            let word = window.memory.read(at);
            window
                .memory
                .write(at, mutated(word, buffer.length - HEADER, &mut random));
            done.mutations += 1;
            for _ in 0..random.below(500) {
                std::hint::spin_loop();
            }
        }
        if random.below(8) == 0 {
            std::thread::yield_now();
        }
    }
    done.seconds = start.elapsed().as_secs_f64();
    Ok(done)
}

/// A cursor as SMC-D has it: 16 bits of wraps, 32 of count, 8 and 8 of flags.
fn mutated(word: u64, size: u32, random: &mut Random) -> u64 {
    let (wrap, count, flags) = (word as u16, (word >> 16) as u32, word >> 48);
    let cursor =
        |wrap: u16, count: u32, flags: u64| u64::from(wrap) | u64::from(count) << 16 | flags << 48;
    let counts = [
        0,
        1,
        size / 2,
        size - 1,
        size,
        size + 1,
        size + HEADER,
        2 * size,
        i32::MAX as u32,
        i32::MIN as u32,
        u32::MAX - size,
        u32::MAX,
    ];
    let chosen = counts[random.below(counts.len() as u64) as usize];
    let wraps = [1, 2, u16::MAX, 1 << 15][random.below(4) as usize];
    match random.below(8) {
        0 => random.next_number(),
        // The flags that end a connection only seldom: after them nothing is looked at any more.
        1 => cursor(
            random.next_number() as u16,
            random.next_number() as u32,
            flags,
        ),
        2 => cursor(wrap, chosen, flags),
        3 => cursor(wrap.wrapping_add(wraps), count, flags),
        4 => cursor(wrap.wrapping_add(wraps), chosen, flags),
        5 => cursor(wrap, count.wrapping_add(random.below(4096) as u32), flags),
        6 => cursor(wrap, count.wrapping_sub(random.below(4096) as u32), flags),
        // The producer's flags, urgent data among them.
        _ => cursor(wrap, chosen, random.below(256)),
    }
}

/// A DMB of the peer's.
struct Buffer {
    token: u64,
    offset: usize,
    length: u32,
}

/// The window of the link that is up.
struct Window {
    memory: Mapping,
    peers_side: usize,
}

impl Window {
    fn open() -> Result<Self, Failure> {
        let device = ivshmem::find()?;
        let name = ivshmem::name(&device)?;
        let links = fs::read_to_string(format!("/sys/kernel/debug/ivpci/{name}/links"))?;
        let (number, side, size) = links
            .lines()
            .find_map(up)
            .ok_or_else(|| format!("no link is up: {links}"))?;
        Ok(Window {
            memory: Mapping::of_memory(&device, number * size, size)?,
            peers_side: 1 - side,
        })
    }

    /// The peer's next buffer after `slot`.
    fn next_buffer(&self, slot: &mut u64) -> Option<Buffer> {
        for _ in 0..SLOTS {
            *slot = (*slot + 1) % SLOTS;
            let entry = CONTROL_AREA * self.peers_side + DIRECTORY + 16 * *slot as usize;
            let (token, place): (u64, u64) = (self.memory.read(entry), self.memory.read(entry + 8));
            let offset = ((place as u32) as usize) << 12;
            let length = (place >> 32) as u32;
            // The peer may be about to change the entry.
            if token != 0
                && length > HEADER
                && offset >= 2 * CONTROL_AREA
                && offset + length as usize <= self.memory.size()
            {
                return Some(Buffer {
                    token,
                    offset,
                    length,
                });
            }
        }
        None
    }
}

/// Number, own side and size of a link, if it is up: what ivpci's file `links` says in a line.
fn up(line: &str) -> Option<(usize, usize, usize)> {
    let words: Vec<&str> = line.split(' ').collect();
    let value = |name| {
        let at = words.iter().position(|word| *word == name)?;
        words.get(at + 1)?.parse().ok()
    };
    match words[..] {
        [number, "up", ..] => Some((
            number.parse().ok()?,
            value("side").filter(|side| *side < 2)?,
            value("size")?,
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_understood() {
        let line = "3 up side 1 size 67108864 peer 6f-x dmbs 2 retired 0 attached 2";
        assert_eq!(up(line), Some((3, 1, 64 << 20)));
        assert_eq!(up("0 down"), None);
        assert_eq!(up("0 up"), None);
    }

    #[test]
    fn a_seed_says_it_all() {
        let run = |seed| {
            let mut random = Random::new(seed);
            (0..100)
                .map(|_| mutated(5 << 16 | 1, 16352, &mut random))
                .collect::<Vec<_>>()
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
    }
}
