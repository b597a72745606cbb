// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a workload costs: processor time of host and guests, VM exits, doorbells, interrupts, copies.
//!
//! Everything is read before and after; while the workload runs nobody looks.

use crate::results::Better;
use anyhow::{Context, Result};
use ivsmc_guest::statistics::Statistics;
use ivsmc_guest::status::Status;
use ivsmc_lab::guest::{self, Running};
use ivsmc_lab::pair::Pair;
use std::collections::BTreeMap;
use std::time::Instant;

/// The kernel's ticks in a second, in which it tells processor time.
const TICKS: f64 = 100.0;
/// What is taken of KVM's counters.
const EXITS: [&str; 3] = ["exits", "halt_exits", "irq_injections"];
/// What is taken of ivpci's counters, and what it is called here.
const COUNTERS: [(&str, &str); 7] = [
    ("doorbells", "doorbells"),
    ("doorbells_suppressed", "doorbells saved"),
    ("interrupts", "interrupts"),
    ("signals_sent", "signals"),
    ("polls", "polls"),
    ("guards", "timer's looks"),
    ("bytes_moved", "bytes copied by ivpci"),
];

/// One guest's counters.
#[derive(Debug, Clone, Default)]
struct GuestCounts {
    /// ivpci's; none if it is not loaded.
    ivpci: BTreeMap<String, u64>,
    /// SMC's.
    smc: Statistics,
    /// Ticks in which it was not idle, before the other counters were read and after: to read them takes some, too.
    busy: [u64; 2],
    /// Memory that is available, in KiB.
    available: u64,
}

/// All counters at a time; what is counted once for each guest is added up.
#[derive(Debug)]
pub struct Snapshot {
    time: Instant,
    /// Processor time by thread of the VMMs, in ticks.
    threads: BTreeMap<String, u64>,
    /// KVM's counters; none if they cannot be had.
    exits: BTreeMap<&'static str, u64>,
    /// Guest a's and b's.
    guests: [GuestCounts; 2],
}

impl Snapshot {
    /// All counters now, the host's last: to ask the guests costs the host something.
    pub fn before(pair: &mut Pair) -> Result<Self> {
        let guests = [counts(&mut pair.a)?, counts(&mut pair.b)?];
        Snapshot::with(pair, guests)
    }

    fn with(pair: &mut Pair, guests: [GuestCounts; 2]) -> Result<Self> {
        let mut snapshot = Snapshot {
            time: Instant::now(),
            threads: BTreeMap::new(),
            exits: BTreeMap::new(),
            guests,
        };
        for guest in [&mut pair.a, &mut pair.b] {
            let process = guest.vmm().process();
            for thread in process.threads()? {
                *snapshot.threads.entry(kind(&thread.name)).or_default() += thread.ticks;
            }
            let counted = process.kvm_counters();
            for name in EXITS {
                if let Some(count) = counted.get(name) {
                    *snapshot.exits.entry(name).or_default() += count;
                }
            }
        }
        Ok(snapshot)
    }

    /// What has been counted since `before`, the host's counters being read first.
    pub fn since(pair: &mut Pair, before: &Snapshot) -> Result<Costs> {
        let now = Snapshot::with(pair, Default::default())?;
        let guests = [counts(&mut pair.a)?, counts(&mut pair.b)?];
        let seconds = (now.time - before.time).as_secs_f64();
        let mut counts = BTreeMap::new();
        for (name, ticks) in &now.threads {
            let ticks = ticks - before.threads.get(name).copied().unwrap_or(0);
            counts.insert(format!("host CPU: {name}"), ticks as f64 / TICKS);
        }
        let outside = counts.iter().filter(|(name, _)| !name.ends_with("vcpu"));
        let outside = outside.map(|(_, seconds)| seconds).sum();
        counts.insert(OUTSIDE.to_owned(), outside);
        for (name, count) in &now.exits {
            let before = before.exits.get(name).copied().unwrap_or(0);
            counts.insert((*name).to_owned(), count.saturating_sub(before) as f64);
        }
        let pairs = || before.guests.iter().zip(&guests);
        let busy: u64 = pairs()
            .map(|(before, now)| now.busy[0] - before.busy[1])
            .sum();
        counts.insert("guest CPU".to_owned(), busy as f64 / TICKS);
        if guests.iter().all(|guest| !guest.ivpci.is_empty()) {
            for (counter, name) in COUNTERS {
                let of = |guest: &GuestCounts| guest.ivpci.get(counter).copied().unwrap_or(0);
                let sum: u64 = pairs().map(|(before, now)| of(now) - of(before)).sum();
                counts.insert(name.to_owned(), sum as f64);
            }
        }
        let available =
            |guests: &[GuestCounts; 2]| guests.iter().map(|g| g.available as f64).sum::<f64>();
        let memory = available(&before.guests) - available(&guests);
        let smc = [0, 1].map(|i| difference(&before.guests[i].smc, &guests[i].smc));
        Ok(Costs {
            seconds,
            counts,
            smc,
            memory,
        })
    }
}

/// Processor time of all that is not a vCPU, in seconds.
pub const OUTSIDE: &str = "host CPU outside vCPUs";

/// What happened between two snapshots.
#[derive(Debug)]
pub struct Costs {
    /// How long it was, in seconds.
    pub seconds: f64,
    /// By name; processor time in seconds.
    pub counts: BTreeMap<String, f64>,
    /// SMC's statistics in guest a and b.
    pub smc: [Statistics; 2],
    /// Memory that became unavailable in both guests, in KiB.
    pub memory: f64,
}

/// What a workload has moved, as it says itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Work {
    /// Messages, or requests.
    pub messages: f64,
    /// Bytes of them; 0 where they are too few to be the point.
    pub bytes: f64,
}

/// A value with its metric and unit.
pub type Value = (String, &'static str, Better, f64);

impl Costs {
    /// What it costs to move something.
    pub fn of(&self, work: Work) -> Vec<Value> {
        let mut values = Vec::new();
        for (name, count) in &self.counts {
            let better = better(name);
            let mut value = |unit, value| values.push((name.clone(), unit, better, value));
            let is_time = name.contains("CPU");
            if is_time {
                value("s/million messages", count / work.messages * 1e6);
            } else {
                value("/message", count / work.messages);
            }
            if work.bytes > 0.0 && is_time {
                value("s/GB", count / work.bytes * 1e9);
            } else if work.bytes > 0.0 {
                value("/MB", count / work.bytes * 1e6);
            }
        }
        values
    }

    /// What it costs to let time pass.
    pub fn of_time(&self) -> Vec<Value> {
        let value = |(name, count): (&String, &f64)| {
            let unit = if name.contains("CPU") { "s/s" } else { "/s" };
            (name.clone(), unit, better(name), count / self.seconds)
        };
        self.counts.iter().map(value).collect()
    }
}

/// All are costs, but one.
fn better(name: &str) -> Better {
    match name {
        "doorbells saved" => Better::Higher,
        _ => Better::Lower,
    }
}

fn difference(before: &Statistics, now: &Statistics) -> Statistics {
    Statistics {
        client_connections: now.client_connections - before.client_connections,
        server_connections: now.server_connections - before.server_connections,
        client_fallbacks: now.client_fallbacks - before.client_fallbacks,
        server_fallbacks: now.server_fallbacks - before.server_fallbacks,
        sent_bytes: now.sent_bytes - before.sent_bytes,
        received_bytes: now.received_bytes - before.received_bytes,
        sends: now.sends - before.sends,
        receives: now.receives - before.receives,
        // These can shrink: there are others' connections, too.
        receive_buffers: now.receive_buffers.saturating_sub(before.receive_buffers),
        send_buffers: now.send_buffers.saturating_sub(before.send_buffers),
    }
}

/// Asks a guest for its counters, in one go.
fn counts(guest: &mut Running) -> Result<GuestCounts> {
    let text = guest.shell(
        "read -r first </proc/stat; cat /sys/kernel/debug/ivpci/*/counters 2>/dev/null; echo; \
         grep MemAvailable: /proc/meminfo; ivsmc-guest status --json; echo \"$first\"; head -n1 /proc/stat",
    )?;
    parse(&text).with_context(|| format!("counters of guest {}: {text}", guest.guest().name()))
}

fn parse(text: &str) -> Result<GuestCounts> {
    // Without the driver the empty line is the first one.
    let text = format!("\n{text}");
    let (counters, rest) = text.split_once("\n\n").context("no empty line")?;
    let mut lines = rest.lines();
    let mut line = || lines.next().context("too few lines");
    let available = line()?.split_whitespace().nth(1).context("/proc/meminfo")?;
    let status: Status = serde_json::from_str(line()?)?;
    let mut busy = || busy(line()?).context("/proc/stat");
    let busy = [busy()?, busy()?];
    Ok(GuestCounts {
        ivpci: guest::counters(counters.trim_start())?,
        smc: status.statistics,
        busy,
        available: available.parse()?,
    })
}

/// The ticks in /proc/stat's "cpu USER NICE SYSTEM IDLE IOWAIT IRQ SOFTIRQ ..." that are no idleness.
fn busy(line: &str) -> Option<u64> {
    let ticks: Vec<u64> = line
        .strip_prefix("cpu ")?
        .split_whitespace()
        .map_while(|word| word.parse().ok())
        .collect();
    Some([0, 1, 2, 5, 6].iter().filter_map(|at| ticks.get(*at)).sum())
}

/// A thread's name without numbers: "vcpu0" and "vhost-123" are a vcpu's and a vhost's.
fn kind(name: &str) -> String {
    let kind = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '-');
    kind.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_understood() {
        let status = r#"{"devices":[],"ueids":[],"connections":[],"statistics":{"client_connections":1,
            "server_connections":2,"client_fallbacks":0,"server_fallbacks":0,"sent_bytes":9,"received_bytes":0,
            "sends":1,"receives":0,"receive_buffers":0,"send_buffers":0}}"#
            .replace('\n', "");
        let rest = format!(
            "\nMemAvailable:     400 kB\n{status}\ncpu  10 1 20 500 7 3 4 0 0 0\ncpu  10 1 22 500 7 3 4 0 0\n"
        );
        let none = parse(&rest).unwrap();
        assert!(none.ivpci.is_empty());
        assert_eq!(
            (none.busy, none.available, none.smc.sent_bytes),
            ([38, 40], 400, 9)
        );
        let some = parse(&format!("doorbells 5\npolls 6\n{rest}")).unwrap();
        assert_eq!(some.ivpci["polls"], 6);
        assert!(parse("").is_err());
    }

    #[test]
    fn threads_are_put_together() {
        assert_eq!(
            (kind("vcpu12"), kind("vhost-431")),
            ("vcpu".into(), "vhost".into())
        );
    }

    #[test]
    fn costs_are_per_message_and_byte() {
        let costs = Costs {
            seconds: 2.0,
            counts: [("guest CPU".to_owned(), 0.5), ("exits".to_owned(), 50.0)].into(),
            smc: Default::default(),
            memory: 0.0,
        };
        let work = Work {
            messages: 100.0,
            bytes: 1e8,
        };
        let values = costs.of(work);
        let value = |metric: &str, unit: &str| {
            let found = values.iter().find(|v| v.0 == metric && v.1 == unit);
            found.unwrap().3
        };
        assert_eq!(value("guest CPU", "s/GB"), 5.0);
        assert_eq!(value("guest CPU", "s/million messages"), 5000.0);
        assert_eq!(
            (value("exits", "/MB"), value("exits", "/message")),
            (0.5, 0.5)
        );
        assert!(
            costs
                .of_time()
                .iter()
                .any(|v| v.0 == "exits" && v.1 == "/s" && v.3 == 25.0)
        );
    }
}
