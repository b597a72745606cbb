// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask programs`

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;

use crate::program_image;
use crate::run::{self, GuestOptions, Outcome};

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
    let mut table = Table::default();
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
        table.take(name, &outcome)?;
    }
    table.print(&["TCP", "SMC-D", "gain"])
}

/// What runs of programs have measured, and which of them failed.
#[derive(Default)]
pub struct Table {
    rows: Vec<String>,
    failed: Vec<String>,
}

impl Table {
    /// Takes the rows that a run has printed.
    pub fn take(&mut self, name: &str, outcome: &Outcome) -> Result<()> {
        let output = fs::read(&outcome.log)?;
        let output = String::from_utf8_lossy(&output);
        let lines = output.lines().filter(|line| line.starts_with(ROW));
        self.rows.extend(lines.map(str::to_owned));
        if outcome.status != 0 {
            println!("logs: {}", outcome.out.display());
            self.failed.push(name.to_owned());
        }
        Ok(())
    }

    /// Prints all of them, with these columns behind what was measured.
    ///
    /// # Errors
    /// A program failed.
    pub fn print(&self, columns: &[&str]) -> Result<()> {
        println!(
            "\n| program | what | unit | {} |\n|{}\n{}",
            columns.join(" | "),
            "---|".repeat(3 + columns.len()),
            self.rows.join("\n")
        );
        ensure!(self.failed.is_empty(), "failed: {}", self.failed.join(", "));
        Ok(())
    }
}
