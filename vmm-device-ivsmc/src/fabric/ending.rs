// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Why connections end, and what is said of it.

use std::io;

use super::handshake::End;
use super::wire::Bye;
use crate::limits::explain;

/// Why a connection ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The other end closed or said BYE.
    Left(Option<Bye>),
    /// There is no place for it, or none for now.
    NoPlace(Bye),
    /// There are too many like it.
    Crowded(String),
    /// This end does not want it.
    Refused(String),
    /// The other end broke the protocol.
    Protocol(String),
    /// It took too long.
    TimedOut,
    /// The device closes, or was reset.
    Closing,
    /// The device's user has dropped the link.
    Dropped,
    /// Something failed here.
    Internal(String),
}

impl Ending {
    /// What to tell the other end.
    pub fn bye(&self) -> Option<Bye> {
        match self {
            Ending::Left(_) => None,
            Ending::NoPlace(reason) => Some(*reason),
            Ending::Dropped => Some(Bye::Busy),
            Ending::Crowded(_) => Some(Bye::Full),
            Ending::Refused(_) => Some(Bye::Refused),
            Ending::Protocol(_) => Some(Bye::Protocol),
            Ending::TimedOut | Ending::Closing => Some(Bye::Closing),
            Ending::Internal(_) => Some(Bye::Internal),
        }
    }

    /// Whether it is worth a warning, and what to say.
    pub fn describe(&self) -> (bool, String) {
        match self {
            Ending::Left(None) => (false, "the other end has closed it".into()),
            Ending::Left(Some(reason @ (Bye::Closing | Bye::Duplicate | Bye::Busy))) => {
                (false, format!("the other end says {reason:?}"))
            }
            Ending::Left(Some(reason)) => (true, format!("the other end says {reason:?}")),
            Ending::NoPlace(reason @ (Bye::Duplicate | Bye::Busy)) => {
                (false, format!("this end says {reason:?}"))
            }
            Ending::NoPlace(reason) => (true, format!("this end says {reason:?}")),
            Ending::Crowded(why) | Ending::Refused(why) => (true, format!("refused: {why}")),
            Ending::Protocol(why) => (true, format!("the other end broke the protocol: {why}")),
            Ending::TimedOut => (true, "it did not become a link in time".into()),
            Ending::Closing => (false, "this end closes".into()),
            Ending::Dropped => (false, "this end's user has dropped it".into()),
            Ending::Internal(why) => (true, why.clone()),
        }
    }
}

impl From<End> for Ending {
    fn from(end: End) -> Self {
        match end {
            End::Bye(reason) => Ending::Left(Some(reason)),
            End::Refused(why) => Ending::Refused(why.into()),
            End::Protocol(why) => Ending::Protocol(why.into()),
        }
    }
}

/// An error of this end's own.
pub fn internal(what: &'static str) -> impl Fn(io::Error) -> Ending {
    move |error| Ending::Internal(format!("cannot {what}: {}", explain(&error)))
}
