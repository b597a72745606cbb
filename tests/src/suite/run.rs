// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `ivsmc-guest` with SMC in the kernel. What it does without is tested in guest/tool/tests.

use super::Suite;
use crate::guest::{Mode, Running};
use crate::pair::Pair;
use anyhow::{Context, Result, ensure};
use ivsmc_guest::IPPROTO_SMC;
use ivsmc_guest::connections::{Connection, Mode as How};
use ivsmc_guest::status::Status;
use ivsmc_traffic::agent::Command;
use ivsmc_traffic::sockets::{Opened, Storm};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// How long connections may take to come.
const PATIENCE: Duration = Duration::from_secs(60);
/// Where servers of these tests listen.
const PORT: u16 = 7100;
/// The only port that clients have where two peers are to have the same pair of ports.
const CLIENT_PORT: u16 = 7200;

pub(super) fn add(suite: &mut Suite) {
    type Test = fn(&mut Pair) -> Result<()>;
    let tests: [(&str, Test); 7] = [
        ("every_tcp_socket", every_tcp_socket),
        ("network_namespace", network_namespace),
        ("peers_with_the_same_ports", peers_with_the_same_ports),
        ("supervisors", supervisors),
        ("nobody_reads", nobody_reads),
        ("storm", storm),
        ("warm_over_ipv6", warm_over_ipv6),
    ];
    for (name, test) in tests {
        suite.add(format!("run::{name}"), move |fixture| {
            fixture.with_pair(Mode::NoCopy, test)
        });
    }
}

/// Sockets for TCP and MPTCP are SMC sockets; their flags, and all other sockets, are what they would be.
fn every_tcp_socket(pair: &mut Pair) -> Result<()> {
    let text = pair.a.shell("ivsmc-guest run ivsmc-traffic sockets")?;
    let with: Vec<Opened> = serde_json::from_str(&text).context(text)?;
    let text = pair.a.shell("ivsmc-traffic sockets")?;
    let without: Vec<Opened> = serde_json::from_str(&text).context(text)?;
    ensure!(with.len() == without.len() && !with.is_empty());
    for (with, without) in with.iter().zip(without) {
        let is_tcp = without.got == libc::IPPROTO_TCP || without.protocol == libc::IPPROTO_MPTCP;
        let expected = if is_tcp {
            let all = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
            Opened {
                got: IPPROTO_SMC,
                flags: without.kind & all,
                ..without
            }
        } else {
            without
        };
        ensure!(*with == expected, "{with:?} and not {expected:?}");
    }
    Ok(())
}

/// A server in another network namespace listens there, with an SMC socket.
fn network_namespace(pair: &mut Pair) -> Result<()> {
    let text = pair.a.shell(&format!(
        "ivsmc-guest run busybox unshare -n sh -c 'busybox nc -l -p {PORT} & server=$!; \
         n=0; until grep -q :{PORT:04X} /proc/net/tcp /proc/net/tcp6 || [ $n = 100 ]; do sleep 0.1; n=$((n + 1)); done; \
         ivsmc-guest status --json; kill $server'"
    ))?;
    let there: Status = serde_json::from_str(&text).context(text)?;
    let listens = |c: &Connection| c.state == "listen" && c.local_port == PORT;
    ensure!(there.connections.iter().any(listens), "{there:?}");
    let here = pair.a.status()?;
    ensure!(!here.connections.iter().any(listens), "{here:?}");
    Ok(())
}

/// Runs `test` while these programs run.
fn with_programs<R>(
    guest: &mut Running,
    programs: &[String],
    test: impl FnOnce(&mut Running) -> Result<R>,
) -> Result<R> {
    let mut ids = Vec::new();
    let mut started = Ok(());
    for program in programs {
        match guest.agent().spawn(&Command::shell(program)) {
            Ok(id) => ids.push(id),
            Err(error) => started = Err(error.into()),
        }
    }
    let result = started.and_then(|()| test(guest));
    for id in ids {
        guest.agent().kill(id, libc::SIGKILL)?;
        guest.agent().wait(id, Duration::from_secs(10))?;
    }
    result
}

/// Two connections to two servers that have the same two ports: each has its own peer's address, and its process's name.
fn peers_with_the_same_ports(pair: &mut Pair) -> Result<()> {
    let server = format!("sleep 1000 | ivsmc-guest run busybox nc -ll -p {PORT} -e cat");
    let id = pair.a.start_server(&Command::shell(&server), PORT)?;
    let range = "/proc/sys/net/ipv4/ip_local_port_range";
    let before = pair.a.shell(&format!("cat {range}"))?;
    pair.a
        .shell(&format!("echo {CLIENT_PORT} {CLIENT_PORT} >{range}"))?;
    let peers = [Ipv4Addr::new(127, 0, 0, 3), Ipv4Addr::new(127, 0, 0, 5)].map(IpAddr::from);
    let clients =
        peers.map(|peer| format!("sleep 1000 | ivsmc-guest run busybox nc {peer} {PORT}"));
    let result = with_programs(&mut pair.a, &clients, |guest| {
        guest.wait_until(PATIENCE, |guest| {
            let connections = guest.status()?.connections;
            let mut clients: Vec<_> = connections
                .iter()
                .filter(|c| (c.local_port, c.peer_port) == (CLIENT_PORT, PORT))
                .map(|c| (c.peer_address, c.owners.iter().map(|o| &*o.comm).collect()))
                .collect();
            clients.sort();
            let expected: Vec<(_, Vec<_>)> = peers
                .iter()
                .map(|&peer| (Some(peer), vec!["busybox"]))
                .collect();
            let right = clients == expected;
            Ok((!right).then(|| format!("{connections:#?}")))
        })
    });
    pair.a.shell(&format!("echo {before} >{range}"))?;
    pair.a.agent().kill(id, libc::SIGKILL)?;
    pair.a.agent().wait(id, Duration::from_secs(10))?;
    result
}

/// There are two supervisors, which the kernel does not kill for their memory; when one of them is killed, with a signal
/// for all before it, the program has SMC sockets as before.
fn supervisors(pair: &mut Pair) -> Result<()> {
    let text = pair.a.shell(
        "ivsmc-guest run sh -c '\
         all() { grep -l \"^ivsmc-guest: supervisor of process $$\" /proc/[0-9]*/cmdline 2>/dev/null; }; \
         for process in $(all); do directory=${process%/cmdline}; cat $directory/oom_score_adj; \
         kill -TERM ${directory#/proc/}; done; \
         one=$(all | head -n 1); one=${one%/cmdline}; kill -KILL ${one#/proc/}; \
         ivsmc-traffic sockets'",
    )?;
    let mut lines = text.lines();
    let scores: Vec<_> = lines.by_ref().take(2).collect();
    ensure!(scores == ["-1000", "-1000"], "{text}");
    let opened: Vec<Opened> =
        serde_json::from_str(lines.next().unwrap_or_default()).with_context(|| text.clone())?;
    let smc = opened.iter().filter(|opened| opened.got == IPPROTO_SMC);
    ensure!(smc.count() == 24, "{text}");
    Ok(())
}

/// `status` has more to say than anybody reads.
fn nobody_reads(pair: &mut Pair) -> Result<()> {
    let said = pair.a.shell(
        "for option in '' --json; do \
         ivsmc-guest status $option 2>&1 >/dev/full || true; \
         { ivsmc-guest status $option 2>&3 | true; } 3>&1; done",
    )?;
    ensure!(!said.contains("panicked"), "{said}");
    Ok(())
}

/// Every socket is an SMC socket, none of the processes' that are killed is left, and neither are supervisors.
fn storm(pair: &mut Pair) -> Result<()> {
    let (threads, count) = (16, 50);
    let storm = format!("ivsmc-guest run ivsmc-traffic storm --threads {threads} --count {count}");
    let text = pair.b.shell(&storm)?;
    let storm: Storm = serde_json::from_str(&text).context(text)?;
    ensure!(
        storm.got == BTreeMap::from([(IPPROTO_SMC, threads * count)])
            && storm.killed > 0
            && storm.left_over == 0,
        "{storm:?}"
    );
    pair.b.wait_until(PATIENCE, |guest| {
        let left =
            guest.shell("grep -l '^ivsmc-guest: supervisor' /proc/[0-9]*/cmdline || true")?;
        Ok((!left.is_empty()).then_some(left))
    })
}

/// Two guests keep a connection between their IPv6 addresses; only one of the two makes it.
fn warm_over_ipv6(pair: &mut Pair) -> Result<()> {
    let addresses = [2, 3].map(|host| Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, host));
    let [a, b] = addresses;
    let warm = format!("ivsmc-guest warm --port {PORT} {a} {b}");
    for (guest, address) in [(&mut pair.a, a), (&mut pair.b, b)] {
        guest.shell(&format!(
            "echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad; ip -6 address add {address}/64 dev eth0"
        ))?;
    }
    let Pair {
        a: guest_a,
        b: guest_b,
        ..
    } = pair;
    let warm = [warm];
    with_programs(guest_a, &warm, |guest_a| {
        with_programs(guest_b, &warm, |_| {
            guest_a.wait_until(PATIENCE, |guest_a| {
                let connections = guest_a.status()?.connections;
                let mut kept = connections.iter().filter(|c| c.peer_port == PORT);
                let right = kept.next().is_some_and(|c| {
                    let ends = [(c.local_address, a), (c.peer_address, b)];
                    c.mode == How::SmcD && ends.iter().all(|&(is, want)| is == Some(want.into()))
                }) && kept.next().is_none();
                Ok((!right).then(|| format!("{connections:#?}")))
            })
        })
    })
}
