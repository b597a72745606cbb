// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One connection to each peer that is kept: with an SMC-D link group there, any number of connections can be opened
//! at once, which a Linux without our fix does not take well while there is none (docs/linux-defects.md, "Cold start").

use crate::connections::Mode;
use crate::netlink;
use crate::socket::{self, Transport};
use crate::uevent::Links;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

/// The port that guests keep for it: the number of ivshmem's PCI vendor.
pub const PORT: u16 = 0x1af4;

/// How long to wait before a peer is tried again if no link comes up meanwhile: it may have been without the service.
const AGAIN: Duration = Duration::from_secs(10);

/// Why connections cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody can connect to us.
    #[error("cannot listen on port {port} over SMC: {source}")]
    Listen {
        /// The port.
        port: u16,
        /// What the kernel said.
        source: io::Error,
    },
    /// Nothing would tell that a link has come up.
    #[error("cannot listen to the kernel's uevents: {0}")]
    Uevents(netlink::Error),
}

/// Keeps a connection with each of `peers`, all of which do the same; `tell` is called when one is made or ends. Returns
/// only with an error.
///
/// Of two guests the one with the lower address connects: two that meet half-way would make two link groups. So all
/// guests of a fabric can have the same list, with themselves in it.
pub fn keep(
    peers: &[IpAddr],
    port: u16,
    tell: impl Fn(&str) + Sync,
) -> Result<std::convert::Infallible, Error> {
    let families: [(bool, IpAddr); 2] = [
        (false, Ipv4Addr::UNSPECIFIED.into()),
        (true, Ipv6Addr::UNSPECIFIED.into()),
    ];
    let listeners = families.into_iter().filter_map(|(v6, any)| {
        let wanted = peers.iter().any(|peer| peer.is_ipv6() == v6);
        wanted.then(|| socket::listen(SocketAddr::new(any, port), Transport::Smc))
    });
    let listeners: Vec<TcpListener> = listeners
        .collect::<Result<_, _>>()
        .map_err(|source| Error::Listen { port, source })?;
    let own: Vec<IpAddr> = peers.iter().copied().filter(is_here).collect();
    let peers = peers.iter().filter(|peer| !own.contains(peer));
    let peers: Vec<(IpAddr, Links)> = peers
        .map(|&peer| Ok((peer, Links::open()?)))
        .collect::<Result<_, _>>()
        .map_err(Error::Uevents)?;
    std::thread::scope(|scope| {
        let (tell, own) = (&tell, &own);
        for (peer, links) in peers {
            let peer = SocketAddr::new(peer, port);
            scope.spawn(move || keep_one(peer, own, &links, tell));
        }
        for listener in listeners {
            scope.spawn(move || {
                loop {
                    match listener.accept() {
                        Ok((stream, _)) => {
                            scope.spawn(move || until_it_ends(stream));
                        }
                        // Whoever wanted to connect has gone, or there is too little of something: not for ever.
                        Err(_) => std::thread::sleep(Duration::from_secs(1)),
                    }
                }
            });
        }
        loop {
            std::thread::park();
        }
    })
}

/// Whether this is an address of this guest's: the way to it begins at itself.
fn is_here(address: &IpAddr) -> bool {
    route(SocketAddr::new(*address, PORT)).is_ok_and(|from| from == *address)
}

/// The address from which a peer is reached.
fn route(peer: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = match peer {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(peer)?;
    Ok(socket.local_addr()?.ip())
}

fn keep_one(peer: SocketAddr, own: &[IpAddr], links: &Links, tell: &impl Fn(&str)) {
    let mut last = String::new();
    loop {
        if is_ours_to_connect(peer, own) {
            let state = match connect(peer) {
                Ok(stream) => {
                    tell(&format!("{peer}: SMC-D"));
                    until_it_ends(stream);
                    last.clear();
                    "ended".to_owned()
                }
                Err(why) => why,
            };
            if state != last {
                tell(&format!("{peer}: {state}"));
                last = state;
            }
        }
        links.wait(AGAIN);
    }
}

/// Whether we have the lower address. It is the one that is in the list, as the peers see it there. Is there none, it is the
/// one from which the peer is reached: with IPv6 that can be a temporary one, of which peers know nothing. Without a route
/// to the peer nobody can say.
fn is_ours_to_connect(peer: SocketAddr, own: &[IpAddr]) -> bool {
    let listed = own
        .iter()
        .copied()
        .find(|own| own.is_ipv6() == peer.is_ipv6());
    let ours = listed.map_or_else(|| route(peer), Ok);
    ours.is_ok_and(|ours| ours < peer.ip())
}

/// Connects over SMC-D, or says why that cannot be.
fn connect(peer: SocketAddr) -> Result<TcpStream, String> {
    let stream =
        socket::connect_once(peer, Transport::Smc).map_err(|error| format!("connect: {error}"))?;
    match socket::diagnosis(&stream) {
        Ok(Some(connection)) if connection.mode == Mode::SmcD => Ok(stream),
        Ok(Some(connection)) => Err(format!("over TCP: {}", connection.reason)),
        Ok(None) => Err("the kernel does not know the connection".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn until_it_ends(mut stream: TcpStream) {
    // Nobody sends anything: whatever comes, or an error, is its end.
    let _ = stream.read(&mut [0]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lower_address_connects() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let ours = |peer: &str, own: &[IpAddr]| {
            is_ours_to_connect(SocketAddr::new(address(peer), PORT), own)
        };
        // Linux takes 127.0.0.1 for the way to any address of the loopback device.
        assert!(ours("127.0.0.2", &[]));
        assert!(!ours("127.0.0.1", &[]));
        let own = [address("127.0.0.3"), address("::1")];
        assert!(!ours("127.0.0.2", &own));
        assert!(ours("127.0.0.4", &own));
        assert!(ours("::2", &own));
        assert!(!ours("::2", &[address("::3")]));
        assert!(is_here(&address("::1")) && !is_here(&address("192.0.2.1")));
    }
}
