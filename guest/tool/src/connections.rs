// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What SMC's own diagnosis (`NETLINK_SOCK_DIAG`, uapi `linux/smc_diag.h`) says of every SMC socket.

use crate::netlink::{self, Error, Request, Socket};
use crate::owners::{self, Owner};
use crate::reason;
use crate::tcp_table::TcpTable;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const AF_SMC: u8 = 43;
/// Length of the request: family, padding, extensions, socket identity.
const REQUEST: usize = 52;
/// Length of the fixed part of an answer.
const ANSWER: usize = 64;

/// Where an answer has the socket's cookie: at the end of its identity.
const COOKIE: usize = 44;

const EXTENSION_LGRINFO: u16 = 2;
const EXTENSION_DMBINFO: u16 = 4;
const EXTENSION_FALLBACK: u16 = 5;

const MODE_FALLBACK: u8 = 1;
const MODE_SMCD: u8 = 2;

const STATE_ACTIVE: u8 = 1;
const STATE_INIT: u8 = 2;
const STATE_CLOSED: u8 = 7;
const STATE_LISTEN: u8 = 10;

/// How a connection's data moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Through shared memory.
    SmcD,
    /// Through RDMA.
    SmcR,
    /// Through TCP: SMC was asked for, but was not to be had.
    Tcp,
    /// Not decided: the socket is not connected.
    None,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Mode::SmcD => "SMC-D",
            Mode::SmcR => "SMC-R",
            Mode::Tcp => "TCP",
            Mode::None => "-",
        })
    }
}

/// The memory that an SMC-D connection uses; on its peer the same values are there the other way round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dmb {
    /// Link group.
    pub link_id: u32,
    /// This system's GID, both halves.
    pub my_gid: String,
    /// The peer's GID, both halves.
    pub peer_gid: String,
    /// Token of the buffer in which this side receives.
    pub token: u64,
    /// Token of the buffer in which the peer receives.
    pub peer_token: u64,
}

impl Dmb {
    /// Whether `other` is the same connection seen from its other side.
    pub fn mirrors(&self, other: &Dmb) -> bool {
        self.token == other.peer_token
            && self.peer_token == other.token
            && self.my_gid == other.peer_gid
            && self.peer_gid == other.my_gid
    }
}

/// One SMC socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// The socket's inode: what `fstat` on it gives as `st_ino`.
    pub inode: u64,
    /// The kernel's number for the socket, which no other one has had since the system began. Connections that have
    /// not been accepted yet have it too, but no inode.
    #[serde(default)]
    pub cookie: u64,
    /// The inode of its network namespace; `None` for this process's.
    #[serde(default)]
    pub network: Option<u64>,
    /// The processes that have the socket, as far as one may know.
    #[serde(default)]
    pub owners: Vec<Owner>,
    /// The socket's state in words.
    pub state: String,
    /// How its data moves.
    pub mode: Mode,
    /// Local address, where known.
    pub local_address: Option<IpAddr>,
    /// Local port.
    pub local_port: u16,
    /// The peer's address, where known.
    pub peer_address: Option<IpAddr>,
    /// The peer's port.
    pub peer_port: u16,
    /// Memory of an SMC-D connection.
    pub dmb: Option<Dmb>,
    /// Code of the reason for falling back, 0 for none.
    pub reason_code: u32,
    /// What the peer gave as reason, 0 for none.
    pub peer_diagnosis: u32,
    /// Why it fell back, in words; empty if it did not.
    pub reason: String,
}

impl Connection {
    /// Whether it is or was a connection, not a listening or an unused socket.
    pub fn is_connected(&self) -> bool {
        self.peer_port != 0
    }

    /// Finds out the addresses that the kernel has left out. The socket knows best; whoever may not ask it has the
    /// connections with the same ports to go by, which may be those of several peers.
    fn find_addresses(&mut self, tcp: &TcpTable) {
        if !self.is_connected() || self.peer_address.is_some() {
            return;
        }
        let mut said = self.owners.iter().map(|owner| owner.addresses(self.inode));
        let said = said.find_map(Result::ok);
        let found = said.or_else(|| tcp.addresses((self.local_port, self.peer_port)));
        if let Some((local, peer)) = found {
            self.local_address = Some(local);
            self.peer_address = Some(peer);
        }
    }
}

/// Lists the SMC sockets of this network namespace.
pub fn list() -> Result<Vec<Connection>, Error> {
    Ok(known(vec![Found::here()?]))
}

/// What a network namespace says of its SMC sockets.
pub(crate) struct Found {
    connections: Vec<Connection>,
    tcp: TcpTable,
}

impl Found {
    /// That of this thread's.
    pub(crate) fn here() -> Result<Self, Error> {
        Ok(Found {
            connections: dump()?,
            tcp: TcpTable::read(),
        })
    }

    /// Tells them from those of this process's network namespace.
    pub(crate) fn set_network(&mut self, inode: u64) {
        for connection in &mut self.connections {
            connection.network = Some(inode);
        }
    }
}

/// The sockets of network namespaces, and who has them.
pub(crate) fn known(all: Vec<Found>) -> Vec<Connection> {
    let sockets = all.iter().flat_map(|found| &found.connections);
    let inodes = sockets.map(|connection| connection.inode);
    // All processes have to be looked at: once.
    let mut owners = owners::find(&inodes.filter(|&inode| inode != 0).collect());
    let mut connections = Vec::new();
    for found in all {
        for mut connection in found.connections {
            connection.owners = owners.remove(&connection.inode).unwrap_or_default();
            connection.find_addresses(&found.tcp);
            connections.push(connection);
        }
    }
    connections
}

/// Finds the SMC socket with this inode. Addresses that the kernel leaves out are left out.
pub fn find(inode: u64) -> Result<Option<Connection>, Error> {
    let mut connections = dump()?.into_iter();
    Ok(connections.find(|connection| connection.inode == inode))
}

fn dump() -> Result<Vec<Connection>, Error> {
    let mut request = [0u8; REQUEST];
    request[0] = AF_SMC;
    request[3] = 1 << (EXTENSION_DMBINFO - 1) | 1 << (EXTENSION_LGRINFO - 1);
    let mut connections = Vec::new();
    let asked = Socket::open(NETLINK_SOCK_DIAG)?.ask(
        Request::new(SOCK_DIAG_BY_FAMILY, libc::NLM_F_DUMP).bytes(&request),
        |payload| {
            connections.push(parse(payload)?);
            Ok(())
        },
    );
    match asked {
        Err(Error::Refused(error)) if error.raw_os_error() == Some(libc::ENOENT) => {
            Err(Error::NoFamily("SMC_DIAG"))
        }
        other => other.map(|()| connections),
    }
}

fn parse(payload: &[u8]) -> Result<Connection, Error> {
    let fixed: [u8; ANSWER] =
        netlink::array(payload, 0).ok_or(Error::Malformed("short SMC_DIAG answer"))?;
    let [_, state, mode, ..] = fixed;
    let port = |at: usize| u16::from_be_bytes([fixed[at], fixed[at + 1]]);
    let mut connection = Connection {
        inode: netlink::u64_at(&fixed, 56).unwrap_or(0),
        cookie: netlink::u64_at(&fixed, COOKIE).unwrap_or(0),
        network: None,
        owners: Vec::new(),
        state: state_words(state),
        mode: Mode::None,
        local_address: address(&fixed[8..24]),
        local_port: port(4),
        peer_address: address(&fixed[24..40]),
        peer_port: port(6),
        dmb: None,
        reason_code: 0,
        peer_diagnosis: 0,
        reason: String::new(),
    };
    let mut has_link_group = false;
    for attribute in netlink::attributes(&payload[ANSWER..]) {
        match attribute? {
            (EXTENSION_LGRINFO, _) => has_link_group = true,
            (EXTENSION_DMBINFO, value) => connection.dmb = Some(parse_dmb(value)?),
            (EXTENSION_FALLBACK, value) => {
                connection.reason_code = netlink::u32_at(value, 0).unwrap_or(0);
                connection.peer_diagnosis = netlink::u32_at(value, 4).unwrap_or(0);
            }
            _ => {}
        }
    }
    // The kernel calls everything SMC-R that is not one of the others, a socket without a connection too.
    connection.mode = match mode {
        MODE_FALLBACK => Mode::Tcp,
        MODE_SMCD => Mode::SmcD,
        _ if has_link_group => Mode::SmcR,
        _ => Mode::None,
    };
    if connection.mode == Mode::Tcp {
        connection.reason = reason::explain(connection.reason_code, connection.peer_diagnosis);
    }
    Ok(connection)
}

fn parse_dmb(value: &[u8]) -> Result<Dmb, Error> {
    let word = |index: usize| {
        netlink::u64_at(value, 8 + 8 * index).ok_or(Error::Malformed("short DMB information"))
    };
    let gid = |first: u64, second: u64| format!("{first:016x}:{second:016x}");
    // The extended halves came later: an older kernel leaves them out.
    let extended = |index| word(index).unwrap_or(0);
    Ok(Dmb {
        link_id: netlink::u32_at(value, 0).ok_or(Error::Malformed("short DMB information"))?,
        peer_gid: gid(word(0)?, extended(4)),
        my_gid: gid(word(1)?, extended(5)),
        token: word(2)?,
        peer_token: word(3)?,
    })
}

/// An address of a socket identity: four big-endian words, of which IPv4 uses the first.
fn address(bytes: &[u8]) -> Option<IpAddr> {
    let bytes: [u8; 16] = bytes.try_into().ok()?;
    if bytes == [0; 16] {
        return None;
    }
    let [a, b, c, d, rest @ ..] = bytes;
    if rest == [0; 12] {
        return Some(Ipv4Addr::new(a, b, c, d).into());
    }
    Some(Ipv6Addr::from(bytes).to_canonical())
}

fn state_words(state: u8) -> String {
    match state {
        STATE_ACTIVE => "active",
        STATE_INIT => "init",
        STATE_CLOSED => "closed",
        STATE_LISTEN => "listen",
        20..=25 => "closing",
        26 | 27 => "aborting",
        _ => "unknown",
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((value.len() + 4) as u16).to_ne_bytes().to_vec();
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(value);
        bytes
    }

    fn answer(state: u8, mode: u8) -> Vec<u8> {
        let mut bytes = vec![0; ANSWER];
        (bytes[1], bytes[2]) = (state, mode);
        bytes[4..8].copy_from_slice(&[0x1b, 0x58, 0x2b, 0x67]);
        bytes[8..12].copy_from_slice(&[10, 77, 0, 2]);
        bytes[44..52].copy_from_slice(&78u64.to_ne_bytes());
        bytes[56..64].copy_from_slice(&77u64.to_ne_bytes());
        bytes
    }

    #[test]
    fn an_smcd_connection_and_its_mirror() {
        let mut bytes = answer(STATE_ACTIVE, MODE_SMCD);
        let mut info = 5u32.to_ne_bytes().to_vec();
        info.extend_from_slice(&[0; 4]);
        for word in [1u64, 2, 3, 4, 5, 6] {
            info.extend_from_slice(&word.to_ne_bytes());
        }
        bytes.extend(attribute(EXTENSION_DMBINFO, &info));
        let connection = parse(&bytes).unwrap();
        assert_eq!((connection.mode, connection.local_port), (Mode::SmcD, 7000));
        assert_eq!((connection.inode, connection.peer_port), (77, 11111));
        assert_eq!(connection.cookie, 78);
        assert_eq!(
            connection.local_address,
            Some(Ipv4Addr::new(10, 77, 0, 2).into())
        );
        let here = connection.dmb.unwrap();
        let there = Dmb {
            link_id: 9,
            my_gid: here.peer_gid.clone(),
            peer_gid: here.my_gid.clone(),
            token: 4,
            peer_token: 3,
        };
        assert!(here.mirrors(&there));
        assert!(!here.mirrors(&here));
    }

    #[test]
    fn fallback_and_listening() {
        let mut bytes = answer(STATE_ACTIVE, MODE_FALLBACK);
        bytes.extend(attribute(EXTENSION_FALLBACK, &[0, 0, 1, 3, 0, 0, 0, 0]));
        let connection = parse(&bytes).unwrap();
        assert_eq!(connection.mode, Mode::Tcp);
        assert!(
            connection.reason.contains("did not offer SMC"),
            "{}",
            connection.reason
        );
        let connection = parse(&answer(STATE_LISTEN, 0)).unwrap();
        assert_eq!(
            (connection.mode, connection.state.as_str()),
            (Mode::None, "listen")
        );
    }

    proptest! {
        #[test]
        fn any_answer_is_taken_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn any_attributes_are_taken_or_refused(tail in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = answer(STATE_ACTIVE, MODE_SMCD);
            bytes.extend(tail);
            let _ = parse(&bytes);
        }
    }
}
