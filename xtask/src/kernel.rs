// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The kernel that guests and lab VM run: allnoconfig and the fragments of guest/kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::cache::{self, Cache, Key};
use crate::kernel_source::Source;
use crate::process;

/// Which kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Flavour {
    /// with the defects of SMC mended that guest/linux-patches/smc is about
    Mended,
    /// as mended, with KASAN, lockdep and the like (a build of its own)
    MendedDebug,
    /// as it is upstream (a build of its own)
    Mainline,
    /// as mainline, with KASAN, lockdep and the like (a build of its own)
    MainlineDebug,
    /// as mended, with tracing: for `perf --only trace` (a build of its own)
    Traced,
}

impl Flavour {
    pub fn name(self) -> &'static str {
        match self {
            Self::Mended => "mended",
            Self::MendedDebug => "mended-debug",
            Self::Mainline => "mainline",
            Self::MainlineDebug => "mainline-debug",
            Self::Traced => "traced",
        }
    }

    /// Whether it looks for mistakes as it runs, and so is slow.
    pub fn is_debug(self) -> bool {
        matches!(self, Self::MendedDebug | Self::MainlineDebug)
    }

    /// Whether it has Linux's defects mended.
    pub fn is_mended(self) -> bool {
        !matches!(self, Self::Mainline | Self::MainlineDebug)
    }

    /// The one of the same source that is fast: what the lab VM runs.
    pub fn plain(self) -> Self {
        if self.is_mended() {
            Self::Mended
        } else {
            Self::Mainline
        }
    }

    fn fragments(self) -> &'static [&'static str] {
        match self {
            Self::Mended | Self::Mainline => &["guest.config"],
            Self::MendedDebug | Self::MainlineDebug => &["guest.config", "debug.config"],
            Self::Traced => &["guest.config", "trace.config"],
        }
    }

    /// Lines that make prints, about.
    fn steps(self) -> usize {
        if self.is_debug() { 2400 } else { 2200 }
    }
}

/// Options that only some of the versions that can be built know, and under which other name the rest do.
const RENAMED: [(&str, &str); 1] = [("CONFIG_PROC_SYSCTL", "CONFIG_SYSCTL")];

/// A built kernel.
pub struct Kernel {
    pub flavour: Flavour,
    /// Its build folder, to build modules against.
    pub build: PathBuf,
    pub source: PathBuf,
    /// Names it in the cache.
    pub key: String,
    /// Whether it can change under its name.
    pub changes: bool,
}

impl Kernel {
    /// The image to boot.
    pub fn image(&self) -> PathBuf {
        self.build.join("arch/x86/boot/bzImage")
    }
}

/// Builds the kernel, unless it is there.
pub fn build(
    cache: &Cache,
    repository: &Path,
    source: &Source,
    flavour: Flavour,
) -> Result<Kernel> {
    let mut fragment = String::new();
    for name in flavour.fragments() {
        let path = repository.join("guest/kernel").join(name);
        fragment += &fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
    }
    let options: Vec<_> = options(&fragment).collect();
    let compiler = process::output(Command::new("gcc").arg("-dumpfullversion"))?;
    let key = Key::default()
        .text("source", &source.identity)
        .text("options", &options.join("\n"))
        .text("compiler", &compiler)
        .finish();
    let kernel = Kernel {
        flavour,
        build: cache.path(format!("kernel-{}-{key}", flavour.name())),
        source: source.folder.clone(),
        key,
        changes: source.changes,
    };
    if cache::is_finished(&kernel.build) && !kernel.changes {
        return Ok(kernel);
    }

    fs::create_dir_all(&kernel.build)?;
    let seed = kernel.build.join("ivsmc.config");
    fs::write(&seed, options.join("\n") + "\n")?;
    let log = cache.log(&format!("kernel-{}-config", flavour.name()))?;
    let mut configure = make(&kernel);
    configure.env("KCONFIG_ALLCONFIG", &seed).arg("allnoconfig");
    process::run_with_progress("kernel: configuring", configure, &log, None)?;
    let configured = fs::read_to_string(kernel.build.join(".config"))?;
    let lost = without_effect(&options, &configured);
    if !lost.is_empty() {
        bail!(
            "guest/kernel/{}: Linux {} does not have, or not without other options: {}",
            flavour.fragments().join(" and "),
            source.version,
            lost.join(", ")
        );
    }

    let mut build = make(&kernel);
    build
        .arg(format!("-j{}", std::thread::available_parallelism()?))
        .args(["bzImage", "modules"]);
    process::run_with_progress(
        &format!(
            "kernel: building Linux {} ({})",
            source.version,
            flavour.name()
        ),
        build,
        &cache.log(&format!("kernel-{}", flavour.name()))?,
        Some(flavour.steps()),
    )?;
    cache::set_finished(&kernel.build)?;
    Ok(kernel)
}

/// make in the kernel's build folder.
fn make(kernel: &Kernel) -> Command {
    let mut command = Command::new("make");
    command
        .arg("-C")
        .arg(&kernel.source)
        .arg(format!("O={}", kernel.build.display()));
    clean_environment(&mut command);
    command
}

/// Takes what would change the kernel's build from a command's environment.
pub fn clean_environment(command: &mut Command) {
    for name in [
        "MAKEFLAGS",
        "MAKELEVEL",
        "ARCH",
        "CROSS_COMPILE",
        "LOCALVERSION",
        "KCFLAGS",
    ] {
        command.env_remove(name);
    }
    command.env("LC_ALL", "C");
}

/// The options of a fragment, without comments.
fn options(fragment: &str) -> impl Iterator<Item = &str> {
    fragment
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("CONFIG_"))
}

/// The options that the configuration does not have as they were asked for.
fn without_effect<'a>(options: &[&'a str], configured: &str) -> Vec<&'a str> {
    let set = |name: &str| {
        configured
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
    };
    let has_effect = |option: &str| {
        let Some((name, value)) = option.split_once('=') else {
            return false;
        };
        match set(name) {
            Some(found) => found == value,
            None => {
                value == "n"
                    || RENAMED.iter().any(|(old, new)| {
                        (name == *old && set(new).is_some()) || (name == *new && set(old).is_some())
                    })
            }
        }
    };
    options
        .iter()
        .copied()
        .filter(|option| !has_effect(option))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_no_options() {
        let fragment = "# CONFIG_A=y\n\n CONFIG_B=y \nCONFIG_C=\"x y\"\n# CONFIG_D is not set\n";
        assert_eq!(
            options(fragment).collect::<Vec<_>>(),
            ["CONFIG_B=y", "CONFIG_C=\"x y\""]
        );
    }

    /// The fragments for Kata's kernel have what the guests here have for SMC-D, and nothing that these do not have.
    #[test]
    fn what_kata_s_kernel_gets_is_what_guests_have() {
        let guests = include_str!("../../guest/kernel/guest.config");
        let kata = [
            include_str!("../../host/kata/kernel/ivsmc.conf"),
            include_str!("../../host/kata/kernel/ivsmc-connections.conf"),
        ];
        let kata: Vec<_> = kata.into_iter().flat_map(options).collect();
        let ours: Vec<_> = options(guests).collect();
        for option in &kata {
            assert!(ours.contains(option), "{option} is not tested here");
        }
        // Kata's programs use InfiniBand; tests of the driver are built for tests.
        let not_kata_s = ["CONFIG_INFINIBAND_USER_ACCESS=n", "CONFIG_KUNIT=m"];
        let parts = guests.split("\n# --- ").filter(|part| {
            ["SMC-D", "`ivsmc-guest enable`", "ivpci"]
                .iter()
                .any(|title| part.starts_with(title))
        });
        let parts: Vec<_> = parts.collect();
        assert_eq!(parts.len(), 3);
        for option in parts.into_iter().flat_map(options) {
            assert!(
                kata.contains(&option) || not_kata_s.contains(&option),
                "host/kata/kernel lacks {option}"
            );
        }
    }

    #[test]
    fn options_without_effect_are_found() {
        let configured = "CONFIG_A=y\nCONFIG_AB=m\n# CONFIG_C is not set\nCONFIG_SYSCTL=y\n";
        let lost = |options: &[&'static str]| without_effect(options, configured);
        assert!(
            lost(&[
                "CONFIG_A=y",
                "CONFIG_AB=m",
                "CONFIG_C=n",
                "CONFIG_PROC_SYSCTL=y"
            ])
            .is_empty()
        );
        assert_eq!(lost(&["CONFIG_A=n"]), ["CONFIG_A=n"]);
        assert_eq!(
            lost(&["CONFIG_AB=y", "CONFIG_C=y"]),
            ["CONFIG_AB=y", "CONFIG_C=y"]
        );
        assert_eq!(lost(&["CONFIG_NEVER_HEARD=y"]), ["CONFIG_NEVER_HEARD=y"]);
    }
}
