// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm_device_ivsmc::fuzzing::configuration;

fuzz_target!(|input: &[u8]| configuration(input));
