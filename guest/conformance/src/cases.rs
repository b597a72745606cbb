// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The cases. A new one is a few lines in its group's file.

mod close;
mod connect;
mod ipv6;
mod listen;
mod options;
mod processes;
mod ready;
mod receive;
mod send;
mod shutdown;
mod splice;
mod states;
mod urgent;

use crate::end::End;

/// A case: its name, and what both ends run.
pub struct Case(pub &'static str, pub fn(&mut End));

/// The groups.
const GROUPS: &[(&str, &[Case])] = &[
    ("connect", connect::CASES),
    ("listen and accept", listen::CASES),
    ("send", send::CASES),
    ("receive", receive::CASES),
    ("urgent data", urgent::CASES),
    ("shutdown", shutdown::CASES),
    ("close", close::CASES),
    ("splice and sendfile", splice::CASES),
    ("poll, select, epoll", ready::CASES),
    ("states", states::CASES),
    ("options, each", options::NUMBERS),
    ("options of IPv6", options::IPV6),
    ("options", options::CASES),
    ("IPv6", ipv6::CASES),
    ("processes and threads", processes::CASES),
];

/// A case with its group.
#[derive(Clone, Copy)]
pub struct Named {
    /// The group's name.
    pub group: &'static str,
    /// The case's name, unique among all.
    pub name: &'static str,
    /// What both ends run.
    pub run: fn(&mut End),
}

/// A connection that stays: the case of the hub's own.
pub const KEPT: &str = "a connection that stays";
/// After how many phases it is there.
pub const KEPT_PHASES: usize = 2;

fn keep(t: &mut End) {
    t.connected();
    t.each(|_| {
        loop {
            std::thread::sleep(std::time::Duration::from_secs(60));
        }
    });
}

/// All cases.
pub fn all() -> impl Iterator<Item = Named> {
    GROUPS.iter().flat_map(|(group, cases)| {
        cases.iter().map(|Case(name, run)| Named {
            group,
            name,
            run: *run,
        })
    })
}

/// The case of this name.
pub fn find(name: &str) -> Option<Named> {
    if name == KEPT {
        return Some(Named {
            group: "",
            name: KEPT,
            run: keep,
        });
    }
    all().find(|case| case.name == name)
}

/// The first port that listeners have; the kernel gives away none near it.
const FIRST_PORT: u16 = 20000;

/// The port that the case of this name listens on.
pub fn port(name: &str) -> u16 {
    let index = all().position(|case| case.name == name);
    FIRST_PORT + index.map_or(0, |index| 1 + index as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique() {
        let mut names = BTreeSet::new();
        for case in all() {
            assert!(names.insert(case.name), "{}", case.name);
        }
    }
}
