// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device's name: 128 bits, and the 16 of them that ivshmem knows.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

use crate::ConfigError;

/// The 128-bit GID of a device, in the byte order of RFC 4122.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Gid(Uuid);

impl Gid {
    /// A new random GID (a UUID of version 4, so that neither half of it is zero).
    pub fn random() -> Self {
        Gid(Uuid::new_v4())
    }

    /// The GID with these bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Gid(Uuid::from_bytes(bytes))
    }

    /// The GID's bytes.
    pub fn bytes(&self) -> [u8; 16] {
        *self.0.as_bytes()
    }

    /// Whether it is the null GID, which no device has.
    pub fn is_null(&self) -> bool {
        self.0.is_nil()
    }

    /// The device's IVPosition: the GID folded to 16 bits, and never zero.
    pub fn position(&self) -> u16 {
        let folded = self
            .0
            .as_bytes()
            .chunks_exact(2)
            .fold(0, |sum, two| sum ^ u16::from_le_bytes([two[0], two[1]]));
        folded.max(1)
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Says of what is no GID the same as the command line does.
impl<'de> Deserialize<'de> for Gid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse()
            .map_err(|_| D::Error::custom(ConfigError::BadGid(text)))
    }
}

impl FromStr for Gid {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::parse_str(text).map(Gid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_never_zero() {
        assert_eq!(Gid::from_bytes([0; 16]).position(), 1);
        assert_eq!(Gid::from_bytes([7; 16]).position(), 1);
        let mut bytes = [0; 16];
        bytes[14] = 0x34;
        bytes[3] = 0x12;
        assert_eq!(Gid::from_bytes(bytes).position(), 0x1234);
    }

    #[test]
    fn text_and_back() {
        let gid = Gid::random();
        assert_eq!(gid.to_string().parse::<Gid>().ok(), Some(gid));
        "x".parse::<Gid>().unwrap_err();
    }

    #[test]
    fn what_is_no_gid_is_named() {
        let error = serde_json::from_str::<Gid>("\"nothing\"").unwrap_err();
        assert!(error.to_string().contains("gid=nothing"), "{error}");
    }
}
