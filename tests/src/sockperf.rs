// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! sockperf between two guests: its server, its client, proof of what its connection was, and what it writes.

use crate::measure::Transport;
use crate::pair::Pair;
use anyhow::{Context, Result, bail, ensure};
use ivsmc_guest::connections::{Connection, Mode as How};
use std::time::{Duration, Instant};

/// How long sockperf may take to connect, and a server to end.
const PATIENCE: Duration = Duration::from_secs(20);
/// Seconds for which a connection is idle at first: time to look at it without disturbing anything.
const IDLE: u32 = 1;

/// Latency in microseconds, as sockperf means it: half a round trip.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Latency {
    /// The median.
    pub p50: f64,
    /// The 99th percentile.
    pub p99: f64,
    /// The 99.9th percentile.
    pub p999: f64,
}

/// sockperf's MBps are of 2^20 bytes.
const MEGABYTES_IN_MBPS: f64 = 1.048_576;

/// A server in the first guest.
pub struct Server {
    transport: Transport,
    port: u16,
    id: u64,
}

/// What SMC's diagnosis says of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// It is SMC-D on both sides, tokens matching.
    SmcD,
    /// It fell back to TCP, for this reason.
    FellBack(String),
}

impl Server {
    /// Starts one. A port is not free at once after use: each server wants its own.
    pub fn start(pair: &mut Pair, transport: Transport, port: u16) -> Result<Self> {
        let program = transport.program(&format!("sockperf server --tcp -p {port}"));
        let id = pair.a.start_server(&program, port)?;
        Ok(Server {
            transport,
            port,
            id,
        })
    }

    /// Runs a client in the second guest for `seconds`: what it wrote, and what its connection was, if not TCP's.
    /// `connected` is called while there is the connection and nothing moves yet.
    pub fn client(
        &self,
        pair: &mut Pair,
        what: &str,
        seconds: u32,
        connected: impl FnOnce(&mut Pair) -> Result<()>,
    ) -> Result<(String, Option<Proof>)> {
        let (address, port) = (pair.a.address(), self.port);
        let line = format!(
            "sockperf {what} --tcp -i {address} -p {port} -t {seconds} --pre-warmup-wait {IDLE}"
        );
        let id = pair.b.agent().spawn(&self.transport.program(&line))?;
        let proof = match self.transport.is_smc() {
            true => Some(proof(pair, port)?),
            false => None,
        };
        connected(pair)?;
        let outcome = pair
            .b
            .agent()
            .wait(id, Duration::from_secs(60))?
            .with_context(|| format!("`{line}` does not end"))?;
        ensure!(outcome.success(), "`{line}`: {outcome}");
        Ok((outcome.stdout, proof))
    }

    /// Ends it.
    pub fn stop(self, pair: &mut Pair) -> Result<()> {
        pair.a.agent().kill(self.id, libc::SIGKILL)?;
        let ended = pair.a.agent().wait(self.id, PATIENCE)?;
        ended.context("sockperf's server does not end").map(drop)
    }
}

/// Waits for sockperf's connection and says what SMC's diagnosis has on both sides.
fn proof(pair: &mut Pair, port: u16) -> Result<Proof> {
    let start = Instant::now();
    loop {
        let there = pair
            .b
            .status()?
            .connections
            .into_iter()
            .find(|c| c.peer_port == port && active(c));
        if let Some(there) = there {
            let here = pair
                .a
                .status()?
                .connections
                .into_iter()
                .find(|c| c.local_port == port && c.peer_port == there.local_port && active(c));
            return match (&here, &there.mode) {
                (
                    Some(Connection {
                        mode: How::SmcD,
                        dmb: Some(here),
                        ..
                    }),
                    How::SmcD,
                ) if there.dmb.as_ref().is_some_and(|there| here.mirrors(there)) => Ok(Proof::SmcD),
                (_, How::Tcp) => Ok(Proof::FellBack(there.reason)),
                _ => bail!("the two sides do not agree: {here:?} and {there:?}"),
            };
        }
        ensure!(
            start.elapsed() < PATIENCE,
            "sockperf's connection does not appear"
        );
    }
}

fn active(connection: &Connection) -> bool {
    connection.is_connected() && connection.state == "active"
}

/// The latency in the output of `sockperf ping-pong`.
pub fn latency(output: &str) -> Result<Latency> {
    let percentile = |part: &str| {
        output
            .lines()
            .find_map(|line| {
                let (_, rest) = line.split_once(&format!("percentile {part} ="))?;
                rest.trim().parse().ok()
            })
            .with_context(|| format!("sockperf gave no percentile {part}: {output}"))
    };
    Ok(Latency {
        p50: percentile("50.000")?,
        p99: percentile("99.000")?,
        p999: percentile("99.900")?,
    })
}

/// How many messages `sockperf ping-pong` or `sockperf throughput` has sent, warm-up included.
pub fn sent(output: &str) -> Result<f64> {
    let number = |text: &str| {
        let end = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        text[..end].parse().ok()
    };
    output
        .lines()
        .find_map(|line| {
            let total = line
                .split_once("[Total Run]")
                .and_then(|(_, rest)| rest.split_once("SentMessages="));
            total
                .or_else(|| line.split_once("Total of "))
                .and_then(|(_, rest)| number(rest))
        })
        .with_context(|| format!("sockperf does not say how many messages it sent: {output}"))
}

/// The throughput in the output of `sockperf throughput`, in MB/s (of 10^6 bytes).
pub fn throughput(output: &str) -> Result<f64> {
    output
        .lines()
        .find_map(|line| {
            let (_, rest) = line.split_once("BandWidth is ")?;
            let value: f64 = rest.split_whitespace().next()?.parse().ok()?;
            Some(value * MEGABYTES_IN_MBPS)
        })
        .with_context(|| format!("sockperf gave no bandwidth: {output}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_output_is_understood() {
        let output = "sockperf: ---> <MAX> observation =  144.8\n\
                      sockperf: ---> percentile 99.900 =   60.1\n\
                      sockperf: ---> percentile 99.000 =   40.25\n\
                      sockperf: ---> percentile 50.000 =   12.5\n";
        assert_eq!(
            latency(output).unwrap(),
            Latency {
                p50: 12.5,
                p99: 40.25,
                p999: 60.1
            }
        );
        let output = "sockperf: Summary: BandWidth is 100.0 MBps (800.0 Mbps)\n";
        assert!((throughput(output).unwrap() - 104.8576).abs() < 1e-9);
        assert!(latency(output).is_err() && sent(output).is_err());
        let output = "sockperf: [Total Run] RunTime=1.000 sec; SentMessages=70215; ReceivedMessages=70214\n\
                      sockperf: [Valid Duration] RunTime=0.550 sec; SentMessages=39258\n";
        assert_eq!(sent(output).unwrap(), 70215.0);
        let output = "sockperf: Total of 35 messages sent in 1.1 sec\n";
        assert_eq!(sent(output).unwrap(), 35.0);
    }
}
