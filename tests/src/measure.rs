// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What measurements have in common: how data moves, and guests that are ready to be measured.

use crate::guest::Mode;
use crate::lab::{Lab, Platform, VmmKind};
use crate::pair::Pair;
use anyhow::Result;
use ivsmc_traffic::agent::Command;
use serde::{Deserialize, Serialize};

/// How long ivpci may poll in the lab, in microseconds. There everything takes some 50 times as long as on a real
/// processor, for which its default of 100 is made.
pub const LAB_POLL_US: u64 = 5000;
/// The processors on which the guests are kept.
pub const PROCESSORS: [usize; 2] = [0, 1];

/// How data moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// TCP over virtio-net.
    TcpVirtioNet,
    /// SMC-D; ivpci copies.
    SmcdCopy,
    /// SMC-D; the sender writes into the receiver's buffer.
    SmcdNocopy,
}

/// All of them, in the order in which they are shown.
pub const TRANSPORTS: [Transport; 3] = [
    Transport::TcpVirtioNet,
    Transport::SmcdCopy,
    Transport::SmcdNocopy,
];

impl Transport {
    /// Its name; `backend` is what there is behind virtio-net.
    pub fn words(self, backend: &str) -> String {
        match self {
            Transport::TcpVirtioNet => format!("TCP over virtio-net ({backend})"),
            Transport::SmcdCopy => "SMC-D, copying".to_owned(),
            Transport::SmcdNocopy => "SMC-D, no copy".to_owned(),
        }
    }

    /// Whether programs get SMC sockets for it.
    pub fn is_smc(self) -> bool {
        self != Transport::TcpVirtioNet
    }

    /// Makes the guests ready for it. TCP does not care how ivpci is.
    pub fn prepare(self, lab: &Lab, pair: &mut Pair) -> Result<()> {
        let mode = match self {
            Transport::TcpVirtioNet => return Ok(()),
            Transport::SmcdCopy => Mode::Copy,
            Transport::SmcdNocopy => Mode::NoCopy,
        };
        pair.set_mode(mode)?;
        if lab.platform == Platform::Lab {
            pair.a.poll_for(LAB_POLL_US)?;
            pair.b.poll_for(LAB_POLL_US)?;
        }
        Ok(())
    }

    /// A program and its arguments, its sockets of this kind.
    pub fn program(self, line: &str) -> Command {
        let prefix: &[&str] = if self.is_smc() {
            &["ivsmc-guest", "run"]
        } else {
            &[]
        };
        Command::new(prefix.iter().copied().chain(line.split_whitespace()))
    }
}

/// What moves the frames of a VMM's virtio-net.
pub fn backend(vmm: VmmKind) -> &'static str {
    match vmm {
        VmmKind::Reference => "vhost-net",
        VmmKind::CloudHypervisor => "Cloud Hypervisor's own",
        VmmKind::Qemu => "QEMU's own",
    }
}

/// Keeps the guests' processors apart, where there is more than one for them: two that poll on one would wait for
/// each other's turn.
pub fn pin(pair: &Pair) -> Result<()> {
    if std::thread::available_parallelism()?.get() > 1 {
        pair.a.pin(PROCESSORS[0])?;
        pair.b.pin(PROCESSORS[1])?;
    }
    Ok(())
}

/// The one in the middle, or the mean of the two; NaN if there is none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.get(middle) {
        None => f64::NAN,
        Some(upper) if sorted.len().is_multiple_of(2) => (sorted[middle - 1] + upper) / 2.0,
        Some(middle) => *middle,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert!(median(&[]).is_nan());
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
