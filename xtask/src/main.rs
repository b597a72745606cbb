// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask`: every command that ivsmc's README knows.
//!
//! - [`setup`] prepares: [`prerequisites`] (packages), [`kernel_source`], [`kernel`], [`module`] (ivpci),
//!   [`programs`] (everything in Rust), [`image`] (initramfs of guest and lab VM).
//! - [`demo`], [`perf`], [`mod@test`], [`conformance`], [`program_suite`], [`container_suite`] and [`installed_suite`] prepare, then [`run`] their runner where
//!   [`platform`] says: on this machine's KVM, or in the [`lab_vm`].
//! - [`aarch64`] runs the tests of what runs on hosts for another processor.
//! - [`program_image`] makes what guests need to run programs of Debian's, which it gets by [`apt`]; [`debian`] makes whole systems.
//! - [`package`] makes Debian packages of the driver and the tools.
//! - [`patch_vmm`] brings the device into a checkout of Cloud Hypervisor, by [`diff`]s; [`kernel_patch`] changes Linux by them.
//! - [`cache`] is the folder outside the repository where everything that is built is kept; [`process`]
//!   runs commands with a progress line and a log, and ends them at a limit, or when there is no [`heartbeat`].

mod aarch64;
mod apt;
mod cache;
mod conformance;
mod container_suite;
mod debian;
mod demo;
mod diff;
mod heartbeat;
mod image;
mod installed_suite;
mod kernel;
mod kernel_patch;
mod kernel_source;
mod lab_vm;
#[cfg(test)]
mod links;
mod module;
mod package;
mod patch_vmm;
mod perf;
mod platform;
mod prerequisites;
mod process;
mod program_image;
mod program_suite;
mod programs;
#[cfg(test)]
mod publish;
#[path = "../../tests/src/reports.rs"]
mod reports;
mod run;
mod setup;
mod test;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Prepares this machine for ivsmc, and runs its demo, its tests and its performance suite.
///
/// Whatever is missing is fetched or built first, once: packages (apt-get, as root), the guests' kernel
/// with ivpci, the guests' image, the VMM. It is kept in $IVSMC_CACHE, else $XDG_CACHE_HOME/ivsmc, else
/// ~/.cache/ivsmc; a command that was interrupted goes on where it was when it is run again.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Fetch and build everything that demo, test and perf need, and run nothing.
    Setup(setup::Options),
    /// Boot two guests, run the same TCP program over virtio-net and over SMC-D, print a table.
    Demo(demo::Options),
    /// Run every test: unit tests, the driver's checks, the suite with guests.
    Test(test::Options),
    /// Measure TCP over virtio-net and SMC-D side by side, and what they cost; make a report with plots.
    Perf(perf::Options),
    /// Make the same system calls over TCP and over SMC, and write docs/tcp.md.
    Conformance(conformance::Options),
    /// Run programs of Debian's over TCP and over SMC-D, check what they do, and print a table.
    Programs(program_suite::Options),
    /// Run programs of Debian's in containers over TCP and over SMC-D, check what they do, and print a table.
    Containers(container_suite::Options),
    /// Compile the device's crate and the host's tool for aarch64, and run their tests by qemu-user.
    Aarch64,
    /// Make Debian packages: ivpci-dkms, ivsmc-guest, ivsmc-host.
    Package(package::Options),
    /// Boot two Debian systems with these packages, and have their services talk SMC-D.
    Installed(installed_suite::Options),
    /// For maintainers: write guest/linux-patches anew, after a change, with what is around each line in Debian's newest source.
    RecordLinux,
    /// Run the lab's runner by hand, with arguments of your own (`cargo xtask lab -- --help`).
    Lab(run::LabOptions),
    /// Bring the device into a checkout of Cloud Hypervisor; fetch and build nothing.
    PatchVmm(patch_vmm::Options),
}

fn main() -> ExitCode {
    // `cargo xtask demo | head` is to end, and not to panic: Rust has SIGPIPE ignored before `main()`.
    // SAFETY: sets an action that runs no code of ours.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let result = match Cli::parse().command {
        Command::Setup(options) => setup::main(&options),
        Command::Demo(options) => demo::main(&options),
        Command::Test(options) => test::main(&options),
        Command::Perf(options) => perf::main(&options),
        Command::Conformance(options) => conformance::main(&options),
        Command::Programs(options) => program_suite::main(&options),
        Command::Containers(options) => container_suite::main(&options),
        Command::Aarch64 => aarch64::main(),
        Command::Package(options) => package::main(&options),
        Command::Installed(options) => installed_suite::main(&options),
        Command::RecordLinux => kernel_patch::main(),
        Command::Lab(options) => run::lab(&options),
        Command::PatchVmm(options) => patch_vmm::main(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The repository's top folder.
fn repository() -> Result<PathBuf> {
    // Cargo sets it for what it runs; what was compiled in could be another clone's.
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    Ok(manifest.parent().unwrap_or(Path::new(".")).canonicalize()?)
}
