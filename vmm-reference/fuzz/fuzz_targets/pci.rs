// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

#![no_main]
// Of the modules, only what the target reaches is used.
#![allow(dead_code, unused_imports)]

#[path = "../../src/interrupts.rs"]
mod interrupts;
#[path = "../../src/layout.rs"]
mod layout;
#[path = "../../src/pci/mod.rs"]
mod pci;

use std::sync::{Mutex, MutexGuard, PoisonError};

use libfuzzer_sys::fuzz_target;

/// What vmm-reference's root has.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fuzz_target!(|input: &[u8]| pci::fuzzing::pci(input));
