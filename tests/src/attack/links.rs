// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Links that come and go.

use super::link::{Answer, attempt, name};
use super::{Target, say};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use vmm_device_ivsmc::peer::Bye;

/// What came of it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// How often a link was wanted: a connection was made, and HELLO sent.
    pub attempts: u64,
    /// How often there was one.
    pub links: u64,
    /// How often there was none, by the reason that the device gave.
    pub refusals: BTreeMap<String, u64>,
    /// The longest time that one attempt took, in milliseconds.
    pub longest: u64,
    /// Seconds that all of them took.
    pub seconds: f64,
}

/// Wants a link so often, and ends it as soon as there is one: each second time under the same GID, else under one that
/// has not been before.
pub fn come_and_go(target: &Target, count: u64, per_second: u64) -> Result<()> {
    target.become_user()?;
    let mut report = Report::default();
    let start = Instant::now();
    say("ready")?;
    for number in 0..count {
        let due = Duration::from_secs(1) * number as u32 / per_second.max(1) as u32;
        std::thread::sleep(due.saturating_sub(start.elapsed()));
        let begun = Instant::now();
        let gid = name(if number % 2 == 0 { 1 } else { 2 + number });
        report.attempts += 1;
        match attempt(&target.socket, gid, target.window_shift)? {
            Answer::Link(_) => report.links += 1,
            Answer::No(reason) => {
                let reason = reason.map_or_else(|| "none".into(), |bye: Bye| format!("{bye:?}"));
                *report.refusals.entry(reason).or_default() += 1;
            }
        }
        let took = begun.elapsed().as_millis();
        report.longest = report.longest.max(u64::try_from(took)?);
    }
    report.seconds = start.elapsed().as_secs_f64();
    say(serde_json::to_string(&report)?)
}
