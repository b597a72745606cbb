// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guests, drivers and VMMs come and go; connections end promptly, and new ones work.

use super::Suite;
use crate::guest::{Guest, Mode, SMC_PORT, TCP_PORT};
use crate::lab::Lab;
use crate::pair::{BOTH, From, LINK_TIME, Pair, traffic_command};
use anyhow::{Context, Result, ensure};
use ivsmc_guest::connections::Mode as How;
use ivsmc_traffic::agent::Command;
use std::time::Duration;

pub(super) fn add(suite: &mut Suite) {
    suite.add("life::driver_is_unloaded_and_loaded", |fixture| {
        fixture.with_pair(Mode::NoCopy, driver_is_unloaded_and_loaded)
    });
    suite.add("life::driver_is_unloaded_under_load", |fixture| {
        for mode in [Mode::NoCopy, Mode::Copy] {
            fixture.with_pair(mode, |pair| driver_is_unloaded_under_load(pair, mode))?;
        }
        Ok(())
    });
    suite.add("life::peer_without_smc", |fixture| {
        fixture.with_pair(Mode::NoCopy, peer_without_smc)
    });
    suite.add("life::peer_without_device", |fixture| {
        let guest = Guest::new("c", 4).mode(Mode::Off).boot(&fixture.lab)?;
        let address = guest.address();
        fixture.with_pair(Mode::NoCopy, |pair| {
            falls_back(pair, &format!("{address}:{SMC_PORT}"), "SMC-D")
        })
    });
    suite.add("life::guest_reboots", |fixture| {
        fixture.with_pair(Mode::NoCopy, guest_reboots)
    });
    suite.add("life::guest_reboots_under_load", |fixture| {
        fixture.with_pair(Mode::NoCopy, guest_reboots_under_load)
    });
    suite.add("life::vmm_is_killed_and_comes_back", |fixture| {
        fixture.without_pair(vmm_is_killed_and_comes_back)
    });
    suite.add("life::start_order_does_not_matter", |fixture| {
        fixture.without_pair(start_order_does_not_matter)
    });
}

/// New connections work, both ways.
pub(super) fn works(pair: &mut Pair) -> Result<()> {
    pair.wait_for_link()?;
    for from in BOTH {
        pair.traffic(from, "ping-pong --count 20")?;
        pair.traffic(from, "bulk --up 1000000 --down 1000000")?;
    }
    Ok(())
}

fn driver_is_unloaded_and_loaded(pair: &mut Pair) -> Result<()> {
    for round in 0..3 {
        pair.traffic(From::A, "ping-pong --count 20")?;
        let (one, other) = pair.ends(BOTH[round % 2]);
        one.shell("rmmod ivpci")?;
        other.wait_for_link(false, LINK_TIME)?;
        falls_back_to_peer(pair, "")?;
        pair.ends(BOTH[round % 2]).0.load_driver(Mode::NoCopy)?;
        works(pair)?;
    }
    Ok(())
}

/// Connections from A to B work over TCP, and `ivsmc-guest status` says why in words with `reason` in them.
pub(super) fn falls_back_to_peer(pair: &mut Pair, reason: &str) -> Result<()> {
    let address = format!("{}:{SMC_PORT}", pair.b.address());
    falls_back(pair, &address, reason)
}

fn falls_back(pair: &mut Pair, address: &str, reason: &str) -> Result<()> {
    let options = "--smc --expect fallback";
    pair.a.check(&traffic_command(
        "bulk --up 1000000 --down 1000000",
        address,
        options,
    ))?;

    let long = traffic_command("ping-pong --count 100000000", address, options);
    let id = pair.a.agent().spawn(&long)?;
    let port = address.rsplit(':').next().unwrap_or_default();
    let mut found = None;
    for _ in 0..100 {
        let status = pair.a.status()?;
        found = status
            .connections
            .into_iter()
            .find(|c| c.peer_port.to_string() == port && c.state == "active");
        if found.is_some() {
            break;
        }
    }
    pair.a.agent().kill(id, libc::SIGKILL)?;
    pair.a.agent().wait(id, Duration::from_secs(10))?;
    let found = found.context("the connection does not appear in ivsmc-guest status")?;
    ensure!(
        found.mode == How::Tcp && !found.reason.is_empty() && found.reason.contains(reason),
        "{found:?}"
    );
    Ok(())
}

/// A peer whose program has a plain TCP socket.
fn peer_without_smc(pair: &mut Pair) -> Result<()> {
    let address = format!("{}:{TCP_PORT}", pair.b.address());
    falls_back(pair, &address, "did not offer SMC")
}

/// How long traffic may take to connect.
const CONNECT_TIME: Duration = Duration::from_secs(30);

/// Starts traffic over SMC-D that would go on for long, and waits until it is connected; it is the program of `from`'s
/// guest with the number that is returned.
pub(super) fn start_endless(pair: &mut Pair, from: From) -> Result<u64> {
    let (client, server) = pair.ends(from);
    let address = format!("{}:{SMC_PORT}", server.address());
    let bytes = 1u64 << 40;
    let traffic = format!("bulk --up {bytes} --down {bytes}");
    let command = traffic_command(&traffic, &address, "--smc");
    let before = client.connections_to(SMC_PORT)?;
    let id = client.agent().spawn(&command)?;
    client.wait_until(CONNECT_TIME, |client| {
        let ended = client.agent().wait(id, Duration::ZERO)?;
        ensure!(ended.is_none(), "the traffic has ended already: {ended:?}");
        let made = client.connections_to(SMC_PORT)?;
        let amiss = || "the traffic has no connection over SMC-D".to_owned();
        Ok(made.is_subset(&before).then(amiss))
    })?;
    let ended = client.agent().wait(id, Duration::from_secs(2))?;
    ensure!(ended.is_none(), "the traffic has ended already: {ended:?}");
    Ok(id)
}

/// That traffic has to end with an error, soon.
pub(super) fn ends_soon(pair: &mut Pair, from: From, id: u64) -> Result<()> {
    pair.ends(from).0.ends_with_error(id).map(drop)
}

fn driver_is_unloaded_under_load(pair: &mut Pair, mode: Mode) -> Result<()> {
    for at_client in [false, true] {
        pair.wait_for_link()?;
        let id = start_endless(pair, From::B)?;
        let guest = if at_client { &mut pair.b } else { &mut pair.a };
        guest.check(&Command::new(["rmmod", "ivpci"]).timeout(Duration::from_secs(60)))?;
        ends_soon(pair, From::B, id)?;
        let guest = if at_client { &mut pair.b } else { &mut pair.a };
        guest.load_driver(mode)?;
        works(pair)?;
    }
    Ok(())
}

fn guest_reboots(pair: &mut Pair) -> Result<()> {
    works(pair)?;
    pair.b.reboot()?;
    works(pair)
}

fn guest_reboots_under_load(pair: &mut Pair) -> Result<()> {
    let id = start_endless(pair, From::B)?;
    pair.a.reboot()?;
    ends_soon(pair, From::B, id)?;
    works(pair)
}

fn vmm_is_killed_and_comes_back(lab: &Lab) -> Result<()> {
    let [guest, _] = Pair::guests(lab)?;
    let mut pair = Pair::boot(lab)?;
    let result = (|| {
        works(&mut pair)?;
        let id = start_endless(&mut pair, From::B)?;
        pair.a.vmm().kill()?;
        ends_soon(&mut pair, From::B, id)?;
        pair.b.wait_for_link(false, LINK_TIME)?;
        pair.b.wait_for_no_buffers(LINK_TIME)?;
        pair.a = guest.boot(lab)?;
        works(&mut pair)?;
        pair.check_health()
    })();
    result.map_err(|error| pair.explain(error))
}

fn start_order_does_not_matter(lab: &Lab) -> Result<()> {
    let [a, b] = Pair::guests(lab)?;
    for first in [&a, &b] {
        let second = if first.name() == "a" { &b } else { &a };
        // Up and looking for its peer for a while before there is one.
        let first = first.boot(lab)?;
        std::thread::sleep(Duration::from_secs(2));
        let mut pair = Pair::of(second.boot(lab)?, first)?;
        let result = works(&mut pair).and_then(|()| pair.check_health());
        result.map_err(|error| pair.explain(error))?;
    }
    Ok(())
}
