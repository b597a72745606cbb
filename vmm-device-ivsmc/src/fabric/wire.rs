// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The messages between devices, as docs/fabric.md specifies them.

use thiserror::Error;

use crate::Gid;

const MAGIC: u32 = u32::from_le_bytes(*b"IVSF");
const VERSION: u16 = 1;
const HEADER: usize = 16;

const HELLO: u16 = 1;
const OFFER: u16 = 2;
const ACCEPT: u16 = 3;
const BYE: u16 = 4;

/// The longest message: HELLO.
pub const MAX_MESSAGE: usize = 56;
/// The most descriptors in a message: those of an OFFER with 16 vectors.
pub const MAX_DESCRIPTORS: usize = 17;

/// How a device introduces itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Its GID.
    pub gid: Gid,
    /// Its IVPosition.
    pub position: u32,
    /// How many vectors it has.
    pub vectors: u32,
    /// Its fabric.
    pub fabric_id: u32,
    /// log2 of the size of its windows.
    pub window_shift: u32,
}

/// One message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Who this is.
    Hello(Hello),
    /// Side 0's window and doorbells.
    Offer {
        /// log2 of the window's size.
        window_shift: u32,
        /// How many doorbells.
        vectors: u32,
    },
    /// Side 1's doorbells.
    Accept {
        /// How many.
        vectors: u32,
    },
    /// The end.
    Bye(Bye),
}

/// Why an end gives up a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bye {
    /// It goes away, or is reset.
    Closing,
    /// There is a link between these two already.
    Duplicate,
    /// There is no free link, or there are too many connections.
    Full,
    /// Not now.
    Busy,
    /// The other end broke the protocol.
    Protocol,
    /// It does not want the other end.
    Refused,
    /// It failed by itself.
    Internal,
    /// A reason that this version does not know.
    Other(u32),
}

/// Why bytes are not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// Too short for a header: its length.
    #[error("a message of {0} bytes that has no header")]
    Short(usize),
    /// Not the magic.
    #[error("the magic is {0:#x}")]
    Magic(u32),
    /// Another version.
    #[error("the protocol's version is {0}, and only {VERSION} is known")]
    Version(u16),
    /// An unknown type.
    #[error("a message of unknown type {0}")]
    Type(u16),
    /// Its type, its length, and the length that it gives.
    #[error("a message of type {0} with {1} bytes that says it has {2}")]
    Length(u16, usize, u32),
}

impl Bye {
    fn code(self) -> u32 {
        match self {
            Bye::Closing => 0,
            Bye::Duplicate => 1,
            Bye::Full => 2,
            Bye::Busy => 3,
            Bye::Protocol => 4,
            Bye::Refused => 5,
            Bye::Internal => 6,
            Bye::Other(code) => code,
        }
    }

    fn from_code(code: u32) -> Self {
        match code {
            0 => Bye::Closing,
            1 => Bye::Duplicate,
            2 => Bye::Full,
            3 => Bye::Busy,
            4 => Bye::Protocol,
            5 => Bye::Refused,
            6 => Bye::Internal,
            _ => Bye::Other(code),
        }
    }
}

/// Takes little-endian integers off the front of a payload whose length has been checked.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (first, rest) = self.0.split_first_chunk().unwrap_or((&[0; N], &[]));
        self.0 = rest;
        *first
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }
}

impl Message {
    /// How many descriptors travel with it.
    pub fn descriptors(&self) -> u64 {
        match *self {
            Message::Hello(_) | Message::Bye(_) => 0,
            Message::Offer { vectors, .. } => 1 + u64::from(vectors),
            Message::Accept { vectors } => u64::from(vectors),
        }
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut payload = Vec::with_capacity(MAX_MESSAGE - HEADER);
        let kind = match *self {
            Message::Hello(hello) => {
                payload.extend(hello.gid.bytes());
                for word in [
                    hello.position,
                    hello.vectors,
                    hello.fabric_id,
                    hello.window_shift,
                ] {
                    payload.extend(word.to_le_bytes());
                }
                payload.extend([0; 8]);
                HELLO
            }
            Message::Offer {
                window_shift,
                vectors,
            } => {
                payload.extend(window_shift.to_le_bytes());
                payload.extend(vectors.to_le_bytes());
                OFFER
            }
            Message::Accept { vectors } => {
                payload.extend(vectors.to_le_bytes());
                payload.extend([0; 4]);
                ACCEPT
            }
            Message::Bye(reason) => {
                payload.extend(reason.code().to_le_bytes());
                payload.extend([0; 4]);
                BYE
            }
        };
        let length = HEADER + payload.len();
        let mut bytes = Vec::with_capacity(length);
        bytes.extend(MAGIC.to_le_bytes());
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend((length as u32).to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(payload);
        bytes
    }

    /// The message that a packet holds.
    ///
    /// # Errors
    /// When it is none that this version knows.
    pub fn decode(packet: &[u8]) -> Result<Self, WireError> {
        if packet.len() < HEADER {
            return Err(WireError::Short(packet.len()));
        }
        let mut reader = Reader(packet);
        let magic = reader.u32();
        if magic != MAGIC {
            return Err(WireError::Magic(magic));
        }
        let version = reader.u16();
        if version != VERSION {
            return Err(WireError::Version(version));
        }
        let kind = reader.u16();
        let payload = match kind {
            HELLO => 40,
            OFFER | ACCEPT | BYE => 8,
            _ => return Err(WireError::Type(kind)),
        };
        let length = reader.u32();
        if packet.len() != HEADER + payload || length as usize != packet.len() {
            return Err(WireError::Length(kind, packet.len(), length));
        }
        let _reserved = reader.u32();
        Ok(match kind {
            HELLO => Message::Hello(Hello {
                gid: Gid::from_bytes(reader.take()),
                position: reader.u32(),
                vectors: reader.u32(),
                fabric_id: reader.u32(),
                window_shift: reader.u32(),
            }),
            OFFER => Message::Offer {
                window_shift: reader.u32(),
                vectors: reader.u32(),
            },
            ACCEPT => Message::Accept {
                vectors: reader.u32(),
            },
            _ => Message::Bye(Bye::from_code(reader.u32())),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection;
    use proptest::prelude::*;

    fn any_message() -> impl Strategy<Value = Message> {
        let hello = any::<([u8; 16], u32, u32, u32, u32)>().prop_map(
            |(gid, position, vectors, fabric_id, window_shift)| {
                let gid = Gid::from_bytes(gid);
                Message::Hello(Hello {
                    gid,
                    position,
                    vectors,
                    fabric_id,
                    window_shift,
                })
            },
        );
        prop_oneof![
            hello,
            any::<(u32, u32)>().prop_map(|(window_shift, vectors)| Message::Offer {
                window_shift,
                vectors
            }),
            any::<u32>().prop_map(|vectors| Message::Accept { vectors }),
            any::<u32>().prop_map(|code| Message::Bye(Bye::from_code(code))),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(message in any_message()) {
            let bytes = message.encode();
            prop_assert!(bytes.len() <= MAX_MESSAGE);
            prop_assert_eq!(Message::decode(&bytes), Ok(message));
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in collection::vec(any::<u8>(), 0..128)) {
            let _ = Message::decode(&bytes);
        }

        #[test]
        fn a_header_with_any_body_is_decoded_or_refused(
            kind in 0u16..6,
            length in 0u32..64,
            body in collection::vec(any::<u8>(), 0..64),
        ) {
            let mut bytes = Message::Bye(Bye::Closing).encode();
            bytes.truncate(HEADER);
            bytes[6..8].copy_from_slice(&kind.to_le_bytes());
            bytes[8..12].copy_from_slice(&length.to_le_bytes());
            bytes.extend(&body);
            if let Ok(message) = Message::decode(&bytes) {
                prop_assert_eq!(message.encode().len(), bytes.len());
            }
        }

        #[test]
        fn no_part_of_a_message_and_nothing_longer_is_one(message in any_message(), cut in 0usize..56) {
            let mut bytes = message.encode();
            prop_assert!(Message::decode(&bytes[..cut.min(bytes.len() - 1)]).is_err());
            bytes.push(0);
            prop_assert!(Message::decode(&bytes).is_err());
        }
    }

    #[test]
    fn the_bytes_are_those_of_the_specification() {
        let hello = Hello {
            gid: Gid::from_bytes([0xaa; 16]),
            position: 0x0102,
            vectors: 4,
            fabric_id: 0xff00,
            window_shift: 26,
        };
        let mut expected = b"IVSF\x01\0\x01\0\x38\0\0\0\0\0\0\0".to_vec();
        expected.extend([0xaa; 16]);
        expected.extend([2, 1, 0, 0, 4, 0, 0, 0, 0, 0xff, 0, 0, 26, 0, 0, 0]);
        expected.extend([0; 8]);
        assert_eq!(Message::Hello(hello).encode(), expected);
        assert_eq!(
            Message::Bye(Bye::Busy).encode(),
            b"IVSF\x01\0\x04\0\x18\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0"
        );
    }
}
