// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask containers`

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;

use crate::program_image::{self, ProgramImage};
use crate::program_suite::Table;
use crate::run::{self, GuestOptions};
use crate::setup::Prepared;

/// The folder with podman's packages and scripts, and its name there.
const FOLDER: &str = "tests/containers";
const ENGINE: &str = "podman";
/// The program whose containers come and go.
const OF_MANY: &str = "nginx";
/// How long one program may take.
const LIMIT: Duration = Duration::from_secs(60 * 60);
/// How long it takes at the most to make and end a container.
const EACH: Duration = Duration::from_secs(20);

/// Options of `cargo xtask containers`.
#[derive(Args)]
pub struct Options {
    /// Programs to run in containers: the names of folders in tests/programs [default: nginx redis]
    #[arg(value_name = "NAME", default_values = ["nginx", "redis"], hide_default_value = true)]
    names: Vec<String>,
    /// Instead, make and end so many containers one after the other, and look whether all is given back
    #[arg(long, value_name = "COUNT", conflicts_with = "names", value_parser = clap::value_parser!(u32).range(1..))]
    many: Option<u32>,
    #[command(flatten)]
    guests: GuestOptions,
}

/// What guests need for a program in containers.
fn images(prepared: &Prepared, program: &str) -> Result<Vec<ProgramImage>> {
    let (cache, repository) = (&prepared.cache, &prepared.repository);
    Ok(vec![
        program_image::build_in(cache, repository, FOLDER, ENGINE)?,
        program_image::build(cache, repository, program)?,
    ])
}

/// `cargo xtask containers`
pub fn main(options: &Options) -> Result<()> {
    let mut prepared = options.guests.prepare()?;
    let mut run = |program: &str, name: &str, arguments: &[String], limit| {
        prepared.program_images = images(&prepared, program)?;
        let lab = prepared.programs.lab.clone();
        run::runner(&prepared, &options.guests.run, &lab, name, arguments, limit)
    };
    if let Some(count) = options.many {
        let arguments = ["containers".to_owned(), count.to_string()];
        let limit = LIMIT + EACH * count;
        let outcome = run(OF_MANY, "containers", &arguments, limit)?;
        println!("logs: {}", outcome.out.display());
        ensure!(outcome.status == 0, "failed");
        return Ok(());
    }
    let mut table = Table::default();
    for name in &options.names {
        let arguments = ["suite".to_owned(), format!("containers::{name}")];
        let outcome = run(name, &format!("containers-{name}"), &arguments, LIMIT)?;
        table.take(name, &outcome)?;
    }
    table.print(&[
        "no container, TCP",
        "no container, SMC-D",
        "host network, SMC-D",
        "bridge, TCP",
        "bridge, SMC-D",
    ])
}
