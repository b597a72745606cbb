// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The ivsmc PCI device for virtual machine monitors: an ivshmem device (revision 1, with doorbell) that has
//! links to many peers, each with a window of memory that only the two of them map. `docs/device.md` says what a
//! guest sees, `docs/fabric.md` how devices find each other.
//!
//! The crate knows no VMM. What it needs of one is the trait [`Host`]; what a VMM needs of it is [`Device`], whose
//! methods it calls for the guest's accesses, and [`Fabric`], for which it starts a thread. That thread sets links up
//! and takes them down; while data flows, no thread of the VMM runs.
//!
//! | module | holds |
//! |---|---|
//! | `config` | the options, their text and their rules |
//! | `device`, `host` | what a VMM calls, and what it is asked for |
//! | `core` | the state behind one lock, and what changes it |
//! | `pci` | configuration space and MSI-X of any device |
//! | `registers` | BAR0 |
//! | `link` | a link's life, free of I/O |
//! | `wiring`, `lines`, `window` | what a link has in the guest: doorbells, interrupts, memory |
//! | `memory::bar` | where all windows are in this process |
//! | `handshake`, `wire` | the protocol between devices, free of I/O |
//! | `fabric`, `socket` | the thread that speaks it |
//! | `connectors`, `folder` | whom it joins and when, and which sockets are in a folder |
//! | `state` | what goes into a snapshot |
//! | `counters`, `event` | what is counted, and what is told |

// Cloud Hypervisor's workspace denies these.
#![warn(
    clippy::absolute_paths,
    clippy::assertions_on_result_states,
    clippy::if_not_else,
    clippy::manual_string_new,
    clippy::map_unwrap_or,
    clippy::needless_pass_by_value,
    clippy::redundant_else,
    clippy::semicolon_if_nothing_returned,
    clippy::uninlined_format_args,
    clippy::unnecessary_semicolon
)]

mod config;
mod core;
mod counters;
mod device;
mod event;
mod fabric;
mod gid;
mod guest;
mod host;
mod memory;
pub mod pci;
mod state;
#[cfg(test)]
mod test_utils;
#[cfg(test)]
mod tests;

use fabric::{connectors, folder, handshake, socket, wire};
use guest::{lines, link, registers, wiring};
use memory::window;

pub use config::{Config, ConfigError};
pub use counters::Counters;
pub use device::{Device, Error};
pub use event::{Event, EventKind};
pub use fabric::Fabric;
pub use gid::Gid;
pub use host::{Host, MsiMessage};
pub use memory::bar::BarMemory;
pub use pci::{BarMove, BarSpec};
pub use state::DeviceState;
pub use window::Window;

/// The README's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
