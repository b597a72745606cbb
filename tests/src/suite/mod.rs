// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The tests with two guests and more. Guests are shared by tests that leave them as they were.

mod check;
mod cloud_hypervisor;
mod compatibility;
mod conformance;
pub mod containers;
mod enable;
mod faults;
mod guest_life;
mod host;
mod hostile_vmm;
mod installed;
mod life;
mod mesh;
mod options;
mod programs;
mod run;
mod smc_defects;
mod splice;
mod traffic;

use crate::guest::Mode;
use crate::lab::{self, Lab, VmmKind};
use crate::pair::Pair;
use anyhow::Result;
use libtest_mimic::{Arguments, ColorSetting, Conclusion, Failed, Trial};
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// What the tests share.
pub(crate) struct Fixture {
    pub(crate) lab: Lab,
    pair: Mutex<Option<Pair>>,
}

impl Fixture {
    /// Runs a test with the shared pair, its driver in `mode`, and looks at the guests' health after it.
    ///
    /// A test that fails gets the ends of all logs into its error, and the next one gets new guests.
    pub(crate) fn with_pair(
        &self,
        mode: Mode,
        test: impl FnOnce(&mut Pair) -> Result<()>,
    ) -> Result<()> {
        let mut slot = self.pair.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pair = match slot.take() {
            Some(pair) => pair,
            None => Pair::boot(&self.lab)?,
        };
        let result = pair
            .set_mode(mode)
            .and_then(|()| test(&mut pair))
            .and_then(|()| pair.check_health());
        match result {
            Ok(()) => {
                *slot = Some(pair);
                Ok(())
            }
            Err(error) => Err(pair.explain(error)),
        }
    }

    /// Ends the shared guests, for a test that boots its own under the same names.
    pub(crate) fn without_pair(&self, test: impl FnOnce(&Lab) -> Result<()>) -> Result<()> {
        *self.pair.lock().unwrap_or_else(PoisonError::into_inner) = None;
        test(&self.lab)
    }
}

/// The tests, being put together.
pub(crate) struct Suite {
    fixture: Arc<Fixture>,
    /// Whether tests that only count a kernel's known defects were asked for by name.
    counts_defects: bool,
    trials: Vec<Trial>,
}

impl Suite {
    /// Adds a test that needs Cloud Hypervisor, and is skipped without it.
    fn add_for_cloud_hypervisor(
        &mut self,
        name: &str,
        test: impl FnOnce(&Fixture) -> Result<()> + Send + 'static,
    ) {
        if self.fixture.lab.vmm == VmmKind::CloudHypervisor {
            self.add(name, test);
        } else {
            self.skip(name);
        }
    }

    /// Adds a test that needs a kernel with the patches of guest/linux-patches/smc, and is skipped without them.
    fn add_for_mended_kernel(
        &mut self,
        name: &str,
        test: impl FnOnce(&Fixture) -> Result<()> + Send + 'static,
    ) {
        if self.fixture.lab.is_mended() {
            self.add(name, test);
        } else {
            self.skip(name);
        }
    }

    /// Adds a test that on a kernel without those patches only counts how often a known defect is met: there it is
    /// skipped if it was not asked for.
    fn add_for_known_defect(
        &mut self,
        name: &str,
        test: impl FnOnce(&Fixture) -> Result<()> + Send + 'static,
    ) {
        if self.counts_defects || self.fixture.lab.is_mended() {
            self.add(name, test);
        } else {
            self.skip(name);
        }
    }

    fn skip(&mut self, name: &str) {
        let skipped = Trial::test(name, || Ok(())).with_ignored_flag(true);
        self.trials.push(skipped);
    }

    fn add(
        &mut self,
        name: impl Into<String>,
        test: impl FnOnce(&Fixture) -> Result<()> + Send + 'static,
    ) {
        let (name, fixture) = (name.into(), Arc::clone(&self.fixture));
        self.trials.push(Trial::test(name.clone(), move || {
            test(&fixture).map_err(|error| tell(&name, &error, &fixture.lab.out, &mut io::stdout()))
        }));
    }
}

/// Tells of a failed test at once: what libtest-mimic says when all have been run, a run that is cut off never says.
/// All that is known goes to a file in `folder`, and is what is returned.
fn tell(name: &str, error: &anyhow::Error, folder: &Path, out: &mut impl Write) -> Failed {
    // What was the cause comes last, under the logs.
    let text: String = error.chain().map(|cause| format!("{cause}\n")).collect();
    // Of a folder in the lab VM the host has another name: xtask tells it.
    let file = format!("failure-{}.log", name.replace("::", "-"));
    let kept = match std::fs::write(folder.join(&file), &text) {
        Ok(()) => file,
        Err(error) => format!("{file} cannot be written: {error}"),
    };
    let causes = error.chain().map(ToString::to_string);
    let causes: Vec<_> = causes
        .filter(|cause| !cause.starts_with(lab::LOGS))
        .collect();
    // A line has been begun already. If nobody reads it, the file is there.
    let _ = writeln!(out, "FAILED {name}: {}\n  logs: {kept}", causes.join(": "));
    let _ = out.flush();
    text.into()
}

/// Runs the tests whose names contain `filter`.
pub fn run(lab: Lab, filter: Option<String>) -> Conclusion {
    println!(
        "platform {}, VMM {}, kernel {}",
        lab.platform, lab.vmm, lab.kernel
    );
    let fixture = Arc::new(Fixture {
        lab,
        pair: Mutex::new(None),
    });
    if fixture.lab.vmm != VmmKind::CloudHypervisor {
        println!(
            "cloud_hypervisor::* is skipped: no Cloud Hypervisor was given (--vmm cloud-hypervisor --vmm-binary FILE)"
        );
    }
    let counts_defects = filter
        .as_ref()
        .is_some_and(|filter| filter.starts_with(smc_defects::NAME));
    if !fixture.lab.is_mended() {
        println!(
            "{0}::* is skipped{1}: this kernel has the defects (--kernel mended has not, --filter {0} counts them)",
            smc_defects::NAME,
            if counts_defects { " in part" } else { "" }
        );
    }
    let mut suite = Suite {
        fixture,
        counts_defects,
        trials: Vec::new(),
    };
    traffic::add(&mut suite);
    splice::add(&mut suite);
    life::add(&mut suite);
    guest_life::add(&mut suite);
    check::add(&mut suite);
    compatibility::add(&mut suite);
    conformance::add(&mut suite);
    containers::add(&mut suite);
    enable::add(&mut suite);
    installed::add(&mut suite);
    options::add(&mut suite);
    programs::add(&mut suite);
    run::add(&mut suite);
    mesh::add(&mut suite);
    faults::add(&mut suite);
    host::add(&mut suite);
    hostile_vmm::add(&mut suite);
    smc_defects::add(&mut suite);
    cloud_hypervisor::add(&mut suite);
    let arguments = Arguments {
        test_threads: Some(1),
        color: Some(ColorSetting::Never),
        filter,
        ..Arguments::default()
    };
    let conclusion = libtest_mimic::run(&arguments, suite.trials);
    println!(
        "{} passed, {} failed, {} skipped",
        conclusion.num_passed, conclusion.num_failed, conclusion.num_ignored
    );
    conclusion
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn failures_are_told_when_they_happen() {
        let error = anyhow!("no link after 30s")
            .context("guest b")
            .context(lab::LOGS.to_owned() + "guest b\nnoise");
        let folder = std::env::temp_dir().join(format!("ivsmc-tell-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let mut said = Vec::new();
        let failed = tell("life::x", &error, &folder, &mut said);
        let said = String::from_utf8(said).unwrap();
        let file = "failure-life-x.log";
        assert_eq!(
            said,
            format!("FAILED life::x: guest b: no link after 30s\n  logs: {file}\n")
        );
        let whole = std::fs::read_to_string(folder.join(file)).unwrap();
        assert!(
            whole.contains("noise") && whole.ends_with("no link after 30s\n"),
            "{whole}"
        );
        assert!(failed.message().is_some_and(|message| message == whole));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
