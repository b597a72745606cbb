// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `ivsmc-host check`: all that has to be so on a host, and what mends what is not.

use crate::list::{Listing, VmLine};
use crate::policy::{Fabric, Policy};
use ivsmc_toolkit::check::{Report, System};
use rustix::process::{Resource, getrlimit, getuid};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Descriptors for a device with some peers, beside what a VMM has anyhow.
const FILES: u64 = 4096;
/// Watches for changes of folders that a user may have: a device takes one.
const INOTIFY: u64 = 128;
/// How long a VMM may take to print its options, and how much of them is read, in bytes.
const HELP_TIME: Duration = Duration::from_secs(5);
const HELP_SIZE: u64 = 1 << 20;

/// Looks at this host: what all VMMs need, and this one, if one is given.
pub fn host(vmm: Option<&Path>) -> Report {
    let system = System::here();
    let mut report = Report::default();
    kvm(&system, &mut report);
    limits(&system, &mut report);
    sandbox(&system, &mut report);
    if let Some(vmm) = vmm {
        has_option(vmm, &mut report);
    }
    report
}

/// Looks at the fabrics of a policy, and at the VMs that there are.
pub fn fabrics(policy: &Policy, listing: &Listing, report: &mut Report) {
    for fabric in &policy.fabrics {
        folder(fabric, report);
    }
    for skipped in &listing.skipped {
        report.note(
            "sockets",
            format!("{}: {}", skipped.path, skipped.why),
            "docs/host.md, sockets",
        );
    }
    if listing.vms.is_empty() {
        report.note(
            "VMs",
            "there are none",
            "start one whose --api-socket is at a path that `sockets` in the policy has",
        );
    }
    for vm in &listing.vms {
        look(vm, report);
    }
}

fn kvm(system: &System, report: &mut Report) {
    let path = system.path("/dev/kvm");
    match File::options().read(true).write(true).open(&path) {
        Ok(_) => report.ok("/dev/kvm", "can be used"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => report.missing(
            "/dev/kvm",
            "not there",
            "modprobe kvm_intel or kvm_amd; virtualization has to be on in the firmware",
        ),
        Err(error) => report.wrong(
            "/dev/kvm",
            error.to_string(),
            "usermod --append --groups kvm USER, and log in anew",
        ),
    }
}

fn limits(system: &System, report: &mut Report) {
    let files = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    if files < FILES {
        report.note(
            "descriptors",
            format!("{files} at the most; a device has 2 + 2 x vectors for each link"),
            format!("LimitNOFILE={FILES} for what starts VMMs, or ulimit -n"),
        );
    } else {
        report.ok("descriptors", format!("{files} at the most"));
    }
    let watches = "/proc/sys/fs/inotify/max_user_instances";
    match system
        .read(watches)
        .and_then(|text| text.parse::<u64>().ok())
    {
        Some(count) if count < INOTIFY => report.note(
            "inotify",
            format!("{count} for each user; a device without one looks into folders each second"),
            format!("sysctl fs.inotify.max_user_instances={INOTIFY}"),
        ),
        Some(count) => report.ok("inotify", format!("{count} for each user")),
        None => report.missing(
            "inotify",
            format!("no {watches}"),
            "a kernel with CONFIG_INOTIFY_USER",
        ),
    }
    if let Some(size) = getrlimit(Resource::Fsize).maximum {
        report.wrong(
            "file size",
            format!("{size} bytes at the most: a larger window cannot be made"),
            "LimitFSIZE=infinity for what starts VMMs, or ulimit -f unlimited",
        );
    }
    match system.read("/proc/sys/vm/nr_hugepages").as_deref() {
        Some("0") | None => report.note(
            "huge pages",
            "none: devices with hugepages=on get no windows",
            "sysctl vm.nr_hugepages=N, a page for each 2 MiB, if a device has hugepages=on",
        ),
        Some(count) => report.ok("huge pages", format!("{count} of 2 MiB")),
    }
}

fn sandbox(system: &System, report: &mut Report) {
    let seccomp = system.read("/proc/sys/kernel/seccomp/actions_avail");
    if seccomp.is_some_and(|actions| actions.contains("kill_process")) {
        report.ok("seccomp", "there");
    } else {
        report.note(
            "seccomp",
            "not there: a VMM cannot confine its threads",
            "a kernel with CONFIG_SECCOMP_FILTER",
        );
    }
    match system.read("/sys/kernel/security/lsm") {
        Some(modules) if modules.split(',').any(|it| it == "landlock") => {
            report.ok("landlock", "there");
        }
        _ => report.note(
            "landlock",
            "not there: --landlock of Cloud Hypervisor fails",
            "lsm=landlock,... on the kernel's command line, if you want it",
        ),
    }
}

/// Whether a VMM knows ivsmc devices.
fn has_option(vmm: &Path, report: &mut Report) {
    let what = vmm.display().to_string();
    match help(vmm) {
        Ok(text) if text.contains("--ivsmc") => report.ok(&what, "has --ivsmc"),
        Ok(_) => report.wrong(
            &what,
            "has no --ivsmc",
            "cargo xtask patch-vmm DIR, and build it with --features ivsmc",
        ),
        Err(error) => report.wrong(
            &what,
            error.to_string(),
            "give the program of a VMM with --vmm FILE",
        ),
    }
}

/// What a program prints with `--help`.
fn help(vmm: &Path) -> io::Result<String> {
    let mut child = Command::new(vmm)
        .arg("--help")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let reader = child.stdout.take().map(|stdout| {
        thread::spawn(move || {
            let mut text = Vec::new();
            // Of a program that goes on and on enough has been read: it gets a SIGPIPE.
            let read = stdout.take(HELP_SIZE).read_to_end(&mut text);
            read.map(|_| String::from_utf8_lossy(&text).into_owned())
        })
    });
    let start = Instant::now();
    while child.try_wait()?.is_none() {
        if start.elapsed() > HELP_TIME {
            child.kill()?;
            child.wait()?;
            let problem = format!("--help has not ended after {HELP_TIME:?}");
            return Err(io::Error::new(io::ErrorKind::TimedOut, problem));
        }
        thread::sleep(Duration::from_millis(10));
    }
    match reader.map(thread::JoinHandle::join) {
        Some(Ok(text)) => text,
        _ => Ok(String::new()),
    }
}

/// A fabric's folder: who may put sockets there may become a peer.
fn folder(fabric: &Fabric, report: &mut Report) {
    let (what, folder) = (format!("fabric {}", fabric.name), fabric.folder.display());
    let metadata = match fs::metadata(&fabric.folder) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            report.note(
                &what,
                format!("{folder} is not there yet"),
                "systemctl start ivsmc-host: it makes the folder with the first VM",
            );
            return;
        }
        Err(error) => {
            report.wrong(&what, format!("{folder}: {error}"), "run this as root");
            return;
        }
    };
    let (mode, owner) = (metadata.permissions().mode() & 0o7777, metadata.uid());
    if mode & 0o002 != 0 {
        report.wrong(
            &what,
            format!(
                "everybody may write to {folder} (mode {mode:o}): who is no member can pose as one"
            ),
            format!("chmod o-w {folder}"),
        );
    } else if owner != 0 && owner != getuid().as_raw() {
        report.wrong(
            &what,
            format!("{folder} belongs to the user {owner}"),
            format!("chown root {folder}"),
        );
    } else {
        report.ok(&what, format!("{folder}, mode {mode:o}"));
    }
}

fn look(vm: &VmLine, report: &mut Report) {
    let what = format!("VM {}", vm.name);
    let Some(fabric) = &vm.fabric else {
        report.note(
            &what,
            "no fabric of the policy has it",
            "a rule in the policy, if it is to have a device",
        );
        return;
    };
    if !vm.attached {
        report.missing(
            &what,
            vm.why.as_deref().unwrap_or("it has no device"),
            "systemctl start ivsmc-host; journalctl -u ivsmc-host says more",
        );
        return;
    }
    let Some(links) = &vm.links else {
        let why = vm.no_links_why.as_deref().unwrap_or("not told");
        report.note(
            &what,
            format!("its links are not known: {why}"),
            "patch its VMM anew",
        );
        return;
    };
    if links.is_empty() {
        report.note(
            &what,
            format!("of fabric {fabric}, and no link"),
            "another VM of the fabric has to run; `allow` has to have the users of both VMMs",
        );
    } else {
        report.ok(&what, format!("of fabric {fabric}, {} links", links.len()));
    }
    for refused in &vm.refused {
        let peer = refused.vm.as_deref().unwrap_or("a peer");
        report.note(
            &what,
            format!("{peer} is refused, as its link was dropped"),
            format!("ivsmc-host allow {} {peer}", vm.name),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::list::SkippedLine;
    use ivsmc_toolkit::check::State;

    const POLICY: &str = "sockets = ['/run/x/*.sock']\n[[fabric]]\nname = 'blue'\nvms = ['*']\n";

    fn system(files: &[(&str, &str)]) -> (tempfile::TempDir, System) {
        let folder = tempfile::tempdir().unwrap();
        let system = System::at(folder.path());
        for (file, text) in files {
            let path = system.path(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        (folder, system)
    }

    #[test]
    fn what_a_host_lacks_is_named() {
        let (_folder, system) = system(&[
            ("/proc/sys/fs/inotify/max_user_instances", "8\n"),
            ("/proc/sys/vm/nr_hugepages", "0\n"),
            ("/sys/kernel/security/lsm", "capability,yama\n"),
        ]);
        let mut report = Report::default();
        kvm(&system, &mut report);
        limits(&system, &mut report);
        sandbox(&system, &mut report);
        for (state, what, remedy) in [
            (State::Missing, "/dev/kvm", "modprobe kvm_intel"),
            (State::Note, "inotify", "max_user_instances=128"),
            (State::Note, "huge pages", "nr_hugepages"),
            (State::Note, "seccomp", "CONFIG_SECCOMP_FILTER"),
            (State::Note, "landlock", "lsm=landlock"),
        ] {
            assert!(report.says(state, what, remedy), "{what}: {report}");
        }
    }

    #[test]
    fn what_a_host_has_is_ok() {
        let (_folder, system) = system(&[
            ("/dev/kvm", ""),
            ("/proc/sys/fs/inotify/max_user_instances", "128\n"),
            ("/proc/sys/vm/nr_hugepages", "64\n"),
            (
                "/proc/sys/kernel/seccomp/actions_avail",
                "kill_process trap\n",
            ),
            ("/sys/kernel/security/lsm", "landlock,yama\n"),
        ]);
        let mut report = Report::default();
        kvm(&system, &mut report);
        sandbox(&system, &mut report);
        assert!(
            report.findings.iter().all(|it| it.state == State::Ok),
            "{report}"
        );
        limits(&system, &mut report);
        assert!(report.says(State::Ok, "inotify", ""), "{report}");
        assert!(report.says(State::Ok, "huge pages", ""), "{report}");
    }

    #[test]
    fn vmms_are_asked_for_the_option() {
        let folder = tempfile::tempdir().unwrap();
        let script = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            path
        };
        let mut report = Report::default();
        let with = script("with", "echo ' --ivsmc <ivsmc>'");
        let without = script("without", "echo ' --net <net>'");
        let endless = script("endless", "while echo --ivsmc; do :; done");
        for vmm in [&with, &without, &endless, &folder.path().join("none")] {
            has_option(vmm, &mut report);
        }
        let states: Vec<_> = report.findings.iter().map(|it| it.state).collect();
        assert_eq!(
            states,
            [State::Ok, State::Wrong, State::Ok, State::Wrong],
            "{report}"
        );
        let without = without.display().to_string();
        assert!(report.says(State::Wrong, &without, "patch-vmm"), "{report}");
    }

    #[test]
    fn folders_that_others_may_write_to_are_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let policy = Policy::parse(POLICY, folder.path()).unwrap();
        let checked = |mode: Option<u32>| {
            let blue = folder.path().join("blue");
            if let Some(mode) = mode {
                fs::create_dir_all(&blue).unwrap();
                fs::set_permissions(&blue, fs::Permissions::from_mode(mode)).unwrap();
            }
            let mut report = Report::default();
            fabrics(&policy, &Listing::default(), &mut report);
            report
        };
        let report = checked(None);
        assert!(
            report.says(State::Note, "fabric blue", "ivsmc-host"),
            "{report}"
        );
        assert!(report.says(State::Note, "VMs", "--api-socket"), "{report}");
        let report = checked(Some(0o1777));
        assert!(
            report.says(State::Wrong, "fabric blue", "chmod o-w"),
            "{report}"
        );
        let report = checked(Some(0o3770));
        assert!(report.says(State::Ok, "fabric blue", ""), "{report}");
    }

    #[test]
    fn each_state_of_a_vm_has_its_remedy() {
        let vm = |fabric: Option<&str>, attached, links| VmLine {
            name: "web".into(),
            fabric: fabric.map(str::to_owned),
            attached,
            links,
            ..VmLine::default()
        };
        for (vm, state, remedy) in [
            (vm(None, false, None), State::Note, "a rule in the policy"),
            (vm(Some("blue"), false, None), State::Missing, "journalctl"),
            (vm(Some("blue"), true, None), State::Note, "patch its VMM"),
            (
                vm(Some("blue"), true, Some(Vec::new())),
                State::Note,
                "`allow`",
            ),
        ] {
            let mut report = Report::default();
            look(&vm, &mut report);
            assert!(report.says(state, "VM web", remedy), "{report}");
        }
        let policy = Policy::parse(POLICY, Path::new("/nonexistent")).unwrap();
        let skipped = SkippedLine {
            path: "x".into(),
            why: "no socket".into(),
        };
        let listing = Listing {
            skipped: vec![skipped],
            ..Listing::default()
        };
        let mut report = Report::default();
        fabrics(&policy, &listing, &mut report);
        assert!(
            report.says(State::Note, "sockets", "docs/host.md"),
            "{report}"
        );
    }
}
