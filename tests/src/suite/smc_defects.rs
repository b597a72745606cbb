// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Defects of mainline's SMC-D, as docs/linux-defects.md has them. On a kernel that has them the tests say how often
//! they were met; on one with guest/linux-patches/smc they must not be met at all.

use super::Suite;
use crate::guest::{Mode, SMC_PORT};
use crate::hostile;
use crate::lab::Lab;
use crate::pair::{BOTH, From, Pair, traffic_command};
use anyhow::{Context, Result, ensure};
use ivsmc_traffic::traffic::{Ends, Report};
use std::time::Duration;

/// Connections that are opened at once, or that are received on.
const CONNECTIONS: u64 = 50;
/// How often connections are opened with none there before: with the defect mended, and without.
const ROUNDS: [usize; 2] = [20, 5];
/// Cursors that the hostile guest writes.
const MUTATIONS: u64 = 100_000;
/// How long data may take to flow on all connections.
const START: Duration = Duration::from_secs(120);
/// How long connections may take to end when their peer has died.
const END: Duration = Duration::from_secs(60);
/// The file that says that data flows.
const FLOWING: &str = "/tmp/flowing";

/// What the tests' names begin with.
pub(super) const NAME: &str = "smc_defects";

pub(super) fn add(suite: &mut Suite) {
    suite.add_for_known_defect("smc_defects::cold_start", |fixture| {
        fixture.without_pair(cold_start)
    });
    suite.add("smc_defects::cold_start_with_warm_connections", |fixture| {
        fixture.without_pair(cold_start_with_warm_connections)
    });
    suite.add_for_known_defect("smc_defects::peer_dies_while_data_flows", |fixture| {
        fixture.without_pair(peer_dies_while_data_flows)
    });
    // What a kernel that trusts its peer does is not worth a report in every run; `ivsmc-lab hostile` shows it.
    suite.add_for_mended_kernel("smc_defects::hostile_cursors", |fixture| {
        fixture.without_pair(|lab| {
            let attack = hostile::cursors(lab, MUTATIONS, 1)?;
            println!("hostile cursors: {attack}");
            Ok(())
        })
    });
}

/// Opens connections from each of `froms` at once, with no link group there.
fn cold(pair: &mut Pair, froms: &[From], seed: usize) -> Result<Report> {
    let mut running = Vec::new();
    for from in froms {
        let (client, server) = pair.ends(*from);
        let traffic = format!("cold --connections {CONNECTIONS} --patience 30 --seed {seed}");
        let address = format!("{}:{SMC_PORT}", server.address());
        let command = traffic_command(&traffic, &address, "--smc --expect any");
        running.push((*from, client.agent().spawn(&command)?));
    }
    let mut total = Report::default();
    for (from, id) in running {
        let outcome = pair
            .ends(from)
            .0
            .agent()
            .wait(id, Duration::from_secs(250))?
            .context("connections hang")?;
        ensure!(outcome.success(), "{outcome}");
        let report: Report =
            serde_json::from_str(&outcome.stdout).with_context(|| outcome.to_string())?;
        total.add(&report);
        total.seconds = total.seconds.max(report.seconds);
    }
    Ok(total)
}

/// Which of the two guests open connections in a round, or both.
fn who(round: usize) -> &'static [From] {
    match round % 3 {
        0 => &BOTH[..1],
        1 => &BOTH[1..],
        _ => &BOTH[..],
    }
}

/// What became of all rounds' connections.
#[derive(Default)]
struct Rounds {
    total: Report,
    opened: u64,
}

impl Rounds {
    fn add(&mut self, froms: &[From], report: &Report) {
        let slowest = self.total.seconds.max(report.seconds);
        self.total.add(report);
        self.total.seconds = slowest;
        self.opened += froms.len() as u64 * CONNECTIONS;
    }

    fn are_all_smcd(&self) -> bool {
        self.total.smcd == self.opened
    }

    fn print(&self, what: &str, mended: bool) {
        let Self { total, opened } = self;
        println!(
            "{what}, {CONNECTIONS} connections at once: {} of {opened} over SMC-D, {} over TCP, {} failed, {:.1} s at most{}",
            total.smcd,
            total.fallbacks,
            total.failed,
            total.seconds,
            known(mended, &total.failure)
        );
    }
}

/// Ends all link groups. `between` is done when one guest's driver is new and the other's is not yet.
fn make_cold(pair: &mut Pair, between: impl FnOnce(&mut Pair) -> Result<()>) -> Result<()> {
    pair.a.load_driver(Mode::NoCopy)?;
    between(pair)?;
    pair.b.load_driver(Mode::NoCopy)?;
    pair.wait_for_link()
}

fn cold_start(lab: &Lab) -> Result<()> {
    let mended = lab.is_mended();
    let mut pair = Pair::boot(lab)?;
    let mut rounds = Rounds::default();
    for round in 0..ROUNDS[usize::from(!mended)] {
        let froms = who(round);
        let report = (|| {
            if round > 0 && mended {
                make_cold(&mut pair, |_| Ok(()))?;
            }
            cold(&mut pair, froms, round)
        })();
        let report = report.map_err(|error| pair.explain(error))?;
        if !mended {
            // The defect may leave a link group behind that never ends, and then ivpci cannot be unloaded.
            drop(pair);
            pair = Pair::boot(lab)?;
        }
        rounds.add(froms, &report);
    }
    rounds.print("cold start", mended);
    ensure!(!mended || rounds.are_all_smcd(), "{:?}", rounds.total);
    pair.check_health().map_err(|error| pair.explain(error))
}

/// The same with `ivsmc-guest warm` as a boot service: no kernel has the defect then.
fn cold_start_with_warm_connections(lab: &Lab) -> Result<()> {
    let mut pair = Pair::boot_warm(lab)?;
    let mut rounds = Rounds::default();
    for round in 0..ROUNDS[0] {
        let froms = who(round);
        let report = (|| {
            if round > 0 {
                // SMC loses a connection that ends before accept() has taken it, with its buffer: ivpci could not be
                // unloaded any more.
                make_cold(&mut pair, Pair::wait_for_warm_connection)?;
            }
            pair.wait_for_warm_connection()?;
            cold(&mut pair, froms, round)
        })();
        rounds.add(froms, &report.map_err(|error| pair.explain(error))?);
    }
    rounds.print("cold start with warm connections", true);
    ensure!(rounds.are_all_smcd(), "{:?}", rounds.total);
    pair.check_health().map_err(|error| pair.explain(error))
}

/// What to say of a figure that may be bad.
fn known(mended: bool, first: &str) -> String {
    let mut text = String::new();
    if !first.is_empty() {
        text += &format!(" (the first: {first})");
    }
    if !mended {
        text += "; a known defect of this kernel";
    }
    text
}

fn peer_dies_while_data_flows(lab: &Lab) -> Result<()> {
    let mut pair = Pair::boot(lab)?;
    let result = peer_dies(&mut pair, lab.is_mended());
    result.map_err(|error| pair.explain(error))
}

fn peer_dies(pair: &mut Pair, mended: bool) -> Result<()> {
    let address = format!("{}:{SMC_PORT}", pair.a.address());
    let traffic = format!("receive --connections {CONNECTIONS} --flowing {FLOWING} --patience 60");
    let id = pair
        .b
        .agent()
        .spawn(&traffic_command(&traffic, &address, "--smc"))?;
    pair.b.wait_for_file(id, FLOWING, START)?;
    std::thread::sleep(Duration::from_secs(1));
    pair.a.vmm().kill()?;
    let outcome = pair
        .b
        .agent()
        .wait(id, END)?
        .with_context(|| format!("receivers hang for {END:?}"))?;
    ensure!(outcome.success(), "{outcome}");
    let ends: Ends = serde_json::from_str(&outcome.stdout).with_context(|| outcome.to_string())?;
    println!(
        "peer killed, {CONNECTIONS} receivers: {} ended with an error ({}), {} with an end of file ({} of them with an \
         error in SO_ERROR), {} not at all{}",
        ends.errors,
        ends.error,
        ends.ends_of_file,
        ends.told_by_so_error,
        ends.hung,
        known(mended, "")
    );
    ensure!(ends.hung == 0, "{ends:?}");
    ensure!(!mended || ends.errors == CONNECTIONS, "{ends:?}");
    pair.b.check_health()
}
