// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A hostile peer VMM attacks a guest's device while other links of it carry data.

use super::Suite;
use crate::hostile_vmm::{self, Settings};

pub(super) fn add(suite: &mut Suite) {
    suite.add("hostile_vmm::other_links_come_to_no_harm", |fixture| {
        fixture.without_pair(|lab| hostile_vmm::run(lab, Settings::QUICK, &[]))
    });
    suite.add_for_cloud_hypervisor("hostile_vmm::migration_beside_a_held_writer", |fixture| {
        fixture.without_pair(hostile_vmm::migration)
    });
}
