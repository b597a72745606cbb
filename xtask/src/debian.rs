// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Debian systems, whole and configured, in an archive.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::apt::Apt;
use crate::cache::{self, Cache, Key};
use crate::process;

/// The release that systems are of.
pub const SUITE: &str = "trixie";
/// What is left out of them, as nobody reads it there.
const LEFT_OUT: [&str; 3] = [
    "/usr/share/doc/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
];

/// The archive of a system that has what is essential and these packages, in a folder of the cache.
pub fn system(cache: &Cache, name: &str, packages: &[String]) -> Result<PathBuf> {
    let packages = packages.join(",");
    let key = Key::default()
        .text("suite", SUITE)
        .text("packages", &packages)
        .finish();
    let folder = cache.path(format!("debian-{name}-{key}"));
    let archive = folder.join("root.tar");
    if !cache::is_finished(&folder) {
        let apt = Apt::new(cache, &[SUITE])?;
        let folder = cache.fresh(&folder)?;
        let mut command = Command::new("mmdebstrap");
        command
            .args(["--variant=minbase", "--format=tar"])
            .args(LEFT_OUT.map(|path| format!("--dpkgopt=path-exclude={path}")))
            .arg(format!("--include={packages}"))
            .arg(SUITE)
            .args([&archive, apt.sources()]);
        let log = cache.log(&format!("debian-{name}"))?;
        process::run_with_progress(&format!("{name}: a Debian system"), command, &log, None)?;
        cache::set_finished(&folder)?;
    }
    Ok(archive)
}
