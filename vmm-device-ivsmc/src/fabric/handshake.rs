// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a connection has come to, and what a message makes of it. There is no I/O in here.

use std::ops::RangeInclusive;

use crate::Gid;
use crate::fabric::wire::{Bye, Hello, Message};

/// The window sizes that the protocol knows, as log2.
const WINDOW_SHIFTS: RangeInclusive<u32> = 21..=40;
const VECTORS: RangeInclusive<u32> = 1..=16;

/// What two ends have agreed on, as one of them sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The peer's GID.
    pub gid: Gid,
    /// The peer's IVPosition.
    pub position: u16,
    /// How many vectors the peer has.
    pub vectors: u16,
    /// log2 of the window's size.
    pub window_shift: u32,
    /// Which side this device is.
    pub side: u32,
}

/// What a message asks of this end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: wait for the other end.
    Wait,
    /// Make the window, and send OFFER.
    Offer(Terms),
    /// Place the window that came with the message, and send ACCEPT.
    Accept(Terms),
    /// Place the window that was offered.
    Accepted(Terms),
}

/// Why a message ends the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The other end gave up.
    Bye(Bye),
    /// This end does not want the other one.
    Refused(&'static str),
    /// The other end broke the protocol.
    Protocol(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    AwaitHello,
    AwaitOffer(Terms),
    AwaitAccept(Terms),
    Done,
}

/// One end of a connection.
#[derive(Clone, Debug)]
pub struct Handshake {
    ours: Hello,
    peer: Option<Gid>,
    phase: Phase,
}

impl Handshake {
    /// A connection on which this end has sent `ours`, and nothing has come in.
    pub fn new(ours: Hello) -> Self {
        Handshake {
            ours,
            peer: None,
            phase: Phase::AwaitHello,
        }
    }

    /// Who is at the other end, once it has introduced itself well.
    pub fn peer(&self) -> Option<Gid> {
        self.peer
    }

    /// How many descriptors the next message may have.
    pub fn descriptors(&self) -> usize {
        match self.phase {
            Phase::AwaitOffer(terms) => 1 + usize::from(terms.vectors),
            Phase::AwaitAccept(terms) => usize::from(terms.vectors),
            Phase::AwaitHello | Phase::Done => 0,
        }
    }

    /// A message came in.
    pub fn receive(&mut self, message: &Message) -> Result<Step, End> {
        if let Message::Bye(reason) = *message {
            return Err(End::Bye(reason));
        }
        match (self.phase, *message) {
            (Phase::AwaitHello, Message::Hello(theirs)) => {
                let terms = self.agree(&theirs)?;
                self.peer = Some(terms.gid);
                if terms.side == 0 {
                    self.phase = Phase::AwaitAccept(terms);
                    Ok(Step::Offer(terms))
                } else {
                    self.phase = Phase::AwaitOffer(terms);
                    Ok(Step::Wait)
                }
            }
            (
                Phase::AwaitOffer(terms),
                Message::Offer {
                    window_shift,
                    vectors,
                },
            ) => {
                if window_shift != terms.window_shift {
                    return Err(End::Protocol(
                        "OFFER of a window of another size than agreed",
                    ));
                }
                if vectors != u32::from(terms.vectors) {
                    return Err(End::Protocol(
                        "OFFER with another number of vectors than HELLO",
                    ));
                }
                self.phase = Phase::Done;
                Ok(Step::Accept(terms))
            }
            (Phase::AwaitAccept(terms), Message::Accept { vectors }) => {
                if vectors != u32::from(terms.vectors) {
                    return Err(End::Protocol(
                        "ACCEPT with another number of vectors than HELLO",
                    ));
                }
                self.phase = Phase::Done;
                Ok(Step::Accepted(terms))
            }
            _ => Err(End::Protocol("a message out of its turn")),
        }
    }

    fn agree(&self, theirs: &Hello) -> Result<Terms, End> {
        if theirs.gid.is_null() {
            return Err(End::Protocol("HELLO with the null GID"));
        }
        if !VECTORS.contains(&theirs.vectors) {
            return Err(End::Protocol(
                "HELLO with a number of vectors that is not 1 to 16",
            ));
        }
        if !WINDOW_SHIFTS.contains(&theirs.window_shift) {
            return Err(End::Protocol(
                "HELLO with a window size that is not 2 MiB to 1 TiB",
            ));
        }
        let (Ok(position @ 1..), Ok(vectors)) = (
            u16::try_from(theirs.position),
            u16::try_from(theirs.vectors),
        ) else {
            return Err(End::Protocol(
                "HELLO with an IVPosition that is not 1 to 65535",
            ));
        };
        if theirs.gid == self.ours.gid {
            return Err(End::Refused("the other end has this device's own GID"));
        }
        if theirs.fabric_id != self.ours.fabric_id {
            return Err(End::Refused("the other end belongs to another fabric"));
        }
        Ok(Terms {
            gid: theirs.gid,
            position,
            vectors,
            window_shift: theirs.window_shift.min(self.ours.window_shift),
            side: u32::from(self.ours.gid > theirs.gid),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(gid: u8, window_shift: u32) -> Hello {
        Hello {
            gid: Gid::from_bytes([gid; 16]),
            position: u32::from(gid),
            vectors: u32::from(gid),
            fabric_id: 0xff00,
            window_shift,
        }
    }

    fn terms(gid: u8, side: u32) -> Terms {
        let gid_bytes = Gid::from_bytes([gid; 16]);
        let number = u16::from(gid);
        Terms {
            gid: gid_bytes,
            position: number,
            vectors: number,
            window_shift: 22,
            side,
        }
    }

    fn offer(window_shift: u32, vectors: u32) -> Message {
        Message::Offer {
            window_shift,
            vectors,
        }
    }

    #[test]
    fn both_sides_to_the_end() {
        let mut side0 = Handshake::new(hello(2, 24));
        let mut side1 = Handshake::new(hello(3, 22));
        assert_eq!(
            side0.receive(&Message::Hello(hello(3, 22))),
            Ok(Step::Offer(terms(3, 0)))
        );
        assert_eq!(side1.receive(&Message::Hello(hello(2, 24))), Ok(Step::Wait));
        assert_eq!(side1.receive(&offer(22, 2)), Ok(Step::Accept(terms(2, 1))));
        let accept = Message::Accept { vectors: 3 };
        assert_eq!(side0.receive(&accept), Ok(Step::Accepted(terms(3, 0))));
        for end in [&mut side0, &mut side1] {
            assert!(matches!(end.receive(&accept), Err(End::Protocol(_))));
            let bye = Message::Bye(Bye::Closing);
            assert_eq!(end.receive(&bye), Err(End::Bye(Bye::Closing)));
        }
    }

    /// Every phase with every message: only one is in its turn.
    #[test]
    fn a_message_out_of_its_turn_ends_the_connection() {
        let messages = [
            Message::Hello(hello(3, 22)),
            Message::Hello(hello(2, 22)),
            offer(22, 2),
            Message::Accept { vectors: 3 },
        ];
        let phases: [(u8, &[Message], &[usize]); 5] = [
            (2, &[], &[0]),
            (3, &[], &[1]),
            (2, &messages[0..1], &[3]),
            (3, &messages[1..2], &[2]),
            (3, &messages[1..3], &[]),
        ];
        for (ours, before, good) in phases {
            for (n, message) in messages.iter().enumerate() {
                let mut handshake = Handshake::new(hello(ours, 22));
                for earlier in before {
                    handshake.receive(earlier).unwrap();
                }
                let result = handshake.receive(message);
                assert_eq!(
                    result.is_ok(),
                    good.contains(&n),
                    "{ours} {before:?} {message:?}"
                );
            }
        }
    }

    #[test]
    fn what_does_not_agree() {
        let ours = hello(2, 22);
        let good = hello(3, 22);
        for (theirs, refused) in [
            (
                Hello {
                    gid: ours.gid,
                    ..good
                },
                true,
            ),
            (
                Hello {
                    fabric_id: 0xff01,
                    ..good
                },
                true,
            ),
            (
                Hello {
                    gid: Gid::from_bytes([0; 16]),
                    ..good
                },
                false,
            ),
            (
                Hello {
                    position: 0,
                    ..good
                },
                false,
            ),
            (
                Hello {
                    position: 0x10000,
                    ..good
                },
                false,
            ),
            (Hello { vectors: 0, ..good }, false),
            (
                Hello {
                    vectors: 17,
                    ..good
                },
                false,
            ),
            (
                Hello {
                    vectors: u32::MAX,
                    ..good
                },
                false,
            ),
            (
                Hello {
                    window_shift: 20,
                    ..good
                },
                false,
            ),
            (
                Hello {
                    window_shift: 41,
                    ..good
                },
                false,
            ),
        ] {
            let end = Handshake::new(ours)
                .receive(&Message::Hello(theirs))
                .unwrap_err();
            assert_eq!(
                matches!(end, End::Refused(_)),
                refused,
                "{theirs:?}: {end:?}"
            );
        }
        for bad in [
            offer(21, 2),
            offer(23, 2),
            offer(22, 3),
            offer(22, u32::MAX),
        ] {
            let mut side1 = Handshake::new(hello(3, 22));
            side1.receive(&Message::Hello(hello(2, 22))).unwrap();
            assert!(
                matches!(side1.receive(&bad), Err(End::Protocol(_))),
                "{bad:?}"
            );
        }
        let mut side0 = Handshake::new(hello(2, 22));
        side0.receive(&Message::Hello(hello(3, 22))).unwrap();
        assert!(matches!(
            side0.receive(&Message::Accept { vectors: 2 }),
            Err(End::Protocol(_))
        ));
    }
}
