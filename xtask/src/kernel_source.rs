// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The kernel's source: a tree of the user's, or the newest that Debian has.
//!
//! The system may be of a Debian release that is too old to have a kernel with DIBS: [`Apt`] knows newer ones.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::apt::Apt;
use crate::cache::{self, Cache, Key};
use crate::{kernel_patch, process};

/// The first version with DIBS.
const MINIMUM: Version = Version(6, 18);
/// Releases of Debian that have new kernels.
const SUITES: [&str; 2] = ["trixie-backports", "sid"];

/// A kernel's version, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32);

/// A kernel's source tree.
pub struct Source {
    pub folder: PathBuf,
    /// Names it, for people.
    pub version: String,
    /// Names it, for the cache.
    pub identity: String,
    /// Whether it can change under its name.
    pub changes: bool,
}

/// The source to build: `tree` as it is if there is one, else Debian's with the patches of `patches`.
pub fn get(cache: &Cache, tree: Option<&Path>, patches: &Path) -> Result<Source> {
    match tree {
        Some(tree) => users(tree),
        None => Source::debians(cache)?.patched(cache, patches, Unfit::LeftOut),
    }
}

/// What to do with a patch that does not fit the source.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Unfit {
    /// A later kernel may not need it.
    LeftOut,
    /// It is what the kernel is built for.
    Error,
}

fn users(tree: &Path) -> Result<Source> {
    let folder = tree
        .canonicalize()
        .with_context(|| format!("--kernel-src {}", tree.display()))?;
    let makefile = fs::read_to_string(folder.join("Makefile")).with_context(|| {
        format!(
            "--kernel-src {}: not a Linux source tree (no Makefile)",
            tree.display()
        )
    })?;
    let version = version_of(&makefile).with_context(|| {
        format!(
            "--kernel-src {}: not a Linux source tree (no version)",
            tree.display()
        )
    })?;
    ensure!(
        version >= MINIMUM,
        "--kernel-src {}: it is Linux {}.{}, but ivpci needs {}.{} or later",
        tree.display(),
        version.0,
        version.1,
        MINIMUM.0,
        MINIMUM.1
    );
    Ok(Source {
        version: format!("{}.{} of {}", version.0, version.1, folder.display()),
        identity: folder.display().to_string(),
        folder,
        changes: true,
    })
}

/// VERSION and PATCHLEVEL of Linux's Makefile.
fn version_of(makefile: &str) -> Option<Version> {
    let number = |name| {
        makefile.lines().find_map(|line| {
            let (variable, value) = line.split_once('=')?;
            (variable.trim() == name).then(|| value.trim().parse().ok())?
        })
    };
    Some(Version(number("VERSION")?, number("PATCHLEVEL")?))
}

impl Source {
    /// Debian's newest.
    pub fn debians(cache: &Cache) -> Result<Source> {
        let folder = cache.path("linux");
        let named = folder.join("current");
        if !named.exists() {
            fs::create_dir_all(&folder)?;
            let version = fetch(cache, &folder)?;
            let temporary = folder.join("current.new");
            fs::write(&temporary, version)?;
            fs::rename(temporary, &named)?;
        }
        let version = fs::read_to_string(named)?;
        Ok(Source {
            folder: folder.join(folder_name(&version)),
            identity: version.clone(),
            version,
            changes: false,
        })
    }

    /// The same with the patches of a folder, in a tree of its own that shares all other files with this one.
    pub fn patched(&self, cache: &Cache, patches: &Path, unfit: Unfit) -> Result<Source> {
        // What reproduces the defects is in a folder beside them, and changes no kernel.
        let key = Key::default().files(patches)?.finish();
        let identity = format!("{}+{key}", self.identity);
        let folder = cache.path("linux").join(folder_name(&identity));
        if self.changes || !cache::is_finished(&folder) {
            // Made under another name: the mark that a tree is finished is among what is copied.
            let copy = cache.path("linux/patched.new");
            cache::remove(&copy)?;
            process::output(
                Command::new("cp")
                    .args(["--archive", "--link"])
                    .args([&self.folder, &copy]),
            )
            .with_context(|| {
                format!(
                    "cannot link {} into the cache; have both on one file system (IVSMC_CACHE)",
                    self.folder.display()
                )
            })?;
            for patch in kernel_patch::sorted(patches)? {
                apply(&patch, &copy, unfit)?;
            }
            cache::set_finished(&copy)?;
            cache::remove(&folder)?;
            fs::rename(copy, &folder)?;
        }
        Ok(Source {
            folder,
            version: self.version.clone(),
            identity,
            changes: self.changes,
        })
    }
}

/// Applies a patch to a source tree.
fn apply(patch: &Path, tree: &Path, unfit: Unfit) -> Result<()> {
    match kernel_patch::apply(patch, tree) {
        Err(error) if unfit == Unfit::LeftOut => {
            println!(
                "kernel source: without {}, which does not fit this version: {error:#}",
                patch.display()
            );
            Ok(())
        }
        applied => applied.with_context(|| format!("{} does not fit this kernel", patch.display())),
    }
}

/// A folder's name for a package's version: make does not like all that Debian does.
fn folder_name(version: &str) -> String {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || ".-+".contains(c) {
            c
        } else {
            '_'
        }
    };
    format!("linux-{}", version.chars().map(plain).collect::<String>())
}

/// Fetches and unpacks the newest source into `folder`; returns its package's version.
fn fetch(cache: &Cache, folder: &Path) -> Result<String> {
    let apt = Apt::new(cache, &SUITES)
        .context("the kernel's source cannot be fetched; --kernel-src DIR takes a tree of yours")?;
    process::run_with_progress(
        "kernel source: looking what Debian has",
        apt.command("apt-get", &["-q", "update"]),
        &cache.log("kernel-source-update")?,
        None,
    )?;
    let names = process::output(&mut apt.command("apt-cache", &["pkgnames", "linux-source-"]))?;
    let package = newest(&names).with_context(|| {
        format!(
            "no linux-source package of {}.{} or later in Debian's {}; give a source tree with \
             --kernel-src DIR",
            MINIMUM.0,
            MINIMUM.1,
            SUITES.join(", ")
        )
    })?;
    let shown =
        process::output(&mut apt.command("apt-cache", &["show", "--no-all-versions", &package]))?;
    let version = shown
        .lines()
        .find_map(|line| line.strip_prefix("Version: "))
        .with_context(|| format!("apt-cache show {package}: no version"))?
        .trim()
        .to_owned();

    let target = folder.join(folder_name(&version));
    if target.exists() {
        return Ok(version);
    }
    let download = cache.fresh("linux/download")?;
    let mut command = apt.command("apt-get", &["-q", "download", &package]);
    command.current_dir(&download);
    process::run_with_progress(
        &format!("kernel source: fetching {package} {version} (about 160 MB)"),
        command,
        &cache.log("kernel-source-download")?,
        None,
    )?;
    let unpacked = cache.fresh("linux/unpack")?;
    let mut unpack = Command::new("bash");
    unpack
        .current_dir(&unpacked)
        .args([
            "-c",
            "set -eo pipefail; dpkg-deb --fsys-tarfile \"$1\"/*.deb \
            | tar --extract --to-stdout --wildcards './usr/src/linux-source-*.tar.xz' \
            | tar --extract --xz --strip-components=1",
        ])
        .arg("unpack")
        .arg(&download);
    process::run_with_progress(
        "kernel source: unpacking",
        unpack,
        &cache.log("kernel-source-unpack")?,
        None,
    )?;
    fs::rename(unpacked, target)?;
    cache::remove(&download)?;
    Ok(version)
}

/// The newest of the packages named, if it is new enough.
fn newest(names: &str) -> Option<String> {
    let version = |name: &str| {
        let (major, minor) = name.strip_prefix("linux-source-")?.split_once('.')?;
        Some(Version(major.parse().ok()?, minor.parse().ok()?))
    };
    names
        .lines()
        .filter_map(|name| Some((version(name.trim())?, name.trim())))
        .filter(|(version, _)| *version >= MINIMUM)
        .max()
        .map(|(_, name)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_come_from_the_makefile() {
        let makefile = "# SPDX\nVERSION = 7\nPATCHLEVEL = 3\nSUBLEVEL = 4\nNAME = x\n";
        assert_eq!(version_of(makefile), Some(Version(7, 3)));
        assert_eq!(version_of("all:\n\techo\n"), None);
        assert!(Version(6, 9) < MINIMUM && Version(7, 0) > MINIMUM);
    }

    #[test]
    fn the_newest_package_is_taken() {
        let names = "linux-source-6.9\nlinux-source-7.3\nlinux-source-6.18\nlinux-source-7.10\n\
                     linux-source-6.1\nlinux-source-7.3-rt\nlinux-source\n";
        assert_eq!(newest(names).as_deref(), Some("linux-source-7.10"));
        assert_eq!(newest("linux-source-6.1\nlinux-source-6.17\n"), None);
    }

    #[test]
    fn folder_names_are_plain() {
        assert_eq!(folder_name("1:7.3.4-1~bpo13+1"), "linux-1_7.3.4-1_bpo13+1");
    }
}
