// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask perf`

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::image;
use crate::process;
use crate::run::{self, GuestOptions};

/// How long the runner may take.
const LIMIT: Duration = Duration::from_secs(90 * 60);
/// How long to look whether the machine is idle.
const LOOK: Duration = Duration::from_secs(2);
/// The kernel's ticks in a second, in which it tells processor time.
const TICKS: f64 = 100.0;
/// From so many busy processors on figures are not to be trusted.
const BUSY: f64 = 0.3;
/// The file in the runner's folder that its results go to.
const RESULT: &str = "perf.json";

/// Options of `cargo xtask perf`.
#[derive(Args)]
pub struct Options {
    /// Fewer sizes, shorter: a few minutes instead of up to an hour.
    #[arg(long)]
    quick: bool,
    /// How often to measure everything [default: 5, with --quick 3]
    #[arg(long, value_name = "N")]
    repetitions: Option<String>,
    /// Only these workloads: idle, connections, sockperf-ping-pong, sockperf-throughput, iperf3, redis, http, limits.
    #[arg(long, value_name = "WORKLOAD,...")]
    only: Option<String>,
    /// Processors of each guest [default: 1]
    #[arg(long, value_name = "N")]
    cpus: Option<String>,
    /// Where perf.json, perf.md and the plots go [default: the folder perf of the cache]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// A perf.json of an earlier run: say what has changed.
    #[arg(long, value_name = "OLD.json")]
    compare: Option<PathBuf>,
    #[command(flatten)]
    guests: GuestOptions,
}

/// `cargo xtask perf`
pub fn main(options: &Options) -> Result<()> {
    let prepared = options.guests.prepare()?;
    let program = &prepared.programs.perf;

    let mut arguments = vec!["run".to_owned(), "--machine".into(), machine()];
    arguments.extend(options.quick.then(|| "--quick".into()));
    for (name, value) in [
        ("repetitions", &options.repetitions),
        ("only", &options.only),
        ("cpus", &options.cpus),
    ] {
        arguments.extend(value.as_ref().map(|value| format!("--{name}={value}")));
    }
    // What is wrong is to be told now, not after the measurement.
    process::run(Command::new(program).args(&arguments).arg("--dry-run"))?;
    if let Some(old) = &options.compare {
        process::run(Command::new(program).arg("check").arg(old))
            .with_context(|| format!("--compare {}", old.display()))?;
    }

    let outcome = run::runner(
        &prepared,
        &options.guests.run,
        program,
        "perf",
        &arguments,
        LIMIT,
    )?;
    ensure!(
        outcome.status == 0,
        "the suite failed (status {}); its logs, and what it measured before, are in {}",
        outcome.status,
        outcome.out.display()
    );
    let out = options
        .out
        .clone()
        .unwrap_or_else(|| prepared.cache.path("perf"));
    let result = out.join(RESULT);
    image::copy(&outcome.out.join(RESULT), &result)?;
    let mut report = Command::new(program);
    report.arg("report").arg(&result).arg("--out").arg(&out);
    if let Some(old) = &options.compare {
        report.arg("--compare").arg(old);
    }
    process::run(&mut report)?;
    println!("report, plots and {RESULT}: {}", out.display());
    Ok(())
}

/// This machine's processors, and how many of them are busy with other things, in words.
fn machine() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown processor", |(_, model)| model.trim());
    let count = std::thread::available_parallelism().map_or(0, usize::from);
    let before = idle();
    std::thread::sleep(LOOK);
    let busy = before.zip(idle()).map(|(before, now)| {
        let idle = (now - before) as f64 / TICKS / LOOK.as_secs_f64();
        (count as f64 - idle).max(0.0)
    });
    let Some(busy) = busy else {
        return format!("{count} x {model}");
    };
    if busy > BUSY {
        println!("{busy:.1} of {count} processors are busy: what is measured now means little");
    }
    format!("{count} x {model}, {busy:.1} of them busy before")
}

/// Ticks in which processors were idle, or waiting for a disk.
fn idle() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    // "cpu USER NICE SYSTEM IDLE IOWAIT ..."
    let mut ticks = stat.lines().next()?.split_whitespace().skip(4);
    Some(ticks.next()?.parse::<u64>().ok()? + ticks.next()?.parse::<u64>().ok()?)
}
