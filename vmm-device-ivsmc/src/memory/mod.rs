// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The memory that two guests share.

pub mod bar;
pub mod window;
