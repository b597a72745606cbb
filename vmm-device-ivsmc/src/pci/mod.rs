// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What every PCI device with MSI-X has: a configuration space and an MSI-X table. Nothing in here knows
//! of ivsmc, so that a VMM can use it for other devices too.

mod config_space;
mod msix;

pub use config_space::{BarMove, BarSpec, ConfigSpace, ConfigSpaceState, Identity};
pub use msix::{MsiMessage, Msix, MsixState};
