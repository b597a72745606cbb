// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The lab VM: a Linux under QEMU's TCG, which emulates an AMD processor with SVM well enough that guests run
//! in it on a real /dev/kvm.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cache;
use crate::heartbeat::Heartbeat;
use crate::platform;
use crate::process::{self, Limits, StoodStill};

const QEMU: &str = "qemu-system-x86_64";
/// Enough for the guests of the largest test.
const MEMORY: &str = "4096M";
/// How often it is booted at most, if it crashes.
const BOOTS: u32 = 3;
/// What tests/lab-image/init adds to the runner's exit status, to tell it from QEMU's.
const STATUS_BASE: i32 = 16;

/// Where in the shared folder its init has each processor write a file, each few seconds.
const ALIVE: &str = "alive";
/// How long a processor may write none.
const PATIENCE: Duration = Duration::from_secs(2 * 60);

/// What a lab VM is booted with.
pub struct LabVm<'a> {
    pub kernel: &'a Path,
    /// Its initramfs.
    pub image: &'a Path,
    /// The folder that it gets as /host.
    pub share: &'a Path,
    /// The file for what the runner says; the terminal shows that as well.
    pub log: &'a Path,
    /// The folder for its kernel's console and QEMU's complaints (of what TCG cannot emulate, many lines).
    pub out: &'a Path,
    /// How long it may run.
    pub limit: Duration,
    /// Whether its processors take turns from the first boot on.
    pub steady: bool,
}

/// How a lab VM ended.
enum Ended {
    /// With the runner's status.
    WithStatus(i32),
    /// Without; what is known of it, in lines.
    Crashed(String),
}

impl LabVm<'_> {
    /// Boots it; returns the runner's exit status.
    ///
    /// With a thread for each processor, QEMU 7.2 loses a guest that has guests now and then. Then it is started again, and
    /// its processors take turns in one thread: no such VM has been lost.
    pub fn run(&self) -> Result<i32> {
        check_share(self.share)?;
        let mut boots = 0;
        loop {
            boots += 1;
            let threads = if self.steady || boots > 1 {
                "single"
            } else {
                "multi"
            };
            match self.boot(threads)? {
                Ended::WithStatus(status) => return Ok(status),
                Ended::Crashed(why) if boots < BOOTS => {
                    println!("{why}the lab VM is started again, with processors that take turns");
                }
                Ended::Crashed(why) => bail!("{why}logs: {}", self.out.display()),
            }
        }
    }

    /// Boots it with QEMU's `thread=` as given.
    fn boot(&self, threads: &str) -> Result<Ended> {
        let (console, complaints) = (self.out.join("lab-console.log"), self.out.join("qemu.log"));
        let shown = process::output(Command::new(QEMU).arg("--version"))?;
        let major = major(&shown).with_context(|| format!("{QEMU} --version: {shown:?}"))?;
        // What KVM takes for the processor's frequency is measured while the lab boots, a second time when KVM has already
        // begun: by default it then refuses a restored guest the frequency that it gave that guest before.
        // The lab is an instrument: it is to be the same each time, and its crashes are to be compared. That addresses differ
        // from boot to boot is for the guests.
        let mut append =
            String::from("console=ttyS0 panic=-1 loglevel=4 nokaslr kvm.tsc_tolerance_ppm=500000");
        if let Some(option) = nested_paging(major) {
            append = format!("{append} {option}");
        }
        let processors = std::thread::available_parallelism()?.get().clamp(2, 4);

        let mut command = platform::dies_with_us("sh");
        command
            .args(["-c", "exec \"$@\" 2>\"$0\""])
            .arg(&complaints)
            .arg(QEMU)
            .args(["-cpu", "EPYC,+svm,+npt,-xsave"])
            .arg("-accel")
            .arg(format!("tcg,thread={threads}"))
            .args(["-smp", &processors.to_string(), "-m", MEMORY])
            .args(["-display", "none", "-no-reboot", "-nodefaults"])
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args([
                "-chardev",
                "stdio,id=runner,signal=off",
                "-serial",
                "chardev:runner",
            ])
            .arg("-virtfs")
            .arg(format!(
                "local,path={},mount_tag=host,security_model=none,multidevs=remap",
                self.share.display()
            ))
            .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"])
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.image)
            .args(["-append", &append]);
        // Nothing of the boot before.
        let alive = self.share.join(ALIVE);
        cache::remove(&alive)?;
        fs::create_dir(&alive)?;
        let limits = Limits {
            total: self.limit,
            heartbeat: Some(Heartbeat::new(&alive, PATIENCE, Instant::now())),
        };
        let status = match process::run_and_show(command, self.log, Some(limits)) {
            Err(error) if error.is::<StoodStill>() => {
                let known = process::tail(&console);
                return Ok(Ended::Crashed(format!("{error}\n{known}")));
            }
            other => other?,
        };
        Ok(match status.code().and_then(runner_status) {
            Some(status) => Ended::WithStatus(status),
            None => Ended::Crashed(format!(
                "the lab VM ended without the runner's status (QEMU: {status})\n{}{}",
                process::tail(&complaints),
                process::tail(&console)
            )),
        })
    }
}

/// What the lab's kernel needs to be told of nested paging: KVM uses it on AMD, but up to some version (7.2 has
/// the fault, 11.1 does not) QEMU's loses guests to triple faults, and later versions work only with it.
fn nested_paging(qemu: u32) -> Option<&'static str> {
    (qemu < 8).then_some("kvm_amd.npt=0")
}

/// "QEMU emulator version 7.2.22 (Debian ...)": 7.
fn major(shown: &str) -> Option<u32> {
    shown
        .split_once("version ")?
        .1
        .split('.')
        .next()?
        .parse()
        .ok()
}

/// The runner's exit status in QEMU's: isa-debug-exit makes 2n + 1 of n.
fn runner_status(qemu: i32) -> Option<i32> {
    let status = (qemu - 1) / 2 - STATUS_BASE;
    (qemu % 2 == 1 && status >= 0).then_some(status)
}

/// Checks that a lab VM can be given `share`: QEMU splits its options at commas.
fn check_share(share: &Path) -> Result<()> {
    if share.to_string_lossy().contains(',') {
        bail!(
            "the cache folder {} has a comma in its name, which QEMU cannot handle; set IVSMC_CACHE \
             to another folder",
            share.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemus_version() {
        assert_eq!(
            major("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright"),
            Some(7)
        );
        assert_eq!(major("QEMU emulator version 11.1.0"), Some(11));
        assert_eq!(major("something else"), None);
        assert!(nested_paging(7).is_some() && nested_paging(11).is_none());
    }

    #[test]
    fn the_runners_status_is_told_from_qemus() {
        let seen = |runner: i32| 2 * (runner + STATUS_BASE) + 1;
        assert_eq!(runner_status(seen(0)), Some(0));
        assert_eq!(runner_status(seen(100)), Some(100));
        assert!(seen(100) < 256);
        for of_qemu in [0, 1, 2] {
            assert_eq!(runner_status(of_qemu), None);
        }
    }
}
