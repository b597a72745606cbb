// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where a descriptor can be in what a peer sends.

use super::link::{hello, high, name};
use std::os::fd::RawFd;
use vmm_device_ivsmc::peer::{Bye, Message};

/// A place for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// With HELLO, which has none.
    Hello,
    /// As OFFER's window.
    OffersWindow,
    /// As OFFER's doorbell.
    OffersDoorbell,
    /// As ACCEPT's doorbell.
    AcceptsDoorbell,
    /// With BYE, which has none.
    Bye,
    /// Behind as many as a message can have.
    InExcess,
    /// In a packet that is longer than any message.
    CutOff,
    /// In a packet that is no message.
    NoMessage,
    /// Behind what ends the connection.
    NeverRead,
}

/// What is sent, in order: bytes and descriptors. If it is more than one packet, the first is HELLO.
pub type Packets = Vec<(Vec<u8>, Vec<RawFd>)>;

impl Place {
    /// All places.
    pub const ALL: [Self; 9] = [
        Self::Hello,
        Self::OffersWindow,
        Self::OffersDoorbell,
        Self::AcceptsDoorbell,
        Self::Bye,
        Self::InExcess,
        Self::CutOff,
        Self::NoMessage,
        Self::NeverRead,
    ];
    /// Those in a message that is as it has to be but for the descriptor.
    pub const IN_MESSAGES: [Self; 5] = [
        Self::Hello,
        Self::OffersWindow,
        Self::OffersDoorbell,
        Self::AcceptsDoorbell,
        Self::Bye,
    ];

    /// What is sent with `fd` in this place, under a GID with this number. All else is as it has to be.
    pub fn packets(
        self,
        fd: RawFd,
        (window, bell): (RawFd, RawFd),
        number: u64,
        window_shift: u32,
    ) -> Packets {
        let introduction = |gid| (hello(gid, window_shift).encode(), vec![]);
        let offer = Message::Offer {
            window_shift,
            vectors: 1,
        };
        let (offer, accept) = (offer.encode(), Message::Accept { vectors: 1 }.encode());
        let (low, high) = (name(number), high(number));
        match self {
            Self::Hello => vec![(introduction(low).0, vec![fd])],
            Self::OffersWindow => vec![introduction(low), (offer, vec![fd, bell])],
            Self::OffersDoorbell => vec![introduction(low), (offer, vec![window, fd])],
            Self::AcceptsDoorbell => vec![introduction(high), (accept, vec![fd])],
            Self::Bye => vec![(Message::Bye(Bye::Closing).encode(), vec![fd])],
            Self::InExcess => {
                let all = [bell; 16].into_iter().chain([fd]).collect();
                vec![introduction(high), (accept, all)]
            }
            Self::CutOff => {
                let long = [&offer[..], &[0; 4000]].concat();
                vec![introduction(low), (long, vec![fd, bell])]
            }
            Self::NoMessage => vec![(vec![0x5a; 56], vec![fd])],
            Self::NeverRead => {
                let nonsense = (b"nonsense".to_vec(), vec![]);
                vec![introduction(low), nonsense, (vec![0], vec![fd])]
            }
        }
    }
}
