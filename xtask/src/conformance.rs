// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask conformance`

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::cache::Cache;
use crate::kernel::Flavour;
use crate::run::{self, RunOptions};
use crate::setup::{self, KernelSource};
use crate::{cache, process};

/// The page that is written, from the repository's top.
const PAGE: &str = "docs/tcp.md";
/// How long all runs on one kernel may take.
const LIMIT: Duration = Duration::from_secs(3600);

/// Options of `cargo xtask conformance`.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    source: KernelSource,
    /// Run on these kernels only; of the others the page has what was seen last.
    #[arg(long, value_enum, value_name = "KERNEL", default_values_t = [Flavour::Mainline, Flavour::Mended])]
    kernel: Vec<Flavour>,
    /// Run them in two QEMU guests with ivshmem-doorbell on this machine: without a KVM that is faster than the lab VM
    #[arg(long)]
    qemu: bool,
    #[command(flatten)]
    run: RunOptions,
}

/// `cargo xtask conformance`
pub fn main(options: &Options) -> Result<()> {
    options.run.check()?;
    let mut last = None;
    for flavour in &options.kernel {
        // It has the cache locked.
        drop(last.take());
        let prepared = setup::prepare(&options.source, Some(*flavour))?;
        let run = if options.qemu {
            run::runner_here
        } else {
            run::runner
        };
        let arguments = ["conformance", "--qemu"].map(str::to_owned);
        let outcome = run(
            &prepared,
            &options.run,
            &prepared.programs.lab,
            &format!("conformance-{}", flavour.name()),
            &arguments[..1 + usize::from(options.qemu)],
            LIMIT,
        )?;
        ensure!(
            outcome.status == 0,
            "the cases could not be run on the {} kernel; logs: {}",
            flavour.name(),
            outcome.out.display()
        );
        let kept = kept(&prepared.cache, *flavour);
        cache::remove(&kept)?;
        fs::create_dir_all(&kept)?;
        for file in results(&outcome.out)? {
            let name = file.file_name().context("a file without a name")?;
            fs::copy(&file, kept.join(name))?;
        }
        last = Some(prepared);
    }
    let prepared = last.context("no kernel was given")?;
    let mut files = Vec::new();
    for flavour in [Flavour::Mainline, Flavour::Mended] {
        let kept = kept(&prepared.cache, flavour);
        if kept.is_dir() {
            files.append(&mut results(&kept)?);
        }
    }
    let page = prepared.repository.join(PAGE);
    process::output(
        Command::new(&prepared.programs.conformance)
            .arg("report")
            .arg("--output")
            .arg(&page)
            .args(&files),
    )?;
    println!("{}", page.display());
    Ok(())
}

/// The folder with what was last seen on a kernel.
fn kept(cache: &Cache, flavour: Flavour) -> PathBuf {
    cache.path(format!("conformance-{}", flavour.name()))
}

/// What runs have seen, in the files of a folder.
fn results(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("conformance-") && name.ends_with(".json") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
