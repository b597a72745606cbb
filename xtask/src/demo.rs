// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask demo`

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;

use crate::image;
use crate::run::{self, GuestOptions};

/// How long the runner may take.
const LIMIT: Duration = Duration::from_secs(15 * 60);
/// The file in the runner's folder that its table goes to.
const RESULT: &str = "demo.json";

/// Options of `cargo xtask demo`.
#[derive(Args)]
pub struct Options {
    /// Write the table to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    guests: GuestOptions,
}

/// `cargo xtask demo`
pub fn main(options: &Options) -> Result<()> {
    let prepared = options.guests.prepare()?;
    let arguments = ["demo".to_owned()];
    let outcome = run::runner(
        &prepared,
        &options.guests.run,
        &prepared.programs.lab,
        "demo",
        &arguments,
        LIMIT,
    )?;
    let result = outcome.out.join(RESULT);
    if let Some(json) = &options.json
        && result.exists()
    {
        image::copy(&result, json)?;
        println!("written: {}", json.display());
    }
    ensure!(
        outcome.status == 0,
        "the demo failed (status {}); its logs are in {}",
        outcome.status,
        outcome.out.display()
    );
    ensure!(result.exists(), "the demo left no {}", result.display());
    Ok(())
}
