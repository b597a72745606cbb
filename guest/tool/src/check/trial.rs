// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A connection to a peer, and why it is not SMC-D.

use crate::connections::{Connection, Mode};
use crate::reason::{self, PEER_DECLINED};
use crate::socket::{self, Transport};
use ivsmc_toolkit::check::Report;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long TCP may take to connect.
const PATIENCE: Duration = Duration::from_secs(5);

/// Opens a connection to this address over TCP, then one over SMC, and closes both.
pub fn check(peer: SocketAddr, report: &mut Report) {
    let tcp = format!("TCP to {peer}");
    match TcpStream::connect_timeout(&peer, PATIENCE) {
        Ok(_) => report.ok(&tcp, "connects"),
        Err(error) => {
            let remedy = match error.kind() {
                io::ErrorKind::ConnectionRefused => {
                    "nothing listens there: start the server, or give its port with --port"
                }
                _ => "look at addresses, routes and firewalls: ping the peer first",
            };
            report.missing(&tcp, error.to_string(), remedy);
            return;
        }
    }
    let what = format!("SMC to {peer}");
    let connected = socket::connect_once(peer, Transport::Smc);
    let found = connected.map(|stream| {
        let found = socket::diagnosis(&stream);
        drop(stream);
        found
    });
    match found {
        Ok(Ok(Some(connection))) => tell(&what, &connection, report),
        Ok(Ok(None)) => report.wrong(
            &what,
            "SMC does not know the connection",
            "the peer may have closed it at once: try a port whose server waits for its client",
        ),
        Ok(Err(error)) => report.missing(&what, error.to_string(), "modprobe smc_diag"),
        Err(error) => report.wrong(
            &what,
            error.to_string(),
            "dmesg may say more; is SMC loaded?",
        ),
    }
}

/// What became of it.
fn tell(what: &str, connection: &Connection, report: &mut Report) {
    match (connection.mode, &connection.dmb) {
        (Mode::SmcD, Some(dmb)) => {
            report.ok(what, format!("SMC-D, to the device {}", dmb.peer_gid));
        }
        (Mode::SmcD, None) => report.ok(what, "SMC-D"),
        (Mode::SmcR, _) => report.wrong(
            what,
            "SMC-R, and not SMC-D",
            "there is no ivsmc link to that peer: is it a VM of this host, on the same fabric?",
        ),
        (Mode::Tcp | Mode::None, _) => {
            let (reason, peers) = (connection.reason_code, connection.peer_diagnosis);
            report.wrong(what, reason::explain(reason, peers), remedy(reason, peers));
        }
    }
}

/// What mends a fallback to TCP for this reason.
fn remedy(reason: u32, peers: u32) -> &'static str {
    let (code, is_peers) = match reason {
        PEER_DECLINED => (peers, true),
        _ => (reason, false),
    };
    match code {
        0x0301_0000 => {
            "start the peer's server with `ivsmc-guest run`, or have `ivsmc-guest enable` there before it starts"
        }
        0x0303_0006 | 0x0303_0008 => {
            "ivsmc-guest ueid list on both sides; ivsmc-guest ueid add NAME, the same on both"
        }
        0x0303_0004 | 0x0303_0005 => "run `ivsmc-guest check` in the peer's guest",
        // What a server says that has no UEID in common with its client.
        0x0303_0001 if is_peers => {
            "ivsmc-guest ueid list on both sides; ivsmc-guest ueid add NAME, the same on both; else run \
             `ivsmc-guest check` in the peer's guest"
        }
        0x0303_0000 if is_peers => "run `ivsmc-guest check` in the peer's guest",
        0x0303_0000 | 0x0303_0001 => "what is missing or wrong above",
        0x0303_0007 => {
            "the VMs have to be on one host, and their --ivsmc (or ivsmc-host's policy) in one fabric"
        }
        0x030d_0000 => "a larger size= in --ivsmc, or a smaller net.smc.rmem",
        0x0400_0000 => {
            "guest/linux-patches/smc in the kernel, or `ivsmc-guest warm` as a service in both"
        }
        0x0306_0000 => "a program that does not use TCP Fast Open",
        0x0302_0000 => "no IPsec between these addresses",
        _ => "run `ivsmc-guest check` in the peer's guest, too",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn nobody_who_listens_is_told_before_smc_is_tried() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let mut report = Report::default();
        check(address, &mut report);
        assert_eq!(report.findings.len(), 1);
        assert!(report.to_string().contains("nothing listens"), "{report}");
    }

    #[test]
    fn each_reason_has_its_remedy() {
        for (reason, peers, said) in [
            (0x0301_0000, 0, "ivsmc-guest run"),
            (PEER_DECLINED, 0x0303_0008, "ueid add"),
            (0x0303_0006, 0, "ueid add"),
            (0x0303_0000, 0, "above"),
            (PEER_DECLINED, 0x0303_0000, "in the peer's guest"),
            (PEER_DECLINED, 0x0303_0001, "ueid add"),
            (0x0303_0001, 0, "above"),
            (0x0303_0007, 0, "one fabric"),
            (0x030d_0000, 0, "size="),
            (PEER_DECLINED, 0x030d_0000, "size="),
            (0x0400_0000, 0, "warm"),
            (0x0999_0000, 0, "peer's guest, too"),
        ] {
            assert!(remedy(reason, peers).contains(said), "{reason:x} {peers:x}");
        }
    }
}
