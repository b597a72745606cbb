// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! SMC's family of generic netlink.

use crate::netlink::{self, Error, Request, Socket};

/// The family's name, as uapi `linux/smc.h` has it.
const FAMILY: &str = "SMC_GEN_NETLINK";
/// The family's version.
const FAMILY_VERSION: u8 = 1;
/// Generic netlink's own family, which knows the others by name.
const CONTROLLER: u16 = 0x10;
const CONTROLLER_GET_FAMILY: u8 = 3;
const CONTROLLER_FAMILY_ID: u16 = 1;
const CONTROLLER_FAMILY_NAME: u16 = 2;
/// Length of generic netlink's header, in bytes.
const GENERIC_HEADER: usize = 4;

/// A socket to SMC's family.
pub(crate) struct Smc {
    socket: Socket,
    family: u16,
}

impl Smc {
    /// Finds the family.
    pub(crate) fn open() -> Result<Self, Error> {
        let mut socket = Socket::open(libc::NETLINK_GENERIC)?;
        let mut name = FAMILY.as_bytes().to_vec();
        name.push(0);
        let request = Request::new(CONTROLLER, libc::NLM_F_ACK)
            .bytes(&[CONTROLLER_GET_FAMILY, 1, 0, 0])
            .attribute(CONTROLLER_FAMILY_NAME, &name);
        let mut family = None;
        let asked = socket.ask(request, |payload| {
            let attributes = payload.get(GENERIC_HEADER..).unwrap_or_default();
            family = netlink::attribute(attributes, CONTROLLER_FAMILY_ID)?
                .and_then(|value| netlink::array(value, 0))
                .map(u16::from_ne_bytes);
            Ok(())
        });
        match asked {
            Err(Error::Refused(error)) if error.raw_os_error() == Some(libc::ENOENT) => {
                return Err(Error::NoFamily(FAMILY));
            }
            other => other?,
        }
        let family = family.ok_or(Error::NoFamily(FAMILY))?;
        Ok(Smc { socket, family })
    }

    /// Has `command` list what it lists; `each` gets every answer's attributes.
    pub(crate) fn dump(
        &mut self,
        command: u8,
        mut each: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let request =
            Request::new(self.family, libc::NLM_F_DUMP).bytes(&[command, FAMILY_VERSION, 0, 0]);
        self.socket.ask(request, |payload| {
            each(payload.get(GENERIC_HEADER..).unwrap_or_default())
        })
    }

    /// Has `command` done with one attribute.
    pub(crate) fn change(&mut self, command: u8, kind: u16, value: &[u8]) -> Result<(), Error> {
        let request = Request::new(self.family, libc::NLM_F_ACK)
            .bytes(&[command, FAMILY_VERSION, 0, 0])
            .attribute(kind, value);
        self.socket.ask(request, |_| Ok(()))
    }
}
