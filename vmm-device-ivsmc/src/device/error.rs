// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Why a device cannot be made.

use std::io;
use std::path::PathBuf;

use thiserror::Error as ThisError;

use crate::ConfigError;

/// Why a device cannot be made.
#[derive(Debug, ThisError)]
pub enum Error {
    /// An option is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Somebody listens on the socket already.
    #[error("ivsmc: path={0} is in use by another process; use another path, or end that process")]
    PathInUse(PathBuf),
    /// There is something else than a socket.
    #[error("ivsmc: path={0} exists and is not a socket; use another path, or remove it")]
    NotASocket(PathBuf),
    /// No permission for the socket.
    #[error(
        "ivsmc: no permission to make path={0}; use a folder that this user can write to, or change its mode"
    )]
    NoPermission(PathBuf),
    /// The socket's folder does not exist.
    #[error("ivsmc: the folder of path={0} does not exist; make it, or use another path")]
    NoFolder(PathBuf),
    /// The socket cannot be made for another reason.
    #[error("ivsmc: cannot listen on path={0}: {1}")]
    Listen(PathBuf, #[source] io::Error),
    /// The system is out of descriptors or the like.
    #[error("ivsmc: cannot make the device of path={0}: {1}")]
    System(PathBuf, #[source] io::Error),
}

impl Error {
    /// The one of a socket that cannot be made.
    pub(super) fn listen(path: PathBuf, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::AddrInUse => Error::PathInUse(path),
            io::ErrorKind::AlreadyExists => Error::NotASocket(path),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Error::NoPermission(path)
            }
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Error::NoFolder(path),
            _ => Error::Listen(path, error),
        }
    }
}
