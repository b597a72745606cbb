// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Label files: what an orchestrator says of a VM, in lines `key=value` of a file beside its API socket.

use rustix::fs::{FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;

/// The most bytes of a label file.
pub const MAX_LABELS: usize = 64 << 10;

/// A VM's labels.
pub type Labels = BTreeMap<String, String>;

/// Why there are no labels.
#[derive(Debug, thiserror::Error)]
pub enum LabelError {
    /// It cannot be read.
    #[error("its label file cannot be read: {0}")]
    Read(#[from] io::Error),
    /// It is a pipe, a folder, a link or the like.
    #[error("its label file is no regular file")]
    NotAFile,
    /// It is too long.
    #[error("its label file has more than {MAX_LABELS} bytes")]
    TooLong,
    /// It is not text.
    #[error("its label file is not UTF-8")]
    NotText,
    /// A line without '='.
    #[error("line {0} of its label file is not of the form key=value")]
    Line(usize),
    /// A key that comes twice.
    #[error("line {0} of its label file has a key that an earlier line has")]
    Twice(usize),
}

/// The labels in the file `name` of a folder; none if there is no such file. It does not wait for anybody.
///
/// # Errors
/// There is such a file, and it is no label file.
pub fn read(folder: impl AsFd, name: &str) -> Result<Labels, LabelError> {
    // A FIFO or a device would make an open without NONBLOCK wait, or do something.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match openat(folder, name, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(Labels::new()),
        // A link; a socket.
        Err(Errno::LOOP | Errno::NXIO) => return Err(LabelError::NotAFile),
        Err(error) => return Err(io::Error::from(error).into()),
    };
    let stat = fstat(&file).map_err(io::Error::from)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(LabelError::NotAFile);
    }
    let mut bytes = Vec::new();
    let limit = MAX_LABELS as u64 + 1;
    File::from(file).take(limit).read_to_end(&mut bytes)?;
    parse(&bytes)
}

/// The labels in a file's content.
///
/// # Errors
/// The content is not that of a label file.
pub fn parse(bytes: &[u8]) -> Result<Labels, LabelError> {
    if bytes.len() > MAX_LABELS {
        return Err(LabelError::TooLong);
    }
    let text = str::from_utf8(bytes).map_err(|_| LabelError::NotText)?;
    let mut labels = Labels::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (key, value) = line.split_once('=').ok_or(LabelError::Line(number))?;
        let (key, value) = (key.trim(), value.trim());
        if key.is_empty() {
            return Err(LabelError::Line(number));
        }
        // Which of two would count is nothing to guess at.
        if labels.insert(key.into(), value.into()).is_some() {
            return Err(LabelError::Twice(number));
        }
    }
    Ok(labels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::CWD;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn lines() {
        let labels =
            parse(b"# made by an orchestrator\n\ntenant = blue\napp=web=1\nempty=\n").unwrap();
        assert_eq!(labels["tenant"], "blue");
        assert_eq!(labels["app"], "web=1");
        assert_eq!(labels["empty"], "");
        assert_eq!(labels.len(), 3);
        assert!(matches!(parse(b"a=1\nb"), Err(LabelError::Line(2))));
        assert!(matches!(parse(b"=1"), Err(LabelError::Line(1))));
        assert!(matches!(parse(b"a=1\n\na=1"), Err(LabelError::Twice(3))));
        assert!(matches!(parse(b"a=\xff"), Err(LabelError::NotText)));
        let long = vec![b'#'; MAX_LABELS + 1];
        assert!(matches!(parse(&long), Err(LabelError::TooLong)));
        assert!(parse(&long[1..]).unwrap().is_empty());
    }

    #[test]
    fn only_regular_files_and_without_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("good"), "a=b").unwrap();
        symlink(at("good"), at("link")).unwrap();
        fs::create_dir(at("folder")).unwrap();
        fs::write(at("long"), vec![b'#'; 2 * MAX_LABELS]).unwrap();
        rustix::fs::mknodat(CWD, at("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        let open = File::open(folder.path()).unwrap();
        assert_eq!(read(&open, "good").unwrap()["a"], "b");
        assert!(read(&open, "none").unwrap().is_empty());
        for name in ["link", "folder", "pipe", "socket"] {
            let read = read(&open, name);
            assert!(
                matches!(read, Err(LabelError::NotAFile)),
                "{name}: {read:?}"
            );
        }
        assert!(matches!(read(&open, "long"), Err(LabelError::TooLong)));
    }
}
