// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Netlink: building requests, asking the kernel, and taking its answers apart.
//!
//! Taking apart is pure and bounded: [`messages`] and [`attributes`] walk a buffer once and give an
//! error where a length does not fit, whatever the bytes are.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Why a conversation with the kernel came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No netlink socket of this protocol could be had.
    #[error("cannot open netlink protocol {protocol}: {source}")]
    Open {
        /// The netlink protocol's number.
        protocol: i32,
        /// What the kernel said.
        source: io::Error,
    },
    /// Sending the request or receiving the answer failed.
    #[error("netlink exchange failed: {0}")]
    Exchange(#[from] io::Error),
    /// The kernel refused the request.
    #[error("the kernel refused: {0}")]
    Refused(io::Error),
    /// The answer's lengths do not fit together.
    #[error("malformed netlink answer: {0}")]
    Malformed(&'static str),
    /// The generic netlink family is not there.
    #[error(
        "the kernel has no generic netlink family {0}: it is built without SMC \
         (CONFIG_SMC, CONFIG_DIBS), or the module smc is not loaded"
    )]
    NoFamily(&'static str),
}

/// Length of a message's header, in bytes.
const HEADER: usize = 16;
/// Length of an attribute's header, in bytes.
const ATTRIBUTE_HEADER: usize = 4;
/// The attribute type's bits; the others are the flags for nested and for network byte order.
const TYPE_MASK: u16 = 0x3fff;
/// More than any single answer of the kernel's holds.
const RECEIVE_BUFFER: usize = 64 * 1024;
/// How long the kernel may take for an answer.
const ANSWER_SECONDS: i64 = 5;

fn align(length: usize) -> usize {
    length.saturating_add(3) & !3
}

/// The `N` bytes of `bytes` that begin at `offset`, if there are so many.
pub fn array<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..offset.checked_add(N)?)?.try_into().ok()
}

/// The `u32` in host order at `offset`.
pub fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    array(bytes, offset).map(u32::from_ne_bytes)
}

/// The `u64` in host order at `offset`.
pub fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    array(bytes, offset).map(u64::from_ne_bytes)
}

/// One netlink message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_seq`.
    pub sequence: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

/// The messages in `buffer`, in order; ends after the first that does not fit.
pub fn messages(buffer: &[u8]) -> impl Iterator<Item = Result<Message<'_>, Error>> {
    let mut rest = buffer;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let bytes = std::mem::take(&mut rest);
        let parsed = (|| {
            let length = u32_at(bytes, 0)? as usize;
            let payload = bytes.get(HEADER..length)?;
            let kind = u16::from_ne_bytes(array(bytes, 4)?);
            let sequence = u32_at(bytes, 8)?;
            rest = bytes.get(align(length)..).unwrap_or_default();
            Some(Message {
                kind,
                sequence,
                payload,
            })
        })();
        Some(parsed.ok_or(Error::Malformed("message length")))
    })
}

/// The attributes in `buffer`, as type and value, in order; ends after the first that does not fit.
pub fn attributes(buffer: &[u8]) -> impl Iterator<Item = Result<(u16, &[u8]), Error>> {
    let mut rest = buffer;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let bytes = std::mem::take(&mut rest);
        let parsed = (|| {
            let length = usize::from(u16::from_ne_bytes(array(bytes, 0)?));
            let value = bytes.get(ATTRIBUTE_HEADER..length)?;
            let kind = u16::from_ne_bytes(array(bytes, 2)?) & TYPE_MASK;
            rest = bytes.get(align(length)..).unwrap_or_default();
            Some((kind, value))
        })();
        Some(parsed.ok_or(Error::Malformed("attribute length")))
    })
}

/// The value of the first attribute of type `kind`.
pub fn attribute(buffer: &[u8], kind: u16) -> Result<Option<&[u8]>, Error> {
    for found in attributes(buffer) {
        let (found, value) = found?;
        if found == kind {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

/// The text of a string attribute: up to the first NUL, trailing spaces cut off.
pub fn text(value: &[u8]) -> String {
    let end = value.iter().position(|&b| b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).trim_end().to_owned()
}

/// A request in the making.
#[derive(Debug, Clone)]
pub struct Request(Vec<u8>);

impl Request {
    /// A request of this `nlmsg_type` with these flags beside `NLM_F_REQUEST`.
    pub fn new(kind: u16, flags: i32) -> Self {
        let flags = (flags | libc::NLM_F_REQUEST) as u16;
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        Request(bytes)
    }

    /// Appends plain bytes (a family's header), padded to 4.
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self.0.resize(align(self.0.len()), 0);
        self
    }

    /// Appends an attribute; `value` is shorter than 64 KiB.
    pub fn attribute(self, kind: u16, value: &[u8]) -> Self {
        let length = (ATTRIBUTE_HEADER + value.len()) as u16;
        let mut attribute = Vec::with_capacity(usize::from(length));
        attribute.extend_from_slice(&length.to_ne_bytes());
        attribute.extend_from_slice(&kind.to_ne_bytes());
        attribute.extend_from_slice(value);
        self.bytes(&attribute)
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[0..4].copy_from_slice(&length.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

/// A netlink socket to the kernel.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

/// Opens a netlink socket of this protocol, with these flags beside `SOCK_CLOEXEC`.
pub(crate) fn open(protocol: i32, flags: i32) -> Result<OwnedFd, Error> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | flags;
    crate::socket::open_kind(libc::AF_NETLINK, kind, protocol)
        .map_err(|source| Error::Open { protocol, source })
}

impl Socket {
    /// Opens a socket of the netlink protocol `protocol` (`NETLINK_SOCK_DIAG`, `NETLINK_GENERIC`).
    pub fn open(protocol: i32) -> Result<Self, Error> {
        let fd = open(protocol, 0)?;
        let timeout = libc::timeval {
            tv_sec: ANSWER_SECONDS,
            tv_usec: 0,
        };
        // SAFETY: the option's value is a timeval of this size, alive during the call.
        let result = unsafe {
            libc::setsockopt(
                fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVTIMEO,
                std::ptr::from_ref(&timeout).cast(),
                size_of_val(&timeout) as libc::socklen_t,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error().into());
        }
        Ok(Socket { fd, sequence: 0 })
    }

    /// Asks, and hands every message of the answer to `each` until the kernel says that it is done.
    ///
    /// The request has to carry `NLM_F_DUMP` or `NLM_F_ACK`: what ends the answer is the end of a
    /// dump, or the acknowledgement.
    pub fn ask(
        &mut self,
        request: Request,
        mut each: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let request = request.finish(self.sequence);
        // SAFETY: the buffer is alive and of the length given.
        let sent = unsafe {
            libc::send(
                self.fd.as_raw_fd(),
                request.as_ptr().cast(),
                request.len(),
                0,
            )
        };
        if sent < 0 {
            return Err(io::Error::last_os_error().into());
        }
        let mut buffer = vec![0u8; RECEIVE_BUFFER];
        loop {
            let length = self.receive(&mut buffer)?;
            for message in messages(&buffer[..length]) {
                let message = message?;
                if message.sequence != self.sequence {
                    continue;
                }
                match i32::from(message.kind) {
                    libc::NLMSG_DONE | libc::NLMSG_ERROR => return finished(message.payload),
                    libc::NLMSG_NOOP => {}
                    _ => each(message.payload)?,
                }
            }
        }
    }

    fn receive(&self, buffer: &mut [u8]) -> Result<usize, Error> {
        loop {
            // SAFETY: the buffer is alive, writable and of the length given.
            let received = unsafe {
                libc::recv(
                    self.fd.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    libc::MSG_TRUNC,
                )
            };
            match usize::try_from(received) {
                Ok(0) => return Err(Error::Malformed("empty answer")),
                Ok(length) if length > buffer.len() => {
                    return Err(Error::Malformed("answer larger than the buffer"));
                }
                Ok(length) => return Ok(length),
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error.into());
                    }
                }
            }
        }
    }
}

/// What the payload of a final message says: a negated errno, or zero for success.
fn finished(payload: &[u8]) -> Result<(), Error> {
    match array(payload, 0).map(i32::from_ne_bytes) {
        None => Err(Error::Malformed("final message without a code")),
        Some(code) if code < 0 => Err(Error::Refused(io::Error::from_raw_os_error(
            code.saturating_neg(),
        ))),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_built_is_what_is_taken_apart() {
        let bytes = Request::new(20, libc::NLM_F_DUMP)
            .bytes(&[1, 2, 3, 4])
            .attribute(7, b"hello")
            .attribute(8 | 0x8000, b"")
            .finish(42);
        let parsed: Vec<_> = messages(&bytes).collect::<Result<_, _>>().unwrap();
        assert_eq!(parsed.len(), 1);
        assert_eq!((parsed[0].kind, parsed[0].sequence), (20, 42));
        let found: Vec<_> = attributes(&parsed[0].payload[4..])
            .collect::<Result<_, _>>()
            .unwrap();
        assert_eq!(found, [(7, &b"hello"[..]), (8, &b""[..])]);
    }

    #[test]
    fn lengths_that_do_not_fit_are_errors() {
        let mut bytes = Request::new(1, 0).bytes(&[0; 8]).finish(1);
        bytes[0] = 200;
        assert!(messages(&bytes).next().unwrap().is_err());
        bytes[0] = 3;
        assert!(messages(&bytes).next().unwrap().is_err());
        assert!(attributes(&[2, 0, 1, 0]).next().unwrap().is_err());
        assert!(attributes(&[1]).next().unwrap().is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_walked_in_bounds(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let mut seen = 0;
            for message in messages(&bytes).flatten() {
                seen += HEADER + message.payload.len();
                let inner: usize = attributes(message.payload)
                    .flatten()
                    .map(|(_, value)| ATTRIBUTE_HEADER + value.len())
                    .sum();
                prop_assert!(inner <= message.payload.len());
            }
            prop_assert!(seen <= bytes.len());
            prop_assert!(messages(&bytes).filter(Result::is_err).count() <= 1);
        }

        #[test]
        fn attributes_survive_the_round_trip(
            values in proptest::collection::vec((0u16..0x3fff, proptest::collection::vec(any::<u8>(), 0..40)), 0..8)
        ) {
            let mut request = Request::new(9, 0);
            for (kind, value) in &values {
                request = request.attribute(*kind, value);
            }
            let bytes = request.finish(1);
            let found: Vec<(u16, Vec<u8>)> = attributes(&bytes[HEADER..])
                .map(|a| a.map(|(kind, value)| (kind, value.to_vec())))
                .collect::<Result<_, _>>()
                .unwrap();
            prop_assert_eq!(found, values);
        }
    }
}
