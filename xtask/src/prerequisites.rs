// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Debian packages that building and running need.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache::Cache;
use crate::process;

/// To build the kernel and the module.
const BUILD: [&str; 14] = [
    "gcc",
    "libc6-dev",
    "make",
    "flex",
    "bison",
    "bc",
    "libelf-dev",
    "libssl-dev",
    "xz-utils",
    "cpio",
    "kmod",
    "perl",
    "sparse",
    "dwarves",
];

/// To run the guests, and to be run in them; for tests of scripts.
const RUN: [&str; 11] = [
    "busybox-static",
    "sockperf",
    "redis-tools",
    "iperf3",
    "civetweb",
    "haproxy",
    "wrk",
    "qemu-system-x86",
    "iproute2",
    "jq",
    "util-linux",
];

/// To make packages.
pub const PACKAGING: [&str; 5] = ["debhelper", "dh-dkms", "dpkg-dev", "lintian", "mmdebstrap"];

/// Installs what is missing of what all commands need.
pub fn install(cache: &Cache) -> Result<()> {
    install_these(cache, &[&BUILD[..], &RUN].concat())
}

/// Installs what is missing of these.
pub fn install_these(cache: &Cache, packages: &[&'static str]) -> Result<()> {
    let installed = process::output(Command::new("dpkg-query").args([
        "-W",
        "-f",
        "${db:Status-Status} ${Package}\n",
    ]))
    .context("ivsmc is prepared on Debian, or a system like it, with dpkg and apt")?;
    let missing = missing(&installed, packages);
    if missing.is_empty() {
        return Ok(());
    }
    if !is_root()? {
        bail!(
            "packages are missing; install them and try again:\n  \
             sudo apt-get update && sudo apt-get install --no-install-recommends {}",
            missing.join(" ")
        );
    }
    println!("packages: installing {}", missing.join(" "));
    let apt_get = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            // the user's own changes of configuration files are kept
            .args([
                "-q",
                "-y",
                "-o",
                "Dpkg::Use-Pty=0",
                "-o",
                "Dpkg::Options::=--force-confold",
            ])
            // another apt may be at work, say the system's own updates
            .args(["-o", "DPkg::Lock::Timeout=300"])
            .args(arguments);
        command
    };
    // An installation that was interrupted has to be finished first; else this does nothing.
    let mut configure = Command::new("dpkg");
    configure.env("DEBIAN_FRONTEND", "noninteractive").args([
        "--configure",
        "-a",
        "--force-confold",
    ]);
    process::run_with_progress(
        "packages: dpkg --configure",
        configure,
        &cache.log("dpkg-configure")?,
        None,
    )?;
    process::run_with_progress(
        "packages: apt-get update",
        apt_get(&["update"]),
        &cache.log("apt-get-update")?,
        None,
    )?;
    let mut install = apt_get(&["install", "--no-install-recommends"]);
    install.args(&missing);
    process::run_with_progress(
        "packages: apt-get install",
        install,
        &cache.log("apt-get-install")?,
        None,
    )
}

/// Which packages are not in the output of dpkg-query.
fn missing(installed: &str, packages: &[&'static str]) -> Vec<&'static str> {
    let installed: HashSet<_> = installed
        .lines()
        .filter_map(|line| line.strip_prefix("installed "))
        .collect();
    packages
        .iter()
        .copied()
        .filter(|package| !installed.contains(package))
        .collect()
}

/// Whether this process is root's.
pub fn is_root() -> Result<bool> {
    Ok(std::fs::metadata("/proc/self")
        .context("cannot read /proc/self")?
        .uid()
        == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_installed_counts() {
        let all = BUILD.iter().map(|package| format!("installed {package}\n"));
        let all: String = all.collect();
        assert_eq!(missing(&all, &BUILD), Vec::<&str>::new());
        assert_eq!(
            missing(&all.replace("installed flex", "config-files flex"), &BUILD),
            ["flex"]
        );
        assert_eq!(missing("", &BUILD), BUILD);
    }
}
