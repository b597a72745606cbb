// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The QEMU that the lab VM runs in: the system's, or a newer one of Debian's in the cache.
//!
//! The SVM of QEMU 7.2, which Debian 12 has, loses a lab VM now and then, and its guests unless they go without nested
//! paging. Debian 12's backports have one that does not. It is unpacked into the cache; nothing is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::apt::Apt;
use crate::cache::{self, Cache};
use crate::process;

const PROGRAM: &str = "qemu-system-x86_64";
/// The first major version that is known to be steady.
const STEADY: u32 = 10;
/// What it needs beside the libraries that the system's own has.
const PACKAGES: [&str; 4] = [
    "qemu-system-x86",
    "qemu-system-common",
    "qemu-system-data",
    "seabios",
];
/// Where these packages have their firmware.
const FIRMWARE: [&str; 2] = ["usr/share/qemu", "usr/share/seabios"];

/// A QEMU.
pub struct Qemu {
    program: PathBuf,
    /// Folders with firmware, if not its own.
    firmware: Vec<PathBuf>,
    major: u32,
}

impl Qemu {
    /// The system's if it is new enough, else one from the backports of the system's release, else the system's all the
    /// same.
    pub fn find(cache: &Cache) -> Result<Self> {
        let system = Self::at(PROGRAM.into(), Vec::new())?;
        if system.major >= STEADY {
            return Ok(system);
        }
        match backport(cache) {
            Ok(qemu) => Ok(qemu),
            Err(error) => {
                println!(
                    "qemu: the system's {}, under which the lab VM crashes now and then, as there is no newer one: \
                     {error:#}",
                    system.major
                );
                Ok(system)
            }
        }
    }

    fn at(program: PathBuf, firmware: Vec<PathBuf>) -> Result<Self> {
        let shown = process::output(Command::new(&program).arg("--version"))?;
        let major =
            major(&shown).with_context(|| format!("{} --version: {shown:?}", program.display()))?;
        Ok(Self {
            program,
            firmware,
            major,
        })
    }

    /// The command line's beginning.
    pub fn command_line(&self) -> Vec<PathBuf> {
        let mut line = vec![self.program.clone()];
        for folder in &self.firmware {
            line.extend(["-L".into(), folder.clone()]);
        }
        line
    }

    /// What the lab's kernel needs to be told of nested paging: KVM uses it on AMD, but up to some version (7.2 has
    /// the fault, 10.0 does not) QEMU's loses guests to triple faults, and later versions work only with it.
    pub fn kernel_option(&self) -> Option<&'static str> {
        (self.major < 8).then_some("kvm_amd.npt=0")
    }
}

/// A newer QEMU, fetched unless it is there.
fn backport(cache: &Cache) -> Result<Qemu> {
    let release = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let suite = format!("{}-backports", codename(&release)?);
    let folder = cache.path("qemu").join(&suite);
    if !cache::is_finished(&folder) {
        fetch(cache, &suite, &folder)?;
    }
    let firmware = FIRMWARE.map(|path| folder.join(path)).into();
    let qemu = Qemu::at(folder.join("usr/bin").join(PROGRAM), firmware)?;
    ensure!(
        qemu.major >= STEADY,
        "{suite} has QEMU {}, which is not newer",
        qemu.major
    );
    Ok(qemu)
}

fn fetch(cache: &Cache, suite: &str, folder: &Path) -> Result<()> {
    let apt = Apt::new(cache, &[suite])?;
    apt.update(cache, "qemu")?;
    let download = cache.fresh("qemu/download")?;
    let mut command = apt.command("apt-get", &["-q", "download"]);
    command
        .args(PACKAGES.map(|package| format!("{package}/{suite}")))
        .current_dir(&download);
    process::run_with_progress(
        &format!("qemu: fetching the one of {suite} (about 14 MB)"),
        command,
        &cache.log("qemu-download")?,
        None,
    )?;
    let unpacked = cache.fresh("qemu/unpack")?;
    for package in fs::read_dir(&download)? {
        process::output(
            Command::new("dpkg-deb")
                .arg("--extract")
                .arg(package?.path())
                .arg(&unpacked),
        )?;
    }
    cache::set_finished(&unpacked)?;
    cache::remove(folder)?;
    fs::rename(unpacked, folder)?;
    cache::remove(&download)
}

/// The name of the Debian release that /etc/os-release tells of.
fn codename(release: &str) -> Result<&str> {
    let value = |name| {
        release
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .map(|value| value.trim_matches('"'))
    };
    ensure!(
        value("ID") == Some("debian"),
        "this is not Debian, whose backports might have one"
    );
    value("VERSION_CODENAME").context("/etc/os-release names no release (VERSION_CODENAME)")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read() {
        assert_eq!(
            major("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright"),
            Some(7)
        );
        assert_eq!(major("QEMU emulator version 11.1.0"), Some(11));
        assert_eq!(major("something else"), None);
    }

    #[test]
    fn the_release_is_read() {
        let release = "PRETTY_NAME=\"Debian GNU/Linux 12\"\nVERSION_CODENAME=bookworm\nID=debian\n";
        assert_eq!(codename(release).unwrap(), "bookworm");
        assert!(codename("ID=ubuntu\nVERSION_CODENAME=noble\n").is_err());
        assert!(codename("ID=debian\n").is_err());
    }

    #[test]
    fn firmware_is_named_only_if_it_is_not_its_own() {
        let qemu = |firmware| Qemu {
            program: PROGRAM.into(),
            firmware,
            major: 7,
        };
        assert_eq!(qemu(Vec::new()).command_line(), [Path::new(PROGRAM)]);
        assert_eq!(
            qemu(vec!["/a".into()]).command_line(),
            [PROGRAM, "-L", "/a"].map(Path::new)
        );
    }
}
