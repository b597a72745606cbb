// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask package`: Debian packages of driver and tools, made of `packaging/`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::cache::{self, Cache};
use crate::process;
use crate::programs;
use crate::{debian, image, module, prerequisites};

/// What dpkg makes packages of, beside what is built.
const FOLDER: &str = "packaging";
/// The version of all packages, which is the workspace's.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The tools that are in packages.
const TOOLS: [&str; 2] = ["ivsmc-guest", "ivsmc-host"];
/// How much lintian has to say nothing of.
const LINTIAN: &str = "--fail-on=error,warning";
/// The systems in which `--try` installs them: what they depend on beside what is essential.
const TRY: [&str; 3] = ["dkms", "systemd-sysv", "udev"];

/// Options of `cargo xtask package`.
#[derive(Args)]
pub struct Options {
    /// The folder for the packages; what it has of the same names is replaced
    #[arg(long, value_name = "DIR", default_value = "target/packages")]
    output: PathBuf,
    /// Build them once; else they are built a second time, and have to be the same to the byte
    #[arg(long)]
    once: bool,
    /// Install, upgrade, remove and purge them in a Debian system of its own, too; needs root
    #[arg(long = "try")]
    try_them: bool,
}

/// `cargo xtask package`
pub fn main(options: &Options) -> Result<()> {
    let repository = crate::repository()?;
    let cache = Cache::open()?;
    let date = Date::of(&repository)?;
    let packages = build_at(&cache, &repository, &date)?;
    if !options.once {
        let target = cache.fresh("package-again-target")?;
        let again = build_in(&cache, &repository, &date, "package-again", &target)?;
        cache::remove(&target)?;
        for (first, second) in packages.iter().zip(&again) {
            ensure!(
                fs::read(first)? == fs::read(second)?,
                "{} and {} differ, though they were built of the same",
                first.display(),
                second.display()
            );
        }
        println!("built twice: the same");
    }
    lint(&cache, &packages)?;
    if options.try_them {
        try_them(&cache, &packages)?;
    }
    fs::create_dir_all(&options.output)?;
    for package in &packages {
        let name = package.file_name().context("a package without a name")?;
        let to = options.output.join(name);
        image::copy(package, &to)?;
        println!("{}", to.display());
    }
    Ok(())
}

/// Builds the packages; gives their files.
pub fn build(cache: &Cache, repository: &Path) -> Result<Vec<PathBuf>> {
    build_at(cache, repository, &Date::of(repository)?)
}

fn build_at(cache: &Cache, repository: &Path, date: &Date) -> Result<Vec<PathBuf>> {
    prerequisites::install_these(cache, &prerequisites::PACKAGING)?;
    let target = cache.path("package-target");
    build_in(cache, repository, date, "package", &target)
}

/// The same in a folder of this name, where cargo builds in `target`.
fn build_in(
    cache: &Cache,
    repository: &Path,
    date: &Date,
    name: &str,
    target: &Path,
) -> Result<Vec<PathBuf>> {
    let folder = cache.fresh(name)?;
    let tree = folder.join(format!("ivsmc-{VERSION}"));
    fs::create_dir(&tree)?;
    let copy = |from: &str, to: &str| {
        let mut copy = Command::new("cp");
        copy.args(["--recursive", "--no-target-directory"]);
        process::output(copy.arg(repository.join(from)).arg(tree.join(to)))
    };
    copy(&format!("{FOLDER}/debian"), "debian")?;
    copy(&format!("{FOLDER}/guest.toml"), "guest.toml")?;
    copy("host/kata/host.toml", "host.toml")?;
    copy(
        "host/systemd/ivsmc-host.service",
        "debian/ivsmc-host.service",
    )?;
    copy("docs", "docs")?;
    fs::create_dir(tree.join("ivpci"))?;
    for file in driver(&repository.join(module::SOURCE))? {
        copy(
            &format!("{}/{file}", module::SOURCE),
            &format!("ivpci/{file}"),
        )?;
    }
    fs::rename(
        tree.join("ivpci/dkms.conf"),
        tree.join("debian/ivpci-dkms.dkms"),
    )?;

    fs::create_dir(tree.join("bin"))?;
    for (tool, program) in TOOLS.iter().zip(programs(repository, target)?) {
        let installed = tree.join("bin").join(tool);
        process::output(Command::new("strip").arg("-o").args([&installed, &program]))?;
        let manual = tree.join("manual");
        process::output(Command::new(&installed).arg("manual").arg(&manual))?;
    }
    fs::create_dir(tree.join("completions"))?;
    for tool in TOOLS {
        for file in [format!("_{tool}"), format!("{tool}.bash")] {
            fs::rename(
                tree.join("manual").join(&file),
                tree.join("completions").join(&file),
            )?;
        }
    }

    fs::write(tree.join("debian/changelog"), changelog(&date.text))?;
    let mut command = Command::new("dpkg-buildpackage");
    command
        .args(["--build=binary", "--unsigned-changes", "--unsigned-source"])
        .current_dir(&tree)
        .env("SOURCE_DATE_EPOCH", &date.seconds)
        .env("IVSMC_VERSION", VERSION)
        .env("LC_ALL", "C");
    let log = cache.log(name)?;
    process::run_with_progress("packages: building", command, &log, None)?;

    let mut packages = Vec::new();
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            packages.push(path);
        }
    }
    packages.sort();
    ensure!(!packages.is_empty(), "no packages; {}", log.display());
    Ok(packages)
}

/// The files of the driver that DKMS builds it of: no tests of it, nor what checks them.
fn driver(source: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(source)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_ours = ["Kbuild", "Makefile", "dkms.conf"].contains(&name.as_str())
            || name.ends_with(".c")
            || name.ends_with(".h");
        if is_ours && entry.file_type()?.is_file() {
            files.push(name);
        }
    }
    files.sort();
    Ok(files)
}

/// Builds the tools as they are for images: static. What is compiled into them must not tell where they were built.
fn programs(repository: &Path, target: &Path) -> Result<Vec<PathBuf>> {
    println!("packages: cargo build");
    let cargo_home = std::env::var_os("CARGO_HOME").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cargo"),
        PathBuf::from,
    );
    let places = [
        (cargo_home.as_path(), "/cargo"),
        (repository, "/ivsmc"),
        (target, "/target"),
    ];
    let places = places.map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display()));
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned()];
    flags.extend(places);
    let mut command = programs::cargo(repository);
    command
        .env_remove("RUSTFLAGS")
        // A folder's name may have spaces.
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .args(["build", "--release", "--locked", "--bins"])
        .args(["--target", programs::TARGET, "--target-dir"])
        .arg(target)
        .args(TOOLS.map(|tool| format!("--package={tool}")));
    process::run(&mut command)?;
    let built = target.join(programs::TARGET).join("release");
    Ok(TOOLS.map(|tool| built.join(tool)).into())
}

/// When packages are from: the last commit's date.
struct Date {
    /// Since 1970.
    seconds: String,
    /// As in mails.
    text: String,
}

impl Date {
    fn of(repository: &Path) -> Result<Self> {
        let mut git = Command::new("git");
        git.current_dir(repository)
            .args(["log", "-1", "--format=%ct %cD"]);
        let text = process::output(&mut git).context("packages have the last commit's date")?;
        let (seconds, text) = text.trim().split_once(' ').context("git tells no date")?;
        Ok(Date {
            seconds: seconds.to_owned(),
            text: text.to_owned(),
        })
    }
}

/// What dpkg wants to know of a version; what is new is in the repository's CHANGELOG.md.
fn changelog(date: &str) -> String {
    format!(
        "ivsmc ({VERSION}) unstable; urgency=medium\n\n  * Version {VERSION}.\n\n \
         -- ivsmc developers <ivsmc@example.org>  {date}\n"
    )
}

/// Has lintian look at the packages.
fn lint(cache: &Cache, packages: &[PathBuf]) -> Result<()> {
    let mut command = Command::new("lintian");
    command.args([LINTIAN, "--no-cfg"]).args(packages);
    if prerequisites::is_root()? {
        command.arg("--allow-root");
    }
    let log = cache.log("lintian")?;
    process::run_with_progress("packages: lintian", command, &log, None)?;
    println!("lintian: clean");
    Ok(())
}

/// Installs, upgrades, removes and purges them in a Debian system.
fn try_them(cache: &Cache, packages: &[PathBuf]) -> Result<()> {
    ensure!(
        prerequisites::is_root()?,
        "--try makes a Debian system, for which it has to be root"
    );
    let system = debian::system(cache, "packages", &TRY.map(str::to_owned))?;
    let root = cache.fresh("package-root")?;
    let mut unpack = Command::new("tar");
    process::output(
        unpack
            .args(["--extract", "--file"])
            .arg(&system)
            .arg("-C")
            .arg(&root),
    )?;
    for package in packages {
        let name = package.file_name().context("a package without a name")?;
        image::copy(package, &root.join("packages").join(name))?;
    }
    fs::write(root.join("try"), include_str!("../../packaging/try"))?;
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--pid", "--fork", "--net", "chroot"])
        .arg(&root)
        .args(["/bin/bash", "/try"])
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C");
    let log = cache.log("package-try")?;
    process::run_with_progress("packages: trying them", command, &log, None)?;
    println!(
        "installed, upgraded, removed and purged in {}",
        debian::SUITE
    );
    cache::remove(&root)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(file: &str) -> String {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        fs::read_to_string(repository.join(file)).unwrap()
    }

    #[test]
    fn the_driver_has_the_workspaces_version() {
        assert!(read("guest/ivpci/dkms.conf").contains(&format!("PACKAGE_VERSION=\"{VERSION}\"")));
        assert!(read("guest/ivpci/main.c").contains(&format!("MODULE_VERSION(\"{VERSION}\")")));
    }

    #[test]
    fn every_package_is_documented() {
        let document = read("docs/install.md");
        let control = read("packaging/debian/control");
        let packages = control
            .lines()
            .filter_map(|line| line.strip_prefix("Package: "));
        for package in packages {
            assert!(document.contains(&format!("`{package}`")), "{package}");
        }
    }
}
