// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask aarch64`: the tests of what runs on hosts, compiled for aarch64 and run by qemu-user.
//!
//! rustup has no standard library for another machine without a download of its own; Debian packages one for each of its
//! architectures. It belongs to Debian's own rustc, and that to Debian's libraries: so a root with all of them is unpacked
//! into the cache, and cargo runs in it, in a mount namespace of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use anyhow::{Context, Result, bail};

use crate::apt::Apt;
use crate::cache::{self, Cache, Key};
use crate::{prerequisites, process, programs};

const TARGET: &str = "aarch64-unknown-linux-gnu";
/// The release of Debian's that packages are from: stable's rustc is too old for this workspace.
const SUITE: &str = "sid";
const PACKAGES: [&str; 8] = [
    "cargo",
    "coreutils",
    // For scripts of tests.
    "dash",
    "jq",
    "gcc-aarch64-linux-gnu",
    "libc6-dev-arm64-cross",
    "libstd-rust-dev:arm64",
    "qemu-user",
];
/// What runs a program for aarch64.
const RUNNER: &str = "qemu-aarch64 -L /usr/aarch64-linux-gnu";
/// What is tested: what runs on hosts, but for the VMM of demo and tests, which is for x86-64.
const CRATES: [&str; 2] = ["vmm-device-ivsmc", "ivsmc-host"];
/// What is seen in the root as it is outside: its arguments are the root, and folders; then comes a command.
const ENTER: &str = r#"
set -e
root=$1
shift
while [ "$1" != -- ]; do
    mkdir -p "$root$1"
    mount --rbind "$1" "$root$1"
    shift
done
shift
exec chroot "$root" "$@"
"#;

/// `cargo xtask aarch64`
pub fn main() -> Result<()> {
    let cache = Cache::open()?;
    let (status, log) = test(&cache, &crate::repository()?)?;
    if !status.success() {
        bail!("tests failed; their output is in {}", log.display());
    }
    Ok(())
}

/// Runs the tests; their output is in the log.
pub fn test(cache: &Cache, repository: &Path) -> Result<(ExitStatus, PathBuf)> {
    let toolchain = toolchain(cache)?;
    println!("{}", fs::read_to_string(toolchain.join("versions"))?.trim());
    // In the root there is no network.
    process::run(programs::cargo(repository).args(["fetch", "--quiet", "--locked"]))?;
    let home = cargo_home()?;
    let target = cache.path("target-aarch64");
    fs::create_dir_all(&target)?;

    let mut command = Command::new("unshare");
    command.arg("--mount");
    if !prerequisites::is_root()? {
        command.arg("--map-root-user");
    }
    command
        .args(["sh", "-c", ENTER, "enter"])
        .arg(toolchain.join("root"))
        .args(["/dev", "/proc", "/sys", "/tmp"].map(Path::new))
        .args([repository, &home, &target])
        .args(["--", "env", "--ignore-environment", "--chdir"])
        .arg(repository)
        .args(["PATH=/usr/bin", "HOME=/root", "CARGO_NET_OFFLINE=true"])
        .arg(format!("CARGO_HOME={}", home.display()))
        .arg(format!("CARGO_TARGET_DIR={}", target.display()))
        // Debian's links to compilers are made by scripts, which were not run.
        .arg("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER=gcc")
        .arg("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc")
        .arg(format!(
            "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER={RUNNER}"
        ))
        // For tests that start a program themselves.
        .arg(format!("IVSMC_TEST_RUNNER={RUNNER}"));
    if let Some(jobs) = std::env::var_os("CARGO_BUILD_JOBS") {
        command.arg(format!("CARGO_BUILD_JOBS={}", jobs.to_string_lossy()));
    }
    command
        .args(["cargo", "test", "--locked", "--no-fail-fast"])
        .args(["--target", TARGET])
        .args(CRATES.iter().flat_map(|name| ["--package", name]));
    let log = cache.log("test-aarch64")?;
    let status = process::run_and_show(command, &log, None)?;
    Ok((status, log))
}

/// Where cargo keeps the sources of what the workspace depends on.
fn cargo_home() -> Result<PathBuf> {
    std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cargo")))
        .context("neither CARGO_HOME nor HOME is set: set CARGO_HOME to cargo's folder")
}

/// The folder with Debian's compilers and qemu-user.
fn toolchain(cache: &Cache) -> Result<PathBuf> {
    let key = Key::default()
        .text("suite", SUITE)
        .text("packages", &PACKAGES.join(" "));
    let folder = cache.path(format!("aarch64-{}", key.finish()));
    if !cache::is_finished(&folder) {
        cache::remove(&folder)?;
        let root = folder.join("root");
        fs::create_dir_all(&root)?;
        let apt = Apt::new(cache, &[SUITE])?.also("arm64");
        let packages = apt.unpack(cache, "aarch64", &PACKAGES.map(str::to_owned), &root)?;
        let versions = ["rustc", "qemu-user"].map(|name| {
            let package = packages.iter().find(|package| package.name == name);
            package.map_or_else(String::new, |p| format!("Debian's {name} {}", p.version))
        });
        fs::write(folder.join("versions"), versions.join(", "))?;
        cache::set_finished(&folder)?;
    }
    Ok(folder)
}
