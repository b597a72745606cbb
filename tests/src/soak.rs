// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Traffic of all kinds and sizes for as long as one likes: what happens once in a thousand times is to happen here.

use crate::guest::{Mode, SMC_PORT};
use crate::lab::Lab;
use crate::pair::{BOTH, From, LINK_TIME, Pair, traffic_command};
use crate::process::Footprint;
use anyhow::{Context, Result, ensure};
use ivsmc_traffic::pattern::Random;
use ivsmc_traffic::traffic::Report;
use std::fmt;
use std::time::{Duration, Instant};

/// Pieces of traffic that are made one after the other from each side that takes part in a round.
const RUNS: u64 = 12;
/// Rounds between two looks at what is left over.
const ROUNDS: u64 = 8;
/// How long ivpci may poll, in microseconds: not at all, a little, and for so long in the lab that no doorbell is rung.
const POLLS: [u64; 4] = [0, 20, 500, 5000];

/// What was done.
#[derive(Debug, Default)]
pub struct Soak {
    /// Pieces of traffic, all right.
    pub runs: u64,
    /// Their connections, all of them SMC-D.
    pub connections: u64,
    /// Bytes sent and received.
    pub bytes: u64,
    /// How often everything was found as it was in the beginning.
    pub looks: u64,
}

impl fmt::Display for Soak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Soak {
            runs,
            connections,
            bytes,
            looks,
        } = self;
        write!(
            f,
            "{runs} pieces of traffic on {connections} connections, {} MB; nothing left over, {looks} times looked",
            bytes / 1_000_000
        )
    }
}

/// Goes on for `time`. What is done follows from `seed`.
pub fn run(lab: &Lab, time: Duration, seed: u64) -> Result<Soak> {
    let mut pair = Pair::boot(lab)?;
    let mut random = Random::new(seed);
    let (mut soak, start) = (Soak::default(), Instant::now());
    let mut before = None;
    while start.elapsed() < time || soak.looks == 0 {
        let done = (|| {
            before = Some(look(&mut pair, before)?);
            soak.looks += 1;
            let mode = [Mode::NoCopy, Mode::Copy][random.below(2) as usize];
            pair.set_mode(mode)?;
            for _ in 0..ROUNDS {
                let (report, what) = round(&mut pair, &mut random)?;
                soak.runs += RUNS * what.len() as u64;
                soak.connections += report.connections;
                soak.bytes += report.bytes;
            }
            println!("[{:5.0} s] {mode}: {soak}", start.elapsed().as_secs_f64());
            Ok(())
        })();
        done.map_err(|error| pair.explain(error).context(format!("seed {seed}: {soak}")))?;
    }
    look(&mut pair, before).map_err(|error| pair.explain(error))?;
    Ok(soak)
}

/// Traffic from one side, or from both at once.
fn round(pair: &mut Pair, random: &mut Random) -> Result<(Report, &'static [From])> {
    for from in BOTH {
        let poll = POLLS[random.below(POLLS.len() as u64) as usize];
        pair.ends(from).0.poll_for(poll)?;
    }
    let froms = [&BOTH[..1], &BOTH[1..], &BOTH[..]][random.below(3) as usize];
    if froms.len() > 1 {
        // Many connections at once want a link group there.
        pair.traffic(froms[0], "ping-pong --count 1")?;
    }
    let mut running = Vec::new();
    for from in froms {
        let seed = random.next_number();
        let (client, server) = pair.ends(*from);
        let traffic = format!("mix --runs {RUNS} --seed {seed} --patience 60");
        let address = format!("{}:{SMC_PORT}", server.address());
        let command = traffic_command(&traffic, &address, "--smc");
        running.push((from, client.agent().spawn(&command)?));
    }
    let mut total = Report::default();
    for (from, id) in running {
        let agent = pair.ends(*from).0.agent();
        let outcome = agent.wait(id, Duration::from_secs(300))?;
        let outcome = outcome.with_context(|| format!("{from:?}: the traffic hangs"))?;
        ensure!(outcome.success(), "{from:?}: {outcome}");
        let report: Report = serde_json::from_str(&outcome.stdout)?;
        ensure!(report.smcd == report.connections, "{report:?}");
        total.add(&report);
    }
    Ok((total, froms))
}

/// Ends all connections for good, and compares what there is with what there was.
fn look(pair: &mut Pair, before: Option<[Footprint; 2]>) -> Result<[Footprint; 2]> {
    pair.check_health()?;
    let mode = pair.mode();
    pair.a.load_driver(mode)?;
    pair.b.wait_for_no_buffers(LINK_TIME)?;
    pair.b.load_driver(mode)?;
    pair.a.wait_for_no_buffers(LINK_TIME)?;
    pair.wait_for_link()?;
    let now = [
        pair.a.vmm().process().footprint()?,
        pair.b.vmm().process().footprint()?,
    ];
    let before = before.unwrap_or(now);
    ensure!(now == before, "the VMMs had {before:?}, and have {now:?}");
    Ok(now)
}
