// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A model of how two guests wake each other through a window, for loom to explore. There is nothing here but tests;
//! the README says what they show.
#![cfg(test)]

mod explore;
mod kernel;
mod link;
mod poll;
mod ring;
mod step;
mod tests;
