// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask setup`, which is also what the other commands do first.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;

use crate::cache::Cache;
use crate::kernel::{Flavour, Kernel};
use crate::kernel_source::{Source, Unfit};
use crate::program_image::ProgramImage;
use crate::programs::Programs;
use crate::{image, kernel, kernel_patch, kernel_source, module, prerequisites, programs};

/// Where the kernel comes from.
#[derive(Args)]
pub struct KernelSource {
    /// A Linux source tree to build the guests' kernel from (6.18 or later, clean) [default:
    /// the newest linux-source package of Debian's]
    #[arg(long = "kernel-src", value_name = "DIR")]
    tree: Option<PathBuf>,
}

/// Which kernel the guests run.
#[derive(Args)]
pub struct KernelFlavour {
    /// Which kernel the guests run [default: mended; mainline if the patches do not fit the source]
    #[arg(long, value_enum, value_name = "KERNEL")]
    pub kernel: Option<Flavour>,
}

/// Options of `cargo xtask setup`.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    source: KernelSource,
    #[command(flatten)]
    flavour: KernelFlavour,
}

/// All that is needed to run.
pub struct Prepared {
    pub cache: Cache,
    pub repository: PathBuf,
    /// What the lab VM runs.
    pub lab_kernel: Kernel,
    /// What the guests run.
    pub guest_kernel: Kernel,
    pub guest_image: PathBuf,
    pub lab_image: PathBuf,
    pub programs: Programs,
    /// Programs of Debian's that the guests are to run; none unless a command adds some.
    pub program_images: Vec<ProgramImage>,
}

/// Makes everything that is not there yet.
pub fn prepare(source: &KernelSource, flavour: Option<Flavour>) -> Result<Prepared> {
    let repository = crate::repository()?;
    let cache = Cache::open()?;
    prerequisites::install(&cache)?;
    let patches = repository.join(kernel_patch::LAB);
    let source = kernel_source::get(&cache, source.tree.as_deref(), &patches)?;
    let (source, flavour) = mend(&cache, &repository, source, flavour)?;
    let lab_kernel = kernel::build(&cache, &repository, &source, flavour.plain())?;
    let guest_kernel = kernel::build(&cache, &repository, &source, flavour)?;
    let modules = module::build(&cache, &repository, &guest_kernel)?;
    let programs = programs::build(&cache, &repository)?;
    let guest_image = image::guest(&cache, &repository, &guest_kernel, &modules, &programs)?;
    let lab_image = image::lab(&cache, &repository)?;
    Ok(Prepared {
        cache,
        repository,
        lab_kernel,
        guest_kernel,
        guest_image,
        lab_image,
        programs,
        program_images: Vec::new(),
    })
}

/// Gives `source` the patches of guest/linux-patches/smc if `flavour` has them. Without a flavour it gets them if they
/// fit.
fn mend(
    cache: &Cache,
    repository: &Path,
    source: Source,
    flavour: Option<Flavour>,
) -> Result<(Source, Flavour)> {
    if let Some(flavour) = flavour
        && !flavour.is_mended()
    {
        return Ok((source, flavour));
    }
    let patches = repository.join(kernel_patch::SMC);
    match (source.patched(cache, &patches, Unfit::Error), flavour) {
        (Ok(mended), flavour) => Ok((mended, flavour.unwrap_or(Flavour::Mended))),
        (Err(error), Some(_)) => {
            Err(error.context("this kernel cannot be mended; --kernel mainline takes it as it is"))
        }
        (Err(error), None) => {
            println!("kernel: mainline, as it cannot be mended: {error:#}");
            Ok((source, Flavour::Mainline))
        }
    }
}

/// `cargo xtask setup`
pub fn main(options: &Options) -> Result<()> {
    let prepared = prepare(&options.source, options.flavour.kernel)?;
    println!("kernel:      {}", prepared.guest_kernel.image().display());
    println!("guest image: {}", prepared.guest_image.display());
    println!("VMM:         {}", prepared.programs.vmm.display());
    println!("ready: cargo xtask demo");
    Ok(())
}
