// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A stock ivshmem user works on our device, from a guest's userspace.

use super::Suite;
use crate::guest::Mode;
use crate::pair::{BOTH, Pair};
use anyhow::{Context, Result, ensure};
use ivsmc_traffic::agent::Command;
use std::time::Duration;

pub(super) fn add(suite: &mut Suite) {
    suite.add("compatibility::stock_ivshmem_user", |fixture| {
        fixture.with_pair(Mode::NoCopy, stock_ivshmem_user)
    });
}

/// Interrupts that are sent, each with data in the shared memory.
const COUNT: u32 = 200;

fn stock_ivshmem_user(pair: &mut Pair) -> Result<()> {
    for guest in [&mut pair.a, &mut pair.b] {
        guest.shell("rmmod ivpci")?;
    }
    for from in BOTH {
        let (sender, receiver) = pair.ends(from);
        let line = format!("ivsmc-traffic ivshmem receive --count {COUNT}");
        let id = receiver
            .agent()
            .spawn(&Command::new(line.split_whitespace()))?;
        let line = format!("ivsmc-traffic ivshmem send --count {COUNT}");
        let sent =
            sender.check(&Command::new(line.split_whitespace()).timeout(Duration::from_secs(60)));
        let received = receiver
            .agent()
            .wait(id, Duration::from_secs(20))?
            .context("the receiver does not end");
        let sent = sent.with_context(|| format!("the receiver: {received:?}"))?;
        let received = received?;
        ensure!(received.success(), "receiver: {received}; sender: {sent}");
    }
    for guest in [&mut pair.a, &mut pair.b] {
        guest.shell("ivsmc-traffic ivshmem release")?;
        guest.load_driver(Mode::NoCopy)?;
    }
    pair.wait_for_link()
}
