// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The lab as a library: guests that share ivsmc devices, and what is done with them.
//!
//! | module | what it has |
//! |---|---|
//! | [`lab`] | where things are: stage, logs, platform, VMM |
//! | [`network`] | a bridge and taps |
//! | [`vmm`] | a VMM: its start, its end |
//! | [`api`] | Cloud Hypervisor's REST API |
//! | [`kata`] | the calls of that API that Kata Containers' runtimes make |
//! | [`process`] | what a process has and does |
//! | [`intruder`] | what a client of a device's socket sends that does not behave |
//! | [`attack`] | a hostile peer VMM: a process of its own |
//! | [`attacker`] | such a process, as the runner sees it |
//! | [`hostile_vmm`] | a mesh, one of whose devices it attacks |
//! | [`guest`] | a guest: its making, what it is asked to do, its state of health |
//! | [`reports`] | what counts as a report of a kernel's checks |
//! | [`hostile`] | a guest that attacks the other through their window |
//! | [`pair`] | two guests that are each other's peers |
//! | [`mesh`] | guests that are all each other's peers, with streams of data between them |
//! | [`faults`] | a mesh whose guests, drivers and VMMs come and go at random |
//! | [`measure`] | how data moves, and guests that are ready to be measured |
//! | [`distance`] | how far apart the two processors are that data moves between |
//! | [`sockperf`] | sockperf between the guests, with proof of what its connection was |
//! | [`conformance`] | what a program sees of SMC-D, beside TCP |
//! | [`demo`] | TCP over virtio-net and SMC-D, measured by sockperf |
//! | [`soak`] | traffic of all kinds for long |
//! | [`suite`] | the tests |
//! | [`qemu`] | ivpci on QEMU's ivshmem-doorbell, with a server for it |

pub mod api;
pub mod attack;
pub mod attacker;
pub mod conformance;
pub mod demo;
pub mod distance;
pub mod faults;
pub mod guest;
pub mod hostile;
pub mod hostile_vmm;
pub mod intruder;
pub mod kata;
pub mod lab;
pub mod measure;
pub mod mesh;
pub mod network;
pub mod pair;
pub mod process;
pub mod qemu;
pub mod reports;
pub mod soak;
pub mod sockperf;
pub mod suite;
pub mod vmm;
