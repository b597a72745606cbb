// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The cases that are known not to be as TCP, and why.

mod known;

use crate::outcome::Run;
pub use known::KNOWN;

/// On which kernels cases differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernels {
    /// On mainline's; guest/linux-patches/smc mends them.
    Mainline,
    /// On every one.
    All,
}

/// Why some cases are not as TCP.
pub struct Known {
    /// Why, in a sentence.
    pub why: &'static str,
    /// Where.
    pub on: Kernels,
    /// Whether they differ each time; some depend on who is faster.
    pub always: bool,
    /// The cases.
    pub cases: &'static [&'static str],
}

fn known(case: &str) -> Option<&'static Known> {
    KNOWN.iter().find(|known| known.cases.contains(&case))
}

/// Why a case is not as TCP, if that is known.
pub fn reason(case: &str) -> Option<&'static str> {
    known(case).map(|known| known.why)
}

/// What is wrong with a run, or with what is known: cases that differ and should not, cases that do not differ any
/// more. `tcp` is the same over TCP.
pub fn unexpected(run: &Run, tcp: &Run) -> Vec<String> {
    let differing = run.differing(tcp);
    let mut wrong = Vec::new();
    for case in &run.cases {
        let known = known(&case.name).filter(|known| known.on == Kernels::All || !run.is_mended());
        let differs = differing.iter().any(|other| other.name == case.name);
        match (differs, known) {
            (true, None) => {
                let right = tcp
                    .find(&case.name)
                    .map(|right| right.observations.join("  "));
                let right = right.unwrap_or_else(|| "not run".into());
                wrong.push(format!("{case}\n    TCP: {right}"));
            }
            (false, Some(Known { always: true, .. })) => {
                wrong.push(format!("{}: is as TCP, and known not to be", case.name));
            }
            _ => {}
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases;
    use std::collections::BTreeSet;

    #[test]
    fn each_known_case_exists_and_has_one_reason() {
        let all: BTreeSet<_> = cases::all().map(|case| case.name).collect();
        let mut seen = BTreeSet::new();
        for case in KNOWN.iter().flat_map(|known| known.cases) {
            assert!(all.contains(case), "{case}: there is no such case");
            assert!(seen.insert(case), "{case}: has two reasons");
        }
    }
}
