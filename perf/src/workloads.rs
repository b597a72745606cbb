// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The programs that are run, and what they say.
//!
//! Servers run in guest a, clients in guest b, so that there is one SMC link group, whose client is b.

use crate::costs::Work;
use crate::results::{Better, LIMIT, Point};
use crate::suite::Run;
use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use ivsmc_guest::statistics::Statistics;
use ivsmc_lab::demo::redis_rates;
use ivsmc_lab::guest::{Mode, SMC_PORT, TCP_PORT};
use ivsmc_lab::measure::Transport;
use ivsmc_lab::pair::{From, traffic_command};
use ivsmc_lab::sockperf;
use ivsmc_traffic::agent::Command;
use ivsmc_traffic::traffic::Report;
use serde::Deserialize;
use std::time::{Duration, Instant};

/// How long a program may take.
const PATIENCE: Duration = Duration::from_secs(90);
/// The largest message that sockperf sends: 64 KiB less 29 bytes.
pub const LARGEST: u64 = 65507;
/// Connections of the workload `idle`.
const IDLE_CONNECTIONS: u64 = 100;
/// Clients of redis' and connections of wrk's where there are several.
const CLIENTS: u64 = 4;
/// Round trips of doorbells.
const DOORBELLS: u32 = 1000;
/// What a rmmod'ed driver's device needs to have its link again.
const SETTLING: Duration = Duration::from_secs(1);

/// What can be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// Connections on which nothing happens: what they cost
    Idle,
    /// Connections per second
    Connections,
    /// sockperf ping-pong
    SockperfPingPong,
    /// sockperf throughput
    SockperfThroughput,
    /// iperf3 with one stream and with several
    Iperf3,
    /// redis-benchmark
    Redis,
    /// civetweb under wrk
    Http,
    /// What the device allows at best, without SMC and driver
    Limits,
    /// Where the time of a message goes; only if asked for, and with --kernel traced
    Trace,
}

impl Workload {
    /// Its name in results and on the command line.
    pub fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Runs it once.
    pub fn run(self, run: &mut Run<'_>, transport: Transport) -> Result<()> {
        match self {
            Workload::Idle => idle(run, transport),
            Workload::Connections => connections(run, transport),
            Workload::SockperfPingPong => ping_pong(run, transport),
            Workload::SockperfThroughput => throughput(run, transport),
            Workload::Iperf3 => iperf3(run, transport),
            Workload::Redis => redis(run, transport),
            Workload::Http => http(run, transport),
            Workload::Limits => Ok(()),
            Workload::Trace => trace(run, transport),
        }
        .with_context(|| format!("{} over {transport:?}", self.name()))
    }
}

fn point(name: String, size: u64, streams: u64) -> Point {
    Point {
        name,
        size: Some(size),
        streams: Some(streams),
    }
}

/// A point of sockperf's.
pub fn message(size: u64) -> Point {
    point(format!("{size} B"), size, 1)
}

/// Bytes in words.
fn bytes(size: u64) -> String {
    match size {
        0..1024 => format!("{size} B"),
        1024..0x10_0000 => format!("{} KiB", size >> 10),
        _ => format!("{} MiB", size >> 20),
    }
}

fn ping_pong(run: &mut Run<'_>, transport: Transport) -> Result<()> {
    let workload = Workload::SockperfPingPong;
    let sizes: &[u64] = run.pick(&[64, 1024, LARGEST], &[14, 64, 1024, 16384, LARGEST]);
    run.with_sockperf(workload, transport, "ping-pong", sizes, |size, output| {
        let latency = sockperf::latency(output)?;
        let us = |name: &str, value| (name.to_owned(), "us", Better::Lower, value);
        let values = vec![
            us("p50", latency.p50),
            us("p99", latency.p99),
            us("p99.9", latency.p999),
        ];
        // A message there and one back.
        let messages = 2.0 * sockperf::sent(output)?;
        let bytes = messages * size as f64;
        Ok((values, Work { messages, bytes }))
    })
}

fn throughput(run: &mut Run<'_>, transport: Transport) -> Result<()> {
    let workload = Workload::SockperfThroughput;
    let sizes: &[u64] = run.pick(&[64, 1024, LARGEST], &[64, 1024, 16384, LARGEST]);
    run.with_sockperf(workload, transport, "throughput", sizes, |size, output| {
        let throughput = sockperf::throughput(output)?;
        let messages = sockperf::sent(output)?;
        let bytes = messages * size as f64;
        let values = vec![("throughput".to_owned(), "MB/s", Better::Higher, throughput)];
        Ok((values, Work { messages, bytes }))
    })
}

/// sockperf once more, while one of the guests records.
fn trace(run: &mut Run<'_>, transport: Transport) -> Result<()> {
    for (what, size) in [
        ("ping-pong", 64),
        ("ping-pong", LARGEST),
        ("throughput", LARGEST),
    ] {
        for end in [("client", From::B), ("server", From::A)] {
            run.traced(transport, what, size, end)?;
        }
    }
    Ok(())
}

/// What we read of what `iperf3 --json` writes.
#[derive(Deserialize)]
struct Iperf {
    end: IperfEnd,
}

#[derive(Deserialize)]
struct IperfEnd {
    sum_received: IperfSum,
}

#[derive(Deserialize)]
struct IperfSum {
    bytes: f64,
    bits_per_second: f64,
}

fn iperf3(run: &mut Run<'_>, transport: Transport) -> Result<()> {
    let port = run.port()?;
    let server = run.start_server(transport, &format!("iperf3 --server --port {port}"), port)?;
    let sizes: &[u64] = run.pick(&[64 << 10], &[64 << 10, 1 << 20]);
    let streams: &[u64] = run.pick(&[1, 2, 4], &[1, 2, 4, 16, 64]);
    for (&size, &count) in sizes
        .iter()
        .flat_map(|s| streams.iter().map(move |c| (s, c)))
    {
        let line = format!(
            "iperf3 --client {} --port {port} --json --time {} --length {size} --parallel {count}",
            run.server_address(),
            run.seconds(),
        );
        let plural = if count == 1 { "" } else { "s" };
        let name = format!("{}, {count} stream{plural}", bytes(size));
        let program = transport.program(&line).timeout(PATIENCE);
        run.client(
            Workload::Iperf3,
            transport,
            point(name, size, count),
            &program,
            |output| {
                let Iperf { end } = serde_json::from_str(output).context("iperf3's JSON")?;
                let sum = end.sum_received;
                let rate = sum.bits_per_second / 8e6;
                let work = Work {
                    messages: sum.bytes / size as f64,
                    bytes: sum.bytes,
                };
                Ok((
                    vec![("throughput".into(), "MB/s", Better::Higher, rate)],
                    work,
                ))
            },
        )?;
    }
    run.stop_server(server)
}

fn connections(run: &mut Run<'_>, transport: Transport) -> Result<()> {
    let count = run.pick(100, 300);
    let (port, option) = service(transport);
    let address = format!("{}:{port}", run.server_address());
    let program = traffic_command(
        &format!("churn --count {count} --parallel 1"),
        &address,
        option,
    );
    let name = point("one at a time".into(), 64, 1);
    run.client(Workload::Connections, transport, name, &program, |output| {
        let report: Report = serde_json::from_str(output)?;
        let made = report.connections as f64;
        let connect = report.connect_us.context("no connection")?;
        let values = vec![
            ("rate".into(), "1/s", Better::Higher, made / report.seconds),
            ("connect p50".into(), "us", Better::Lower, connect.0),
            ("connect p99".into(), "us", Better::Lower, connect.1),
        ];
        Ok((
            values,
            Work {
                messages: made,
                bytes: 0.0,
            },
        ))
    })
}

/// The self-checking service's port, and the option for its clients.
pub fn service(transport: Transport) -> (u16, &'static str) {
    if transport.is_smc() {
        (SMC_PORT, "--smc")
    } else {
        (TCP_PORT, "")
    }
}

fn redis(run: &mut Run<'_>, transport: Transport) -> Result<()> {
    let port = run.port()?;
    let server = format!(
        "redis-server --port {port} --bind 0.0.0.0 --protected-mode no --save --appendonly no"
    );
    let server = run.start_server(transport, &server, port)?;
    let points: &[(u64, u64)] = run.pick(
        &[(CLIENTS, 1), (CLIENTS, 16)],
        &[
            (1, 1),
            (CLIENTS, 1),
            (50, 1),
            (1, 16),
            (CLIENTS, 16),
            (50, 16),
        ],
    );
    for &(clients, pipeline) in points {
        // Enough of them for a second or so.
        let count = (if transport.is_smc() {
            run.pick(4000, 8000)
        } else {
            1500
        }) * pipeline.min(8);
        let count = if clients == 1 { count / 2 } else { count };
        let line = format!(
            "redis-benchmark -h {} -p {port} -t set,get -n {count} -c {clients} -P {pipeline} -d 64 --csv",
            run.server_address()
        );
        let plural = if clients == 1 { "" } else { "s" };
        let name = format!("{clients} client{plural}, pipeline {pipeline}");
        let program = transport.program(&line).timeout(PATIENCE);
        run.client(
            Workload::Redis,
            transport,
            point(name, 64, clients),
            &program,
            |output| {
                let rates = redis_rates(output);
                ensure!(rates.len() == 2, "redis-benchmark gave no result: {output}");
                let values = rates
                    .iter()
                    .map(|(test, rate)| (format!("{test} rate"), "1/s", Better::Higher, *rate))
                    .collect();
                let messages = 2.0 * count as f64;
                Ok((
                    values,
                    Work {
                        messages,
                        bytes: 0.0,
                    },
                ))
            },
        )?;
    }
    run.stop_server(server)
}

/// What wrk says.
#[derive(Debug, PartialEq)]
struct Wrk {
    requests: f64,
    rate: f64,
    p50_us: f64,
    p99_us: f64,
}

fn wrk(output: &str) -> Result<Wrk> {
    for bad in ["Non-2xx", "Socket errors"] {
        ensure!(!output.contains(bad), "wrk had errors: {output}");
    }
    let after = |mark: &str| {
        output
            .lines()
            .find_map(|line| line.trim().strip_prefix(mark))
            .map(str::trim)
    };
    let time = |mark: &str| {
        let text = after(mark)?;
        let unit = text.find(|c: char| c.is_ascii_alphabetic())?;
        let factor = match &text[unit..] {
            "us" => 1.0,
            "ms" => 1e3,
            "s" => 1e6,
            _ => return None,
        };
        text[..unit].parse::<f64>().ok().map(|value| value * factor)
    };
    let parsed = || {
        let requests = output
            .lines()
            .find_map(|line| line.split_once(" requests in "))?
            .0;
        Some(Wrk {
            requests: requests.trim().parse().ok()?,
            rate: after("Requests/sec:")?.parse().ok()?,
            p50_us: time("50%")?,
            p99_us: time("99%")?,
        })
    };
    parsed().with_context(|| format!("wrk gave no result: {output}"))
}

fn http(run: &mut Run<'_>, transport: Transport) -> Result<()> {
    let port = run.port()?;
    let sizes = [1 << 10, 64 << 10, 1 << 20];
    let files = sizes.map(|size: u64| format!("head -c {size} /dev/zero >/tmp/www/{size}"));
    run.pair
        .a
        .shell(&format!("mkdir -p /tmp/www; {}", files.join("; ")))?;
    let server = format!(
        "civetweb -listening_ports {port} -document_root /tmp/www -enable_keep_alive yes -tcp_nodelay 1 \
         -num_threads {}",
        2 * CLIENTS
    );
    let server = run.start_server(transport, &server, port)?;
    for size in sizes {
        let line = format!(
            "wrk --threads 1 --connections {CLIENTS} --duration {}s --latency http://{}:{port}/{size}",
            run.seconds(),
            run.server_address(),
        );
        let name = format!("{} body", bytes(size));
        let program = transport.program(&line).timeout(PATIENCE);
        run.client(
            Workload::Http,
            transport,
            point(name, size, CLIENTS),
            &program,
            |output| {
                let wrk = wrk(output)?;
                let values = vec![
                    ("rate".into(), "1/s", Better::Higher, wrk.rate),
                    ("p50".into(), "us", Better::Lower, wrk.p50_us),
                    ("p99".into(), "us", Better::Lower, wrk.p99_us),
                ];
                let bytes = wrk.requests * size as f64;
                Ok((
                    values,
                    Work {
                        messages: wrk.requests,
                        bytes,
                    },
                ))
            },
        )?;
    }
    run.stop_server(server)
}

/// Holds connections, and lets time pass.
fn idle(run: &mut Run<'_>, transport: Transport) -> Result<()> {
    let (port, option) = service(transport);
    let name = run.port()?;
    let [ready, until] = ["ready", "until"].map(|what| format!("/tmp/idle-{name}.{what}"));
    let address = format!("{}:{port}", run.server_address());
    let traffic = format!("idle --connections {IDLE_CONNECTIONS} --ready {ready} --until {until}");
    let program = traffic_command(&traffic, &address, option);

    let before = run.snapshot()?;
    let id = run.pair.b.agent().spawn(&program)?;
    let start = Instant::now();
    while run.pair.b.shell(&format!("test -e {ready}")).is_err() {
        ensure!(start.elapsed() < PATIENCE, "the connections do not appear");
        std::thread::sleep(Duration::from_millis(200));
    }
    std::thread::sleep(Duration::from_secs(1));
    let settled = run.snapshot()?;
    std::thread::sleep(Duration::from_secs(run.pick(2, 5)));
    let costs = run.since(&settled)?;
    let made = run.since(&before)?;
    run.pair.b.shell(&format!("touch {until}"))?;
    let outcome = run
        .pair
        .b
        .agent()
        .wait(id, PATIENCE)?
        .context("it does not end")?;
    ensure!(outcome.success(), "`{program}`: {outcome}");

    let point = point(
        format!("{IDLE_CONNECTIONS} connections"),
        0,
        IDLE_CONNECTIONS,
    );
    let mut values = costs.of_time();
    let kib = |name: &str, kib: f64| {
        let each = kib / IDLE_CONNECTIONS as f64;
        (format!("{name} per connection"), "KiB", Better::Lower, each)
    };
    values.push(kib("memory", made.memory));
    if transport.is_smc() {
        let sum = |of: fn(&Statistics) -> u64| made.smc.iter().map(of).sum::<u64>() as f64 / 1024.0;
        values.push(kib("receive buffers", sum(|smc| smc.receive_buffers)));
        values.push(kib("send buffers", sum(|smc| smc.send_buffers)));
    }
    run.record(Workload::Idle, &point, transport, values);
    Ok(())
}

/// The bounds of what can be reached.
pub fn limits(run: &mut Run<'_>) -> Result<()> {
    for guest in [&mut run.pair.a, &mut run.pair.b] {
        guest.load_driver(Mode::Off)?;
    }
    std::thread::sleep(SETTLING);
    let us = |name: &str, value: f64| (name.to_owned(), "us", Better::Lower, value);
    let seconds = run.seconds();

    let word = limit(run, &format!("word --seconds {seconds}"))?;
    let times = word.round_trip_us.context("no round trip")?;
    let point = message(8);
    // Half a round trip, as sockperf has it.
    let values = vec![us("p50", times.0 / 2.0), us("p99", times.1 / 2.0)];
    run.record_limit("word", &point, values);

    let copies = limit(run, &format!("copies --seconds {seconds}"))?;
    let rate = copies.bytes as f64 / copies.seconds / 1e6;
    let values = vec![("throughput".into(), "MB/s", Better::Higher, rate)];
    run.record_limit("copies", &self::point("64 KiB".into(), 64 << 10, 1), values);

    let doorbell = limit(run, &format!("doorbell --count {DOORBELLS}"))?;
    let times = doorbell.round_trip_us.context("no round trip")?;
    let values = vec![us("p50", times.0 / 2.0), us("p99", times.1 / 2.0)];
    run.record_limit("doorbell", &message(0), values);

    for guest in [&mut run.pair.a, &mut run.pair.b] {
        guest.shell("ivsmc-traffic ivshmem release")?;
        guest.load_driver(Mode::NoCopy)?;
    }
    run.pair.wait_for_link()
}

/// Runs both ends of one; guest b's is the one that measures.
fn limit(run: &mut Run<'_>, what: &str) -> Result<Report> {
    let number = run.port()?;
    let line = format!("ivsmc-traffic ivshmem {what} --run {number}");
    let second = format!("{line} --second");
    let (client, server) = run.pair.ends(From::B);
    let id = server
        .agent()
        .spawn(&Command::new(second.split_whitespace()))?;
    let first = client.check(&Command::new(line.split_whitespace()).timeout(PATIENCE));
    let ended = server
        .agent()
        .wait(id, PATIENCE)?
        .context("its second end does not end");
    let output = first.with_context(|| format!("the second end: {ended:?}"))?;
    let ended = ended?;
    ensure!(ended.success(), "`{second}`: {ended}");
    serde_json::from_str(&output).with_context(|| format!("{LIMIT:?}: {output}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrks_output_is_understood() {
        let output = "Running 2s test @ http://127.0.0.1:18080/64K\n  1 threads and 4 connections\n\
            \x20 Latency Distribution\n     50%  297.00us\n     75%  348.00us\n     99%    1.72ms\n\
            \x20 22233 requests in 2.10s, 1.36GB read\nRequests/sec:  10589.53\nTransfer/sec:    664.37MB\n";
        let expected = Wrk {
            requests: 22233.0,
            rate: 10589.53,
            p50_us: 297.0,
            p99_us: 1720.0,
        };
        assert_eq!(wrk(output).unwrap(), expected);
        assert!(wrk(&format!("{output}  Socket errors: connect 0, read 4")).is_err());
        assert!(wrk("").is_err());
    }

    #[test]
    fn iperfs_output_is_understood() {
        let output =
            r#"{"start":{},"end":{"sum_received":{"start":0,"bytes":2500,"bits_per_second":8e6}}}"#;
        let Iperf { end } = serde_json::from_str(output).unwrap();
        assert_eq!(end.sum_received.bytes, 2500.0);
    }

    #[test]
    fn sizes_have_names() {
        assert_eq!(
            [64, 1 << 10, 1 << 20].map(bytes),
            ["64 B", "1 KiB", "1 MiB"]
        );
        assert_eq!(Workload::SockperfPingPong.name(), "sockperf-ping-pong");
    }
}
