// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Addresses by ports, from `/proc/thread-self/net/tcp` and `tcp6`.
//!
//! The kernel leaves the addresses of `IPPROTO_SMC` sockets out of its diagnosis; the TCP connection
//! underneath has the same ports and is listed there.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv6Addr};

type Addresses = (IpAddr, IpAddr);

/// The addresses of all TCP connections: there can be several with the same two ports.
pub(crate) struct TcpTable(HashMap<(u16, u16), HashSet<Addresses>>);

impl TcpTable {
    /// The connections of this thread's network namespace.
    pub(crate) fn read() -> Self {
        let files = ["tcp", "tcp6"].map(|name| format!("/proc/thread-self/net/{name}"));
        let texts = files.map(|file| std::fs::read_to_string(file).unwrap_or_default());
        Self::parse(texts.iter().map(String::as_str))
    }

    fn parse<'a>(texts: impl Iterator<Item = &'a str>) -> Self {
        let mut table: HashMap<_, HashSet<Addresses>> = HashMap::new();
        for line in texts.flat_map(|text| text.lines().skip(1)) {
            let mut words = line.split_whitespace().skip(1);
            let local = words.next().and_then(endpoint);
            let peer = words.next().and_then(endpoint);
            if let (Some(local), Some(peer)) = (local, peer) {
                let ports = (local.1, peer.1);
                table.entry(ports).or_default().insert((local.0, peer.0));
            }
        }
        TcpTable(table)
    }

    /// The local and the peer's address of the connection with these ports, if there is one and no other.
    pub(crate) fn addresses(&self, ports: (u16, u16)) -> Option<Addresses> {
        let found = self.0.get(&ports)?;
        let mut found = found.iter().copied();
        found.next().filter(|_| found.next().is_none())
    }
}

/// An address and a port as `/proc/net/tcp` writes them: words in host order, then the port, in hex.
fn endpoint(word: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = word.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::with_capacity(16);
    for at in (0..address.len()).step_by(8) {
        let word = u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?;
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    let address = match <[u8; 16]>::try_from(bytes.as_slice()) {
        Ok(bytes) => Ipv6Addr::from(bytes).to_canonical(),
        Err(_) => IpAddr::from(<[u8; 4]>::try_from(bytes.as_slice()).ok()?),
    };
    Some((address, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    #[test]
    fn addresses_of_proc() {
        let port = 0x1b58;
        assert_eq!(
            endpoint("0100007F:1B58"),
            Some((Ipv4Addr::LOCALHOST.into(), port))
        );
        let mapped = "0000000000000000FFFF00000100007F:1B58";
        assert_eq!(endpoint(mapped), Some((Ipv4Addr::LOCALHOST.into(), port)));
        assert_eq!(endpoint("xyz"), None);
        assert_eq!(endpoint("0100007:1B58"), None);
    }

    #[test]
    fn peers_with_the_same_ports_are_not_mixed_up() {
        let table = TcpTable::parse(
            [
                "title\n 0: 0100007F:1388 0200007F:1B58 01\n 1: 0100007F:1388 0300007F:1B58 01\n",
                "title\n 0: 0100007F:1388 0200007F:1B59 01\n",
            ]
            .into_iter(),
        );
        assert_eq!(table.addresses((5000, 7000)), None);
        let peer = Ipv4Addr::new(127, 0, 0, 2).into();
        let local = Ipv4Addr::LOCALHOST.into();
        assert_eq!(table.addresses((5000, 7001)), Some((local, peer)));
        assert_eq!(table.addresses((7000, 5000)), None);
    }

    proptest! {
        #[test]
        fn any_endpoint_is_taken_or_refused(word in "\\PC*") {
            let _ = endpoint(&word);
        }
    }
}
