// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a program sees of SMC-D, beside TCP: the cases of `ivsmc-conformance`, between two guests and within one.

use crate::guest::Running;
use crate::lab::{Lab, VmmKind};
use crate::pair::Pair;
use crate::qemu;
use anyhow::{Context, Result};
use ivsmc_conformance::agent;
use ivsmc_conformance::hub::Plan;
use ivsmc_conformance::outcome::{Outcome, Run, Transport};
use ivsmc_traffic::agent::Command;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Cases at once. Most of them wait most of the time.
const PARALLEL: usize = 16;
/// Between what the two ends of a case do.
const SETTLE: Duration = Duration::from_millis(100);
/// After that a case hangs. Of those that do not, TCP's slowest call takes 4.5 s.
const LIMIT: Duration = Duration::from_secs(7);
/// After how many cases it is told that they are done.
const STEP: usize = 50;
/// How long agents may take to listen.
const LISTEN_TIME: Duration = Duration::from_secs(10);

/// The IPv6 address of a guest.
fn address6(guest: &Running) -> Ipv6Addr {
    let host = guest.address().octets()[3];
    Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, host.into())
}

/// Gives the guests what cases need: an agent, an IPv6 address.
pub fn prepare(pair: &mut Pair) -> Result<()> {
    for guest in [&mut pair.a, &mut pair.b] {
        // The address is to be usable at once; a pair can be one that was prepared before.
        guest.shell(&format!(
            "echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad; ip -6 address add {}/64 dev eth0 2>/dev/null; true",
            address6(guest)
        ))?;
        if guest.shell("pidof ivsmc-conformance").is_err() {
            let command = Command::new(["ivsmc-conformance", "serve"]);
            guest.agent().spawn(&command)?;
        }
        let start = Instant::now();
        let listening = format!(
            "grep -q ':{:04X} 00000000:0000 0A' /proc/net/tcp",
            agent::PORT
        );
        while guest.shell(&listening).is_err() && start.elapsed() < LISTEN_TIME {
            thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(())
}

/// Runs all cases, or those of these names, over a transport.
pub fn run(
    lab: &Lab,
    pair: &Pair,
    transport: Transport,
    within: bool,
    names: Option<&[String]>,
) -> Run {
    let agent = |guest: &Running| SocketAddr::from((guest.address(), agent::PORT));
    let server = agent(&pair.b);
    let mut plan = Plan {
        client: if within { server } else { agent(&pair.a) },
        server,
        address: pair.b.address(),
        address6: address6(&pair.b),
        transport,
        parallel: PARALLEL,
        settle: SETTLE,
        limit: LIMIT,
    };
    if within {
        (plan.address, plan.address6) = (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
    }
    if names.is_some() {
        // What is run again is to be disturbed by nothing.
        plan.parallel = 2;
        plan.settle *= 3;
    }
    let wanted = |case: &ivsmc_conformance::cases::Named| {
        names.is_none_or(|names| names.iter().any(|name| name == case.name))
    };
    let done = AtomicUsize::new(0);
    Run {
        transport,
        within,
        kernel: lab.kernel.clone(),
        cases: plan.run(wanted, |_| {
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            // What prints nothing for long is taken to stand still.
            if done.is_multiple_of(STEP) {
                println!("conformance, {transport}: {done} cases done");
            }
        }),
    }
}

/// Runs over SMC what `tcp` is over TCP, and what is not the same once more, with more time.
pub fn compared(lab: &Lab, pair: &Pair, transport: Transport, tcp: &Run) -> Run {
    let mut seen = run(lab, pair, transport, tcp.within, None);
    let differing = seen.differing(tcp).into_iter();
    // One that hangs takes its time again.
    let again: Vec<String> = differing
        .filter(|case| !case.hangs())
        .map(|case: &Outcome| case.name.clone())
        .collect();
    if !again.is_empty() {
        seen.replace(run(lab, pair, transport, tcp.within, Some(&again)).cases);
    }
    seen
}

/// Runs everything: between the guests and within one, over TCP, SMC-D, and SMC that falls back; writes what was seen to
/// the lab's folder.
pub fn everything(lab: &Lab) -> Result<()> {
    let mut pair = match lab.vmm {
        VmmKind::Qemu => qemu::boot(lab)?,
        VmmKind::Reference | VmmKind::CloudHypervisor => Pair::boot(lab)?,
    };
    prepare(&mut pair)?;
    for within in [false, true] {
        let tcp = run(lab, &pair, Transport::Tcp, within, None);
        save(lab, &tcp)?;
        save(lab, &compared(lab, &pair, Transport::Smc, &tcp))?;
        if !within {
            // Without a UEID in common there is no SMC-D.
            for guest in [&mut pair.a, &mut pair.b] {
                guest.shell("ivsmc-guest ueid del IVSMC")?;
            }
            save(lab, &compared(lab, &pair, Transport::Fallback, &tcp))?;
            for guest in [&mut pair.a, &mut pair.b] {
                guest.shell("ivsmc-guest ueid add IVSMC")?;
            }
        }
    }
    pair.check_health()
}

fn save(lab: &Lab, run: &Run) -> Result<()> {
    let place = if run.within { "within" } else { "between" };
    let file = lab
        .out
        .join(format!("conformance-{place}-{}.json", run.transport));
    println!(
        "{place} guests, {}: {} cases",
        run.transport,
        run.cases.len()
    );
    let hanging = run.cases.iter().filter(|case| case.hangs());
    for case in hanging {
        println!("  {case}");
    }
    std::fs::write(&file, serde_json::to_string_pretty(run)?)
        .with_context(|| file.display().to_string())
}
