// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! All that `ivsmc-guest status` knows.

use crate::connections::{self, Connection, Found};
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
        Status::of(connections::list()?, Statistics::now()?)
    }

    /// How things are now, in all network namespaces, those of containers among them.
    pub fn everywhere() -> Result<Self, Error> {
        let looked = namespaces::each(|| Ok((Found::here()?, Statistics::now()?)))?;
        let mut all = Vec::new();
        let mut statistics = Statistics::default();
        let mut skipped = 0;
        for (number, (inode, looked)) in looked.into_iter().enumerate() {
            let is_own = number == 0;
            let (mut found, counted) = match looked {
                Some(Ok(looked)) => looked,
                Some(Err(error)) if is_own => return Err(Error::Netlink(error)),
                _ => {
                    skipped += 1;
                    continue;
                }
            };
            if !is_own {
                found.set_network(inode);
            }
            all.push(found);
            statistics.add(&counted);
        }
        Ok(Status {
            skipped,
            ..Status::of(connections::known(all), statistics)?
        })
    }

    fn of(connections: Vec<Connection>, statistics: Statistics) -> Result<Self, Error> {
        Ok(Status {
            devices: devices::list()?,
            pci: pci::list().unwrap_or_default(),
            ueids: ueid::list()?,
            enabled: enable::enabled().unwrap_or_default(),
            connections,
            statistics,
            skipped: 0,
        })
    }
}
