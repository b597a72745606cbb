// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a program sees of TCP, of SMC-D, and of SMC that fell back to TCP.
//!
//! A [case](cases) is one function that both ends run, each its part of it. What they see goes into a list of short
//! texts; that list over TCP is what is right.
//!
//! - [`cases`]: the cases, by groups.
//! - [`end`]: what a case is written with: an end of a connection.
//! - [`short`]: what many cases do, in a word.
//! - [`sys`]: system calls, and how their outcome is written.
//! - [`agent`]: runs ends of cases, each in a process of its own, for a hub.
//! - [`hub`]: has two agents run cases, and collects what the ends see.
//! - [`outcome`]: what has been seen, and how it compares.
//! - [`differences`]: the cases that are known not to be as TCP, and why.
//! - [`report`]: writes `docs/tcp.md`.

pub mod agent;
pub mod cases;
pub mod differences;
pub mod end;
pub mod hub;
pub mod outcome;
pub mod report;
pub mod short;
pub mod sys;
