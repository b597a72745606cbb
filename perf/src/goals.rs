// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the figures have to reach.

use crate::costs::OUTSIDE;
use crate::results::{LIMIT, Results, Subject};
use ivsmc_lab::measure::Transport;

const TCP: Subject = Subject::Transport(Transport::TcpVirtioNet);
const NOCOPY: Subject = Subject::Transport(Transport::SmcdNocopy);
const PING_PONG: &str = "sockperf-ping-pong";
const THROUGHPUT: &str = "sockperf-throughput";
const SMALL: &str = "64 B";
const LARGE: &str = "65507 B";
const REDIS: &str = "4 clients, pipeline 1";
const IDLE: &str = "100 connections";
/// Processor time below which nothing was measured, in seconds for each GB: a tick or two in a run.
const MEASURABLE: f64 = 0.01;

/// One of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Goal {
    /// What is looked at, in words.
    pub what: &'static str,
    /// What it has to be, in words.
    pub goal: String,
    /// What it is, in words.
    pub measured: String,
    /// Whether that is enough; `None` if it was not measured.
    pub met: Option<bool>,
}

fn goal(
    what: &'static str,
    goal: String,
    value: Option<f64>,
    met: impl Fn(f64) -> bool,
    words: impl Fn(f64) -> String,
) -> Goal {
    Goal {
        what,
        goal,
        measured: value.map_or_else(|| "not measured".to_owned(), words),
        met: value.map(met),
    }
}

/// A value that has to be at least so many times another.
fn at_least(what: &'static str, times: f64, value: Option<f64>) -> Goal {
    let words = format!("at least {times} times");
    goal(
        what,
        words,
        value,
        |v| v >= times,
        |v| format!("{v:.2} times"),
    )
}

/// A value that may be so much at most.
fn at_most(what: &'static str, limit: f64, value: Option<f64>) -> Goal {
    let words = format!("at most {limit}");
    goal(what, words, value, |v| v <= limit, |v| format!("{v:.4}"))
}

/// All of them.
pub fn all(results: &Results) -> Vec<Goal> {
    let of = |workload, point, transport, metric, unit| {
        let figure = results.figure(workload, point, transport, metric, unit)?;
        Some(figure.median())
    };
    let ratio = |above: Option<f64>, below: Option<f64>| Some(above? / below?);
    let latency = |metric| {
        let of = |transport| of(PING_PONG, SMALL, transport, metric, "us");
        ratio(of(TCP), of(NOCOPY))
    };
    let rate = |workload, point, metric, unit| {
        let of = |transport| of(workload, point, transport, metric, unit);
        ratio(of(NOCOPY), of(TCP))
    };
    let throughput = of(THROUGHPUT, LARGE, NOCOPY, "throughput", "MB/s");
    let copies = of("copies", "64 KiB", LIMIT, "throughput", "MB/s");
    let cost = |transport, metric, unit| of(THROUGHPUT, LARGE, transport, metric, unit);
    let outside = |transport| cost(transport, OUTSIDE, "s/GB");
    let tcps = outside(TCP).map_or_else(String::new, |v| format!("; TCP's is {v:.2}"));
    vec![
        at_least(
            "1. Latency at 64 B, p50: TCP's over SMC-D's",
            6.0,
            latency("p50"),
        ),
        at_least(
            "1. Latency at 64 B, p99: TCP's over SMC-D's",
            4.0,
            latency("p99"),
        ),
        at_least(
            "2. Throughput at 64 KB, one stream: SMC-D's over TCP's",
            8.0,
            rate(THROUGHPUT, LARGE, "throughput", "MB/s"),
        ),
        goal(
            "2. The same over that of the bare copies",
            "at least 70 %".into(),
            ratio(throughput, copies),
            |v| v >= 0.7,
            |v| format!("{:.0} %", 100.0 * v),
        ),
        at_most(
            "3. Streaming at 64 KB: doorbells per MB",
            1.0,
            cost(NOCOPY, "doorbells", "/MB"),
        ),
        at_most(
            "3. Ping-pong at 64 B: doorbells per message",
            0.05,
            of(PING_PONG, SMALL, NOCOPY, "doorbells", "/message"),
        ),
        at_most(
            "3. 100 idle connections: doorbells per second",
            0.0,
            of("idle", IDLE, NOCOPY, "doorbells", "/s"),
        ),
        at_most(
            "3. 100 idle connections: polls per second",
            0.0,
            of("idle", IDLE, NOCOPY, "polls", "/s"),
        ),
        goal(
            "4. Streaming at 64 KB: host CPU outside vCPUs, s/GB",
            format!("0, as far as can be measured ({MEASURABLE})"),
            outside(NOCOPY),
            |v| v <= MEASURABLE,
            |v| format!("{v:.4}{tcps}"),
        ),
        at_least(
            "5. redis SET, 64 B, no pipelining: SMC-D's over TCP's",
            3.0,
            rate("redis", REDIS, "SET rate", "1/s"),
        ),
        at_least(
            "5. HTTP, 64 KiB bodies: SMC-D's over TCP's",
            4.0,
            rate("http", "64 KiB body", "rate", "1/s"),
        ),
        // Not nothing: SMC has ivpci write its CDC headers.
        at_most(
            "6. No copy: bytes that ivpci copies for each one streamed",
            0.01,
            cost(NOCOPY, "bytes copied by ivpci", "/MB").map(|value| value / 1e6),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Better;
    use crate::results::tests::{figure, results};

    #[test]
    fn goals_are_met_or_not_or_not_measured() {
        let p50 = |transport, value| {
            figure(
                PING_PONG,
                (SMALL, 64, 1),
                transport,
                ("p50", "us", Better::Lower),
                &[value],
            )
        };
        let polls = figure(
            "idle",
            (IDLE, 0, 100),
            NOCOPY,
            ("polls", "/s", Better::Lower),
            &[0.5],
        );
        let goals = all(&results(vec![p50(TCP, 60.0), p50(NOCOPY, 10.0), polls]));
        assert_eq!(
            (goals[0].met, &goals[0].measured[..]),
            (Some(true), "6.00 times")
        );
        assert_eq!(goals[1].met, None);
        let missed: Vec<_> = goals
            .iter()
            .filter(|goal| goal.met == Some(false))
            .collect();
        assert_eq!(missed.len(), 1);
        assert!(missed[0].what.contains("polls"));
    }
}
