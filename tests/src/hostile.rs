// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that attacks its peer through the window that they share.

use crate::guest::SMC_PORT;
use crate::lab::Lab;
use crate::pair::{BOTH, Pair};
use anyhow::{Context, Result, ensure};
use ivsmc_traffic::agent::{Command, Outcome};
use ivsmc_traffic::cursors::Mutations;
use ivsmc_traffic::traffic::Report;
use std::fmt;
use std::time::{Duration, Instant};

/// How long the attack may take.
const LIMIT: Duration = Duration::from_secs(3600);
/// How long what is under way may take to end when the attack is over: close() waits for up to two minutes until the
/// peer has taken what was sent.
const END: Duration = Duration::from_secs(200);
/// How often it is told that the attack goes on.
const TELL: Duration = Duration::from_secs(60);
/// The file that ends the traffic in a guest.
const STOP: &str = "/tmp/stop";

/// What came of an attack.
#[derive(Debug)]
pub struct Attack {
    /// What the hostile guest did.
    pub mutations: Mutations,
    /// What became of the connections meanwhile.
    pub traffic: Report,
}

impl fmt::Display for Attack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (
            Mutations {
                mutations,
                buffers,
                seconds,
            },
            traffic,
        ) = (&self.mutations, &self.traffic);
        write!(
            f,
            "{mutations} cursors written into {buffers} buffers in {seconds:.0} s; of the connections meanwhile {} \
             failed (the first: {}), {} did not",
            traffic.failed, traffic.failure, traffic.connections
        )
    }
}

/// Guest A writes `mutations` cursors into the buffers in which guest B receives, while connections are opened, used
/// and closed both ways. After that B has to be in good health, and new connections have to work.
pub fn cursors(lab: &Lab, mutations: u64, seed: u64) -> Result<Attack> {
    let [a, b] = Pair::guests(lab)?;
    // With a processor for the attacker alone.
    let (a, b) = (a.cpus(2).start(lab)?, b.start(lab)?);
    let mut pair = Pair::of(a.ready()?, b.ready()?)?;
    attack(&mut pair, mutations, seed).map_err(|error| pair.explain(error))
}

fn attack(pair: &mut Pair, mutations: u64, seed: u64) -> Result<Attack> {
    let mut running = Vec::new();
    for from in BOTH {
        pair.traffic(from, "ping-pong --count 10")?;
        let (client, server) = pair.ends(from);
        let traffic = format!(
            "ivsmc-traffic restless --until {STOP} --patience 10 --smc --expect any --timeout {} --connect {}:{SMC_PORT}",
            (LIMIT + END).as_secs(),
            server.address()
        );
        running.push((
            from,
            client.agent().spawn(&Command::new(traffic.split(' ')))?,
        ));
    }
    let attack = format!("ivsmc-traffic cursors --mutations {mutations} --seed {seed}");
    let attacker = pair.a.agent();
    let id = attacker.spawn(&Command::new(attack.split(' ')))?;
    let started = Instant::now();
    let outcome = loop {
        // A run that says nothing for long is taken for one that hangs.
        if let Some(outcome) = attacker.wait(id, TELL)? {
            break outcome;
        }
        let seconds = started.elapsed().as_secs();
        ensure!(
            seconds < LIMIT.as_secs(),
            "the attack does not end in {seconds} s"
        );
        println!("[{seconds:5} s] cursors are being written");
    };
    let mutations = parse(&outcome)?;

    let mut traffic = Report::default();
    for (from, id) in running {
        let client = pair.ends(from).0;
        client.shell(&format!("touch {STOP}"))?;
        let outcome = client
            .agent()
            .wait(id, END)?
            .with_context(|| format!("guest {}: connections do not end", client.guest().name()))?;
        traffic.add(&parse(&outcome)?);
    }
    let attack = Attack { mutations, traffic };
    ensure!(attack.traffic.failed > 0, "no connection was hit: {attack}");
    pair.check_health().with_context(|| attack.to_string())?;
    for from in BOTH {
        pair.traffic(from, "bulk --up 1000000 --down 1000000")
            .with_context(|| format!("after {attack}"))?;
    }
    pair.check_health()?;
    Ok(attack)
}

fn parse<T: serde::de::DeserializeOwned>(outcome: &Outcome) -> Result<T> {
    ensure!(outcome.success(), "{outcome}");
    serde_json::from_str(&outcome.stdout).with_context(|| outcome.to_string())
}
