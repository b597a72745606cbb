// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A window's content, for a snapshot.

use std::io;
use std::os::unix::fs::FileExt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::Window;

/// Bytes of a window that are looked at together; windows are multiples of it.
const PIECE: u64 = 64 << 10;

/// A piece of a window's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    offset: u64,
    /// In base64.
    data: String,
}

/// Why there is no content.
#[derive(Debug, Error)]
pub enum ContentError {
    /// There is more than there may be.
    #[error("the window holds too much")]
    TooMuch,
    /// The memory cannot be read.
    #[error(transparent)]
    Read(#[from] io::Error),
}

impl Window {
    /// The memory's content, without what is zero, if that is no more than `limit` bytes.
    ///
    /// It is read in order. A peer that writes meanwhile announces data in front of it (see docs/window.md), and does
    /// not overwrite what this VM has not read: so the content has all that it announces.
    ///
    /// All of the window is read with pread alone: it takes no memory where nothing is, and waits for nobody. lseek and
    /// whatever else tells where a memfd has pages waits for a peer that is in the middle of a write() to it, which can
    /// be for ever.
    pub(crate) fn content(&self, limit: u64) -> Result<Vec<Piece>, ContentError> {
        let mut pieces = Vec::new();
        let mut bytes = vec![0; PIECE as usize];
        let mut left = limit;
        for offset in (0..self.len()).step_by(PIECE as usize) {
            self.file().read_exact_at(&mut bytes, offset)?;
            if bytes.iter().any(|&byte| byte != 0) {
                left = left.checked_sub(PIECE).ok_or(ContentError::TooMuch)?;
                pieces.push(Piece {
                    offset,
                    data: BASE64.encode(&bytes),
                });
            }
        }
        Ok(pieces)
    }

    /// Puts content into a window of zeros.
    pub(crate) fn fill(&self, pieces: &[Piece]) -> io::Result<()> {
        for piece in pieces {
            let bytes = BASE64.decode(&piece.data).map_err(io::Error::other)?;
            let end = piece.offset.checked_add(bytes.len() as u64);
            if end.is_none_or(|end| end > self.len()) {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the content is larger than the window",
                ));
            }
            self.file().write_all_at(&bytes, piece.offset)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const SIZE: u64 = 2 << 20;

    #[test]
    fn content_is_kept_and_takes_no_memory_for_what_is_not_there() {
        let window = Window::create(SIZE, false).unwrap();
        let allocated = || window.file().metadata().unwrap().blocks();
        assert_eq!(window.content(0).unwrap(), vec![]);
        assert_eq!(allocated(), 0);
        let places = [5, PIECE - 1, 7 * PIECE + 9, SIZE - 1];
        for at in places {
            window.file().write_all_at(&[7], at).unwrap();
        }
        let before = allocated();
        let pieces = window.content(3 * PIECE).unwrap();
        assert_eq!(pieces.len(), 3);
        assert_eq!(allocated(), before);
        let copy = Window::create(SIZE, false).unwrap();
        copy.fill(&pieces).unwrap();
        assert_eq!(copy.content(u64::MAX).unwrap(), pieces);
        let too_much = window.content(3 * PIECE - 1).unwrap_err();
        assert!(matches!(too_much, ContentError::TooMuch));
    }

    #[test]
    fn content_that_does_not_fit_is_refused() {
        let window = Window::create(SIZE, false).unwrap();
        let data = BASE64.encode([1; 16]);
        for (offset, data) in [(SIZE - 15, &*data), (u64::MAX, &*data), (0, "no base64")] {
            let data = data.to_owned();
            assert!(window.fill(&[Piece { offset, data }]).is_err());
        }
    }
}
