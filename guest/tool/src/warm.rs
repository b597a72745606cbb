// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One connection to each peer that is kept: with an SMC-D link group there, any number of connections can be opened
//! at once, which a Linux without our fix does not take well while there is none (docs/linux-defects.md, "Cold start").

use crate::connections::Mode;
use crate::netlink;
use crate::socket::{self, Transport};
use crate::uevent::Links;
use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
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
    peers: &[Ipv4Addr],
    port: u16,
    tell: impl Fn(&str) + Sync,
) -> Result<std::convert::Infallible, Error> {
    let listener = socket::listen(
        SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port),
        Transport::Smc,
    )
    .map_err(|source| Error::Listen { port, source })?;
    let links: Vec<Links> = peers
        .iter()
        .map(|_| Links::open().map_err(Error::Uevents))
        .collect::<Result<_, _>>()?;
    std::thread::scope(|scope| {
        for (peer, links) in peers.iter().zip(links) {
            let tell = &tell;
            scope.spawn(move || keep_one(SocketAddrV4::new(*peer, port), &links, tell));
        }
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    scope.spawn(move || until_it_ends(stream));
                }
                // Whoever wanted to connect has gone, or there is too little of something: not for ever.
                Err(_) => std::thread::sleep(Duration::from_secs(1)),
            }
        }
    })
}

fn keep_one(peer: SocketAddrV4, links: &Links, tell: &impl Fn(&str)) {
    let mut last = String::new();
    loop {
        if is_ours_to_connect(peer) {
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

/// Whether we have the lower address. Without a route to the peer nobody can say.
fn is_ours_to_connect(peer: SocketAddrV4) -> bool {
    let route = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(peer)?;
        socket.local_addr()
    };
    match route() {
        Ok(SocketAddr::V4(own)) => own.ip() < peer.ip(),
        _ => false,
    }
}

/// Connects over SMC-D, or says why that cannot be.
fn connect(peer: SocketAddrV4) -> Result<TcpStream, String> {
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
        let peer = |d| SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, d), PORT);
        // Linux takes 127.0.0.1 for the way to any address of the loopback device.
        assert!(is_ours_to_connect(peer(2)));
        assert!(!is_ours_to_connect(peer(1)));
    }
}
