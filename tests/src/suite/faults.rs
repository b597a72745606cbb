// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A mesh whose guests, drivers and VMMs come and go at random.

use super::Suite;
use crate::faults;

/// How many faults; `ivsmc-lab faults` has more.
const COUNT: u64 = 12;

pub(super) fn add(suite: &mut Suite) {
    suite.add("faults::life_cycle", |fixture| {
        fixture.without_pair(|lab| {
            println!("{}", faults::run(lab, 1, 1, COUNT)?);
            Ok(())
        })
    });
}
