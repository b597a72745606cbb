// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Packets into the state machine of a connection.

use super::Bytes;
use crate::Gid;
use crate::fabric::handshake::{End, Handshake, Step, Terms};
use crate::fabric::wire::{Bye, Hello, MAX_DESCRIPTORS, Message};

/// The input is what this end is, and packets, each with its length in front or made from a few bytes. An end comes to a
/// link with a peer that is what it has to be, and only once, or to none.
pub fn handshake(input: &[u8]) {
    let mut bytes = Bytes(input);
    let ours = Hello {
        gid: Gid::from_bytes([bytes.u8().max(1); 16]),
        position: 1,
        vectors: 4,
        fabric_id: 0xff00,
        window_shift: 21 + u32::from(bytes.u8() % 20),
    };
    let mut end = Handshake::new(ours);
    let mut agreed = None;
    let mut has_link = false;
    while !bytes.is_empty() {
        let Some(message) = next(&mut bytes, &ours) else {
            continue;
        };
        let room = end.descriptors();
        assert!(room <= MAX_DESCRIPTORS);
        let step = end.receive(&message);
        match (&step, message) {
            // What has descriptors and is taken has as many as there was room for.
            (Ok(_), message) => assert_eq!(message.descriptors(), room as u64),
            (Err(End::Bye(reason)), message) => assert_eq!(message, Message::Bye(*reason)),
            (Err(End::Refused(why) | End::Protocol(why)), _) => assert!(!why.is_empty()),
        }
        match step {
            Ok(Step::Wait) => assert!(agreed.is_none() && end.peer() > None),
            Ok(Step::Offer(terms)) => {
                assert!(agreed.is_none());
                check(&ours, &terms, 0);
                agreed = Some(terms);
            }
            Ok(Step::Accept(terms)) => {
                assert!(!has_link);
                check(&ours, &terms, 1);
                has_link = true;
            }
            Ok(Step::Accepted(terms)) => {
                assert!(!has_link);
                assert_eq!(agreed, Some(terms));
                has_link = true;
            }
            Err(_) => {
                // The connection has ended; go on all the same: no link may come of it twice.
            }
        }
        if has_link {
            assert_eq!(end.descriptors(), 0);
        }
    }
}

fn check(ours: &Hello, terms: &Terms, side: u32) {
    assert_eq!(terms.side, side);
    assert_eq!(ours.gid > terms.gid, side == 1);
    assert!(!terms.gid.is_null() && terms.gid != ours.gid && terms.position != 0);
    assert!((1..=16).contains(&terms.vectors));
    assert!((21..=ours.window_shift).contains(&terms.window_shift));
}

/// The next packet's message.
fn next(bytes: &mut Bytes<'_>, ours: &Hello) -> Option<Message> {
    let kind = bytes.u8();
    Some(match kind {
        0 => Message::Hello(Hello {
            gid: Gid::from_bytes([bytes.u8(); 16]),
            position: u32::from(bytes.u8()),
            vectors: u32::from(bytes.u8() % 20),
            fabric_id: ours.fabric_id,
            window_shift: u32::from(bytes.u8() % 48),
        }),
        1 => Message::Offer {
            window_shift: u32::from(bytes.u8()),
            vectors: u32::from(bytes.u8()),
        },
        2 => Message::Accept {
            vectors: u32::from(bytes.u8()),
        },
        3 => Message::Bye(Bye::Closing),
        len => return Message::decode(bytes.slice(usize::from(len))).ok(),
    })
}
