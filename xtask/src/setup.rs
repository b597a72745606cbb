// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask setup`, which is also what the other commands do first.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::cache::Cache;
use crate::kernel::{Flavour, Kernel};
use crate::kernel_source::Unfit;
use crate::programs::Programs;
use crate::{image, kernel, kernel_source, module, prerequisites, programs};

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
    /// Which kernel the guests run.
    #[arg(long, value_enum, value_name = "KERNEL", default_value = "mainline")]
    pub kernel: Flavour,
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
}

/// Makes everything that is not there yet.
pub fn prepare(source: &KernelSource, flavour: Flavour) -> Result<Prepared> {
    let repository = crate::repository()?;
    let cache = Cache::open()?;
    prerequisites::install(&cache)?;
    let patches = repository.join("guest/linux-patches/lab");
    let source = kernel_source::get(&cache, source.tree.as_deref(), &patches)?;
    let source = if flavour.is_mended() {
        let patches = repository.join("guest/linux-patches/smc");
        source.patched(&cache, &patches, Unfit::Error)?
    } else {
        source
    };
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
    })
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
