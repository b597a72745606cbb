// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The fabric thread.

/// The body of the fabric thread.
#[derive(Debug)]
pub struct Fabric {}

impl Fabric {
    /// The system calls that [`run`](Self::run) makes, those of [`Host`](crate::Host) included, for a
    /// seccomp filter of the thread that runs it.
    pub const SYSCALLS: &'static [i64] = &[];

    /// Serves the fabric until [`Device::shutdown`](crate::Device::shutdown).
    pub fn run(self) {}
}
