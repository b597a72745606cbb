// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Data arrives whole, over SMC-D, in both modes and both directions.

use super::Suite;
use crate::guest::{Mode, Running};
use crate::pair::{BOTH, From, LINK_TIME, Pair};
use crate::soak;
use anyhow::{Context, Result, ensure};
use ivsmc_guest::connections::Mode as How;
use ivsmc_traffic::agent::Command;
use std::time::{Duration, Instant};

/// How long the soak of every run of the tests is: `ivsmc-lab soak` makes longer ones.
const SOAK: Duration = Duration::from_secs(20);

pub(super) fn add(suite: &mut Suite) {
    suite.add("traffic::soak", |fixture| {
        fixture.without_pair(|lab| {
            println!("soak: {}", soak::run(lab, SOAK, 1)?);
            Ok(())
        })
    });
    for mode in [Mode::NoCopy, Mode::Copy] {
        let mut add = |name: &str, test: fn(&mut Pair) -> Result<()>| {
            suite.add(format!("traffic::{name}_{mode}"), move |fixture| {
                fixture.with_pair(mode, test)
            });
        };
        add("ping_pong", ping_pong);
        add("bulk", bulk);
        add("timer_waits", timer_waits);
        add("hundred_at_once", hundred_at_once);
        add("splice", splice);
        add(
            "churn_leaks_nothing",
            match mode {
                Mode::Copy => |pair| churn_leaks_nothing(pair, 200),
                _ => |pair| churn_leaks_nothing(pair, 2000),
            },
        );
        add("programs_that_know_nothing", programs_that_know_nothing);
    }
}

fn ping_pong(pair: &mut Pair) -> Result<()> {
    for from in BOTH {
        pair.traffic(from, "ping-pong --count 500")?;
        pair.traffic(from, "ping-pong --count 100 --size 1")?;
        pair.traffic(from, "ping-pong --count 50 --size 100000")?;
    }
    Ok(())
}

fn bulk(pair: &mut Pair) -> Result<()> {
    for (seed, from) in [(1, From::A), (2, From::B)] {
        pair.traffic(
            from,
            &format!("bulk --seed {seed} --up 16000000 --down 16000000"),
        )?;
        pair.traffic(from, &format!("bulk --seed {seed} --up 8000001 --down 0"))?;
        pair.traffic(from, &format!("bulk --seed {seed} --up 0 --down 8000001"))?;
    }
    Ok(())
}

/// The timer that looks into the rings while others keep the poller's CPU waits in between, however much there is to do.
fn timer_waits(pair: &mut Pair) -> Result<()> {
    const POLL_US: u64 = 20_000;
    let usual = [pair.a.poll_for(POLL_US)?, pair.b.poll_for(POLL_US)?];
    let start = Instant::now();
    let before = [guards(&mut pair.a)?, guards(&mut pair.b)?];
    for from in BOTH {
        pair.traffic(from, "bulk --seed 3 --up 200000000 --down 0")?;
    }
    let after = [guards(&mut pair.a)?, guards(&mut pair.b)?];
    // Twice in the time for which polling lasts: it may have to set itself to what is left of it.
    let most = 2 * start.elapsed().as_micros() / u128::from(POLL_US);
    for (before, after) in before.into_iter().zip(after) {
        let looks = u128::from(after - before);
        ensure!(
            looks <= most,
            "it has looked {looks} times, where {most} would do"
        );
    }
    pair.a.poll_for(usual[0])?;
    pair.b.poll_for(usual[1]).map(drop)
}

/// How often ivpci's timer has looked into the rings.
fn guards(guest: &mut Running) -> Result<u64> {
    let counters = guest.counters()?;
    counters.get("guards").copied().context("no such counter")
}

fn hundred_at_once(pair: &mut Pair) -> Result<()> {
    let report = pair.traffic(From::A, "many --connections 100 --bytes 150000")?;
    ensure!(report.smcd == 100, "{report:?}");
    Ok(())
}

fn splice(pair: &mut Pair) -> Result<()> {
    for from in BOTH {
        pair.traffic(from, "splice --bytes 3000000")?;
    }
    Ok(())
}

fn churn_leaks_nothing(pair: &mut Pair, count: u64) -> Result<()> {
    // SMC keeps buffers of closed connections for new ones: a first round fills its store.
    pair.traffic(From::A, "churn --count 50 --parallel 4")?;
    let before = [pair.a.buffers()?, pair.b.buffers()?];
    let report = pair.traffic(From::A, &format!("churn --count {count} --parallel 4"))?;
    ensure!(report.smcd == count, "{report:?}");
    let after = [pair.a.buffers()?, pair.b.buffers()?];
    // How many are open at the very same time differs a little from round to round.
    for (before, after) in before.iter().flatten().zip(after.iter().flatten()) {
        ensure!(
            *after <= before + 8,
            "DMBs in use, retired or attached: {before} before, {after} after"
        );
    }
    // When the link goes SMC gives back everything: unloading at one side shows it at the other.
    pair.a.shell("rmmod ivpci")?;
    pair.b.wait_for_no_buffers(LINK_TIME)?;
    let nocopy = pair.b.shell("cat /sys/module/ivpci/parameters/nocopy")?;
    pair.a.shell(&format!(
        "insmod /lib/modules/ivpci.ko nocopy={}",
        nocopy.trim()
    ))?;
    pair.wait_for_link()?;
    pair.traffic(From::B, "ping-pong --count 10").map(drop)
}

/// `ivsmc-guest run` makes SMC-D connections of programs, dynamic (redis) and static (busybox).
fn programs_that_know_nothing(pair: &mut Pair) -> Result<()> {
    let address = pair.a.address();
    let servers = [
        (
            6381,
            "ivsmc-guest run redis-server --port 6381 --bind 0.0.0.0 --protected-mode no --save",
        ),
        (6382, "sleep 1000 | ivsmc-guest run busybox nc -l -p 6382"),
    ];
    let mut ids = Vec::new();
    for (port, server) in servers {
        ids.push(pair.a.start_server(&Command::shell(server), port)?);
    }
    let clients = [
        (
            6381,
            format!("ivsmc-guest run redis-benchmark -h {address} -p 6381 -c 1 -n 1000000 -q"),
        ),
        (
            6382,
            format!("sleep 1000 | ivsmc-guest run busybox nc {address} 6382"),
        ),
    ];
    for (port, client) in clients {
        let start = Instant::now();
        let id = pair.b.agent().spawn(&Command::shell(&client))?;
        let found = loop {
            let status = pair.b.status()?;
            let found = status
                .connections
                .into_iter()
                .find(|connection| connection.peer_port == port && connection.state == "active");
            if let Some(found) = found {
                break found;
            }
            ensure!(
                start.elapsed() < Duration::from_secs(30),
                "`{client}` does not connect"
            );
        };
        ensure!(found.mode == How::SmcD, "`{client}`: {found:?}");
        ensure!(
            found.peer_address == Some(address.into()),
            "`{client}`: {found:?}"
        );
        pair.b.agent().kill(id, libc::SIGKILL)?;
        pair.b.agent().wait(id, Duration::from_secs(10))?;
    }
    for id in ids {
        pair.a.agent().kill(id, libc::SIGKILL)?;
        pair.a.agent().wait(id, Duration::from_secs(10))?;
    }
    Ok(())
}
