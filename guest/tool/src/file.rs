// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Files that users write, in TOML: read whole or not at all, with the line of what is wrong.

use serde::de::DeserializeOwned;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Bytes that a file may have.
const SIZE: u64 = 1 << 20;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It says something that it cannot.
    #[error("{}:{line}: {problem}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Where in it, from 1.
        line: usize,
        /// What is wrong, and what would be right.
        problem: String,
    },
}

/// What is wrong, and where: in bytes from the file's start.
pub type Problem = (usize, String);

/// Reads a file and has `take` make of it what it means.
pub fn read<T: DeserializeOwned, U>(
    path: &Path,
    take: impl FnOnce(T) -> Result<U, Problem>,
) -> Result<U, Error> {
    let unread = |source| Error::Read {
        path: path.into(),
        source,
    };
    let mut text = String::new();
    let file = fs::File::open(path).map_err(unread)?;
    let mut file = file.take(SIZE + 1);
    file.read_to_string(&mut text).map_err(unread)?;
    if file.limit() == 0 {
        let kind = io::ErrorKind::FileTooLarge;
        let problem = format!("it has more than {SIZE} bytes");
        return Err(unread(io::Error::new(kind, problem)));
    }
    parse(&text, take).map_err(|(line, problem)| Error::Content {
        path: path.into(),
        line,
        problem,
    })
}

/// The same with what a file has in it. The error is a line, from 1, and what is wrong there.
pub fn parse<T: DeserializeOwned, U>(
    text: &str,
    take: impl FnOnce(T) -> Result<U, Problem>,
) -> Result<U, (usize, String)> {
    let at_line = |(at, problem): Problem| {
        let before = text.bytes().take(at);
        (1 + before.filter(|byte| *byte == b'\n').count(), problem)
    };
    let content = toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        at_line((at, error.message().to_owned()))
    })?;
    take(content).map_err(at_line)
}
