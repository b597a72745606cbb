// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `ivsmc-guest check`: nothing is amiss in guests as they are, and what is broken is named with what mends it.

use super::Suite;
use crate::guest::{Mode, Running, SMC_PORT, TCP_PORT};
use crate::pair::Pair;
use anyhow::{Context, Result, ensure};
use ivsmc_traffic::agent::Command;
use serde::Deserialize;

/// A port on which nobody listens.
const NOBODYS_PORT: u16 = 7399;
/// An address that nobody has.
const NOBODY: &str = "10.77.0.99";

pub(super) fn add(suite: &mut Suite) {
    type Test = fn(&mut Pair) -> Result<()>;
    let tests: [(&str, Test); 4] = [
        ("nothing_is_amiss", nothing_is_amiss),
        ("settings", settings),
        ("connections", connections),
        ("drivers", drivers),
    ];
    for (name, test) in tests {
        suite.add(format!("check::{name}"), move |fixture| {
            fixture.with_pair(Mode::NoCopy, test)
        });
    }
}

#[derive(Debug, Deserialize)]
struct Report {
    findings: Vec<Finding>,
}

#[derive(Debug, Deserialize)]
struct Finding {
    state: String,
    what: String,
    seen: String,
    remedy: Option<String>,
}

/// What `check` says, and whether it ends as if nothing were missing or wrong.
fn check(guest: &mut Running, arguments: &str) -> Result<(Report, bool)> {
    let line = format!("ivsmc-guest check {arguments} --json");
    let outcome = guest.agent().run(&Command::shell(&line))?;
    let report = serde_json::from_str(&outcome.stdout).with_context(|| format!("{outcome}"))?;
    Ok((report, outcome.success()))
}

/// `check` has to say that `what` is in this state, with a remedy that has `remedy` in it, and to fail unless that is a note.
fn says(guest: &mut Running, arguments: &str, state: &str, what: &str, remedy: &str) -> Result<()> {
    let (report, is_good) = check(guest, arguments)?;
    let found = report.findings.iter().any(|finding| {
        finding.state == state
            && finding.what.contains(what)
            && finding.remedy.as_deref().unwrap_or("").contains(remedy)
    });
    ensure!(found, "{what} is not {state}, {remedy}: {report:?}");
    ensure!(
        is_good == (state == "note"),
        "its status is wrong: {report:?}"
    );
    Ok(())
}

/// Runs a line of shell, then `test`, then another line.
fn between(
    guest: &mut Running,
    [before, after]: [&str; 2],
    test: impl FnOnce(&mut Running) -> Result<()>,
) -> Result<()> {
    guest.shell(before)?;
    let result = test(guest);
    guest.shell(after)?;
    result.with_context(|| before.to_owned())
}

fn nothing_is_amiss(pair: &mut Pair) -> Result<()> {
    let peers = pair.b.address();
    let (report, is_good) = check(&mut pair.a, &format!("{peers} --port {SMC_PORT}"))?;
    let amiss: Vec<_> = report
        .findings
        .iter()
        .filter(|it| it.state != "ok")
        .collect();
    ensure!(is_good && amiss.is_empty(), "{amiss:?}");
    let smcd = |finding: &Finding| {
        finding.what.starts_with("SMC to") && finding.seen.starts_with("SMC-D, to the device")
    };
    ensure!(report.findings.iter().any(smcd), "{report:?}");
    // The file in sysfs is there, for `status` as well.
    let status = pair.a.status()?;
    let links: Vec<_> = status.pci.iter().flat_map(|device| &device.links).collect();
    ensure!(links == ["0 up"], "{links:?}");
    Ok(())
}

fn settings(pair: &mut Pair) -> Result<()> {
    let guest = &mut pair.a;
    let sysctl = "/proc/sys/net/smc/rmem";
    for (lines, state, what, remedy) in [
        (
            ["ivsmc-guest ueid del IVSMC", "ivsmc-guest ueid add IVSMC"].map(str::to_owned),
            "missing",
            "UEID",
            "ueid add NAME",
        ),
        (
            [
                format!("echo 65536 >{sysctl}"),
                format!("echo 1048576 >{sysctl}"),
            ],
            "note",
            "net.smc.rmem",
            "sysctl net.smc.rmem=1048576",
        ),
        (
            [0, 100].map(|us| format!("echo {us} >/sys/module/ivpci/parameters/poll_us")),
            "note",
            "polling",
            "poll_us",
        ),
    ] {
        let lines = lines.each_ref().map(String::as_str);
        between(guest, lines, |guest| says(guest, "", state, what, remedy))?;
    }
    Ok(())
}

fn connections(pair: &mut Pair) -> Result<()> {
    let peers = pair.b.address().to_string();
    let to = |port: u16| format!("{peers} --port {port}");
    let (guest, smc) = (&mut pair.a, to(SMC_PORT));
    says(
        guest,
        &to(NOBODYS_PORT),
        "missing",
        "TCP to",
        "nothing listens",
    )?;
    says(guest, NOBODY, "missing", "TCP to", "routes")?;
    says(
        guest,
        &to(TCP_PORT),
        "wrong",
        "SMC to",
        "ivsmc-guest enable",
    )?;
    between(
        guest,
        [
            "ivsmc-guest ueid add OTHER && ivsmc-guest ueid del IVSMC",
            "ivsmc-guest ueid add IVSMC && ivsmc-guest ueid del OTHER",
        ],
        |guest| says(guest, &smc, "wrong", "SMC to", "ueid add NAME"),
    )
}

fn drivers(pair: &mut Pair) -> Result<()> {
    let smc = format!("{} --port {SMC_PORT}", pair.b.address());
    // The peer's has none, and then this one.
    pair.b.load_driver(Mode::Off)?;
    pair.a.wait_for_link(false, crate::pair::LINK_TIME)?;
    says(&mut pair.a, "", "missing", "links of", "name each other")?;
    says(&mut pair.a, &smc, "wrong", "SMC to", "")?;
    pair.a.load_driver(Mode::Off)?;
    says(&mut pair.a, "", "wrong", "PCI device", "modprobe ivpci")?;
    says(&mut pair.a, "", "missing", "ivpci", "ivpci-dkms")?;
    for guest in [&mut pair.a, &mut pair.b] {
        guest.load_driver(Mode::NoCopy)?;
    }
    pair.wait_for_link()
}
