// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A client of a device's socket that does not behave as a peer does (docs/fabric.md).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// A connection to a device; it is closed when it is dropped.
#[derive(Debug)]
pub struct Intruder(OwnedFd);

impl Intruder {
    /// Connects to a device.
    pub fn connect(path: &Path) -> io::Result<Self> {
        // SAFETY: takes no pointers.
        let socket =
            unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0) };
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was made above and belongs to nobody else.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        // SAFETY: all zeroes is a valid sockaddr_un.
        let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
        address.sun_family = libc::AF_UNIX as libc::sa_family_t;
        let bytes = path.as_os_str().as_bytes();
        if bytes.len() >= address.sun_path.len() {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        for (place, byte) in address.sun_path.iter_mut().zip(bytes) {
            *place = *byte as libc::c_char;
        }
        // SAFETY: the address is alive during the call, and has the size that is given.
        let connected = unsafe {
            libc::connect(
                socket.as_raw_fd(),
                std::ptr::from_ref(&address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
        };
        if connected < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Intruder(socket))
    }

    /// Sends one packet. The device may have closed the connection; that is its right.
    pub fn send(&self, packet: &[u8]) {
        // SAFETY: the packet is alive during the call, and has the size that is given.
        unsafe {
            libc::send(
                self.0.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                libc::MSG_NOSIGNAL,
            );
        }
    }

    /// Waits until the device closes the connection; what it says before is not heard.
    pub fn wait_for_end(&self, timeout: Duration) -> io::Result<()> {
        let start = Instant::now();
        let mut packet = [0u8; 64];
        loop {
            // SAFETY: the buffer is alive during the call, and has the size that is given.
            let got = unsafe {
                libc::recv(
                    self.0.as_raw_fd(),
                    packet.as_mut_ptr().cast(),
                    packet.len(),
                    libc::MSG_DONTWAIT,
                )
            };
            let error = io::Error::last_os_error();
            match got {
                0 => return Ok(()),
                1.. => {}
                _ if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
                _ if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                _ if start.elapsed() > timeout => return Err(io::ErrorKind::TimedOut.into()),
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}

/// A HELLO of a device that there is not.
pub fn hello(fabric_id: u32) -> Vec<u8> {
    let mut message = Vec::with_capacity(56);
    message.extend(b"IVSF");
    message.extend(1u16.to_le_bytes()); // version
    message.extend(1u16.to_le_bytes()); // type
    message.extend(56u32.to_le_bytes());
    message.extend(0u32.to_le_bytes());
    // The largest GID: the other end is side 0, and offers a window.
    message.extend([0xff; 16]);
    for value in [77, 4, fabric_id, 21] {
        message.extend(u32::to_le_bytes(value));
    }
    message.extend(0u64.to_le_bytes());
    message
}

/// Bytes that mean nothing, the same each time.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    })
    .take(length)
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_is_as_long_as_it_says() {
        let message = hello(0xff00);
        assert_eq!(message.len(), 56);
        assert_eq!(message[8..12], 56u32.to_le_bytes());
        assert_eq!(message[40..44], 0xff00u32.to_le_bytes());
    }

    #[test]
    fn noise_has_all_kinds_of_bytes() {
        let noise = noise(10_000);
        assert!((0..=255).all(|byte| noise.contains(&byte)));
    }
}
