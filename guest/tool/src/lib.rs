// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest's user needs of SMC-D: programs run over it, and the truth about every connection.
//!
//! - [`run`]: makes any program's TCP sockets SMC sockets, without touching the program.
//! - [`enable`]: the same for whole cgroups, by BPF.
//! - [`connections`]: what SMC's own diagnosis says of every SMC socket.
//! - [`owners`]: the processes that have these sockets, and their containers.
//! - [`namespaces`]: the network namespaces of containers.
//! - [`status`]: all of that and of what follows, at once.
//! - [`devices`] and [`ueid`]: the SMC-D devices, and the identifiers that peers must share.
//! - [`statistics`]: what SMC has counted.
//! - [`reason`]: the kernel's codes in words.
//! - [`warm`]: a connection to each peer that is kept.
//! - [`boot`]: what a guest sets once for each boot, by its configuration.
//! - [`check`]: what is missing for SMC-D, and what mends it.
//! - [`mod@file`]: files that users write.
//! - [`sigpipe`]: what to do when nobody reads.
//! - [`socket`]: TCP and SMC sockets.
//! - [`netlink`]: the messages that all of it is asked and answered in.

pub mod boot;
pub mod check;
pub mod connections;
pub mod devices;
pub mod enable;
pub mod file;
mod generic;
pub mod namespaces;
pub mod netlink;
pub mod owners;
pub mod pci;
pub mod reason;
pub mod run;
pub mod sigpipe;
pub mod socket;
pub mod statistics;
pub mod status;
mod tcp_table;
pub mod ueid;
mod uevent;
pub mod warm;

/// The protocol number that makes an `AF_INET` stream socket an SMC socket.
pub const IPPROTO_SMC: i32 = 256;
