// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The kernel's uevents, of which ivpci makes one when a link comes up or goes down.

use crate::netlink::{self, Error};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

const NETLINK_KOBJECT_UEVENT: i32 = 15;
/// The group in which the kernel's own messages are, before udev has seen them.
const KERNEL: u32 = 1;
/// What a message has whose link has come up.
const UP: &[u8] = b"IVPCI_LINK_STATE=up";

/// Waits for links.
#[derive(Debug)]
pub struct Links(OwnedFd);

impl Links {
    /// Begins to listen.
    pub fn open() -> Result<Self, Error> {
        let fd = netlink::open(NETLINK_KOBJECT_UEVENT, libc::SOCK_NONBLOCK)?;
        // SAFETY: a sockaddr_nl of zeros is a valid one.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        address.nl_groups = KERNEL;
        // SAFETY: the address is alive during the call and of the size given.
        let bound = unsafe {
            libc::bind(
                fd.as_raw_fd(),
                (&raw const address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
        };
        if bound < 0 {
            return Err(io::Error::last_os_error().into());
        }
        Ok(Links(fd))
    }

    /// Waits until a link has come up since the last call, but no longer than `timeout`.
    pub fn wait(&self, timeout: Duration) {
        let end = Instant::now() + timeout;
        loop {
            if self.has_come_up() {
                return;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let mut poll = libc::pollfd {
                fd: self.0.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            // Rounded up, not to go round and round in the last millisecond.
            let milliseconds = i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX);
            // SAFETY: one pollfd, alive during the call. That it was interrupted does no harm.
            unsafe { libc::poll(&raw mut poll, 1, milliseconds) };
        }
    }

    /// Takes all messages that are there.
    fn has_come_up(&self) -> bool {
        let mut up = false;
        // No message of the kernel's is longer.
        let mut buffer = [0u8; 4096];
        loop {
            // SAFETY: the buffer is alive, writable and of the length given.
            let received = unsafe {
                libc::recv(
                    self.0.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    0,
                )
            };
            match usize::try_from(received) {
                Ok(length) => up |= is_up(&buffer[..length]),
                // Messages were lost: one may have been the one.
                Err(_) if io::Error::last_os_error().raw_os_error() == Some(libc::ENOBUFS) => {
                    up = true;
                }
                Err(_) => return up,
            }
        }
    }
}

/// Whether this message, a headline and variables with a NUL behind each, says that a link has come up.
fn is_up(message: &[u8]) -> bool {
    message.split(|&byte| byte == 0).any(|part| part == UP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_understood() {
        let message = b"change@/devices/pci0000:00/0000:00:02.0\0ACTION=change\0IVPCI_LINK=0\0IVPCI_LINK_STATE=up\0";
        assert!(is_up(message));
        assert!(!is_up(b"change@/x\0IVPCI_LINK_STATE=down\0"));
        assert!(!is_up(b"add@/x\0NAME=IVPCI_LINK_STATE=up"));
        assert!(!is_up(b""));
    }
}
