// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The programs in Rust that run in guests and lab: static, so that they need nothing there.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cache::{Cache, Key};
use crate::process;

pub const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Where the programs are.
pub struct Programs {
    /// The tool that guests' users have.
    pub guest_tool: PathBuf,
    /// The tests' traffic generator and agent.
    pub traffic: PathBuf,
    /// What a program sees of sockets, in guests and here.
    pub conformance: PathBuf,
    /// The runner of demo and tests.
    pub lab: PathBuf,
    /// The runner that measures.
    pub perf: PathBuf,
    /// The embedded VMM.
    pub vmm: PathBuf,
    /// The tool that hosts' users have.
    pub host_tool: PathBuf,
}

/// cargo, as this was started by.
pub fn cargo(repository: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(repository);
    // what `cargo run` sets for us would make the child build things anew
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&*name);
        }
    }
    command
}

/// Builds the programs.
pub fn build(cache: &Cache, repository: &Path) -> Result<Programs> {
    println!("programs: cargo build");
    // cargo tells packages by their places in the repository: in one folder it would take what another clone has
    // built for what this one has.
    let clone = Key::default().text("repository", &repository.to_string_lossy());
    let target = cache.path(format!("target-{}", clone.finish()));
    let packages = [
        "ivsmc-guest",
        "ivsmc-host",
        "ivsmc-traffic",
        "ivsmc-conformance",
        "ivsmc-lab",
        "ivsmc-perf",
        "vmm-reference",
    ];
    let mut command = cargo(repository);
    command
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .args([
            "build",
            "--release",
            "--locked",
            "--bins",
            "--target",
            TARGET,
            "--target-dir",
        ])
        .arg(&target)
        .args(packages.iter().flat_map(|package| ["--package", package]));
    process::run(&mut command)?;
    let program = |name: &str| target.join(TARGET).join("release").join(name);
    Ok(Programs {
        guest_tool: program("ivsmc-guest"),
        traffic: program("ivsmc-traffic"),
        conformance: program("ivsmc-conformance"),
        lab: program("ivsmc-lab"),
        perf: program("ivsmc-perf"),
        vmm: program("vmm-reference"),
        host_tool: program("ivsmc-host"),
    })
}

/// Copies a program without its debugging information, which is many times its size.
pub fn install(program: &Path, to: &Path) -> Result<()> {
    ensure!(program.is_file(), "{} is not there", program.display());
    process::output(
        Command::new("strip")
            .arg("--strip-debug")
            .arg("-o")
            .arg(to)
            .arg(program),
    )
    .with_context(|| format!("cannot copy {} to {}", program.display(), to.display()))?;
    Ok(())
}
