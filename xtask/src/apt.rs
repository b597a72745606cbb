// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Packages of Debian releases that the system is not of.
//!
//! apt is run with a configuration of its own, with its own lists, that knows these releases; their packages are checked
//! against the system's keyring, and neither the system's sources nor what is installed is touched.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cache::{Cache, Key};
use crate::process;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// apt with sources, lists and a cache of its own.
pub struct Apt {
    options: Vec<String>,
}

impl Apt {
    /// Configures it for `suites` of the archive that the system's own packages come from.
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
             where it is",
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
        let folder = folder.display();
        Ok(Self {
            options: [
                format!("Dir::Etc::SourceList={}", sources.display()),
                "Dir::Etc::SourceParts=/dev/null".to_owned(),
                format!("Dir::State::Lists={folder}/lists"),
                format!("Dir::Cache={folder}/cache"),
                // apt's own user cannot read in a home folder
                "APT::Sandbox::User=root".to_owned(),
                "Acquire::Languages=none".to_owned(),
                "Acquire::Retries=3".to_owned(),
            ]
            .into(),
        })
    }

    /// Fetches the suites' lists of packages; `what` names what they are for.
    pub fn update(&self, cache: &Cache, what: &str) -> Result<()> {
        process::run_with_progress(
            &format!("{what}: looking what Debian has"),
            self.command("apt-get", &["-q", "update"]),
            &cache.log("apt-update")?,
            None,
        )
    }

    /// A command of apt's with this configuration.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        for option in &self.options {
            command.args(["-o", option]);
        }
        command.args(arguments).env("LC_ALL", "C");
        command
    }
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
}
