// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Running a runner, `ivsmc-lab` or `ivsmc-perf`, where the platform says.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};

use crate::image;
use crate::kernel::Kernel;
use crate::lab_vm::LabVm;
use crate::platform::{self, Platform};
use crate::process::{self, Limits};
use crate::programs;
use crate::setup::{self, KernelFlavour, KernelSource, Prepared};

/// In the folder of a run: the programs of Debian's that its guests are to run.
const PROGRAMS: &str = "programs";

/// Under which VMM the guests run.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Vmm {
    /// the embedded one, built from this repository
    Reference,
    /// a Cloud Hypervisor that has the device
    CloudHypervisor,
}

impl Vmm {
    fn name(self) -> &'static str {
        match self {
            Self::Reference => "reference",
            Self::CloudHypervisor => "cloud-hypervisor",
        }
    }
}

/// Where and under what the guests run.
#[derive(Args)]
pub struct RunOptions {
    /// The VMM that runs the guests.
    #[arg(long, value_enum, value_name = "VMM", default_value = "reference")]
    vmm: Vmm,
    /// The VMM's program, if it is not the embedded one.
    #[arg(long, value_name = "FILE", required_if_eq("vmm", "cloud-hypervisor"))]
    vmm_binary: Option<PathBuf>,
    /// Where the guests run [default: on this machine's KVM if it has one, else in the lab VM]
    #[arg(long, value_enum, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// Have the lab VM's processors take turns on one of this machine's. Half as fast, but QEMU does not lose the lab VM,
    /// which it does else about once in fifteen minutes.
    #[arg(long)]
    steady: bool,
}

impl RunOptions {
    /// Looks whether what the options name is there, before much is done for them.
    pub fn check(&self) -> Result<()> {
        if let Some(program) = &self.vmm_binary {
            ensure!(
                program.is_file(),
                "--vmm-binary {}: there is no such file; give the VMM's program",
                program.display()
            );
        }
        Ok(())
    }
}

/// Options of all commands that run guests.
#[derive(Args)]
pub struct GuestOptions {
    #[command(flatten)]
    pub source: KernelSource,
    #[command(flatten)]
    pub flavour: KernelFlavour,
    #[command(flatten)]
    pub run: RunOptions,
}

impl GuestOptions {
    /// Checks them, and makes everything that is not there yet.
    pub fn prepare(&self) -> Result<Prepared> {
        self.run.check()?;
        setup::prepare(&self.source, self.flavour.kernel)
    }
}

/// Options of `cargo xtask lab`.
#[derive(Args)]
pub struct LabOptions {
    #[command(flatten)]
    guests: GuestOptions,
    /// Arguments of the runner.
    #[arg(last = true, value_name = "ARGUMENT")]
    arguments: Vec<String>,
}

/// What a run left behind.
pub struct Outcome {
    /// The runner's exit status.
    pub status: i32,
    /// The folder with its logs and results.
    pub out: PathBuf,
    /// What it printed.
    pub log: PathBuf,
}

/// How long what is run by hand may take: a soak of an hour on a debug kernel, and what comes before it.
const LAB_LIMIT: Duration = Duration::from_secs(3 * 3600);

/// `cargo xtask lab`
pub fn lab(options: &LabOptions) -> Result<()> {
    let prepared = options.guests.prepare()?;
    let outcome = runner(
        &prepared,
        &options.guests.run,
        &prepared.programs.lab,
        "lab",
        &options.arguments,
        LAB_LIMIT,
    )?;
    println!("logs: {}", outcome.out.display());
    ensure!(
        outcome.status == 0,
        "the runner ended with status {}",
        outcome.status
    );
    Ok(())
}

/// Runs `program`, a runner, where the platform says. `name` names the folder of its logs; a run's are there until the
/// next of that name.
pub fn runner(
    prepared: &Prepared,
    options: &RunOptions,
    program: &Path,
    name: &str,
    arguments: &[String],
    limit: Duration,
) -> Result<Outcome> {
    match platform::choose(options.platform) {
        Platform::Kvm => runner_here(prepared, options, program, name, arguments, limit),
        Platform::Lab => runner_in_lab(prepared, options, program, name, arguments, limit),
    }
}

/// Runs the runner on this machine.
pub fn runner_here(
    prepared: &Prepared,
    options: &RunOptions,
    program: &Path,
    name: &str,
    arguments: &[String],
    limit: Duration,
) -> Result<Outcome> {
    let (folder, outcome) = run_folder(prepared, options, program, name)?;
    let places = Places {
        stage: &folder.join("stage"),
        out: &outcome.out,
        programs: &folder.join(PROGRAMS),
    };
    let mut command = platform::apart(&places.stage.join("runner"))?;
    command
        .args(arguments)
        .envs(environment(
            &places,
            Platform::Kvm,
            options.vmm,
            &prepared.guest_kernel,
        ))
        .current_dir(&folder);
    let status = process::run_and_show(
        command,
        &outcome.log,
        Some(Limits {
            total: limit,
            heartbeat: None,
        }),
    )?;
    Ok(Outcome {
        status: status.code().unwrap_or(1),
        ..outcome
    })
}

/// Runs the runner in the lab VM.
fn runner_in_lab(
    prepared: &Prepared,
    options: &RunOptions,
    program: &Path,
    name: &str,
    arguments: &[String],
    limit: Duration,
) -> Result<Outcome> {
    ensure!(
        !arguments.iter().any(|argument| argument.contains('\n')),
        "an argument for the lab VM has more than one line"
    );
    let (folder, outcome) = run_folder(prepared, options, program, name)?;
    let places = Places {
        stage: Path::new("/stage"),
        out: Path::new("/host/out"),
        programs: &Path::new("/host").join(PROGRAMS),
    };
    let kernel = &prepared.guest_kernel;
    let environment: String = environment(&places, Platform::Lab, options.vmm, kernel)
        .map(|(name, value)| format!("{name}={value}\n"))
        .collect();
    fs::write(folder.join("env"), environment)?;
    let arguments: String = arguments
        .iter()
        .map(|argument| format!("{argument}\n"))
        .collect();
    fs::write(folder.join("args"), arguments)?;
    let lab_vm = LabVm {
        kernel: &prepared.lab_kernel.image(),
        image: &prepared.lab_image,
        share: &folder,
        log: &outcome.log,
        out: &outcome.out,
        limit,
        steady: options.steady,
    };
    let status = lab_vm.run()?;
    Ok(Outcome { status, ..outcome })
}

/// Makes the folder of a run, with all that the runner needs, and what will be its outcome.
fn run_folder(
    prepared: &Prepared,
    options: &RunOptions,
    program: &Path,
    name: &str,
) -> Result<(PathBuf, Outcome)> {
    let folder = prepared.cache.fresh(Path::new("run").join(name))?;
    let out = folder.join("out");
    fs::create_dir_all(&out)?;
    fill_stage(prepared, options, program, &folder.join("stage"))?;
    // Not in the stage, all of which a lab VM keeps in its memory.
    for image in &prepared.program_images {
        image.stage(&folder.join(PROGRAMS))?;
    }
    let log = folder.join("runner.log");
    Ok((
        folder,
        Outcome {
            status: 0,
            out,
            log,
        },
    ))
}

/// Where the runner finds what it needs, and writes to.
struct Places<'a> {
    stage: &'a Path,
    out: &'a Path,
    programs: &'a Path,
}

/// The runner's environment.
fn environment(
    places: &Places<'_>,
    platform: Platform,
    vmm: Vmm,
    kernel: &Kernel,
) -> impl Iterator<Item = (&'static str, String)> + use<> {
    let log = std::env::var("RUST_LOG")
        .ok()
        .filter(|value| !value.contains('\n'));
    [
        ("IVSMC_STAGE", places.stage.display().to_string()),
        ("IVSMC_OUT", places.out.display().to_string()),
        ("IVSMC_PROGRAMS", places.programs.display().to_string()),
        ("IVSMC_PLATFORM", platform.name().to_owned()),
        ("IVSMC_VMM", vmm.name().to_owned()),
        ("IVSMC_KERNEL", kernel.flavour.name().to_owned()),
    ]
    .into_iter()
    .chain(log.map(|value| ("RUST_LOG", value)))
}

/// Puts together what the runner runs.
fn fill_stage(
    prepared: &Prepared,
    options: &RunOptions,
    runner: &Path,
    stage: &Path,
) -> Result<()> {
    fs::create_dir_all(stage)?;
    image::copy(&prepared.guest_kernel.image(), &stage.join("bzImage"))?;
    image::copy(&prepared.guest_image, &stage.join("guest.cpio"))?;
    programs::install(runner, &stage.join("runner"))?;
    programs::install(&prepared.programs.host_tool, &stage.join("ivsmc-host"))?;
    let own = options.vmm == Vmm::Reference;
    let embedded = Some(&prepared.programs.vmm).filter(|_| own);
    if let Some(program) = options.vmm_binary.as_ref().or(embedded) {
        let name = if own {
            "vmm-reference"
        } else {
            "cloud-hypervisor"
        };
        programs::install(program, &stage.join(name))
            .with_context(|| format!("--vmm-binary {}", program.display()))?;
        // The lab VM has no libraries; its init copies root/ to its /.
        let listed = process::output(Command::new("ldd").arg(program).env("LC_ALL", "C"));
        for library in image::closure(&listed.unwrap_or_default())? {
            image::copy(
                &library,
                &stage.join("root").join(library.strip_prefix("/")?),
            )?;
        }
    }
    Ok(())
}
