// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! apt with sources, lists and a cache of its own.
//!
//! The system may be of another Debian release than the one that a package is wanted from. So apt is run with a
//! configuration of its own; packages are checked against the system's keyring, and what the system has, its sources and
//! its packages, is not touched.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cache::{self, Cache, Key};
use crate::process;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// What is not unpacked: nobody reads it, and a guest has it in its memory.
const LEFT_OUT: [&str; 10] = [
    "./usr/lib/*/gconv",
    "./usr/lib/jvm/*/jmods",
    "./usr/share/bug",
    "./usr/share/doc",
    "./usr/share/doc-base",
    "./usr/share/i18n",
    "./usr/share/info",
    "./usr/share/lintian",
    "./usr/share/locale",
    "./usr/share/man",
];

/// A package that is to be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    pub name: String,
    pub version: String,
}

/// apt with sources, lists and a cache of its own.
pub struct Apt {
    options: Vec<String>,
    sources: PathBuf,
}

impl Apt {
    /// One that knows these releases of Debian's.
    pub fn new(cache: &Cache, suites: &[&str]) -> Result<Self> {
        ensure!(
            Path::new(KEYRING).exists(),
            "{KEYRING} is not there, so Debian's packages cannot be checked; install \
             debian-archive-keyring"
        );
        let configured = process::output(Command::new("apt-get").args([
            "indextargets",
            "--format",
            "$(LABEL) $(REPO_URI)",
            "Created-By: Packages",
        ]))?;
        let archive = archive(&configured).context(
            "Debian's archive is not among apt's sources (apt-get indextargets), so it is not known \
             where to get packages",
        )?;
        // One place for each set of sources: apt's lists belong to what they were made from.
        let key = Key::default()
            .text("archive", archive)
            .text("suites", &suites.join(" "));
        let folder = cache.path("apt").join(key.finish());
        for sub in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(sub))?;
        }
        let sources = folder.join("sources.list");
        let lines = suites
            .iter()
            .map(|suite| format!("deb [signed-by={KEYRING}] {archive} {suite} main\n"));
        fs::write(&sources, lines.collect::<String>())?;
        let nothing = folder.join("nothing-is-installed");
        fs::write(&nothing, "")?;
        let folder = folder.display();
        Ok(Self {
            options: [
                format!("Dir::Etc::SourceList={}", sources.display()),
                "Dir::Etc::SourceParts=/dev/null".to_owned(),
                "Dir::Etc::PreferencesParts=/dev/null".to_owned(),
                format!("Dir::State::Lists={folder}/lists"),
                format!("Dir::State::Status={}", nothing.display()),
                format!("Dir::Cache={folder}/cache"),
                // apt's own user cannot read in a home folder
                "APT::Sandbox::User=root".to_owned(),
                "APT::Install-Recommends=false".to_owned(),
                "Acquire::Languages=none".to_owned(),
                "Acquire::Retries=3".to_owned(),
            ]
            .into(),
            sources,
        })
    }

    /// The same for packages of another architecture as well, as NAME:ARCHITECTURE.
    pub fn also(mut self, architecture: &str) -> Self {
        // apt adds this machine's own by itself.
        self.options
            .push(format!("APT::Architectures::={architecture}"));
        self
    }

    /// The file with its sources.
    pub fn sources(&self) -> &PathBuf {
        &self.sources
    }

    /// A program of apt's, with this configuration.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        for option in &self.options {
            command.args(["-o", option]);
        }
        command.args(arguments).env("LC_ALL", "C");
        command
    }

    /// Unpacks packages, with all that they depend on, into `root`; none of their scripts is run. Of those that are wanted
    /// with a "-" before their name, nothing is unpacked. Tells what they all are.
    pub fn unpack(
        &self,
        cache: &Cache,
        name: &str,
        wanted: &[String],
        root: &Path,
    ) -> Result<Vec<Package>> {
        let log = |what: &str| cache.log(&format!("{name}-{what}"));
        process::run_with_progress(
            &format!("{name}: looking what Debian has"),
            self.command("apt-get", &["-q", "update"]),
            &log("update")?,
            None,
        )?;
        let unwanted: Vec<_> = wanted.iter().filter_map(|w| w.strip_prefix('-')).collect();
        let mut install = self.command("apt-get", &["--simulate", "install"]);
        install.args(wanted.iter().filter(|wanted| !wanted.starts_with('-')));
        let mut packages = packages(&process::output(&mut install)?);
        packages.retain(|package| !unwanted.contains(&package.name.as_str()));
        ensure!(!packages.is_empty(), "{name}: apt would install nothing");

        let debs = cache.fresh(format!("download-{name}"))?;
        let mut download = self.command("apt-get", &["-q", "download"]);
        download.current_dir(&debs).args(
            packages
                .iter()
                .map(|Package { name, version }| format!("{name}={version}")),
        );
        process::run_with_progress(
            &format!("{name}: fetching {} packages", packages.len()),
            download,
            &log("download")?,
            None,
        )?;
        merge_usr(root)?;
        let mut unpack = Command::new("bash");
        unpack
            .args([
                "-c",
                "set -eo pipefail; debs=$1; shift; for deb in \"$debs\"/*.deb; do \
                 dpkg-deb --fsys-tarfile \"$deb\" | tar --extract --keep-directory-symlink --no-same-owner \"$@\"; \
                 done",
                "unpack",
            ])
            .arg(&debs)
            .args(LEFT_OUT.map(|path| format!("--exclude={path}")))
            .arg("--directory")
            .arg(root);
        process::run_with_progress(&format!("{name}: unpacking"), unpack, &log("unpack")?, None)?;
        cache::remove(&debs)?;
        Ok(packages)
    }
}

/// Makes the links that a system has where packages still have files in /bin, /lib and so on.
fn merge_usr(root: &Path) -> Result<()> {
    for folder in ["bin", "sbin", "lib", "lib64"] {
        let target = Path::new("usr").join(folder);
        fs::create_dir_all(root.join(&target))?;
        std::os::unix::fs::symlink(target, root.join(folder))?;
    }
    Ok(())
}

/// The packages that `apt-get --simulate install` would install: "Inst NAME (VERSION ...", of other architectures with
/// ":ARCHITECTURE".
fn packages(simulated: &str) -> Vec<Package> {
    let package = |line: &str| {
        let (name, rest) = line.strip_prefix("Inst ")?.split_once(" (")?;
        Some(Package {
            name: name.to_owned(),
            version: rest.split([' ', ')']).next()?.to_owned(),
        })
    };
    simulated.lines().filter_map(package).collect()
}

/// The URI of Debian's archive among the system's sources ("label URI" lines).
fn archive(configured: &str) -> Option<&str> {
    let uris = || configured.lines().filter_map(|line| line.rsplit_once(' '));
    // A source whose lists were never fetched has no label yet.
    uris()
        .find(|(label, _)| *label == "Debian")
        .or_else(|| uris().find(|(_, uri)| uri.trim_end_matches('/').ends_with("/debian")))
        .map(|(_, uri)| uri)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_the_systems() {
        let configured = "Debian-Security http://a.example/debian-security/\n\
                          Debian http://a.example/debian-mirror/\n";
        assert_eq!(archive(configured), Some("http://a.example/debian-mirror/"));
        let fresh = "$(LABEL) http://a.example/debian-security/\n\
                     $(LABEL) http://a.example/debian/\n";
        assert_eq!(archive(fresh), Some("http://a.example/debian/"));
        assert_eq!(archive("Ubuntu http://a.example/ubuntu/\n"), None);
    }

    #[test]
    fn what_would_be_installed_is_found() {
        let simulated = "NOTE: This is only a simulation!\n\
                         Inst libc6 (2.41-12 Debian:13.2/stable [amd64])\n\
                         Inst nginx (1.26.3-3+deb13u1 Debian:13.2/stable [amd64]) []\n\
                         Conf libc6 (2.41-12 Debian:13.2/stable [amd64])\n";
        let package = |name: &str, version: &str| Package {
            name: name.to_owned(),
            version: version.to_owned(),
        };
        assert_eq!(
            packages(simulated),
            [
                package("libc6", "2.41-12"),
                package("nginx", "1.26.3-3+deb13u1")
            ]
        );
    }
}
