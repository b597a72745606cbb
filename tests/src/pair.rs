// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Two guests that are each other's peers.

use crate::guest::{self, Guest, Mode, Running, SMC_PORT};
use crate::lab::Lab;
use anyhow::{Context, Result};
use ivsmc_traffic::agent::Command;
use ivsmc_traffic::traffic::Report;
use std::path::Path;
use std::time::Duration;

/// How long a link may take to come up once both sides are there.
pub const LINK_TIME: Duration = Duration::from_secs(30);
/// The name of every device.
pub const DEVICE: &str = "ivsmc0";
/// Seconds that a piece of traffic may take; the debug kernel in the lab is slow.
const TRAFFIC_SECONDS: u64 = 240;

/// The two guests.
pub struct Pair {
    /// The first one.
    pub a: Running,
    /// The second one.
    pub b: Running,
    mode: Mode,
}

/// Which of the two opens connections to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// The first one.
    A,
    /// The second one.
    B,
}

/// Both ways.
pub const BOTH: [From; 2] = [From::A, From::B];

impl From {
    /// The other way.
    pub fn other(self) -> Self {
        match self {
            From::A => From::B,
            From::B => From::A,
        }
    }
}

impl Pair {
    /// The two guests, not booted.
    pub fn guests(lab: &Lab) -> Result<[Guest; 2]> {
        let folder = lab.run_folder();
        let guest =
            |name: &str, peer: &str, host| Guest::new(name, host).ivsmc(option(folder, name, peer));
        Ok([guest("a", "b", 2), guest("b", "a", 3)])
    }

    /// Boots both at once.
    pub fn boot(lab: &Lab) -> Result<Self> {
        Pair::boot_these(lab, &Pair::guests(lab)?)
    }

    /// Boots two that keep a connection to each other.
    pub fn boot_warm(lab: &Lab) -> Result<Self> {
        let guests = Pair::guests(lab)?;
        let peers = guests.each_ref().map(Guest::address);
        Pair::boot_these(lab, &guests.map(|guest| guest.peers(peers)))
    }

    /// Boots these two.
    pub fn boot_these(lab: &Lab, [a, b]: &[Guest; 2]) -> Result<Self> {
        let (a, b) = (a.start(lab)?, b.start(lab)?);
        Pair::of(a.ready()?, b.ready()?)
    }

    /// Two guests that run already, and may have no link.
    pub fn unlinked(a: Running, b: Running) -> Self {
        Pair {
            a,
            b,
            mode: Mode::NoCopy,
        }
    }

    /// Two guests that run already; waits for their link.
    pub fn of(a: Running, b: Running) -> Result<Self> {
        let mut pair = Pair::unlinked(a, b);
        pair.wait_for_link().map_err(|error| pair.explain(error))?;
        Ok(pair)
    }

    /// Waits until the link is up on both sides.
    pub fn wait_for_link(&mut self) -> Result<()> {
        self.a.wait_for_link(true, LINK_TIME)?;
        self.b.wait_for_link(true, LINK_TIME)
    }

    /// Waits until the connection that guests keep is there on both sides.
    pub fn wait_for_warm_connection(&mut self) -> Result<()> {
        self.a.wait_for_warm_connections(1, LINK_TIME)?;
        self.b.wait_for_warm_connections(1, LINK_TIME)
    }

    /// How ivpci is loaded in both.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Loads ivpci anew in both if it is in another mode.
    pub fn set_mode(&mut self, mode: Mode) -> Result<()> {
        if self.mode != mode {
            self.a.load_driver(mode)?;
            self.b.load_driver(mode)?;
            self.mode = mode;
            self.wait_for_link()?;
        }
        Ok(())
    }

    /// Adds what is known to an error.
    pub fn explain(&mut self, error: anyhow::Error) -> anyhow::Error {
        guest::explain([&mut self.a, &mut self.b], error)
    }

    /// Says what is wrong with either.
    pub fn check_health(&mut self) -> Result<()> {
        self.a.check_health()?;
        self.b.check_health()
    }

    /// The one that opens connections, and the other.
    pub fn ends(&mut self, from: From) -> (&mut Running, &mut Running) {
        match from {
            From::A => (&mut self.a, &mut self.b),
            From::B => (&mut self.b, &mut self.a),
        }
    }

    /// Runs traffic that checks itself, over SMC, all of which has to be SMC-D.
    pub fn traffic(&mut self, from: From, traffic: &str) -> Result<Report> {
        self.traffic_with(from, traffic, SMC_PORT, "--smc")
    }

    /// The same to another port with other options.
    pub fn traffic_with(
        &mut self,
        from: From,
        traffic: &str,
        port: u16,
        options: &str,
    ) -> Result<Report> {
        let (client, server) = self.ends(from);
        let command = traffic_command(traffic, &format!("{}:{port}", server.address()), options);
        let output = client.check(&command)?;
        serde_json::from_str(&output).with_context(|| format!("report: {output}"))
    }
}

/// The program that makes traffic.
pub fn traffic_command(traffic: &str, address: &str, options: &str) -> Command {
    let line = format!(
        "ivsmc-traffic {traffic} --connect {address} {options} --timeout {TRAFFIC_SECONDS}"
    );
    Command::new(line.split_whitespace()).timeout(Duration::from_secs(TRAFFIC_SECONDS + 5))
}

/// The value of `--ivsmc` for a guest with one peer.
pub fn option(folder: &Path, name: &str, peer: &str) -> String {
    let socket = |name: &str| folder.join(name).display().to_string();
    format!("path={},peer={},id={DEVICE}", socket(name), socket(peer))
}
