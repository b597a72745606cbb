// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What has been seen, and how it compares.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// What the sockets of a run are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// Plain TCP.
    Tcp,
    /// SMC, all of whose connections have to be SMC-D.
    Smc,
    /// SMC, all of whose connections have to have fallen back to TCP.
    Fallback,
}

impl Transport {
    /// What SMC's diagnosis has to say of its connections.
    pub fn expected(self) -> &'static str {
        match self {
            Transport::Tcp => "tcp",
            Transport::Smc => "smc-d",
            Transport::Fallback => "fallback",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Transport::Tcp => "tcp",
            Transport::Smc => "smc",
            Transport::Fallback => "fallback",
        })
    }
}

impl FromStr for Transport {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Transport::Tcp, Transport::Smc, Transport::Fallback]
            .into_iter()
            .find(|transport| transport.to_string() == text)
            .ok_or_else(|| format!("{text}: none of tcp, smc, fallback"))
    }
}

/// What was seen of one case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The case's name, unique among all.
    pub name: String,
    /// The group that it belongs to.
    pub group: String,
    /// What the two ends saw, `c` the client and `s` the server, in order.
    pub observations: Vec<String>,
    /// What the connections were, as SMC's diagnosis says; empty if none was made.
    pub via: Vec<String>,
    /// Whether each of them was what was asked for.
    pub proved: bool,
}

impl Outcome {
    /// Whether a program could tell this from `other`.
    pub fn is_as(&self, other: &Outcome) -> bool {
        self.observations == other.observations && (self.proved || self.via.is_empty())
    }

    /// Whether an end did not come to an end.
    pub fn hangs(&self) -> bool {
        self.observations
            .iter()
            .any(|seen| seen.ends_with("=hangs"))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let via = match (self.proved, self.via.as_slice()) {
            (true, _) => String::new(),
            (false, []) => " (no connection)".to_owned(),
            (false, via) => format!(" (NOT what was asked for: {})", via.join(", ")),
        };
        let seen = self.observations.join("  ");
        write!(f, "{}: {}{via}: {seen}", self.group, self.name)
    }
}

/// What was seen of all cases over one transport.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// What the sockets were.
    pub transport: Transport,
    /// Whether both ends were in one system.
    pub within: bool,
    /// The kernel's flavour, as `cargo xtask` calls it.
    pub kernel: String,
    /// The cases.
    pub cases: Vec<Outcome>,
}

impl Run {
    /// Whether the kernel has the patches of guest/linux-patches/smc.
    pub fn is_mended(&self) -> bool {
        !self.kernel.starts_with("mainline")
    }

    /// What was seen of the case of this name.
    pub fn find(&self, name: &str) -> Option<&Outcome> {
        self.cases.iter().find(|case| case.name == name)
    }

    /// The cases that differ from this run over TCP.
    pub fn differing<'a>(&'a self, tcp: &'a Run) -> Vec<&'a Outcome> {
        let right: BTreeMap<_, _> = tcp.cases.iter().map(|case| (&case.name, case)).collect();
        let differs = |case: &&Outcome| right.get(&case.name).is_none_or(|tcp| !case.is_as(tcp));
        self.cases.iter().filter(differs).collect()
    }

    /// Takes over what was seen when some cases were run once more.
    pub fn replace(&mut self, again: Vec<Outcome>) {
        for outcome in again {
            if let Some(case) = self.cases.iter_mut().find(|case| case.name == outcome.name) {
                *case = outcome;
            }
        }
    }
}
