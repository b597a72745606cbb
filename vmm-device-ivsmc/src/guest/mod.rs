// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the guest sees: registers, links, doorbells.

pub mod lines;
pub mod link;
pub mod registers;
pub mod wiring;
