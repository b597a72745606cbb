// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! ivpci, the guest's driver, built out of tree against the guests' kernel.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cache::{self, Cache, Key};
use crate::kernel::{self, Kernel};
use crate::process;

/// Where the driver's source is in the repository.
pub const SOURCE: &str = "guest/ivpci";

/// Builds the modules, unless they are there; returns their files.
pub fn build(cache: &Cache, repository: &Path, kernel: &Kernel) -> Result<Vec<PathBuf>> {
    let source = repository.join(SOURCE);
    let key = Key::default()
        .text("kernel", &kernel.key)
        .folder(&source)?
        .finish();
    let output = cache.path(format!("module-{key}"));
    if !cache::is_finished(&output) || kernel.changes {
        let output = cache.fresh(&output)?;
        let mut command = make(kernel, &source, &output);
        command.arg("modules");
        process::run_with_progress("ivpci: building", command, &cache.log("ivpci")?, None)?;
        cache::set_finished(&output)?;
    }
    let mut modules = Vec::new();
    for entry in fs::read_dir(&output).with_context(|| format!("{}", output.display()))? {
        let path = entry?.path();
        if path.extension() == Some(OsStr::new("ko")) {
            modules.push(path);
        }
    }
    modules.sort();
    Ok(modules)
}

/// make for the modules of `source`, into `output`.
pub fn make(kernel: &Kernel, source: &Path, output: &Path) -> Command {
    let mut command = Command::new("make");
    kernel::clean_environment(&mut command);
    command
        .arg("-C")
        .arg(&kernel.build)
        .arg(format!("M={}", source.display()))
        .arg(format!("MO={}", output.display()))
        .arg("W=1");
    command
}
