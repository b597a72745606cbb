// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where the guests run: on this machine's KVM, or in the lab VM.

use std::fs::OpenOptions;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::prerequisites;

/// Where the guests run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Platform {
    /// on this machine's KVM
    Kvm,
    /// in a Linux under QEMU, which emulates a processor with virtualization: slower, works anywhere
    Lab,
}

impl Platform {
    /// Its name as the runner knows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Lab => "lab",
        }
    }
}

/// Takes the platform that was asked for, or the better one that there is; says which.
pub fn choose(forced: Option<Platform>) -> Platform {
    let (platform, reason) = match forced {
        Some(platform) => (platform, "--platform".to_owned()),
        None => match native_kvm() {
            Ok(module) => (Platform::Kvm, format!("{module} is there")),
            Err(reason) => (Platform::Lab, reason.to_string()),
        },
    };
    let place = match platform {
        Platform::Kvm => "this machine's KVM",
        Platform::Lab => "the lab VM, QEMU emulating a processor with virtualization",
    };
    println!("platform: {}: {place} ({reason})", platform.name());
    platform
}

/// The module of the KVM that can boot Linux guests, or why there is none.
fn native_kvm() -> Result<&'static str> {
    // /dev/kvm alone does not say much: it can be a KVM that emulates its guests' kernel code.
    let Some(module) = ["kvm_intel", "kvm_amd"]
        .into_iter()
        .find(|m| Path::new("/sys/module").join(m).exists())
    else {
        bail!("neither kvm_intel nor kvm_amd is there");
    };
    if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        bail!("{module} is there, but /dev/kvm cannot be opened: {error}");
    }
    Ok(module)
}

/// A command that runs a program on this machine, apart from its network and so that nothing of it stays
/// behind when it ends or is ended.
pub fn apart(program: &Path) -> Result<Command> {
    let mut command = dies_with_us("unshare");
    if !prerequisites::is_root()? {
        command.args(["--user", "--map-root-user"]);
    }
    command
        .args([
            "--net",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ])
        .args(["sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""])
        .arg(program);
    Ok(command)
}

/// A command whose process is killed when ours ends, however that happens.
pub fn dies_with_us(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", program]);
    command
}
