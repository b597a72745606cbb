// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The other end of a connection in the hands of a test: it says what it is told to, however bad. For this crate's
//! tests, and with the feature `peer` for others.

mod fault;
mod fuse;
mod lingering;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

pub use fault::Fault;
pub use fuse::Fuse;
pub use lingering::Lingering;

use crate::Window;
pub use crate::fabric::socket::Packet;
use crate::fabric::socket::Socket;
pub use crate::fabric::wire::{Bye, Hello, MAX_DESCRIPTORS, Message, WireError};

/// How long to wait between two looks.
const PAUSE: Duration = Duration::from_millis(1);

/// The memory of a new window, sealed as it has to be.
///
/// # Errors
/// When the system has no memory or descriptors left.
pub fn window(size: u64) -> io::Result<File> {
    Window::create(size, false)?.file().try_clone()
}

/// A connection to a device.
#[derive(Debug)]
pub struct Client(Socket);

/// Tries again as long as the error is this one.
fn as_long_as<T>(
    kind: io::ErrorKind,
    patience: Duration,
    mut act: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    let end = Instant::now() + patience;
    loop {
        match act() {
            Err(error) if error.kind() == kind && Instant::now() < end => thread::sleep(PAUSE),
            other => return other,
        }
    }
}

impl Client {
    /// Connects as soon as there is room in the device's queue.
    ///
    /// # Errors
    /// When nobody listens, or there is no room.
    pub fn connect(path: &Path, patience: Duration) -> io::Result<Self> {
        let connect = || Socket::connect(path);
        let mut socket = as_long_as(io::ErrorKind::WouldBlock, patience, connect)?;
        socket.allow_rights()?;
        Ok(Client(socket))
    }

    /// Sends one packet at once.
    ///
    /// # Errors
    /// When the device has closed the connection, or takes no descriptors (yet).
    pub fn send(&self, bytes: &[u8], descriptors: &[RawFd]) -> io::Result<()> {
        self.0.send(bytes, descriptors)
    }

    /// Sends one packet as soon as the device takes descriptors, if it does at all.
    ///
    /// # Errors
    /// As for [`send`](Self::send).
    pub fn send_soon(
        &self,
        bytes: &[u8],
        descriptors: &[RawFd],
        patience: Duration,
    ) -> io::Result<()> {
        as_long_as(io::ErrorKind::PermissionDenied, patience, || {
            self.0.send(bytes, descriptors)
        })
    }

    /// The packet that is there, if there is one.
    ///
    /// # Errors
    /// When the connection has ended.
    pub fn receive(&self) -> io::Result<Option<Packet>> {
        self.0.receive(MAX_DESCRIPTORS, |fd| fd)
    }

    /// The next message; `None` if the device has closed the connection.
    ///
    /// # Errors
    /// When there is none in time, or what comes is no message.
    pub fn next(&self, patience: Duration) -> io::Result<Option<(Message, Packet)>> {
        let end = Instant::now() + patience;
        loop {
            match self.receive() {
                Ok(None) if Instant::now() > end => return Err(io::ErrorKind::TimedOut.into()),
                Ok(None) => thread::sleep(PAUSE),
                Ok(Some(packet)) if !packet.bytes().is_empty() => {
                    let message = Message::decode(packet.bytes());
                    return Ok(Some((message.map_err(io::Error::other)?, packet)));
                }
                Ok(Some(_)) | Err(_) => return Ok(None),
            }
        }
    }

    /// Waits for the connection's end; gives the reason with which the device ends it.
    ///
    /// # Errors
    /// As for [`next`](Self::next).
    pub fn end(&self, patience: Duration) -> io::Result<Option<Bye>> {
        let mut reason = None;
        while let Some((message, _)) = self.next(patience)? {
            if let Message::Bye(bye) = message {
                reason = Some(bye);
            }
        }
        Ok(reason)
    }
}

impl AsRawFd for Client {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
