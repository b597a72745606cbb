// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Runs a scenario in all the ways in which it can run, and tells what that has covered.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use crate::step::{Step, take_out};

thread_local! {
    static PLACES: RefCell<BTreeMap<&'static str, usize>> = const { RefCell::new(BTreeMap::new()) };
}

/// Notes that the execution has come to a place that is worth to be covered.
pub fn reached(place: &'static str) {
    PLACES.with_borrow_mut(|places| *places.entry(place).or_default() += 1);
}

/// How far executions are explored.
#[derive(Clone, Copy, Debug)]
pub enum Bound {
    /// All of them.
    None,
    /// Those in which a thread that could go on is made to wait so many times at most.
    Preemptions(usize),
}

/// A scenario: what threads do, and how far that is explored.
pub struct Scenario {
    /// Of the test.
    pub name: &'static str,
    /// How far.
    pub bound: Bound,
    /// One execution.
    pub run: fn(),
}

impl Scenario {
    fn explore(&self, without: Option<Step>, preemptions: Option<usize>) -> bool {
        let run = self.run;
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = preemptions;
        // nothing from the environment may end it early
        builder.max_branches = 5_000;
        builder.max_permutations = None;
        builder.max_duration = None;

        PLACES.take();
        take_out(without);
        let start = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| {
            builder.check(move || {
                reached("executions");
                run();
            });
        }));
        take_out(None);
        println!(
            "{} without {without:?}: {} in {:?}, {:?}",
            self.name,
            if result.is_ok() { "holds" } else { "fails" },
            start.elapsed(),
            PLACES.with_borrow(Clone::clone)
        );
        result.is_ok()
    }

    /// Checks that the scenario ends well in all executions, that some came to each of these places, and that without
    /// any of these steps one does not end well.
    pub fn check(&self, places: &[&str], steps: &[Step]) {
        let (least, bound) = match self.bound {
            Bound::None => (None, None),
            Bound::Preemptions(bound) => (Some(1), Some(bound)),
        };
        assert!(self.explore(None, bound), "{} fails", self.name);
        let reached = PLACES.take();
        for place in places {
            assert!(
                reached.contains_key(place),
                "{}: never '{place}'",
                self.name
            );
        }
        for &step in steps {
            // what fails often does so with few preemptions, which is seen soon
            let mut bounds = match least.zip(bound) {
                Some((least, bound)) => (least..=bound).map(Some).collect(),
                None => vec![None],
            }
            .into_iter();
            assert!(
                bounds.any(|bound| !self.explore(Some(step), bound)),
                "{} holds without {step:?}",
                self.name
            );
        }
    }
}
