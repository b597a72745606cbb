// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Interrupt lines: eventfds that are irqfds while their vector may send, and remember while it may not.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::Host;
use crate::pci::MsiMessage;

/// One interrupt line.
///
/// A peer holds the line's eventfd, too, and may do to it what it likes, clearing its O_NONBLOCK included. So
/// the device never reads or writes it in a way that could block.
pub struct Line {
    number: usize,
    fd: EventFd,
    /// What the line is delivered as now; `None`: it is masked.
    message: Option<MsiMessage>,
    /// Something was signalled and has been read, but not delivered.
    owed: bool,
}

impl Line {
    /// Line number `number`, masked.
    pub fn new(number: usize) -> io::Result<Self> {
        Ok(Line {
            number,
            fd: EventFd::new(EFD_NONBLOCK)?,
            message: None,
            owed: false,
        })
    }

    /// The line's eventfd, for a peer.
    pub fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// A descriptor of the line's eventfd, for a peer.
    pub fn share(&self) -> io::Result<EventFd> {
        self.fd.try_clone()
    }

    /// From now on the line is delivered as `message`, or masked. What was signalled while it was masked
    /// is delivered.
    pub fn set(&mut self, host: &dyn Host, message: Option<MsiMessage>) -> io::Result<()> {
        if self.message == message {
            return Ok(());
        }
        if message.is_none() || self.message.is_some() {
            // Even if the VMM fails it is right to try anew the next time.
            host.set_line(self.number, &self.fd, message)?;
            self.message = message;
            return Ok(());
        }
        // KVM delivers what it finds in an eventfd that becomes an irqfd, but leaves it there, and it
        // would be delivered again after the next mask. So take it out before; and, as it may have been
        // signalled in between, after. While it is an irqfd KVM empties it, and a write cannot block.
        self.owed |= self.drain();
        host.set_line(self.number, &self.fd, message)?;
        self.message = message;
        self.owed |= self.drain();
        if self.owed {
            self.fd.write(1)?;
            self.owed = false;
        }
        Ok(())
    }

    /// Whether something waits to be delivered.
    pub fn is_pending(&self) -> bool {
        let mut poll = libc::pollfd {
            fd: self.fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one pollfd that outlives the call.
        let ready = unsafe { libc::poll(&mut poll, 1, 0) };
        self.owed || ready == 1
    }

    /// Forgets what waits to be delivered.
    pub fn clear(&mut self) {
        self.drain();
        self.owed = false;
    }

    /// Signals the line. Only for a line that no peer knows: else it could block.
    pub fn raise(&self) -> io::Result<()> {
        self.fd.write(1)
    }

    /// Empties the eventfd. Returns whether there was something in it.
    fn drain(&self) -> bool {
        let mut count = [0u8; 8];
        let buffer = libc::iovec {
            iov_base: count.as_mut_ptr().cast(),
            iov_len: count.len(),
        };
        // SAFETY: the one buffer outlives the call. RWF_NOWAIT keeps it from blocking even if a peer has
        // cleared O_NONBLOCK and empties the eventfd at the same time.
        let read = unsafe { libc::preadv2(self.fd.as_raw_fd(), &buffer, 1, -1, libc::RWF_NOWAIT) };
        read == 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_utils::FakeHost;

    const MESSAGE: MsiMessage = MsiMessage {
        address: 0xfee0_0000,
        data: 0x30,
    };

    #[test]
    fn what_is_signalled_while_masked_is_delivered_once() {
        let host = FakeHost::new();
        let mut line = Line::new(7).unwrap();
        line.raise().unwrap();
        line.raise().unwrap();
        assert!(line.is_pending());
        assert_eq!(host.interrupts(), []);
        line.set(&*host, Some(MESSAGE)).unwrap();
        assert_eq!(host.interrupts(), [(7, MESSAGE)]);
        assert_eq!(host.interrupts(), []);
        line.set(&*host, None).unwrap();
        assert!(!line.is_pending());
        line.set(&*host, Some(MESSAGE)).unwrap();
        assert_eq!(host.interrupts(), []);
        line.raise().unwrap();
        assert_eq!(host.interrupts(), [(7, MESSAGE)]);
        line.set(&*host, None).unwrap();
    }

    #[test]
    fn what_a_failing_vmm_could_not_deliver_stays_pending() {
        let host = FakeHost::new();
        let mut line = Line::new(0).unwrap();
        line.raise().unwrap();
        host.fail_lines(true);
        assert!(line.set(&*host, Some(MESSAGE)).is_err());
        assert!(line.is_pending());
        host.fail_lines(false);
        line.set(&*host, Some(MESSAGE)).unwrap();
        assert_eq!(host.interrupts(), [(0, MESSAGE)]);
        line.set(&*host, None).unwrap();
    }

    #[test]
    fn a_peer_that_makes_the_eventfd_blocking_blocks_nobody() {
        let host = FakeHost::new();
        let mut line = Line::new(0).unwrap();
        // SAFETY: plain system call on a descriptor that is open.
        let result = unsafe { libc::fcntl(line.fd.as_raw_fd(), libc::F_SETFL, 0) };
        assert_eq!(result, 0);
        line.set(&*host, Some(MESSAGE)).unwrap();
        line.set(&*host, None).unwrap();
        line.clear();
        assert!(!line.is_pending());
    }
}
