// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which connections may be SMC's: by the server's port, and by the peer's address.

use ipnet::{IpNet, Ipv6Net};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::ops::RangeInclusive;
use toml::Spanned;

/// Networks that a policy may have.
pub const PEERS: usize = 1024;
/// Ports in a word.
const WORD: usize = u64::BITS as usize;
/// Words for all ports.
pub const WORDS: usize = (1 << 16) / WORD;

/// `[connections]` in a policy's file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    ports: Option<Vec<Spanned<Port>>>,
    #[serde(default)]
    except_ports: Vec<Spanned<Port>>,
    peers: Option<Vec<Spanned<String>>>,
    #[serde(default)]
    except_peers: Vec<Spanned<String>>,
}

/// A port, or the first and the last of many.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "a port is a number from 1 to 65535, or two of them: \"8000-8099\""
)]
enum Port {
    One(u16),
    Range(String),
}

impl Port {
    fn range(&self) -> Result<RangeInclusive<u16>, String> {
        let range = match self {
            Port::One(port) => *port..=*port,
            Port::Range(text) => {
                let ends = text.split_once('-').unwrap_or((text, text));
                let [first, last] = [ends.0, ends.1].map(|end| end.trim().parse());
                match (first, last) {
                    (Ok(first), Ok(last)) => first..=last,
                    _ => return Err(format!("`{text}` is no port, and no range: 8000-8099")),
                }
            }
        };
        if *range.start() == 0 || range.is_empty() {
            let (first, last) = (range.start(), range.end());
            return Err(format!("{first} to {last} are no ports"));
        }
        Ok(range)
    }
}

/// Which connections may be SMC's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connections {
    /// A bit for each port.
    ports: Box<[u64; WORDS]>,
    /// IPv4 networks as IPv6 has them: `::ffff:10.0.0.0/104`.
    peers: BTreeMap<Ipv6Net, bool>,
}

impl Connections {
    /// From a file. The error is where in it, and what is wrong.
    pub fn new(table: Table) -> Result<Self, (usize, String)> {
        Ok(Connections {
            ports: ports(table.ports, table.except_ports)?,
            peers: peers(table.peers, table.except_peers)?,
        })
    }

    /// Whether they may be of the servers' ports, 64 in a word, the lowest in its lowest bit.
    pub fn ports(&self) -> &[u64; WORDS] {
        &self.ports
    }

    /// The ports that they may be of.
    fn ranges(&self) -> Vec<RangeInclusive<u16>> {
        let is_allowed = |port: &u16| {
            let port = usize::from(*port);
            self.ports[port / WORD] >> (port % WORD) & 1 == 1
        };
        let mut ranges: Vec<RangeInclusive<u16>> = Vec::new();
        for port in (1..=u16::MAX).filter(is_allowed) {
            match ranges.last_mut() {
                Some(last) if *last.end() == port - 1 => *last = *last.start()..=port,
                _ => ranges.push(port..=port),
            }
        }
        ranges
    }

    /// Whether they may be to the peers of these networks; the narrowest decides, and the widest has all.
    pub fn peers(&self) -> impl Iterator<Item = (&Ipv6Net, bool)> {
        self.peers
            .iter()
            .map(|(network, allowed)| (network, *allowed))
    }
}

/// `ports 80, 8000-8021, 8023-8099; peers 10.0.0.0/8, not 10.9.0.0/16`; what is not restricted is not said.
impl fmt::Display for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        let ranges = self.ranges();
        if ranges != [1..=u16::MAX] {
            let ranges = ranges
                .iter()
                .map(|range| match (range.start(), range.end()) {
                    (first, last) if first == last => first.to_string(),
                    (first, last) => format!("{first}-{last}"),
                });
            parts.push(format!("ports {}", ranges.collect::<Vec<_>>().join(", ")));
        }
        let networks: Vec<_> = self
            .peers()
            // The first is for all that are in none.
            .filter(|(network, allowed)| {
                network.prefix_len() > 0 || (*allowed && self.peers.len() > 1)
            })
            .map(|(network, allowed)| match (given(network), allowed) {
                (network, true) => network,
                (network, false) => format!("not {network}"),
            })
            .collect();
        if !networks.is_empty() {
            parts.push(format!("peers {}", networks.join(", ")));
        }
        f.write_str(&parts.join("; "))
    }
}

/// A network as it was given.
fn given(network: &Ipv6Net) -> String {
    match (network.network().to_ipv4_mapped(), network.prefix_len()) {
        (Some(address), prefix @ 96..) => format!("{address}/{}", prefix - 96),
        (_, 0) => "all".into(),
        _ => network.to_string(),
    }
}

fn ports(
    wanted: Option<Vec<Spanned<Port>>>,
    except: Vec<Spanned<Port>>,
) -> Result<Box<[u64; WORDS]>, (usize, String)> {
    let all = wanted.is_none();
    let mut ports = Box::new([if all { u64::MAX } else { 0 }; WORDS]);
    let with = wanted.into_iter().flatten().map(|port| (port, true));
    let without = except.into_iter().map(|port| (port, false));
    for (port, allowed) in with.chain(without) {
        let at = port.span().start;
        for port in port.get_ref().range().map_err(|problem| (at, problem))? {
            let word = &mut ports[usize::from(port) / WORD];
            let bit = 1 << (usize::from(port) % WORD);
            *word = if allowed { *word | bit } else { *word & !bit };
        }
    }
    Ok(ports)
}

fn peers(
    wanted: Option<Vec<Spanned<String>>>,
    except: Vec<Spanned<String>>,
) -> Result<BTreeMap<Ipv6Net, bool>, (usize, String)> {
    let mut peers = BTreeMap::from([(Ipv6Net::default(), wanted.is_none())]);
    let with = wanted.into_iter().flatten().map(|network| (network, true));
    let without = except.into_iter().map(|network| (network, false));
    for (text, allowed) in with.chain(without) {
        let at = text.span().start;
        let network = network(text.get_ref()).map_err(|problem| (at, problem))?;
        let before = peers.insert(network, allowed);
        if before.is_some_and(|before| before != allowed) && network != Ipv6Net::default() {
            let problem = format!("`{}` is both in peers and in except_peers", text.get_ref());
            return Err((at, problem));
        }
        if peers.len() > PEERS {
            return Err((at, format!("there are more than {PEERS} networks")));
        }
    }
    Ok(peers)
}

/// A network, or a single address.
fn network(text: &str) -> Result<Ipv6Net, String> {
    let address = || text.parse::<IpAddr>().map(IpNet::from);
    let Ok(network) = text.parse::<IpNet>().or_else(|_| address()) else {
        return Err(format!("`{text}` is no network: 10.0.0.0/8, fd00::/8"));
    };
    if network.trunc() != network {
        let meant = network.trunc();
        return Err(format!("`{text}` has bits after its prefix; say {meant}"));
    }
    let (address, prefix) = match network {
        IpNet::V4(network) => {
            let address: Ipv6Addr = network.network().to_ipv6_mapped();
            (address, 96 + network.prefix_len())
        }
        IpNet::V6(network) => (network.network(), network.prefix_len()),
    };
    Ipv6Net::new(address, prefix).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Connections, String> {
        let table = toml::from_str(text).map_err(|error| error.message().to_owned())?;
        Connections::new(table).map_err(|(_, problem)| problem)
    }

    #[test]
    fn ports_are_bits() {
        let some = parse("ports = [80, '8000-8099']\nexcept_ports = [8022]").unwrap();
        let has = |port: usize| some.ports()[port / 64] >> (port % 64) & 1 == 1;
        let found: Vec<_> = (0..1 << 16).filter(|port| has(*port)).collect();
        assert_eq!(found.len(), 1 + 100 - 1);
        assert!(has(80) && has(8000) && has(8099) && !has(8022) && !has(8100));
        let all = parse("except_ports = [22]").unwrap();
        let count: u32 = all.ports().iter().map(|word| word.count_ones()).sum();
        assert_eq!(count, (1 << 16) - 1);
    }

    #[test]
    fn networks_of_ipv4_are_some_of_ipv6s() {
        let some = parse("peers = ['10.0.0.0/8', 'fd00::/8']\nexcept_peers = ['10.9.8.7']");
        let some = some.unwrap();
        let peers: Vec<_> = some
            .peers()
            .map(|(net, is)| (net.to_string(), is))
            .collect();
        let expected = [
            ("::/0", false),
            ("::ffff:10.0.0.0/104", true),
            ("::ffff:10.9.8.7/128", false),
            ("fd00::/8", true),
        ];
        assert_eq!(peers, expected.map(|(net, is)| (net.to_owned(), is)));
        let all = parse("").unwrap();
        assert_eq!(all.peers().map(|(_, is)| is).collect::<Vec<_>>(), [true]);
    }

    #[test]
    fn it_is_told_as_it_was_given() {
        for (text, said) in [
            ("", ""),
            (
                "ports = [80, '8000-8099']\nexcept_ports = [8022]",
                "ports 80, 8000-8021, 8023-8099",
            ),
            (
                "peers = ['10.0.0.0/8', 'fd00::/8']\nexcept_peers = ['10.9.0.0/16']",
                "peers 10.0.0.0/8, not 10.9.0.0/16, fd00::/8",
            ),
            (
                "except_ports = [22]\nexcept_peers = ['10.0.0.0/8']",
                "ports 1-21, 23-65535; peers all, not 10.0.0.0/8",
            ),
        ] {
            assert_eq!(parse(text).unwrap().to_string(), said);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, said) in [
            ("ports = [0]", "0 to 0 are no ports"),
            ("ports = [65536]", "from 1 to 65535"),
            ("ports = [true]", "from 1 to 65535"),
            ("ports = ['9-8']", "9 to 8 are no ports"),
            ("ports = ['http']", "`http` is no port"),
            ("peers = ['10.0.0.1/8']", "say 10.0.0.0/8"),
            ("peers = ['example.com']", "`example.com` is no network"),
            (
                "peers = ['10.0.0.0/8']\nexcept_peers = ['10.0.0.0/8']",
                "both",
            ),
            ("port = [1]", "unknown field `port`"),
        ] {
            let problem = parse(text).unwrap_err();
            assert!(problem.contains(said), "{text}: {problem}");
        }
    }
}
