// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `ivsmc-perf`: measures where the guests run, and makes reports of it anywhere. `cargo xtask perf` starts it.

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use ivsmc_lab::lab::Lab;
use ivsmc_perf::results::Results;
use ivsmc_perf::{plots, report, suite};
use std::path::PathBuf;
use std::process::ExitCode;

/// Measures ivsmc beside virtio-net.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure, and write perf.json
    Run {
        #[command(flatten)]
        options: suite::Options,
        /// Only look whether the options are right
        #[arg(long)]
        dry_run: bool,
    },
    /// Make perf.md and plots of a perf.json
    Report {
        /// The perf.json
        file: PathBuf,
        /// Where the report goes
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// An earlier perf.json: say what has changed
        #[arg(long, value_name = "OLD.json")]
        compare: Option<PathBuf>,
    },
    /// Look whether a file is a perf.json
    Check {
        /// The file
        file: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            for cause in error.chain() {
                eprintln!("{cause}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Run { dry_run: true, .. } => Ok(()),
        Command::Run { options, .. } => suite::run(&Lab::from_environment()?, &options),
        Command::Check { file } => Results::load(&file).map(drop),
        Command::Report { file, out, compare } => {
            let results = Results::load(&file)?;
            let old = compare.map(|file| Results::load(&file)).transpose()?;
            let written = || -> std::io::Result<()> {
                std::fs::create_dir_all(&out)?;
                std::fs::write(out.join("perf.md"), report::markdown(&results))
            };
            written().with_context(|| format!("--out {}: cannot be written", out.display()))?;
            for (name, svg) in plots::all(&results)? {
                std::fs::write(out.join(name), svg)?;
            }
            print!("{}", report::summary(&results));
            if let Some(old) = old {
                print!("\n{}", report::comparison(&old, &results));
            }
            Ok(())
        }
    }
}
