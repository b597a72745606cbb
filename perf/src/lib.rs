// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The performance suite.
//!
//! | module | what it has |
//! |---|---|
//! | [`results`] | what `perf.json` holds, and how figures are summed up |
//! | [`suite`] | the run: guests, repetitions, transports |
//! | [`workloads`] | the programs that are run, and what they say |
//! | [`costs`] | what a workload takes of processors, interrupts, exits and copies |
//! | [`trace`] | where the time of a message goes |
//! | [`goals`] | what the figures have to reach |
//! | [`report`] | results as Markdown, and compared with earlier ones |
//! | [`plots`] | results as pictures |
//!
//! `suite`, `workloads`, `costs` and `trace` work where the guests run; all others are pure.

pub mod costs;
pub mod goals;
pub mod plots;
pub mod report;
pub mod results;
pub mod suite;
pub mod trace;
pub mod workloads;
