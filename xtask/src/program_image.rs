// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest needs to run one of the programs of `tests/programs`: a root of its own with Debian's packages, and the
//! program's scripts.
//!
//! Both are archives, which the runner unpacks in the guests. The root has nothing of this machine's: it is of one release
//! of Debian's, whatever this machine runs.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::apt::Apt;
use crate::cache::{self, Cache, Key};
use crate::debian::SUITE;
use crate::process;

/// Where the programs are, from the repository's top.
const FOLDER: &str = "tests/programs";
/// In a program's folder: the packages that guests need, and those that are needed to build something for them. Those with
/// a "-" before their name are left out, if others want them. The first one is the one whose version is told.
const PACKAGES: &str = "packages";
const TOOLS: &str = "tools";
/// In a program's folder, if something is to be built: the script that does it.
const BUILD: &str = "build";
/// What each root has for the scripts.
const BASE: [&str; 2] = ["bash", "busybox-static"];
/// Whom programs can be: no script of a package's was run that would have made users.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
                      sshd:x:100:65534::/run/sshd:/bin/false\n\
                      user:x:1000:1000::/tmp:/bin/sh\n\
                      nobody:x:65534:65534::/:/bin/false\n";
const GROUP: &str = "root:x:0:\nuser:x:1000:\nnogroup:x:65534:\n";

/// A program as the runner needs it.
pub struct ProgramImage {
    pub name: String,
    /// The version of Debian's package.
    pub version: String,
    /// The archive of the root, and of the scripts.
    pub root: PathBuf,
    pub scripts: PathBuf,
}

impl ProgramImage {
    /// Puts it into a folder of a run's.
    pub fn stage(&self, folder: &Path) -> Result<()> {
        let folder = folder.join(&self.name);
        fs::create_dir_all(&folder)?;
        // They are large, and nobody changes them.
        fs::hard_link(&self.root, folder.join("root.tar"))?;
        fs::hard_link(&self.scripts, folder.join("scripts.tar"))?;
        Ok(fs::write(folder.join("version"), &self.version)?)
    }
}

/// The names of all programs.
pub fn all(repository: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(repository.join(FOLDER))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Makes what is not there yet of a program.
pub fn build(cache: &Cache, repository: &Path, name: &str) -> Result<ProgramImage> {
    build_in(cache, repository, FOLDER, name)
}

/// The same for one that is in another folder.
pub fn build_in(
    cache: &Cache,
    repository: &Path,
    folder: &str,
    name: &str,
) -> Result<ProgramImage> {
    let programs = repository.join(FOLDER);
    let source = repository.join(folder).join(name);
    ensure!(
        source.is_dir(),
        "there is no program {name}; there are {}",
        all(repository)?.join(", ")
    );
    let (guests, tools) = (
        listed(&source.join(PACKAGES))?,
        listed(&source.join(TOOLS))?,
    );
    let root = root(cache, name, &guests)?;

    let scripts = cache.fresh(format!("scripts-{name}"))?;
    process::output(
        Command::new("cp")
            .arg("--recursive")
            .args([programs.join("common"), source.join(".")])
            .arg(&scripts),
    )?;
    let mut version = version(&root)?;
    if !tools.is_empty() {
        let tools = tree(cache, name, &tools)?;
        version = self::version(&tools)?;
        let mut build = Command::new("sh");
        build
            .arg(source.join(BUILD))
            .current_dir(&source)
            .env("TOOLS", tools.join("root"))
            .env("OUT", &scripts);
        let log = cache.log(&format!("{name}-build"))?;
        process::run_with_progress(&format!("{name}: building"), build, &log, None)?;
    }
    let archive = cache.path(format!("scripts-{name}.tar"));
    pack(&scripts, &archive)?;
    Ok(ProgramImage {
        name: name.to_owned(),
        version,
        root: root.join("root.tar"),
        scripts: archive,
    })
}

/// The packages in a file, if it is there.
pub fn listed(file: &Path) -> Result<Vec<String>> {
    if !file.exists() {
        return Ok(Vec::new());
    }
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    Ok(lines.map(str::to_owned).collect())
}

/// A folder with the archive of a root that has these packages.
fn root(cache: &Cache, name: &str, packages: &[String]) -> Result<PathBuf> {
    let base = BASE.map(str::to_owned);
    let packages = [packages, &base].concat();
    made(cache, "program", name, &packages, |folder| {
        let root = folder.join("root");
        for place in ["dev", "etc", "proc", "root", "run", "sys", "test", "tmp"] {
            fs::create_dir_all(root.join(place))?;
        }
        fs::write(root.join("etc/passwd"), PASSWD)?;
        fs::write(root.join("etc/group"), GROUP)?;
        fs::write(root.join("etc/hosts"), "127.0.0.1 localhost\n")?;
        let busybox = root.join("usr/bin/busybox");
        for applet in process::output(Command::new(&busybox).arg("--list"))?.lines() {
            let here = |place: &str| {
                root.join(place).join(applet).is_symlink() || root.join(place).join(applet).exists()
            };
            if !here("usr/bin") && !here("usr/sbin") {
                symlink("busybox", root.join("usr/bin").join(applet))?;
            }
        }
        pack(&root, &folder.join("root.tar"))?;
        cache::remove(&root)
    })
}

/// A folder with a tree of these packages.
fn tree(cache: &Cache, name: &str, packages: &[String]) -> Result<PathBuf> {
    made(cache, "tools", name, packages, |_| Ok(()))
}

/// A folder of the cache in which packages were unpacked into `root`, and then `finish`ed.
fn made(
    cache: &Cache,
    kind: &str,
    name: &str,
    packages: &[String],
    finish: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let key = Key::default()
        .text("suite", SUITE)
        .text("packages", &packages.join(" "))
        .text("users", PASSWD);
    let folder = cache.path(format!("{kind}-{name}-{}", key.finish()));
    if !cache::is_finished(&folder) {
        cache::remove(&folder)?;
        let root = folder.join("root");
        fs::create_dir_all(&root)?;
        let found = Apt::new(cache, &[SUITE])?.unpack(cache, name, packages, &root)?;
        let first = packages.first().context("no packages")?;
        let version = found.iter().find(|package| package.name == *first);
        let version = version.with_context(|| format!("{name}: no package {first}"))?;
        fs::write(folder.join("version"), &version.version)?;
        finish(&folder)?;
        cache::set_finished(&folder)?;
    }
    Ok(folder)
}

fn version(folder: &Path) -> Result<String> {
    Ok(fs::read_to_string(folder.join("version"))?)
}

/// Packs a folder.
pub fn pack(folder: &Path, archive: &Path) -> Result<()> {
    let temporary = archive.with_extension("new");
    process::output(
        Command::new("tar")
            .args([
                "--create",
                "--format=gnu",
                "--sort=name",
                "--owner=+0",
                "--group=+0",
            ])
            .arg("--file")
            .arg(&temporary)
            .arg("--directory")
            .args([folder, Path::new(".")]),
    )?;
    Ok(fs::rename(temporary, archive)?)
}
