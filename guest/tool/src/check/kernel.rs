// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The kernel: its version, what it was built with, its modules.

use ivsmc_toolkit::check::{Report, System};

/// The oldest version with what ivpci is made for.
const OLDEST: (u32, u32) = (6, 18);
/// What has to be there: a module, what it comes from, and a place that shows that it is loaded or built in.
const MODULES: [(&str, &str, &str); 3] = [
    ("dibs", "a kernel with CONFIG_DIBS", "/sys/class/dibs"),
    ("smc", "a kernel with CONFIG_SMC", "/proc/sys/net/smc"),
    (
        "ivpci",
        "the package ivpci-dkms",
        "/sys/bus/pci/drivers/ivpci",
    ),
];

pub(super) fn check(system: &System, report: &mut Report) {
    let release = system
        .read("/proc/sys/kernel/osrelease")
        .unwrap_or_default();
    let oldest = format!("{}.{}", OLDEST.0, OLDEST.1);
    match version(&release) {
        Some(version) if version >= OLDEST => report.ok("kernel", &*release),
        Some(_) => report.wrong(
            "kernel",
            format!("{release} has no DIBS devices"),
            format!("boot Linux {oldest} or later"),
        ),
        None => report.note(
            "kernel",
            format!("its version is not known: {release:?}"),
            format!("it has to be {oldest} or later"),
        ),
    }
    for (module, source, shown) in MODULES {
        if system.exists(shown) {
            report.ok(module, "there");
        } else if is_builtin(system, &release, module) {
            report.ok(module, "built in");
        } else if has_file(system, &release, module) {
            report.missing(module, "not loaded", format!("modprobe {module}"));
        } else {
            let seen = format!("the kernel {release} has no such module");
            report.missing(module, seen, source);
        }
    }
}

/// `7.3.4-1-cloud-amd64` is (7, 3).
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Whether modules.builtin or modules.dep have `module.ko`.
fn is_in(system: &System, release: &str, list: &str, module: &str) -> bool {
    let list = system.read(&format!("/lib/modules/{release}/{list}"));
    let file = format!("/{module}.ko");
    list.unwrap_or_default().lines().any(|line| {
        let path = line.split(':').next().unwrap_or("");
        path.ends_with(&file) || path.contains(&format!("{file}."))
    })
}

fn is_builtin(system: &System, release: &str, module: &str) -> bool {
    is_in(system, release, "modules.builtin", module)
}

fn has_file(system: &System, release: &str, module: &str) -> bool {
    is_in(system, release, "modules.dep", module)
}

#[cfg(test)]
mod tests {
    use super::super::tests::system;
    use super::*;
    use ivsmc_toolkit::check::State;

    fn checked(files: &[(&str, &str)]) -> Report {
        let (_folder, system) = system(files);
        let mut report = Report::default();
        check(&system, &mut report);
        report
    }

    const NEW: (&str, &str) = ("/proc/sys/kernel/osrelease", "7.3.4-cloud\n");

    #[test]
    fn an_old_kernel_is_wrong() {
        let report = checked(&[("/proc/sys/kernel/osrelease", "6.12.0-1\n")]);
        assert!(report.says(State::Wrong, "kernel", "6.18"), "{report}");
        let report = checked(&[NEW]);
        assert!(report.says(State::Ok, "kernel", ""), "{report}");
        let report = checked(&[]);
        assert!(report.says(State::Note, "kernel", "6.18"), "{report}");
    }

    #[test]
    fn a_module_is_there_or_can_be_loaded_or_is_missing() {
        let report = checked(&[
            NEW,
            ("/proc/sys/net/smc/rmem", "65536"),
            (
                "/lib/modules/7.3.4-cloud/modules.dep",
                "updates/dkms/ivpci.ko.xz: kernel/net/smc/smc.ko\n",
            ),
            (
                "/lib/modules/7.3.4-cloud/modules.builtin",
                "kernel/drivers/dibs/dibs.ko\n",
            ),
        ]);
        for (state, module, remedy) in [
            (State::Ok, "smc", ""),
            (State::Ok, "dibs", ""),
            (State::Missing, "ivpci", "modprobe ivpci"),
        ] {
            assert!(report.says(state, module, remedy), "{module}: {report}");
        }
        let report = checked(&[NEW]);
        for (module, remedy) in [
            ("ivpci", "ivpci-dkms"),
            ("dibs", "CONFIG_DIBS"),
            ("smc", "CONFIG_SMC"),
        ] {
            assert!(
                report.says(State::Missing, module, remedy),
                "{module}: {report}"
            );
        }
    }
}
