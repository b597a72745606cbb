// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The demo: the same program over virtio-net and over SMC-D, measured, in one table.
//!
//! That it was SMC-D is proved by SMC's own diagnosis on both sides while sockperf's connection is
//! there; if anything fell back, the demo says so and fails.

use crate::distance;
use crate::lab::Lab;
use crate::measure::{self, TRANSPORTS, Transport, backend, median};
use crate::pair::Pair;
use crate::sockperf::{self, Proof, Server};
use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// sockperf's first port; every server gets its own, because a port is not free at once after use.
const FIRST_PORT: u16 = 11111;
/// redis' ports over TCP and over SMC.
const REDIS_TCP: u16 = 6379;
const REDIS_SMC: u16 = 6380;
/// Bytes of a message of the latency test.
const LATENCY_MESSAGE: u32 = 64;
/// Bytes of a message of the throughput test: the most that sockperf sends (64 KiB less 29).
const THROUGHPUT_MESSAGE: u32 = 65507;
/// How often everything is measured; the median counts.
const ROUNDS: usize = 3;
/// Seconds of one measurement, beside what sockperf needs to warm up.
const SECONDS: u32 = 2;

/// How long redis-server may take to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// A line of the table.
#[derive(Debug, Serialize)]
struct Row {
    transport: Transport,
    latency_us_p50: f64,
    latency_us_p99: f64,
    throughput_mb_s: f64,
    smcd_connections: usize,
    fallbacks: usize,
}

#[derive(Debug, Serialize)]
struct Ratio {
    latency: f64,
    throughput: f64,
}

/// The demo's result.
#[derive(Debug, Serialize)]
struct Table {
    platform: String,
    vmm: String,
    virtio_net: &'static str,
    rows: Vec<Row>,
    ratio: Ratio,
}

/// What was measured of one transport so far.
#[derive(Default)]
struct Samples {
    p50: Vec<f64>,
    p99: Vec<f64>,
    throughput: Vec<f64>,
    smcd: usize,
    fallbacks: Vec<String>,
}

impl Samples {
    fn row(&self, transport: Transport) -> Row {
        Row {
            transport,
            latency_us_p50: median(&self.p50),
            latency_us_p99: median(&self.p99),
            throughput_mb_s: median(&self.throughput),
            smcd_connections: self.smcd,
            fallbacks: self.fallbacks.len(),
        }
    }
}

/// Runs the demo, prints the table, and writes it to `demo.json` among the results.
pub fn run(lab: &Lab) -> Result<()> {
    let start = Instant::now();
    let step = |text: &str| println!("[{:4.0} s] {text}", start.elapsed().as_secs_f64());
    step(&format!(
        "platform {}, VMM {}: booting two guests",
        lab.platform, lab.vmm
    ));
    let mut pair = Pair::boot(lab)?;
    step("both are up, and so is the ivsmc link between them");
    measure::pin(&pair)?;
    let mut distances = Vec::new();
    let result = rounds(lab, &mut pair, &mut distances, &step);
    let (table, redis) = result.map_err(|error| pair.explain(error))?;

    println!("\n{}\n{redis}", render(&table));
    if let Some(words) = distance::words(&distances) {
        println!("The processors: {words}.");
    }
    std::fs::write(lab.out.join("demo.json"), serde_json::to_vec(&table)?)?;
    let fallbacks: usize = table.rows.iter().map(|row| row.fallbacks).sum();
    ensure!(fallbacks == 0, "{fallbacks} connections fell back to TCP");
    pair.check_health()
}

fn rounds(
    lab: &Lab,
    pair: &mut Pair,
    distances: &mut Vec<f64>,
    step: &dyn Fn(&str),
) -> Result<(Table, String)> {
    let mut samples = TRANSPORTS.map(|_| Samples::default());
    let mut ports = FIRST_PORT..;
    for round in 1..=ROUNDS {
        for (transport, samples) in TRANSPORTS.into_iter().zip(&mut samples) {
            step(&format!(
                "round {round} of {ROUNDS}: {}",
                transport.words(backend(lab.vmm))
            ));
            transport.prepare(lab, pair)?;
            distances.extend(distance::look()?);
            let port = ports.next().context("no port is left")?;
            sample(pair, transport, port, samples)?;
        }
    }
    for (transport, samples) in TRANSPORTS.into_iter().zip(&samples) {
        for reason in &samples.fallbacks {
            println!(
                "{}: fell back to TCP: {reason}",
                transport.words(backend(lab.vmm))
            );
        }
    }
    step("redis-benchmark and redis-server, which know nothing of SMC");
    let redis = redis(pair, backend(lab.vmm))?;

    let rows: Vec<Row> = TRANSPORTS
        .into_iter()
        .zip(&samples)
        .map(|(transport, s)| s.row(transport))
        .collect();
    let [tcp, _, nocopy] = &rows[..] else {
        bail!("the table has {} rows", rows.len())
    };
    let ratio = Ratio {
        latency: tcp.latency_us_p50 / nocopy.latency_us_p50,
        throughput: nocopy.throughput_mb_s / tcp.throughput_mb_s,
    };
    let (platform, vmm) = (lab.platform.to_string(), lab.vmm.to_string());
    Ok((
        Table {
            platform,
            vmm,
            virtio_net: backend(lab.vmm),
            rows,
            ratio,
        },
        redis,
    ))
}

/// One measurement of latency and one of throughput.
fn sample(pair: &mut Pair, transport: Transport, port: u16, samples: &mut Samples) -> Result<()> {
    let server = Server::start(pair, transport, port)?;
    let mut client = |what: &str| {
        let (output, proof) = server.client(pair, what, SECONDS, |_| Ok(()))?;
        match proof {
            None => {}
            Some(Proof::SmcD) => samples.smcd += 1,
            Some(Proof::FellBack(reason)) => samples.fallbacks.push(reason),
        }
        anyhow::Ok(output)
    };
    let latency = sockperf::latency(&client(&format!("ping-pong -m {LATENCY_MESSAGE}"))?)?;
    let throughput =
        sockperf::throughput(&client(&format!("throughput -m {THROUGHPUT_MESSAGE}"))?)?;
    samples.p50.push(latency.p50);
    samples.p99.push(latency.p99);
    samples.throughput.push(throughput);
    server.stop(pair)
}

/// redis over TCP and over SMC-D: requests per second.
fn redis(pair: &mut Pair, backend: &str) -> Result<String> {
    let mut text = String::from("redis-benchmark, requests per second:\n");
    for (port, transport) in [
        (REDIS_TCP, Transport::TcpVirtioNet),
        (REDIS_SMC, Transport::SmcdNocopy),
    ] {
        let server = format!(
            "redis-server --port {port} --bind 0.0.0.0 --protected-mode no --save --appendonly no"
        );
        let id = pair.a.start_server(&transport.program(&server), port)?;
        let address = pair.a.address();
        let client =
            format!("redis-benchmark -h {address} -p {port} -t set,get -n 3000 -c 4 -d 64 --csv");
        let output = pair
            .b
            .check(&transport.program(&client).timeout(Duration::from_secs(60)))?;
        let numbers: Vec<String> = redis_rates(&output)
            .into_iter()
            .map(|(test, rate)| format!("{test} {rate:>10.2}"))
            .collect();
        ensure!(numbers.len() == 2, "`{client}` gave no result: {output}");
        let _ = writeln!(
            text,
            "  {:<45}  {}",
            transport.words(backend),
            numbers.join("  ")
        );
        pair.a.agent().kill(id, libc::SIGKILL)?;
        pair.a
            .agent()
            .wait(id, PATIENCE)?
            .context("redis-server does not end")?;
    }
    Ok(text)
}

/// SET's and GET's requests per second in what `redis-benchmark --csv` writes.
pub fn redis_rates(output: &str) -> Vec<(&str, f64)> {
    let rate = |line: &str| {
        let mut fields = line.split(',').map(|field| field.trim_matches('"'));
        let test = ["SET", "GET"]
            .into_iter()
            .find(|test| line.starts_with(&format!("\"{test}\"")))?;
        Some((test, fields.nth(1)?.parse().ok()?))
    };
    output.lines().filter_map(rate).collect()
}

fn render(table: &Table) -> String {
    let mut text = format!(
        "{:<45} {:>12} {:>12} {:>12} {:>9} {:>11} {:>11} {:>9}\n",
        "transport",
        "latency p50",
        "p99",
        "throughput",
        "latency",
        "throughput",
        "SMC-D",
        "fallbacks"
    );
    let _ = writeln!(
        text,
        "{:<45} {:>12} {:>12} {:>12} {:>9} {:>11} {:>11} {:>9}",
        "", "64 B, us", "us", "64 KB, MB/s", "vs TCP", "vs TCP", "connections", ""
    );
    let Some(tcp) = table.rows.first() else {
        return text;
    };
    for row in &table.rows {
        let _ = writeln!(
            text,
            "{:<45} {:>12.1} {:>12.1} {:>12.1} {:>8.3}x {:>10.2}x {:>11} {:>9}",
            row.transport.words(table.virtio_net),
            row.latency_us_p50,
            row.latency_us_p99,
            row.throughput_mb_s,
            row.latency_us_p50 / tcp.latency_us_p50,
            row.throughput_mb_s / tcp.throughput_mb_s,
            row.smcd_connections,
            row.fallbacks,
        );
    }
    let _ = writeln!(
        text,
        "\nplatform {}, VMM {}; sockperf, median of {ROUNDS} rounds of {SECONDS} s; latency is half a round trip.\n\
         Each SMC-D connection was proved by SMC's diagnosis on both sides, tokens matching.",
        table.platform, table.vmm
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::VmmKind;

    #[test]
    fn the_json_is_what_was_agreed() {
        let samples = Samples {
            p50: vec![3.0, 1.0, 2.0],
            ..Samples::default()
        };
        let table = Table {
            platform: "lab".into(),
            vmm: "reference".into(),
            virtio_net: backend(VmmKind::Reference),
            rows: TRANSPORTS.into_iter().map(|t| samples.row(t)).collect(),
            ratio: Ratio {
                latency: 4.0,
                throughput: 5.0,
            },
        };
        let json = serde_json::to_value(&table).unwrap();
        let row = &json["rows"][2];
        assert_eq!(row["transport"], "smcd-nocopy");
        assert_eq!(row["latency_us_p50"], 2.0);
        for key in [
            "latency_us_p99",
            "throughput_mb_s",
            "smcd_connections",
            "fallbacks",
        ] {
            assert!(row.get(key).is_some(), "{key}");
        }
        assert_eq!(json["rows"][0]["transport"], "tcp-virtio-net");
        assert_eq!(json["rows"][1]["transport"], "smcd-copy");
        assert_eq!(json["ratio"]["latency"], 4.0);
        assert!(render(&table).contains("SMC-D, no copy"));
        assert!(render(&table).contains("TCP over virtio-net (vhost-net)"));
    }
}
