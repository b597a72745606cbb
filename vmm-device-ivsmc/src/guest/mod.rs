// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the guest sees: registers and links, and of each link the window, the doorbells and the vectors.

pub mod link;
pub mod registers;
pub mod wiring;
pub mod wirings;
