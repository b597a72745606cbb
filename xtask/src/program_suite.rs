// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask programs`

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;

use crate::program_image;
use crate::run::{self, GuestOptions};

/// How long one program may take.
const LIMIT: Duration = Duration::from_secs(45 * 60);
/// How the lines of the table begin that the runner prints.
const ROW: &str = "| ";

/// Options of `cargo xtask programs`.
#[derive(Args)]
pub struct Options {
    /// Only these: the names of folders in tests/programs.
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    guests: GuestOptions,
}

/// `cargo xtask programs`
pub fn main(options: &Options) -> Result<()> {
    let mut prepared = options.guests.prepare()?;
    let names = if options.names.is_empty() {
        program_image::all(&prepared.repository)?
    } else {
        options.names.clone()
    };
    let mut rows = Vec::new();
    let mut failed = Vec::new();
    // Each in a run of its own: a lab VM that crashes loses no more than one.
    for name in &names {
        let image = program_image::build(&prepared.cache, &prepared.repository, name)?;
        prepared.program_images = vec![image];
        let outcome = run::runner(
            &prepared,
            &options.guests.run,
            &prepared.programs.lab,
            &format!("programs-{name}"),
            &["suite", "programs::"].map(str::to_owned),
            LIMIT,
        )?;
        let output = fs::read(&outcome.log)?;
        let output = String::from_utf8_lossy(&output);
        let lines = output.lines().filter(|line| line.starts_with(ROW));
        rows.extend(lines.map(str::to_owned));
        if outcome.status != 0 {
            println!("logs: {}", outcome.out.display());
            failed.push(name.as_str());
        }
    }
    println!(
        "\n| program | what | unit | TCP | SMC-D | gain |\n|---|---|---|---|---|---|\n{}",
        rows.join("\n")
    );
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}
