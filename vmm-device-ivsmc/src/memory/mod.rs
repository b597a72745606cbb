// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The memory that two guests share, and what of it goes into a snapshot.

pub mod content;
pub mod window;
