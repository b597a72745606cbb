// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A VMM's process.

use crate::guest::Guest;
use crate::lab::{self, Lab, Platform, VmmKind};
use crate::network;
use anyhow::{Context, Result, bail, ensure};
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Lines of each log that a failure shows.
const TAIL: usize = 40;

/// A running VMM; dropping it kills it.
#[derive(Debug)]
pub struct Vmm {
    child: Child,
    folder: PathBuf,
}

impl Vmm {
    /// Starts a VMM for `guest`.
    pub fn start(lab: &Lab, guest: &Guest) -> Result<Self> {
        let folder = lab.log_folder(guest.name())?;
        let tap = format!("iv-{}", guest.name());
        lab.network
            .tap(&tap)
            .with_context(|| format!("tap {tap}"))?;
        let program = lab.program();
        let mut command = Command::new(&program);
        match lab.vmm {
            VmmKind::Qemu => qemu(&mut command, lab, guest, &tap, &folder),
            VmmKind::Reference | VmmKind::CloudHypervisor => {
                rust_vmm(&mut command, lab, guest, &tap, &folder);
            }
        }
        let log = File::create(folder.join("vmm.log"))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Vmm { child, folder })
    }

    /// Says what is wrong with the VMM, if anything is.
    pub fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("the VMM has ended: {status}");
        }
        let log = std::fs::read(self.folder.join("vmm.log"))?;
        // Cloud Hypervisor resets a guest that did this, and goes on as if nothing had been.
        if String::from_utf8_lossy(&log).contains("triple-faulted") {
            bail!("the guest has triple-faulted");
        }
        Ok(())
    }

    /// Kills the VMM as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Keeps the guest's processors on one of the machine's, as one does to measure: two that take turns on one
    /// wait for each other.
    pub fn pin(&self, processor: usize) -> Result<()> {
        for thread in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let thread = thread?;
            if std::fs::read_to_string(thread.path().join("comm"))?.starts_with("vcpu") {
                let done = Command::new("taskset")
                    .args(["-p", &format!("{:x}", 1u64 << processor)])
                    .arg(thread.file_name())
                    .stdout(Stdio::null())
                    .status()?;
                ensure!(done.success(), "taskset: {done}");
            }
        }
        Ok(())
    }

    /// Waits for the VMM to end by itself.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let start = Instant::now();
        while start.elapsed() < timeout {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("the VMM still runs after {timeout:?}")
    }

    /// The ends of the logs.
    pub fn tails(&self) -> String {
        let mut text = String::new();
        for file in ["serial.log", "vmm.log"] {
            let path = self.folder.join(file);
            text += &format!(
                "--- the end of {}\n{}\n",
                path.display(),
                lab::tail(&path, TAIL)
            );
        }
        text
    }

    /// The folder with the logs.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // If it has ended already there is nothing to do.
        let _ = self.kill();
    }
}

/// The guest's kernel command line.
fn command_line(lab: &Lab, guest: &Guest) -> String {
    // An uninterrupted boot writes little; what the kernel's checks report is to be seen.
    let mut line = String::from("console=ttyS0 panic=-1 loglevel=5");
    if lab.platform == Platform::Lab && lab.vmm != VmmKind::Qemu {
        // Guests in the lab lose the interrupts of the deadline timer.
        line += " lapic=notscdeadline";
    }
    line += &format!(
        " ivsmc.hostname={} ivsmc.ip={}/{} ivsmc.mode={}",
        guest.name(),
        guest.address(),
        network::PREFIX,
        guest.mode_at_boot()
    );
    line
}

fn prefixed(prefix: &str, path: &Path) -> OsString {
    let mut text = OsString::from(prefix);
    text.push(path);
    text
}

fn rust_vmm(command: &mut Command, lab: &Lab, guest: &Guest, tap: &str, folder: &Path) {
    command
        .arg("--kernel")
        .arg(lab.stage.join("bzImage"))
        .arg("--initramfs")
        .arg(lab.stage.join("guest.cpio"))
        .args(["--cmdline", &command_line(lab, guest)])
        .args(["--cpus", &format!("boot={}", guest.processors())])
        .args(["--memory", &format!("size={}M", guest.megabytes())])
        .args(["--net", &format!("tap={tap},mac={}", guest.mac())])
        .args(["--console", "off", "--serial"])
        .arg(prefixed("file=", &folder.join("serial.log")));
    if let Some(ivsmc) = guest.device() {
        command.args(["--ivsmc", ivsmc]);
    }
    if lab.vmm == VmmKind::CloudHypervisor {
        command.arg("-v");
    }
}

fn qemu(command: &mut Command, lab: &Lab, guest: &Guest, tap: &str, folder: &Path) {
    command
        .args([
            "-cpu",
            "max",
            "-accel",
            "tcg,thread=multi",
            "-display",
            "none",
            "-nodefaults",
        ])
        .args(["-smp", &guest.processors().to_string()])
        .args(["-m", &format!("{}M", guest.megabytes())])
        .arg("-kernel")
        .arg(lab.stage.join("bzImage"))
        .arg("-initrd")
        .arg(lab.stage.join("guest.cpio"))
        .args(["-append", &command_line(lab, guest)])
        .args([
            "-netdev",
            &format!("tap,id=net,ifname={tap},script=no,downscript=no"),
        ])
        .args([
            "-device",
            &format!("virtio-net-pci,netdev=net,mac={}", guest.mac()),
        ])
        .arg("-serial")
        .arg(prefixed("file:", &folder.join("serial.log")));
    if let Some(server) = guest.device() {
        command
            .args(["-chardev", &format!("socket,id=ivshmem,path={server}")])
            .args(["-device", "ivshmem-doorbell,chardev=ivshmem,vectors=2"]);
    }
}
