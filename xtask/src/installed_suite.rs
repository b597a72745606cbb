// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask installed`

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;

use crate::program_image::{self, ProgramImage};
use crate::run::{self, GuestOptions};
use crate::setup::Prepared;
use crate::{debian, image, package};

/// What the systems have for the tests.
const FOLDER: &str = "tests/debian";
/// In that folder: the packages of Debian's that they have.
const PACKAGES: &str = "packages";
/// The name of all of it.
const NAME: &str = "debian";
/// How long it may take.
const LIMIT: Duration = Duration::from_secs(60 * 60);

/// Options of `cargo xtask installed`.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    guests: GuestOptions,
}

/// `cargo xtask installed`
pub fn main(options: &Options) -> Result<()> {
    let mut prepared = options.guests.prepare()?;
    prepared.program_images = vec![system(&prepared)?];
    let outcome = run::runner(
        &prepared,
        &options.guests.run,
        &prepared.programs.lab,
        "installed",
        &["suite", "installed::"].map(str::to_owned),
        LIMIT,
    )?;
    println!("logs: {}", outcome.out.display());
    ensure!(outcome.status == 0, "failed");
    Ok(())
}

/// A Debian system, with our packages beside it.
fn system(prepared: &Prepared) -> Result<ProgramImage> {
    let (cache, repository) = (&prepared.cache, &prepared.repository);
    let source = repository.join(FOLDER);
    let packages = package::build(cache, repository)?;
    let root = debian::system(
        cache,
        "installed",
        &program_image::listed(&source.join(PACKAGES))?,
    )?;
    let files = cache.fresh(format!("scripts-{NAME}"))?;
    for name in ["agent.service", "prepare"] {
        image::copy(&source.join(name), &files.join(name))?;
    }
    for package in packages {
        if let Some(name) = package.file_name() {
            image::copy(&package, &files.join(name))?;
        }
    }
    let scripts = cache.path(format!("scripts-{NAME}.tar"));
    program_image::pack(&files, &scripts)?;
    Ok(ProgramImage {
        name: NAME.to_owned(),
        version: debian::SUITE.to_owned(),
        root,
        scripts,
    })
}
