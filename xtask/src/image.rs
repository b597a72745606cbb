// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The initramfs of guests and of the lab VM: busybox, an init script, and what belongs to each.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache::Cache;
use crate::kernel::Kernel;
use crate::process;
use crate::programs::{self, Programs};

const BUSYBOX: &str = "/bin/busybox";
/// Programs of the system that guests have, and where from. Debian's redis-tools has the server: the program
/// is told by its name what to be.
const SYSTEM_PROGRAMS: [(&str, &str); 8] = [
    ("sockperf", "/usr/bin/sockperf"),
    ("redis-server", "/usr/bin/redis-check-rdb"),
    ("redis-benchmark", "/usr/bin/redis-benchmark"),
    ("redis-cli", "/usr/bin/redis-cli"),
    ("iperf3", "/usr/bin/iperf3"),
    ("civetweb", "/usr/bin/civetweb"),
    ("haproxy", "/usr/sbin/haproxy"),
    ("wrk", "/usr/bin/wrk"),
];

/// Makes the guests' image.
pub fn guest(
    cache: &Cache,
    repository: &Path,
    kernel: &Kernel,
    modules: &[PathBuf],
    programs: &Programs,
) -> Result<PathBuf> {
    let root = root(cache, "guest-root", &repository.join("guest/image/init"))?;
    let bin = root.join("bin");
    programs::install(&programs.guest_tool, &bin.join("ivsmc-guest"))?;
    programs::install(&programs.traffic, &bin.join("ivsmc-traffic"))?;
    programs::install(&programs.conformance, &bin.join("ivsmc-conformance"))?;

    let mut libraries = BTreeSet::new();
    for (name, program) in SYSTEM_PROGRAMS {
        copy(Path::new(program), &bin.join(name))?;
        let listed = process::output(Command::new("ldd").arg(program).env("LC_ALL", "C"))?;
        libraries.append(&mut closure(&listed).with_context(|| format!("ldd {program}"))?);
    }
    for library in libraries {
        copy(&library, &root.join(library.strip_prefix("/")?))?;
    }

    let kunit = kernel.build.join("lib/kunit/kunit.ko");
    for module in modules.iter().chain([&kunit]) {
        let name = module.file_name().context("a module without a name")?;
        copy(module, &root.join("lib/modules").join(name))?;
    }
    pack(cache, &root, "guest.cpio")
}

/// Makes the lab VM's image.
pub fn lab(cache: &Cache, repository: &Path) -> Result<PathBuf> {
    let root = root(cache, "lab-root", &repository.join("tests/lab-image/init"))?;
    pack(cache, &root, "lab.cpio")
}

/// A root file system with busybox and the init script.
fn root(cache: &Cache, name: &str, init: &Path) -> Result<PathBuf> {
    let root = cache.fresh(name)?;
    for folder in [
        "bin",
        "dev",
        "etc",
        "lib/modules",
        "proc",
        "root",
        "run",
        "sys",
        "tmp",
        "usr",
    ] {
        fs::create_dir_all(root.join(folder))?;
    }
    symlink("bin", root.join("sbin"))?;
    symlink("../bin", root.join("usr/bin"))?;
    symlink("../bin", root.join("usr/sbin"))?;
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\n")?;
    fs::write(
        root.join("etc/hosts"),
        "127.0.0.1 localhost\n::1 localhost\n",
    )?;
    let bin = root.join("bin");
    copy(Path::new(BUSYBOX), &bin.join("busybox"))?;
    for applet in process::output(Command::new(BUSYBOX).arg("--list"))?.lines() {
        if applet != "busybox" {
            symlink("busybox", bin.join(applet))?;
        }
    }
    copy(init, &root.join("init"))?;
    Ok(root)
}

/// Copies a file with its mode; makes the folders on the way, and replaces what is there.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    let copied = || -> std::io::Result<()> {
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder)?;
        }
        if to.is_symlink() {
            fs::remove_file(to)?;
        }
        fs::copy(from, to).map(drop)
    };
    copied().with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

/// The libraries that ldd lists.
pub fn closure(listed: &str) -> Result<BTreeSet<PathBuf>> {
    let mut libraries = BTreeSet::new();
    for line in listed.lines() {
        // "name => /path (address)", "/path (address)", "linux-vdso.so.1 (address)"
        let found = line
            .split_once("=>")
            .map_or(line, |(_, found)| found)
            .trim();
        if found == "not found" {
            bail!("{}", line.trim());
        }
        if let Some((path, _)) = found.split_once(" (")
            && path.starts_with('/')
        {
            libraries.insert(PathBuf::from(path));
        }
    }
    Ok(libraries)
}

/// Packs a folder as an initramfs of the cache.
fn pack(cache: &Cache, root: &Path, name: &str) -> Result<PathBuf> {
    let image = cache.path(name);
    let temporary = cache.path(format!("{name}.new"));
    process::output(
        Command::new("bash")
            .current_dir(root)
            .args([
                "-c",
                "set -eo pipefail; find . -mindepth 1 -print0 | LC_ALL=C sort -z \
                | cpio --null --create --format=newc --owner=+0:+0 --quiet >\"$1\"",
            ])
            .arg("pack")
            .arg(&temporary),
    )?;
    fs::rename(temporary, &image)?;
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_in_ldds_list() {
        let listed = "\tlinux-vdso.so.1 (0x00007f)\n\
                      \tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x00007f)\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let libraries: Vec<_> = closure(listed).unwrap().into_iter().collect();
        assert_eq!(
            libraries,
            [
                Path::new("/lib/x86_64-linux-gnu/libm.so.6"),
                Path::new("/lib64/ld-linux-x86-64.so.2")
            ]
        );
        assert!(closure("\tlibx.so => not found\n").is_err());
        assert!(closure("\tstatically linked\n").unwrap().is_empty());
    }
}
