// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! All that `ivsmc-guest status` knows.

use crate::connections::{self, Connection};
use crate::devices::{self, Device};
use crate::enable::{self, Enabled};
use crate::namespaces;
use crate::netlink;
use crate::pci::{self, PciDevice};
use crate::statistics::Statistics;
use crate::ueid;
use serde::{Deserialize, Serialize};

/// What `ivsmc-guest status --json` writes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// The SMC-D devices.
    pub devices: Vec<Device>,
    /// The PCI devices that are, or could be, such.
    #[serde(default)]
    pub pci: Vec<PciDevice>,
    /// The user EIDs.
    pub ueids: Vec<String>,
    /// What `enable` has enabled, if anything; only root is told.
    #[serde(default)]
    pub enabled: Option<Enabled>,
    /// The SMC sockets.
    pub connections: Vec<Connection>,
    /// What SMC has counted since the system began; of network namespaces that are no more, nothing.
    pub statistics: Statistics,
    /// Network namespaces that were to be looked into and could not be.
    #[serde(default)]
    pub skipped: usize,
}

/// Why it is not known how things are.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel does not say.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// Nor which user EIDs there are.
    #[error(transparent)]
    Ueid(#[from] ueid::Error),
    /// Other network namespaces cannot be looked into.
    #[error("--all: {0}")]
    Namespaces(#[from] std::io::Error),
}

impl Status {
    /// How things are now, in this network namespace.
    pub fn now() -> Result<Self, Error> {
        Ok(Status {
            devices: devices::list()?,
            pci: pci::list().unwrap_or_default(),
            ueids: ueid::list()?,
            enabled: enable::enabled().unwrap_or_default(),
            connections: connections::list()?,
            statistics: Statistics::now()?,
            skipped: 0,
        })
    }

    /// How things are now, in all network namespaces, those of containers among them.
    pub fn everywhere() -> Result<Self, Error> {
        let mut status = Status::now()?;
        let found = namespaces::each(|| {
            let connections = connections::list()?;
            Ok::<_, netlink::Error>((connections, Statistics::now()?))
        })?;
        // The first one is our own.
        for (inode, found) in found.into_iter().skip(1) {
            let Some(Ok((connections, statistics))) = found else {
                status.skipped += 1;
                continue;
            };
            status.statistics.add(&statistics);
            let connections = connections.into_iter().map(|connection| Connection {
                network: Some(inode),
                ..connection
            });
            status.connections.extend(connections);
        }
        Ok(status)
    }
}
