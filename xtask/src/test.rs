// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask test`

use std::ffi::OsStr;
use std::fs;
use std::ops::AddAssign;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;

use crate::kernel::Flavour;
use crate::reports::is_report;
use crate::run::{self, GuestOptions, Outcome};
use crate::setup::{self, Prepared};
use crate::{module, process, program_image, programs};

/// How long the suite of guests may take: on a normal kernel, and on a debug kernel.
const LIMITS: [Duration; 2] = [Duration::from_secs(30 * 60), Duration::from_secs(90 * 60)];

/// What the names of the tests with guests have, each in a run of its own: a lab VM that crashes loses no more than one.
const GROUPS: [&str; 15] = [
    "traffic::",
    "splice::",
    "life::",
    "compatibility::",
    "options::",
    "run::",
    "enable::",
    "check::",
    "mesh::",
    "faults::",
    "defects::",
    "hostile_vmm::",
    "cloud_hypervisor::",
    "host::",
    "programs::",
];

/// Which programs of Debian's are run each time.
const PROGRAMS: [&str; 3] = ["go", "nginx", "postgresql"];

/// What is run by hand alone, by a command of its own: it takes long.
#[cfg(test)]
const BY_HAND: [&str; 3] = ["conformance::", "containers::", "installed::"];

/// What is run on mainline as well when the kernel was not chosen: that it works there.
const ON_MAINLINE: &str = "traffic::";

/// sparse, told what Linux's sources use and Debian's sparse does not know; without that the kernel's build leaves
/// it out.
const SPARSE: &str = r"CHECK=sparse -D__typeof_unqual__=__typeof__ -D_Static_assert\(x...\)=";
/// What sparse says where macros of KUnit and FIELD_GET meet: a limit of its own, no finding.
const SPARSE_LIMIT: &str = "error: too long token expansion";

/// Options of `cargo xtask test`.
#[derive(Args)]
pub struct Options {
    /// Run only tests whose name contains this, and none of the driver's checks.
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    #[command(flatten)]
    guests: GuestOptions,
}

/// How tests went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl Tally {
    /// One test.
    fn one(passed: bool) -> Self {
        Self {
            passed: passed.into(),
            failed: (!passed).into(),
            skipped: 0,
        }
    }

    /// Sums up the lines "test result: ok. 3 passed; 0 failed; 1 ignored; ..." of a test program's
    /// output.
    fn of_output(output: &str, success: bool) -> Self {
        let mut sum = Self::default();
        for line in output
            .lines()
            .filter_map(|line| line.trim().strip_prefix("test result: "))
        {
            let line = line.split_once(". ").map_or(line, |(_, counts)| counts);
            for count in line.split(';') {
                if let Some((number, what)) = count.trim().split_once(' ')
                    && let Ok(number) = number.parse::<usize>()
                {
                    match what {
                        "passed" => sum.passed += number,
                        "failed" => sum.failed += number,
                        "ignored" => sum.skipped += number,
                        _ => {}
                    }
                }
            }
        }
        sum.or_failed(success)
    }

    /// Counts the test cases in KUnit's output: the lines "    ok 1 name" and "    not ok 2 name".
    fn of_ktap(output: &str, success: bool) -> Self {
        let mut sum = Self::default();
        for line in output.lines().filter_map(|line| line.strip_prefix("    ")) {
            if line.starts_with("ok ") && line.contains("# SKIP") {
                sum.skipped += 1;
            } else if line.starts_with("ok ") {
                sum.passed += 1;
            } else if line.starts_with("not ok ") {
                sum.failed += 1;
            }
        }
        sum.or_failed(success && sum.passed > 0)
    }

    /// What failed without saying where counts as a failed test.
    fn or_failed(mut self, success: bool) -> Self {
        if !success && self.failed == 0 {
            self.failed = 1;
        }
        self
    }
}

/// `cargo xtask test`
pub fn main(options: &Options) -> Result<()> {
    let mut prepared = options.guests.prepare()?;
    for name in PROGRAMS {
        let test = format!("programs::{name}");
        if options.filter.as_ref().is_none_or(|f| test.contains(f)) {
            let image = program_image::build(&prepared.cache, &prepared.repository, name)?;
            prepared.program_images.push(image);
        }
    }
    let mut tally = Tally::default();
    tally += workspace(&prepared, options)?;
    if options.filter.is_none() {
        tally += driver(&prepared)?;
    }
    tally += two_guests(&prepared, options)?;
    if options.filter.is_none()
        && options.guests.flavour.kernel.is_none()
        && prepared.guest_kernel.flavour.is_mended()
    {
        // It holds the cache's lock.
        drop(prepared);
        tally += mainline(options)?;
    }
    println!(
        "{} passed, {} failed, {} skipped",
        tally.passed, tally.failed, tally.skipped
    );
    if tally.failed > 0 {
        bail!("tests failed");
    }
    Ok(())
}

fn heading(text: &str) {
    println!("\n== {text}");
}

/// What needs no guests: unit tests, property tests, tests with guests of a few bytes.
fn workspace(prepared: &Prepared, options: &Options) -> Result<Tally> {
    heading("tests of the workspace");
    let mut command = programs::cargo(&prepared.repository);
    command.args(["test", "--workspace", "--locked", "--no-fail-fast"]);
    command.args(&options.filter);
    let log = prepared.cache.log("test-workspace")?;
    let status = process::run_and_show(command, &log, None)?;
    Ok(Tally::of_output(
        &fs::read_to_string(log)?,
        status.success(),
    ))
}

/// The driver's checks: style, types, and its KUnit tests.
fn driver(prepared: &Prepared) -> Result<Tally> {
    heading("checks of the driver");
    let source = prepared.repository.join(module::SOURCE);
    let kernel = &prepared.lab_kernel;
    let mut tally = Tally::default();

    let mut command = Command::new("perl");
    command
        .arg(kernel.source.join("scripts/checkpatch.pl"))
        .args(["--strict", "--no-tree", "--terse", "--quiet", "--file"])
        .args(sources(&source)?);
    let log = prepared.cache.log("test-checkpatch")?;
    let status = process::run_and_show(command, &log, None)?;
    tally += verdict("checkpatch --strict", status.success());

    let output = prepared.cache.fresh("module-checked")?;
    let mut command = module::make(kernel, &source, &output);
    command.args(["C=2", SPARSE, "modules"]);
    let log = prepared.cache.log("test-sparse")?;
    let status = process::run_and_show(command, &log, None)?;
    let clean = is_clean(&fs::read_to_string(log)?);
    tally += verdict("sparse and W=1", status.success() && clean);

    let mut command = Command::new("sh");
    command
        .arg(source.join("kunit.sh"))
        .arg(&kernel.source)
        .arg(prepared.cache.path(format!("kunit-{}", kernel.key)));
    let log = prepared.cache.log("test-kunit")?;
    println!("KUnit under User Mode Linux (built at first)");
    let status = process::run_and_show(command, &log, None)?;
    tally += Tally::of_ktap(&fs::read_to_string(log)?, status.success());
    Ok(tally)
}

/// Whether sparse was run, and neither it nor the compiler had anything to say of a place. What Kbuild itself warns of,
/// with no place before it, is of the machine: that its pahole, say, is not the one that the kernel was built with.
fn is_clean(output: &str) -> bool {
    let finding = |line: &str| {
        !line.contains(SPARSE_LIMIT) && (line.contains(": warning:") || line.contains(": error:"))
    };
    output
        .lines()
        .any(|line| line.trim_start().starts_with("CHECK "))
        && !output.lines().any(finding)
}

/// Tells how a check went.
fn verdict(name: &str, passed: bool) -> Tally {
    println!("{name}: {}", if passed { "ok" } else { "FAILED" });
    Tally::one(passed)
}

/// The C files in a folder.
fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if [Some(OsStr::new("c")), Some(OsStr::new("h"))].contains(&path.extension()) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The suite of guests, and ivpci on QEMU's own ivshmem device.
fn two_guests(prepared: &Prepared, options: &Options) -> Result<Tally> {
    heading("tests with guests");
    let runs: Vec<(String, &str)> = match &options.filter {
        Some(filter) => vec![("test".into(), filter)],
        None => GROUPS
            .map(|group| (format!("test-{}", group.trim_end_matches(':')), group))
            .into(),
    };
    let mut tally = Tally::default();
    for (name, filter) in runs {
        tally += suite(prepared, options, &name, filter)?;
    }

    if options.filter.is_none() {
        heading("ivpci on QEMU's ivshmem-doorbell");
        let arguments = ["qemu-ivshmem".to_owned()];
        let outcome = run::runner_here(
            prepared,
            &options.guests.run,
            &prepared.programs.lab,
            "test-qemu",
            &arguments,
            limit(prepared),
        )?;
        tally += verdict("ivpci in two QEMU guests", outcome.status == 0);
        tally += kernels_reports(&outcome, "no report of QEMU's guests' kernels")?;
    }
    Ok(tally)
}

/// The tests with guests whose names contain `filter`; `name` names the folder of their logs.
fn suite(prepared: &Prepared, options: &Options, name: &str, filter: &str) -> Result<Tally> {
    let outcome = run::runner(
        prepared,
        &options.guests.run,
        &prepared.programs.lab,
        name,
        &["suite".to_owned(), filter.to_owned()],
        limit(prepared),
    )?;
    let output = fs::read(&outcome.log)?;
    let mut tally = Tally::of_output(&String::from_utf8_lossy(&output), outcome.status == 0);
    tally += kernels_reports(&outcome, "no report of the guests' kernels")?;
    Ok(tally)
}

/// A few tests with guests on a kernel that is as it is upstream.
fn mainline(options: &Options) -> Result<Tally> {
    heading("tests with guests on mainline");
    let prepared = setup::prepare(&options.guests.source, Some(Flavour::Mainline))?;
    suite(&prepared, options, "test-mainline", ON_MAINLINE)
}

/// How long a run of tests with guests may take.
fn limit(prepared: &Prepared) -> Duration {
    LIMITS[usize::from(prepared.guest_kernel.flavour.is_debug())]
}

/// The test that nothing went wrong in the kernels of a run.
fn kernels_reports(outcome: &Outcome, name: &str) -> Result<Tally> {
    let mut reports = Vec::new();
    collect_reports(&outcome.out, &mut reports)?;
    for report in &reports {
        println!("{report}");
    }
    if outcome.status != 0 || !reports.is_empty() {
        println!("logs: {}", outcome.out.display());
    }
    Ok(verdict(name, reports.is_empty()))
}

/// Collects what the kernels complained about in the logs of a folder.
fn collect_reports(folder: &Path, reports: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect_reports(&path, reports)?;
        } else {
            let text = fs::read(&path)?;
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<_> = text.lines().collect();
            for (index, line) in lines.iter().enumerate().filter(|(_, line)| is_report(line)) {
                let report = format!("{}: {}", path.display(), line.trim_end());
                match known(&lines[index..]) {
                    Some(defect) => println!("{report}: a defect of Linux, {defect}"),
                    None => reports.push(report),
                }
            }
        }
    }
    Ok(())
}

/// Lines that a report of a lock's order has at the most before it names what was called.
const REPORT_LINES: usize = 30;

/// Tells which defect of mainline Linux's a report is of, if it is one that is known and not ivpci's.
fn known(report: &[&str]) -> Option<&'static str> {
    let has = |text: &str| {
        report
            .iter()
            .take(REPORT_LINES)
            .any(|line| line.contains(text))
    };
    // SMC's reboot notifier locks sockets while it holds the list of devices, connect() the other way round.
    (has("possible circular locking dependency") && has("at: smc_lgrs_shutdown+"))
        .then_some("in SMC's reboot notifier")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_summed_up() {
        let output = "running 3 tests\ntest a ... ok\n\n\
            test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.0s\n\
            test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out\n";
        assert_eq!(
            Tally::of_output(output, false),
            Tally {
                passed: 4,
                failed: 2,
                skipped: 1
            }
        );
        assert_eq!(Tally::of_output("", true), Tally::default());
        assert_eq!(
            Tally::of_output("error: could not compile\n", false),
            Tally::one(false)
        );
    }

    /// A group that is forgotten would not be run, and nobody would notice.
    #[test]
    fn each_test_with_guests_is_in_one_group() {
        let suite = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/src/suite/mod.rs");
        let suite = fs::read_to_string(suite).unwrap();
        let modules = suite
            .lines()
            .filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';'));
        let mut count = 0;
        for module in modules {
            let name = format!("{module}::a_test");
            let groups = GROUPS.iter().chain(&BY_HAND);
            let groups = groups.filter(|group| name.contains(**group));
            assert_eq!(groups.count(), 1, "{module}");
            count += 1;
        }
        assert!(count > 8, "{count}");
    }

    #[test]
    fn sparse_is_clean_only_if_it_ran() {
        assert!(is_clean("  CC [M]  main.o\n  CHECK   main.c\n"));
        assert!(!is_clean("  CC [M]  main.o\n"));
        assert!(!is_clean(
            "  CHECK   main.c\nmain.c:1:1: warning: symbol 'a' was not declared\n"
        ));
        assert!(is_clean(
            "  CHECK   a.c\na.c:1:1: error: too long token expansion\n"
        ));
        assert!(!is_clean(
            "  CHECK   a.c\nivpci.o: warning: objtool: ivpci_probe+0x1: unreachable\n"
        ));
        assert!(is_clean(
            "warning: pahole version differs from the one used to build the kernel\n  CHECK   a.c\n"
        ));
    }

    #[test]
    fn kunits_cases_are_counted() {
        let output = "KTAP version 1\n1..1\n    # Subtest: ivpci\n    1..3\n    ok 1 ring\n\
            \x20       ok 1 parameter\n    ok 2 dmb # SKIP not here\n    not ok 3 token\n\
            not ok 1 ivpci\n";
        assert_eq!(
            Tally::of_ktap(output, false),
            Tally {
                passed: 1,
                failed: 1,
                skipped: 1
            }
        );
        assert_eq!(Tally::of_ktap("no tests\n", true), Tally::one(false));
    }

    #[test]
    fn only_the_known_defect_is_known() {
        let report = [
            "[  528.6] WARNING: possible circular locking dependency detected",
            "[  528.8] reboot/565 is trying to acquire lock:",
            "[  528.9] ff (smcd_dev_list.mutex){+.+.}-{4:4}, at: smc_lgrs_shutdown+0x160/0x230",
        ];
        assert!(known(&report).is_some());
        assert!(known(&report[..2]).is_none());
        assert!(known(&report[1..]).is_none());
    }

    #[test]
    fn kernels_reports_are_seen() {
        assert!(is_report(
            "[   12.345678] BUG: KASAN: slab-use-after-free in ivpci_probe"
        ));
        assert!(is_report(
            "[    1.000000] WARNING: possible circular locking dependency detected"
        ));
        assert!(is_report(
            "[   90.000000] watchdog: BUG: soft lockup - CPU#0 stuck for 26s!"
        ));
        assert!(is_report(
            "[   90.000000] rcu: INFO: rcu_preempt self-detected stall on CPU"
        ));
        assert!(!is_report("[    1.000000] smc: adding ibdev"));
        assert!(!is_report("1:M # WARNING: The TCP backlog setting"));
    }
}
