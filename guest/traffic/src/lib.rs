// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The tests' hand in a guest.
//!
//! - [`agent`]: runs programs in the guest for a client outside.
//! - [`pattern`]: data that a receiver can check without having seen it sent.
//! - [`service`] and [`traffic`]: the two ends of connections that check every byte, and that they
//!   are SMC-D as SMC's own diagnosis says on both sides.
//! - [`sockets`]: what `socket()` gives, once and under load.
//! - [`bpf`]: which BPF objects there are.
//! - [`hold`]: a process that lets go of nothing.
//! - [`kexec`]: another kernel.
//! - [`splice`]: what goes through pipes, and a proxy that has all go through one.
//! - [`windows`]: marks in the memory of windows, and a link that flaps.
//! - [`cursors`]: a hostile guest.
//! - [`ivshmem`]: a stock user of an ivshmem device, from userspace.
//! - [`limits`]: what can be had of such a device at best: the bounds that SMC-D is measured against.

pub mod agent;
pub mod bpf;
pub mod cursors;
pub mod hold;
pub mod ivshmem;
pub mod kexec;
pub mod limits;
mod mapping;
pub mod pattern;
pub mod service;
pub mod sockets;
pub mod splice;
pub mod traffic;
pub mod windows;
