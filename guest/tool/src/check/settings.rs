// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is set: UEIDs, sizes of buffers, polling; and what `enable` needs.

use crate::connections;
use crate::enable::{self, Enabled};
use crate::ueid;
use ivsmc_toolkit::check::{Report, System};

/// The size of buffers with which a message of 64 KiB fits, in bytes.
const BUFFERS: u64 = 128 << 10;

pub(super) fn check(system: &System, report: &mut Report) {
    ueids(ueid::list(), report);
    for name in ["rmem", "wmem"] {
        buffers(system, name, report);
    }
    if let Some(poll) = system.read("/sys/module/ivpci/parameters/poll_us") {
        match poll.as_str() {
            "0" => report.note(
                "polling",
                "off: each message interrupts",
                "echo 100 >/sys/module/ivpci/parameters/poll_us",
            ),
            _ => report.ok("polling", format!("{poll} us")),
        }
    }
    let features = system.read("/sys/kernel/debug/sched/features");
    if let Some(features) = features
        && features.split(' ').any(|feature| feature == "HRTICK")
    {
        report.note(
            "scheduler's timer",
            "on: each message costs an exit and an interrupt",
            "echo NO_HRTICK >/sys/kernel/debug/sched/features, or ivsmc-guest boot",
        );
    }
    enabled(system, enable::enabled(), report);
    match connections::list() {
        Ok(_) => report.ok("smc_diag", "SMC tells of its connections"),
        Err(error) => report.note(
            "smc_diag",
            format!("SMC does not tell of its connections: {error}"),
            "modprobe smc_diag; a kernel with CONFIG_SMC_DIAG",
        ),
    }
}

fn ueids(listed: Result<Vec<String>, ueid::Error>, report: &mut Report) {
    match listed {
        Ok(names) if names.is_empty() => report.missing(
            "UEID",
            "none: all connections to other systems will be TCP",
            "ivsmc-guest ueid add NAME, the same name in all guests",
        ),
        Ok(names) => report.ok("UEID", names.join(", ")),
        Err(error) => report.missing("UEID", error.to_string(), "modprobe smc"),
    }
}

fn buffers(system: &System, name: &str, report: &mut Report) {
    let what = format!("net.smc.{name}");
    let Some(value) = system.read(&format!("/proc/sys/net/smc/{name}")) else {
        report.missing(
            &what,
            "not there",
            "modprobe smc; a kernel with CONFIG_SYSCTL",
        );
        return;
    };
    match value.parse::<u64>() {
        Ok(bytes) if bytes >= BUFFERS => report.ok(&what, value),
        _ => report.note(
            &what,
            format!("{value}: a message of 64 KiB does not fit into a buffer"),
            format!("sysctl {what}=1048576"),
        ),
    }
}

fn enabled(system: &System, enabled: Result<Option<Enabled>, enable::Error>, report: &mut Report) {
    let what = "enable";
    if let Ok(Some(enabled)) = &enabled {
        report.ok(what, &*enabled.policy);
        return;
    }
    for (file, remedy) in [
        (
            "/sys/kernel/btf/vmlinux",
            "a kernel with CONFIG_DEBUG_INFO_BTF",
        ),
        ("/proc/sys/net/mptcp", "a kernel with CONFIG_MPTCP"),
        (
            "/proc/sys/net/core/bpf_jit_enable",
            "a kernel with CONFIG_BPF_JIT",
        ),
    ] {
        if !system.exists(file) {
            report.note(
                what,
                format!("it cannot work here, as there is no {file}; `ivsmc-guest run` can"),
                remedy,
            );
            return;
        }
    }
    report.ok(what, "nothing is enabled");
}

#[cfg(test)]
mod tests {
    use super::super::tests::system;
    use super::*;
    use ivsmc_toolkit::check::State;

    #[test]
    fn each_setting_has_its_remedy() {
        let good = [
            ("/proc/sys/net/smc/rmem", "1048576\n"),
            ("/sys/kernel/btf/vmlinux", ""),
            ("/proc/sys/net/mptcp/enabled", "1"),
            ("/proc/sys/net/core/bpf_jit_enable", "1"),
        ];
        let (_folder, system) = system(&good);
        let mut report = Report::default();
        ueids(Ok(vec!["IVSMC".into()]), &mut report);
        buffers(&system, "rmem", &mut report);
        enabled(&system, Ok(None), &mut report);
        assert!(
            report.findings.iter().all(|it| it.state == State::Ok),
            "{report}"
        );
    }

    #[test]
    fn what_is_amiss_is_named() {
        let (_folder, system) = system(&[
            ("/proc/sys/net/smc/rmem", "65536\n"),
            ("/sys/module/ivpci/parameters/poll_us", "0\n"),
            ("/sys/kernel/debug/sched/features", "A HRTICK B\n"),
        ]);
        let mut report = Report::default();
        check(&system, &mut report);
        ueids(Ok(Vec::new()), &mut report);
        for (state, what, remedy) in [
            (State::Note, "net.smc.rmem", "sysctl net.smc.rmem=1048576"),
            (State::Missing, "net.smc.wmem", "modprobe smc"),
            (State::Note, "polling", "poll_us"),
            (State::Note, "scheduler's timer", "NO_HRTICK"),
            (State::Note, "enable", "CONFIG_DEBUG_INFO_BTF"),
            (State::Missing, "UEID", "ueid add NAME"),
        ] {
            assert!(report.says(state, what, remedy), "{what}: {report}");
        }
    }
}
