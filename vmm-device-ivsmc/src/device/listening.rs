// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where the device listens: its socket's file is made and removed under a lock.

use std::io;

use crate::Device;
use crate::fabric::socket::Socket;
use crate::fabric::socket_file::SocketFile;

/// Where the device listens.
pub struct Listening {
    /// There is none while the path is in use, and when the device stops.
    file: Option<SocketFile>,
    /// The device stops: it must not listen any more.
    is_closed: bool,
}

impl Listening {
    pub fn new(file: Option<SocketFile>) -> Self {
        Listening {
            file,
            is_closed: false,
        }
    }
}

impl Device {
    /// Removes the file, for good. To be called while the fabric thread still listens, so that nobody replaces the file
    /// in between.
    pub(crate) fn remove_file(&self) {
        let mut listening = super::lock(&self.listening);
        listening.file = None;
        listening.is_closed = true;
    }

    /// Listens on a path that was in use when the device was made. `None`: the device stops.
    pub(crate) fn listen(&self) -> io::Result<Option<Socket>> {
        let mut listening = super::lock(&self.listening);
        if listening.is_closed {
            return Ok(None);
        }
        let for_all = self.config.is_for_all();
        let (socket, file) = SocketFile::listen(&self.config.path, for_all)?;
        listening.file = Some(file);
        Ok(Some(socket))
    }

    /// Listens anew if somebody has removed the socket's file; `None`: it is there. Another file is left alone.
    pub(crate) fn listen_anew(&self) -> io::Result<Option<Socket>> {
        let mut listening = super::lock(&self.listening);
        let Some(file) = &listening.file else {
            return Ok(None);
        };
        match file.is_there() {
            Ok(true) => Ok(None),
            Ok(false) => Err(io::Error::other("another file is there")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let for_all = self.config.is_for_all();
                let (socket, file) = SocketFile::listen_anew(&self.config.path, for_all)?;
                listening.file = Some(file);
                Ok(Some(socket))
            }
            Err(error) => Err(error),
        }
    }
}
