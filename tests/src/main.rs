// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `ivsmc-lab`: the runner. `cargo xtask` starts it where the guests are to run.

use anyhow::Result;
use clap::{Parser, Subcommand};
use ivsmc_lab::lab::{Lab, Platform, VmmKind};
use ivsmc_lab::pair::Pair;
use ivsmc_lab::{attack, conformance, demo, faults, hostile, hostile_vmm, qemu, soak, suite};
use ivsmc_traffic::agent::Command as AgentCommand;
use std::process::ExitCode;
use std::time::Duration;

/// Boots guests that share ivsmc devices.
#[derive(Parser)]
#[command(version)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure TCP over virtio-net and SMC-D; print a table, and write it to demo.json
    Demo,
    /// Run the tests with guests
    Suite {
        /// Only those whose name contains this
        filter: Option<String>,
    },
    /// Make the same system calls over TCP and over SMC, between two guests and within one, and write what programs see to
    /// conformance-*.json
    Conformance {
        /// In two QEMU guests with ivshmem-doorbell, as qemu-ivshmem has them: that needs no KVM
        #[arg(long)]
        qemu: bool,
    },
    /// Have one guest write cursors of its own choice into the other's receive buffers; a kernel that trusts them may
    /// not survive it
    Hostile {
        /// How many cursors
        #[arg(long, default_value_t = 1_000_000)]
        mutations: u64,
        /// Seed of what is written
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Have a hostile peer VMM attack the device of a guest that has links to others
    HostileVmm {
        /// How often it wants links that come and go
        #[arg(long, default_value_t = hostile_vmm::Settings::QUICK.links)]
        links: u64,
        /// How often in a second
        #[arg(long, default_value_t = hostile_vmm::Settings::QUICK.per_second)]
        per_second: u64,
        /// How often to measure what the other links carry meanwhile
        #[arg(long, default_value_t = hostile_vmm::Settings::QUICK.samples)]
        samples: usize,
        /// Only the parts whose name contains this, or one of these
        #[arg(long)]
        part: Vec<String>,
    },
    /// Be that hostile peer VMM
    #[command(hide = true)]
    Attack {
        #[command(flatten)]
        target: attack::Target,
        #[command(subcommand)]
        attack: attack::Attack,
    },
    /// Let guests, drivers and VMMs of a mesh come and go at random
    Faults {
        /// How many faults
        #[arg(long, default_value_t = 200)]
        count: u64,
        /// Seed of what happens to whom; a fault's number and it say it all
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// The number of the first fault
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
        first: u64,
    },
    /// Make traffic of all kinds and sizes, for long
    Soak {
        /// For how long
        #[arg(long, default_value_t = 600)]
        seconds: u64,
        /// Seed of what is done
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Make and end containers one after the other: all that they had is given back; `cargo xtask containers --many COUNT`
    /// brings what that needs
    Containers {
        /// How many
        count: u32,
    },
    /// Run a line of shell in both of two guests, one after the other, and print what it writes
    Shell {
        /// The line
        line: String,
    },
    /// Run ivpci in two QEMU guests with ivshmem-doorbell; needs QEMU, but no KVM
    QemuIvshmem,
}

fn main() -> ExitCode {
    match run(Options::parse().command) {
        Ok(code) => code,
        Err(error) => {
            for cause in error.chain() {
                eprintln!("{cause}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Demo => demo::run(&Lab::from_environment()?)?,
        Command::Suite { filter } => {
            return Ok(suite::run(Lab::from_environment()?, filter).exit_code());
        }
        Command::Conformance { qemu: false } => {
            conformance::everything(&Lab::from_environment()?)?;
        }
        Command::Conformance { qemu: true } => {
            conformance::everything(&Lab::new(Platform::Lab, VmmKind::Qemu)?)?;
        }
        Command::Hostile { mutations, seed } => {
            println!(
                "{}",
                hostile::cursors(&Lab::from_environment()?, mutations, seed)?
            );
        }
        Command::HostileVmm {
            links,
            per_second,
            samples,
            part,
        } => {
            let settings = hostile_vmm::Settings {
                links,
                per_second,
                samples,
            };
            hostile_vmm::run(&Lab::from_environment()?, settings, &part)?;
        }
        Command::Attack { target, attack } => attack::run(&target, &attack)?,
        Command::Faults { count, seed, first } => {
            println!(
                "{}",
                faults::run(&Lab::from_environment()?, seed, first, count)?
            );
        }
        Command::Soak { seconds, seed } => {
            let time = Duration::from_secs(seconds);
            println!(
                "soak: {}",
                soak::run(&Lab::from_environment()?, time, seed)?
            );
        }
        Command::Containers { count } => {
            suite::containers::many(&Lab::from_environment()?, count)?;
        }
        Command::Shell { line } => {
            let mut pair = Pair::boot(&Lab::from_environment()?)?;
            for guest in [&mut pair.a, &mut pair.b] {
                let name = guest.guest().name().to_owned();
                let command = AgentCommand::shell(&line).timeout(Duration::from_secs(600));
                println!("--- guest {name}\n{}", guest.check(&command)?);
            }
        }
        Command::QemuIvshmem => qemu::two_guests(&Lab::new(Platform::Lab, VmmKind::Qemu)?)?,
    }
    Ok(ExitCode::SUCCESS)
}
