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
//! | `device`, `host` | what a VMM calls, and what it is asked for; what goes into a snapshot |
//! | `guest` | what the guest sees: BAR0's `registers`, each `link`'s life, and what links have in the guest (`wiring`, `wirings`) |
//! | `memory` | the `window` that a link has, its place in the `bar`, and its `content` in a snapshot |
//! | `fabric` | the thread that makes links, and what it says: `handshake`, `wire`, `socket`; whom it joins and when: `connectors`, `folder` |
//! | `config`, `gid` | the options, their text and their rules; a device's name |
//! | `fuzzing` | what fuzz targets run, in builds for these and for tests |
//! | `peer` | with the feature of that name: the other end, for tests of what it can do |
//! | `limits`, `syscalls`, `sys` | limits of the process, as errors; what threads ask the system for; the result of a system call |
//! | `counters`, `event`, `links` | what is counted, and what is told |
//!
//! PCI's configuration space and MSI-X are the VMM's, which has them for its other devices already.

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
mod counters;
mod device;
mod event;
mod fabric;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod gid;
mod guest;
mod host;
mod limits;
mod links;
mod memory;
#[cfg(any(test, feature = "peer"))]
pub mod peer;
mod sys;
mod syscalls;
#[cfg(any(test, fuzzing))]
#[cfg_attr(not(test), allow(dead_code))]
mod test_utils;
#[cfg(test)]
mod tests;

pub use config::{Allowed, Config, ConfigError};
pub use counters::Counters;
pub use device::{Device, DeviceState, Error, StateError};
pub use event::{Event, EventKind};
pub use fabric::Fabric;
pub use fabric::reaper::Reaper;
pub use gid::Gid;
pub use host::Host;
pub use links::{LinkInfo, LinkState, Links, NoSuchPeer, RefusedPeer};
pub use memory::bar::{Addresses, BarMemory};
pub use memory::window::Window;
pub use syscalls::Syscall;

/// The README's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
