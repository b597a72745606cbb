// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! User EIDs: two systems speak SMC-Dv2 only if they have one in common.

use crate::generic::Smc;
use crate::netlink::{self, Error as NetlinkError};

const DUMP_UEID: u8 = 9;
const ADD_UEID: u8 = 10;
const REMOVE_UEID: u8 = 11;
const ENTRY: u16 = 1;
/// Length of an EID, in bytes; shorter ones are padded with spaces.
const LENGTH: usize = 32;

/// Why a UEID cannot be added, listed or taken away.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name breaks the rules.
    #[error(
        "{0:?} is no UEID: it has 1 to 32 characters out of A-Z, 0-9, '.' and '-' \
         and begins with a letter or digit"
    )]
    Name(String),
    /// The kernel says no.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// The UEID as the kernel takes it: 32 characters, padded with spaces, and a NUL.
fn wire(name: &str) -> Result<[u8; LENGTH + 1], Error> {
    let bad = || Error::Name(name.to_owned());
    let bytes = name.as_bytes();
    let plain = |b: &u8| b.is_ascii_uppercase() || b.is_ascii_digit();
    let first = bytes.first().ok_or_else(bad)?;
    if bytes.len() > LENGTH
        || !plain(first)
        || !bytes.iter().all(|b| plain(b) || matches!(b, b'.' | b'-'))
    {
        return Err(bad());
    }
    let mut wire = [b' '; LENGTH + 1];
    wire[..bytes.len()].copy_from_slice(bytes);
    wire[LENGTH] = 0;
    Ok(wire)
}

/// Whether a name can be one.
pub(crate) fn check(name: &str) -> Result<(), Error> {
    wire(name).map(drop)
}

/// Adds a UEID; one that is there already is fine.
pub fn add(name: &str) -> Result<(), Error> {
    let wire = wire(name)?;
    if list()?.iter().any(|present| present == name) {
        return Ok(());
    }
    Ok(Smc::open()?.change(ADD_UEID, ENTRY, &wire)?)
}

/// Takes a UEID away.
pub fn remove(name: &str) -> Result<(), Error> {
    Ok(Smc::open()?.change(REMOVE_UEID, ENTRY, &wire(name)?)?)
}

/// Lists the UEIDs, without the padding.
pub fn list() -> Result<Vec<String>, Error> {
    let mut ueids = Vec::new();
    Smc::open()?.dump(DUMP_UEID, |attributes| {
        if let Some(entry) = netlink::attribute(attributes, ENTRY)? {
            ueids.push(netlink::text(entry));
        }
        Ok(())
    })?;
    Ok(ueids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_padded_and_checked() {
        let wire_form = wire("IVSMC.1-A").unwrap();
        assert_eq!(&wire_form[..10], b"IVSMC.1-A ");
        assert_eq!((wire_form[31], wire_form[32]), (b' ', 0));
        for bad in ["", "ivsmc", ".A", "A_B", "A B", &"A".repeat(33)] {
            assert!(wire(bad).is_err(), "{bad:?}");
        }
        assert!(wire(&"A".repeat(32)).is_ok());
    }
}
