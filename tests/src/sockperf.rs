// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What sockperf writes.

use anyhow::{Context, Result};

/// Latency in microseconds, as sockperf means it: half a round trip.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Latency {
    /// The median.
    pub(crate) p50: f64,
    /// The 99th percentile.
    pub(crate) p99: f64,
}

/// sockperf's MBps are of 2^20 bytes.
const MEGABYTES_IN_MBPS: f64 = 1.048_576;

/// The latency in the output of `sockperf ping-pong`.
pub(crate) fn latency(output: &str) -> Result<Latency> {
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
    })
}

/// The throughput in the output of `sockperf throughput`, in MB/s (of 10^6 bytes).
pub(crate) fn throughput(output: &str) -> Result<f64> {
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
                p99: 40.25
            }
        );
        let output = "sockperf: Summary: BandWidth is 100.0 MBps (800.0 Mbps)\n";
        assert!((throughput(output).unwrap() - 104.8576).abs() < 1e-9);
        assert!(latency(output).is_err());
    }
}
