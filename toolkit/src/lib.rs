// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the tools `ivsmc-guest` and `ivsmc-host` have in common.
//!
//! - [`check`]: what `check` has found.
//! - [`manual`]: manual pages and completions.

pub mod check;
pub mod manual;
