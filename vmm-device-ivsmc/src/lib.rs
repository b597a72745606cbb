// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The ivsmc device.

mod config;
mod counters;
mod device;
mod fabric;
mod gid;
mod host;
pub mod pci;
mod state;
mod window;

pub use config::{Config, ConfigError};
pub use counters::Counters;
pub use device::{Device, Error};
pub use fabric::Fabric;
pub use gid::Gid;
pub use host::{Host, MsiMessage};
pub use pci::{BarMove, BarSpec};
pub use state::DeviceState;
pub use window::Window;
