// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What many cases do, in a word.

use crate::end::{End, Running};
use crate::see;
use crate::sys::{self, Errno, Fd};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How much a call that takes what it likes is given to send, which no buffers on the way hold.
pub const TOO_MUCH: usize = 48 << 20;

/// After how many bytes a receiver says that it goes on.
const TOLD: usize = 100_000;

/// After how many bytes the pattern begins again: a prime, so that it is at no place of a ring where it was a round ago.
const PERIOD: usize = 65521;

/// Bytes that can be told from those at other places of the stream.
pub fn pattern(from: usize, size: usize) -> Vec<u8> {
    let (period, mut bytes) = (period(), Vec::with_capacity(size));
    while bytes.len() < size {
        let at = (from + bytes.len()) % PERIOD;
        let part = (PERIOD - at).min(size - bytes.len());
        bytes.extend_from_slice(&period[at..at + part]);
    }
    bytes
}

fn period() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let mixed = |at: u64| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
        (0..PERIOD as u64).map(mixed).collect()
    })
}

/// A count of which it matters only whether it is all.
pub fn class(count: Result<i64, Errno>, all: usize) -> Result<&'static str, Errno> {
    count.map(|count| match usize::try_from(count) {
        Ok(0) => "0",
        Ok(count) if count == all => "all",
        Ok(count) if count < all => "some",
        _ => "too many",
    })
}

impl End {
    /// Sends on the connection.
    pub fn sends(&self, bytes: &[u8]) {
        see!(self, send(self.fd, bytes, 0));
    }

    /// Receives from the connection, at most `size` bytes.
    pub fn receives(&self, size: usize) {
        see!(self, recv(self.fd, size, 0));
    }

    /// Notes what poll says of the connection now.
    pub fn polls(&self) {
        see!(self, poll(self.fd, sys::ALL, 0));
    }

    /// Has a thread receive from `fd`, and notes that it has to wait.
    pub fn receive_waits(&self, fd: Fd, size: usize, flags: i32) -> Running {
        let mut recv = self.start("recv", move || sys::recv(fd, size, flags));
        self.waits(&mut recv);
        recv
    }

    /// Has a thread poll `fd`, and notes that it has to wait.
    pub fn poll_waits(&self, fd: Fd, events: i16) -> Running {
        let mut poll = self.start("poll", move || sys::poll(fd, events, -1));
        self.waits(&mut poll);
        poll
    }

    /// Notes the error that the connection has kept.
    pub fn keeps(&self) {
        see!(self, so_error(self.fd));
    }

    /// Sends bytes `from` to `from + size` of the pattern, with as many calls as it takes; notes how many were sent.
    pub fn sends_pattern(&self, from: usize, size: usize) {
        self.begin("sent");
        let (bytes, mut sent) = (pattern(from, size), 0);
        while sent < size {
            match sys::send(self.fd, &bytes[sent..], libc::MSG_NOSIGNAL) {
                Ok(count) => sent += usize::try_from(count).unwrap_or(0),
                Err(error) => return self.note(&format!("sent={sent},{error}")),
            }
        }
        self.note(&format!("sent={sent}"));
    }

    /// Receives `size` bytes of the pattern, or up to the end; notes how many came, and whether they were right.
    pub fn receives_pattern(&self, from: usize, size: usize) {
        self.receives_pattern_by(from, size, |fd, left| {
            sys::recv(fd, left.min(1 << 16), 0).map(|received| received.0)
        });
    }

    /// The same with a call of the case's own.
    pub fn receives_pattern_by(
        &self,
        from: usize,
        size: usize,
        mut call: impl FnMut(Fd, usize) -> Result<Vec<u8>, Errno>,
    ) {
        let (mut count, mut told, mut end) = (0, 0, String::new());
        self.begin("received");
        while count < size {
            // On a slow machine it is still no hang.
            if count - told > TOLD {
                self.begin("received");
                told = count;
            }
            match call(self.fd, size - count) {
                Ok(bytes) if bytes.is_empty() => {
                    end = ",end".into();
                    break;
                }
                Ok(bytes) => {
                    let at = from + count;
                    if pattern(at, bytes.len()) != bytes {
                        end = ",WRONG".into();
                        break;
                    }
                    count += bytes.len();
                }
                Err(error) => {
                    end = format!(",{error}");
                    break;
                }
            }
        }
        self.note(&format!("received={count}{end}"));
    }

    /// Fills all buffers up to the peer that does not read; leaves the socket non-blocking.
    pub fn fills(&self) {
        self.must("O_NONBLOCK", sys::nonblocking(self.fd, true));
        self.begin("fill");
        let (bytes, mut is_full) = (vec![7; 1 << 16], 0);
        // It is full if there is no room for some moments: windows open late.
        while is_full < 4 {
            match sys::send(self.fd, &bytes, libc::MSG_NOSIGNAL) {
                Ok(_) => is_full = 0,
                Err(Errno(libc::EAGAIN)) => {
                    is_full += 1;
                    self.pause();
                }
                Err(error) => return self.note(&format!("fill={error}")),
            }
        }
    }

    /// Reads until there is no more for a moment, or the end, or an error; notes which.
    pub fn drains(&self) {
        self.begin("drain");
        let mut is_empty = 0;
        let end = loop {
            match sys::recv(self.fd, 1 << 16, libc::MSG_DONTWAIT) {
                Ok(received) if received.0.is_empty() => break "end".into(),
                Ok(_) => {
                    self.begin("drain");
                    is_empty = 0;
                }
                Err(Errno(libc::EAGAIN)) if is_empty < 2 => {
                    is_empty += 1;
                    self.pause();
                }
                Err(error) => break error.to_string(),
            }
        };
        self.note(&format!("drain={end}"));
    }

    /// A phase after which connections to the server's port get no answer for as long as nobody accepts there: a TCP
    /// listener whose queue is full.
    pub fn black_hole(&mut self) {
        self.server(|e| {
            let tcp = || sys::socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_TCP);
            let listener = e.must("socket", tcp()) as Fd;
            e.listen_on(listener, libc::AF_INET, 0);
            let to = sys::Addr::v4(std::net::Ipv4Addr::LOCALHOST, e.port);
            let filler = e.must("socket", tcp()) as Fd;
            e.must("fill the queue", sys::connect(filler, &to));
        });
    }

    /// A phase after which the server has a port on which nobody listens.
    pub fn nobody_listening(&mut self) {
        self.server(|e| {
            let fd = e.stream();
            e.bind_to_own_port(fd, libc::AF_INET);
        });
    }

    /// Notes what an address is, as far as it is the same each time.
    pub fn names(&self, name: &str, address: Result<sys::Addr, Errno>) {
        let text = address.map(|address| {
            let family = match address.family() {
                libc::AF_INET => "v4",
                libc::AF_INET6 if address.is_mapped() => "mapped",
                libc::AF_INET6 => "v6",
                0 => return "unspecified".to_owned(),
                _ => "other",
            };
            let host = if address.is_any() { "any" } else { "host" };
            let port = match address.port() {
                0 => "0",
                port if port == self.port => "listener's",
                _ => "port",
            };
            format!("{family} {host}:{port}")
        });
        self.saw(name, &crate::end::shown(&text));
    }

    /// Waits until `is_so`, for a second at most: whether it came to be so.
    pub fn comes(&self, mut is_so: impl FnMut() -> bool) -> bool {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(1) {
            if is_so() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pattern_tells_places_apart() {
        assert_eq!(pattern(5, 3), pattern(0, 8)[5..]);
        assert_ne!(pattern(0, 64), pattern(1, 64));
        assert_ne!(pattern(0, 64), pattern(1 << 20, 64));
        assert_eq!(pattern(PERIOD - 2, 5)[2..], pattern(0, 3));
    }

    #[test]
    fn counts_have_classes() {
        assert_eq!(class(Ok(5), 5), Ok("all"));
        assert_eq!(class(Ok(4), 5), Ok("some"));
        assert_eq!(class(Err(Errno(libc::EPIPE)), 5), Err(Errno(libc::EPIPE)));
    }
}
