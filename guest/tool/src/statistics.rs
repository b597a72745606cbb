// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What SMC has counted since the system began, in this network namespace.

use crate::generic::Smc;
use crate::netlink::{self, Error};
use serde::{Deserialize, Serialize};

const GET_STATISTICS: u8 = 7;
const GET_FALLBACKS: u8 = 8;
const STATISTICS: u16 = 7;
const FALLBACKS: u16 = 8;
const SMCD: u16 = 1;
/// Of SMC-D's part: version 1 and 2 of each.
const CLIENTS: [u16; 2] = [7, 8];
const SERVERS: [u16; 2] = [9, 10];
const RECEIVED_BYTES: u16 = 16;
const SENT_BYTES: u16 = 17;
const RECEIVES: u16 = 18;
const SENDS: u16 = 19;
const RECEIVE_BUFFERS: u16 = 20;
const SEND_BUFFERS: u16 = 21;
const SERVER_FALLBACKS: u16 = 2;
const CLIENT_FALLBACKS: u16 = 3;

/// SMC-D's connections, calls and buffers, and the connections that fell back to TCP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// Connections opened that became SMC-D.
    pub client_connections: u64,
    /// Connections accepted that became SMC-D.
    pub server_connections: u64,
    /// Connections opened that fell back to TCP.
    pub client_fallbacks: u64,
    /// Connections accepted that fell back to TCP.
    pub server_fallbacks: u64,
    /// Bytes sent over SMC-D.
    pub sent_bytes: u64,
    /// Bytes received over SMC-D.
    pub received_bytes: u64,
    /// Calls that sent them.
    pub sends: u64,
    /// Calls that received them.
    pub receives: u64,
    /// Bytes of the receive buffers that SMC-D's connections have now.
    pub receive_buffers: u64,
    /// Bytes of their send buffers in the system's own memory; without copy they have none.
    pub send_buffers: u64,
}

impl Statistics {
    /// What has been counted so far.
    pub fn now() -> Result<Self, Error> {
        let mut statistics = Statistics::default();
        let mut smc = Smc::open()?;
        smc.dump(GET_STATISTICS, |answer| statistics.take_smcd(answer))?;
        smc.dump(GET_FALLBACKS, |answer| statistics.take_fallbacks(answer))?;
        Ok(statistics)
    }

    /// Adds those of another network namespace.
    pub fn add(&mut self, other: &Statistics) {
        self.client_connections += other.client_connections;
        self.server_connections += other.server_connections;
        self.client_fallbacks += other.client_fallbacks;
        self.server_fallbacks += other.server_fallbacks;
        self.sent_bytes += other.sent_bytes;
        self.received_bytes += other.received_bytes;
        self.sends += other.sends;
        self.receives += other.receives;
        self.receive_buffers += other.receive_buffers;
        self.send_buffers += other.send_buffers;
    }

    fn take_smcd(&mut self, answer: &[u8]) -> Result<(), Error> {
        let all = netlink::attribute(answer, STATISTICS)?.unwrap_or_default();
        let smcd = netlink::attribute(all, SMCD)?.unwrap_or_default();
        self.client_connections = number(smcd, CLIENTS[0])? + number(smcd, CLIENTS[1])?;
        self.server_connections = number(smcd, SERVERS[0])? + number(smcd, SERVERS[1])?;
        self.sent_bytes = number(smcd, SENT_BYTES)?;
        self.received_bytes = number(smcd, RECEIVED_BYTES)?;
        self.sends = number(smcd, SENDS)?;
        self.receives = number(smcd, RECEIVES)?;
        self.receive_buffers = number(smcd, RECEIVE_BUFFERS)?;
        self.send_buffers = number(smcd, SEND_BUFFERS)?;
        Ok(())
    }

    /// There is an answer for each reason; the first has the sums.
    fn take_fallbacks(&mut self, answer: &[u8]) -> Result<(), Error> {
        let reason = netlink::attribute(answer, FALLBACKS)?.unwrap_or_default();
        self.server_fallbacks += number(reason, SERVER_FALLBACKS)?;
        self.client_fallbacks += number(reason, CLIENT_FALLBACKS)?;
        Ok(())
    }
}

/// The number in an attribute of type `kind`, of 8 bytes, or 4 where that is enough; 0 without one.
fn number(attributes: &[u8], kind: u16) -> Result<u64, Error> {
    match netlink::attribute(attributes, kind)? {
        None => Ok(0),
        Some(value) => netlink::u64_at(value, 0)
            .or_else(|| netlink::u32_at(value, 0).map(u64::from))
            .ok_or(Error::Malformed("a statistic's length")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len() + 4).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn answers_are_understood() {
        let mut statistics = Statistics::default();
        let smcd: Vec<u8> = [(7, 1u64), (8, 2), (10, 4), (17, 1 << 40), (19, 5)]
            .iter()
            .flat_map(|&(kind, value)| attribute(kind, &value.to_ne_bytes()))
            .chain(attribute(20, &3u32.to_ne_bytes()))
            .collect();
        let smcr = attribute(2, &attribute(8, &9u64.to_ne_bytes()));
        let all = [smcr, attribute(SMCD, &smcd)].concat();
        statistics.take_smcd(&attribute(STATISTICS, &all)).unwrap();
        let first = [
            attribute(2, &6u64.to_ne_bytes()),
            attribute(3, &7u64.to_ne_bytes()),
        ];
        for answer in [first.concat(), attribute(5, &1u32.to_ne_bytes())] {
            let answer = attribute(FALLBACKS, &answer);
            statistics.take_fallbacks(&answer).unwrap();
        }
        let expected = Statistics {
            client_connections: 3,
            server_connections: 4,
            client_fallbacks: 7,
            server_fallbacks: 6,
            sent_bytes: 1 << 40,
            sends: 5,
            receive_buffers: 3,
            ..Statistics::default()
        };
        assert_eq!(statistics, expected);
        let short = attribute(STATISTICS, &attribute(SMCD, &attribute(8, &[1])));
        assert!(statistics.take_smcd(&short).is_err());
    }
}
