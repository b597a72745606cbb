// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the fuzz targets in `fuzz/` run, and, with the corpora that are kept there, the tests. It is there in builds for
//! fuzzing (`cargo fuzz` sets `cfg(fuzzing)`) and for tests only.
//!
//! Each function takes bytes of any kind, does with them what they say, and panics if something is not as it has to be.

mod configuration;
mod handshake;
mod registers;
mod wire;

pub use configuration::configuration;
pub use handshake::handshake;
pub use registers::registers;
pub use wire::wire;

/// The input of a target, taken from the front. At its end there are zeros.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut taken = [0; N];
        for (to, from) in taken.iter_mut().zip(self.slice(N)) {
            *to = *from;
        }
        taken
    }

    fn slice(&mut self, len: usize) -> &'a [u8] {
        let (first, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        first
    }

    fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.take())
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    /// Runs a target on each file of its corpus.
    fn run(target: &str, body: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        let files = fs::read_dir(folder.join(target)).unwrap();
        let mut count = 0;
        for file in files {
            let path = file.unwrap().path();
            // The one that it fails at is the last one.
            println!("{}", path.display());
            body(&fs::read(path).unwrap());
            count += 1;
        }
        assert!(count >= 10, "{count} files are no corpus");
    }

    #[test]
    fn corpus_of_wire() {
        run("wire", super::wire);
    }

    #[test]
    fn corpus_of_handshake() {
        run("handshake", super::handshake);
    }

    #[test]
    fn corpus_of_registers() {
        run("registers", super::registers);
    }

    #[test]
    fn corpus_of_configuration() {
        run("configuration", super::configuration);
    }
}
