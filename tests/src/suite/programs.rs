// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Programs of Debian's, as they are: the client in guest a, the server in guest b, over TCP and over SMC-D.
//!
//! A program is a folder in `tests/programs`, whose README says what its scripts do. They check what comes out, and tell what they
//! measured. Here they are run, and it is made sure that all that they sent over SMC-D was sent that way.

use super::{Suite, containers, installed};
use crate::guest::{Guest, Running};
use crate::lab::Lab;
use crate::measure::{self, Transport, median};
use crate::pair::Pair;
use anyhow::{Context, Result, ensure};
use ivsmc_traffic::agent::Command;
use std::path::Path;
use std::time::Duration;

/// Where a guest has the program's root.
const ROOT: &str = "/program";
/// Where that has the scripts.
pub(super) const SCRIPTS: &str = "/test";
/// What both guests' roots, and what is made in them, has room in, in MiB.
const MEMORY: u32 = 1024;
/// How often everything is measured; the median counts.
const ROUNDS: usize = 3;
/// How long what comes before a server may take, and all clients of a round.
pub(super) const PATIENCE: Duration = Duration::from_secs(300);
/// How long a server may take to end.
pub(super) const END_TIME: Duration = Duration::from_secs(60);
/// The first port of servers over TCP, and of those over SMC-D: a port is not free at once after use.
const PORTS: [u16; 2] = [6000, 6100];
/// What the network may carry beside the data of SMC-D's connections: of the agent's, and of each handshake's.
const BESIDE: u64 = 64 << 10;
const HANDSHAKE: u64 = 16 << 10;

pub(super) fn add(suite: &mut Suite) {
    for name in staged(&suite.fixture.lab) {
        suite.add(format!("programs::{name}"), move |fixture| {
            fixture.without_pair(|lab| {
                let folder = lab.programs.join(&name);
                report(lab, &name, MEMORY, |pair| measured(lab, pair, &folder))
            })
        });
    }
}

/// The programs that are there. Those that were not asked for are not.
pub(super) fn staged(lab: &Lab) -> Vec<String> {
    let folders = std::fs::read_dir(&lab.programs);
    let folders = folders.into_iter().flatten().flatten();
    let mut names: Vec<_> = folders
        .map(|folder| folder.file_name().to_string_lossy().into_owned())
        .filter(|name| ![containers::ENGINE, installed::SYSTEM].contains(&name.as_str()))
        .collect();
    names.sort();
    names
}

/// Boots two guests with so much memory, in MiB.
pub(super) fn boot(lab: &Lab, memory: u32) -> Result<Pair> {
    let guests = Pair::guests(lab)?.map(|guest| guest.memory(memory));
    // Without a connection that is kept some of the first ones would be TCP's, on a kernel that is not mended.
    let peers = guests.each_ref().map(Guest::address);
    Pair::boot_these(lab, &guests.map(|guest| guest.peers(peers)))
}

/// Has two guests measure a program, and prints the rows of the table that come of it.
pub(super) fn report(
    lab: &Lab,
    name: &str,
    memory: u32,
    measured: impl FnOnce(&mut Pair) -> Result<Vec<String>>,
) -> Result<()> {
    let mut pair = boot(lab, memory)?;
    let result = measured(&mut pair).and_then(|table| {
        pair.check_health()?;
        Ok(table)
    });
    let version = std::fs::read_to_string(lab.programs.join(name).join("version"))?;
    let rows = result.map_err(|error| pair.explain(error))?;
    // A line has been begun already.
    println!();
    for row in rows {
        println!("| {name} {version} {row}");
    }
    Ok(())
}

/// What a client has measured, each time.
pub(super) struct Figure {
    pub(super) what: String,
    pub(super) unit: String,
    values: Vec<f64>,
}

impl Figure {
    pub(super) fn median(&self) -> f64 {
        median(&self.values)
    }

    /// By what factor this is better than that.
    fn gain(&self, other: &Figure) -> f64 {
        // A time is the better the shorter it is, and all others are rates.
        match self.unit.as_str() {
            "s" | "ms" | "us" => other.median() / self.median(),
            _ => self.median() / other.median(),
        }
    }
}

/// Measures over TCP, then over SMC-D; gives the rows of the table.
fn measured(lab: &Lab, pair: &mut Pair, folder: &Path) -> Result<Vec<String>> {
    pair.wait_for_warm_connection()?;
    measure::pin(pair)?;
    for guest in [&mut pair.a, &mut pair.b] {
        guest.unpack(&folder.join("root.tar"), ROOT)?;
        guest.unpack(&folder.join("scripts.tar"), &format!("{ROOT}{SCRIPTS}"))?;
        for place in ["dev", "proc", "sys"] {
            guest.shell(&format!("mount -o rbind /{place} {ROOT}/{place}"))?;
        }
    }
    for (guest, role) in [(&mut pair.a, "client"), (&mut pair.b, "server")] {
        let setup = script(Transport::TcpVirtioNet, "setup").env("ROLE", role);
        guest.check(&setup.timeout(PATIENCE))?;
    }
    let mut figures = Vec::new();
    for (transport, port) in [Transport::TcpVirtioNet, Transport::SmcdNocopy]
        .into_iter()
        .zip(PORTS)
    {
        transport.prepare(lab, pair)?;
        let of_transport =
            rounds(pair, transport, port).with_context(|| format!("{transport:?}"))?;
        figures.push(of_transport);
    }
    let [tcp, smc] = &figures[..] else {
        unreachable!("there are two transports");
    };
    ensure!(
        !tcp.is_empty() && tcp.len() == smc.len(),
        "the clients told {} figures, and then {}",
        tcp.len(),
        smc.len()
    );
    let rows = tcp.iter().zip(smc).map(|(tcp, smc)| {
        format!(
            "| {} | {} | {} | {} | {} |",
            tcp.what,
            tcp.unit,
            three_digits(tcp.median()),
            three_digits(smc.median()),
            three_digits(smc.gain(tcp))
        )
    });
    Ok(rows.collect())
}

/// A number with its first three digits, or those before its point if these are more.
pub(super) fn three_digits(value: f64) -> String {
    let decimals = match value {
        100.0.. => 0,
        10.0.. => 1,
        _ => 2,
    };
    format!("{value:.decimals$}")
}

/// Runs the server, and the clients again and again.
fn rounds(pair: &mut Pair, transport: Transport, port: u16) -> Result<Vec<Figure>> {
    let address = pair.b.address().to_string();
    let script = |name| {
        let script = script(transport, name).env("PORT", &port.to_string());
        script.env("SERVER", &address).timeout(PATIENCE)
    };
    let server = script("server");
    let id = pair.b.start_server(&server, port).context("server")?;
    let result = clients(pair, &script("client"), transport.is_smc());
    end_server(&mut pair.b, id, result)
}

/// Runs a client again and again.
pub(super) fn clients(pair: &mut Pair, client: &Command, is_smc: bool) -> Result<Vec<Figure>> {
    let mut figures: Vec<Figure> = Vec::new();
    for round in 0..ROUNDS {
        let before = [Counts::of(&mut pair.a)?, Counts::of(&mut pair.b)?];
        let output = pair.a.check(client)?;
        let after = [Counts::of(&mut pair.a)?, Counts::of(&mut pair.b)?];
        if is_smc {
            all_is_smcd(&before, &after)?;
        }
        let told = told(&output)?;
        if round == 0 {
            figures = told;
            continue;
        }
        ensure!(figures.len() == told.len(), "figures are missing: {output}");
        for (figure, again) in figures.iter_mut().zip(told) {
            figure.values.extend(again.values);
        }
    }
    Ok(figures)
}

/// Ends a server. If its clients have failed, their error tells how it was.
pub(super) fn end_server<T>(guest: &mut Running, id: u64, result: Result<T>) -> Result<T> {
    let agent = guest.agent();
    match result {
        Ok(done) => {
            agent.kill(id, libc::SIGTERM)?;
            if agent.wait(id, END_TIME)?.is_none() {
                agent.kill(id, libc::SIGKILL)?;
                agent.wait(id, END_TIME)?;
            }
            Ok(done)
        }
        Err(error) => {
            agent.kill(id, libc::SIGKILL)?;
            let server = agent.wait(id, END_TIME)?;
            Err(error.context(format!("the server: {server:?}")))
        }
    }
}

/// One of the scripts, in the program's root. The program has no part in how its sockets become SMC's.
fn script(transport: Transport, name: &str) -> Command {
    with_environment(transport.program(&format!("chroot {ROOT} bash {SCRIPTS}/{name}")))
}

/// What the scripts expect.
pub(super) fn with_environment(command: Command) -> Command {
    command
        .env("PATH", "/usr/sbin:/usr/bin")
        .env("HOME", "/root")
        .env("LC_ALL", "C")
}

/// What a client has told: lines "figure VALUE UNIT WHAT".
fn told(output: &str) -> Result<Vec<Figure>> {
    let figure = |line: &str| {
        let mut parts = line.splitn(3, ' ');
        let value = parts.next()?.parse().ok()?;
        // Nothing at all has been done otherwise.
        (value > 0.0).then_some(())?;
        Some(Figure {
            values: vec![value],
            unit: parts.next()?.to_owned(),
            what: parts.next()?.to_owned(),
        })
    };
    let lines = output
        .lines()
        .filter_map(|line| line.strip_prefix("figure "));
    lines
        .map(|line| figure(line).with_context(|| format!("no figure: {line}")))
        .collect()
}

/// What a guest has counted so far, in all its network namespaces.
pub(super) struct Counts {
    /// Connections over SMC-D, made here, and made there.
    made: u64,
    pub(super) accepted: u64,
    /// Bytes over SMC-D.
    bytes: u64,
    fallbacks: u64,
    /// Bytes of its network card.
    network: u64,
}

impl Counts {
    pub(super) fn of(guest: &mut Running) -> Result<Self> {
        let smc = guest.status_everywhere()?.statistics;
        let network = guest.shell("cd /sys/class/net/eth0/statistics; cat rx_bytes tx_bytes")?;
        let network = network.lines().map(|line| line.parse::<u64>());
        let network: Result<Vec<_>, _> = network.collect();
        Ok(Counts {
            made: smc.client_connections,
            accepted: smc.server_connections,
            bytes: smc.sent_bytes + smc.received_bytes,
            fallbacks: smc.client_fallbacks + smc.server_fallbacks,
            network: network?.iter().sum(),
        })
    }
}

/// Whether the client's connections were SMC-D on both sides, and nothing of their data went another way.
pub(super) fn all_is_smcd(before: &[Counts; 2], after: &[Counts; 2]) -> Result<()> {
    let more = |guest: usize, of: fn(&Counts) -> u64| of(&after[guest]) - of(&before[guest]);
    let fallbacks = [more(0, |c| c.fallbacks), more(1, |c| c.fallbacks)];
    ensure!(
        fallbacks == [0, 0],
        "{fallbacks:?} connections fell back to TCP"
    );
    let (made, accepted) = (more(0, |c| c.made), more(1, |c| c.accepted));
    ensure!(
        made > 0 && accepted > 0,
        "{made} connections were made over SMC-D, and {accepted} accepted"
    );
    if accepted < made {
        // A client may close before the server's SMC has attached its buffer: then the server never has the connection.
        println!("of {made} connections over SMC-D the server has had {accepted}");
    }
    let (bytes, network) = (more(0, |c| c.bytes), more(0, |c| c.network));
    ensure!(
        network <= BESIDE + made * HANDSHAKE + bytes / 10,
        "the network carried {network} bytes, SMC-D's {made} connections {bytes}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_told_and_compared() {
        let told = |text| told(text).unwrap();
        let tcp = told("hello\nfigure 100 requests/s GET of 1 KiB\nfigure 8 s all of it\n");
        let smc = told("figure 250 requests/s GET of 1 KiB\nfigure 2 s all of it\n");
        assert_eq!((tcp[0].what.as_str(), tcp.len()), ("GET of 1 KiB", 2));
        assert_eq!(smc[0].gain(&tcp[0]), 2.5);
        assert_eq!(smc[1].gain(&tcp[1]), 4.0);
        assert!(super::told("figure many requests/s x\n").is_err());
        assert!(super::told("figure 0.0 requests/s x\n").is_err());
    }

    #[test]
    fn what_went_another_way_is_seen() {
        let counts = |made, bytes, fallbacks, network| Counts {
            made,
            accepted: made,
            bytes,
            fallbacks,
            network,
        };
        let looks = |[made, bytes, fallbacks, network]: [u64; 4]| {
            let after = [(); 2].map(|()| counts(made, bytes, fallbacks, network));
            all_is_smcd(&[(); 2].map(|()| counts(1, 0, 0, 0)), &after).is_ok()
        };
        assert!(looks([5, 1 << 30, 0, 1 << 20]));
        assert!(!looks([1, 1 << 30, 0, 1 << 20]), "no connection");
        assert!(!looks([5, 1 << 30, 1, 1 << 20]), "one fell back");
        assert!(!looks([5, 1 << 30, 0, 1 << 30]), "the network had it all");
    }
}
