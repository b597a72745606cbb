// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! All that `ivsmc-guest status` knows.

use crate::connections::{self, Connection};
use crate::devices::{self, Device};
use crate::enable::{self, Enabled};
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
    /// What SMC has counted since the system began.
    pub statistics: Statistics,
}

impl Status {
    /// How things are now.
    pub fn now() -> Result<Self, ueid::Error> {
        Ok(Status {
            devices: devices::list()?,
            pci: pci::list().unwrap_or_default(),
            ueids: ueid::list()?,
            enabled: enable::enabled().unwrap_or_default(),
            connections: connections::list()?,
            statistics: Statistics::now()?,
        })
    }
}
