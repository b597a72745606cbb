// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A TCP socket that lingers.

use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::thread::{self, JoinHandle};

use crate::sys::check;

/// A TCP socket with data that its receiver does not take: its last close() blocks for long, or until this is dropped.
#[derive(Debug)]
pub struct Lingering {
    socket: Option<TcpStream>,
    _receiver: TcpStream,
}

impl Lingering {
    /// One whose close() blocks for so many seconds.
    ///
    /// # Errors
    /// Those of sockets on this machine.
    pub fn new(seconds: u16) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let mut socket = TcpStream::connect(listener.local_addr()?)?;
        let (receiver, _) = listener.accept()?;
        socket.set_nonblocking(true)?;
        while socket.write(&[0; 1 << 16]).is_ok() {}
        socket.set_nonblocking(false)?;
        let linger = libc::linger {
            l_onoff: 1,
            l_linger: seconds.into(),
        };
        // SAFETY: the option's value outlives the call and is as long as it says.
        check(unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_LINGER,
                (&raw const linger).cast(),
                size_of::<libc::linger>() as libc::socklen_t,
            )
        })?;
        Ok(Lingering {
            socket: Some(socket),
            _receiver: receiver,
        })
    }

    /// Closes it here: who has the last copy waits. If that is this process, the thread that is returned does.
    pub fn let_go(&mut self) -> JoinHandle<()> {
        let socket = self.socket.take();
        thread::spawn(move || drop(socket))
    }
}

impl AsRawFd for Lingering {
    /// -1 after it was let go.
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        if self.socket.is_some() {
            self.let_go();
        }
    }
}
