// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask patch-vmm`: brings the device into a checkout of Cloud Hypervisor, and records what was changed
//! there.
//!
//! The folder `vmm-patches/RELEASE` has
//! - `files/`: files of ours, at the places in the tree where they go;
//! - `patches/`: what is inserted into upstream's files, a [`diff`] for each;
//! - `upstream.toml`: how upstream's files look in the release, so that another tree is told from it.
//!
//! The crate `vmm-device-ivsmc` comes in as it is in this repository, but with a manifest from `files/`: the one here
//! takes its dependencies from this workspace, and names some that only its tests need.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::diff::{self, Insertions};
use crate::process;

/// The release that the patches are for: its tag, and the name of their folder.
const RELEASE: &str = "v53.0";
/// A file of ours by which a tree is known that has the patches.
const MARK: &str = "vmm-device-ivsmc/Cargo.toml";
/// The device's crate: its folder here and in the tree, and what of it goes there as it is.
const CRATE: &str = "vmm-device-ivsmc";
const CRATE_PARTS: [&str; 2] = ["src", "README.md"];

/// Options of `cargo xtask patch-vmm`.
#[derive(Args)]
pub struct Options {
    /// A clean checkout of Cloud Hypervisor v53.0.
    #[arg(value_name = "DIR")]
    tree: PathBuf,
    /// For maintainers: write vmm-patches/ anew from what DIR has more than the release.
    #[arg(long)]
    record: bool,
}

/// `cargo xtask patch-vmm`
pub fn main(options: &Options) -> Result<()> {
    let repository = crate::repository()?;
    let tree = Tree::open(&options.tree)?;
    let report = if options.record {
        record(&repository, &tree)?
    } else {
        patch(&repository, &tree)?
    };
    print!("{report}");
    Ok(())
}

/// Files by their paths from the top of a tree.
type Files = BTreeMap<String, Vec<u8>>;

/// `upstream.toml`
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Upstream {
    release: String,
    #[serde(default, rename = "file")]
    files: Vec<UpstreamFile>,
}

/// A file of the release, as it is there.
#[derive(Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct UpstreamFile {
    path: String,
    lines: usize,
    sha256: String,
}

impl UpstreamFile {
    fn new(path: &str, content: &str) -> Self {
        Self {
            path: path.to_owned(),
            lines: content.lines().count(),
            sha256: hash(content.as_bytes()),
        }
    }
}

/// What `vmm-patches/RELEASE` has.
struct Series {
    upstream: Upstream,
    patches: Vec<Insertions>,
    files: Files,
}

impl Series {
    fn folder(repository: &Path) -> PathBuf {
        repository.join("vmm-patches").join(RELEASE)
    }

    fn read(repository: &Path) -> Result<Self> {
        let folder = Self::folder(repository);
        let path = folder.join("upstream.toml");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let upstream: Upstream =
            toml::from_str(&text).with_context(|| path.display().to_string())?;
        ensure!(
            upstream.release == RELEASE,
            "{}: its release is {}, and its folder's is {RELEASE}",
            path.display(),
            upstream.release
        );
        let mut patches = Vec::new();
        for (name, content) in read_files(&folder.join("patches"))? {
            let patch = String::from_utf8(content)
                .map_err(Into::into)
                .and_then(|text| Insertions::parse(&text))
                .with_context(|| format!("{}/patches/{name}", folder.display()))?;
            patches.push(patch);
        }
        patches.sort_by(|a, b| a.path.cmp(&b.path));
        let files = read_files(&folder.join("files"))?;
        Ok(Self {
            upstream,
            patches,
            files,
        })
    }

    /// What else is wrong with it, if anything is.
    fn check(&self) -> Result<()> {
        let patched: Vec<_> = self.patches.iter().map(|patch| &*patch.path).collect();
        let known: Vec<_> = self.upstream.files.iter().map(|file| &*file.path).collect();
        ensure!(
            patched == known,
            "patches/ is for {patched:?}, and upstream.toml has {known:?}"
        );
        for (patch, file) in self.patches.iter().zip(&self.upstream.files) {
            let last = patch.hunks.last().map_or(0, |hunk| hunk.after);
            ensure!(
                last <= file.lines,
                "the patch of {} inserts after line {last} of {}",
                file.path,
                file.lines
            );
            ensure!(
                !self.files.contains_key(&file.path),
                "{} is both patched and a file of ours",
                file.path
            );
        }
        Ok(())
    }
}

/// The crate's files that a tree gets as they are.
fn crate_files(repository: &Path) -> Result<Files> {
    let folder = repository.join(CRATE);
    let mut files = Files::new();
    for part in CRATE_PARTS {
        let path = folder.join(part);
        if path.is_dir() {
            for (name, content) in read_files(&path)? {
                files.insert(format!("{CRATE}/{part}/{name}"), content);
            }
        } else {
            let content =
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            files.insert(format!("{CRATE}/{part}"), content);
        }
    }
    Ok(files)
}

/// Whether a path in a tree is one of those.
fn is_crate_file(path: &str) -> bool {
    let parts = path
        .strip_prefix(CRATE)
        .and_then(|rest| rest.strip_prefix('/'));
    parts.is_some_and(|rest| CRATE_PARTS.contains(&rest.split('/').next().unwrap_or(rest)))
}

/// The user's checkout.
struct Tree {
    top: PathBuf,
}

impl Tree {
    fn open(path: &Path) -> Result<Self> {
        let top = path
            .canonicalize()
            .with_context(|| format!("{}: there is no such folder", path.display()))?;
        let tree = Self { top };
        let found = tree
            .git(&["rev-parse", "--show-toplevel"])
            .with_context(|| {
                format!(
                    "{} is not a git checkout; give a checkout of Cloud Hypervisor {RELEASE}",
                    path.display()
                )
            })?;
        let found = Path::new(found.trim_end());
        ensure!(
            found == tree.top,
            "{} is not the top of its git checkout; give {}",
            path.display(),
            found.display()
        );
        Ok(tree)
    }

    fn git(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("git");
        // A hook that runs us would have it look at another tree.
        for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
            command.env_remove(name);
        }
        command
            .env("LC_ALL", "C")
            .arg("-C")
            .arg(&self.top)
            .args(["-c", "core.quotePath=false"])
            .args(arguments);
        process::output(&mut command)
    }

    /// Paths that git prints with zeroes between them.
    fn paths(&self, arguments: &[&str]) -> Result<Vec<String>> {
        let output = self.git(arguments)?;
        let paths = output.split('\0').filter(|path| !path.is_empty());
        Ok(paths.map(str::to_owned).collect())
    }

    fn read(&self, path: &str) -> Result<Vec<u8>> {
        let path = self.top.join(path);
        fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
    }
}

/// A file that is written.
struct Change {
    path: String,
    /// What it had; none: it was not there.
    before: Option<Vec<u8>>,
    after: Vec<u8>,
}

/// Brings everything into the tree; gives a report.
fn patch(repository: &Path, tree: &Tree) -> Result<String> {
    let series = Series::read(repository)?;
    series.check()?;
    let (changes, report) = plan(&series, crate_files(repository)?, tree)?;
    write(&tree.top, &changes)?;
    Ok(report)
}

/// Looks whether the tree is as it has to be, and works out what to write.
fn plan(series: &Series, crate_files: Files, tree: &Tree) -> Result<(Vec<Change>, String)> {
    let top = tree.top.display();
    ensure!(
        !tree.top.join(MARK).exists(),
        "{top} has the patches already ({MARK} is there); to apply them anew, go back to the release first: \
         `git reset --hard {RELEASE}` and `git clean -d --force` throw away all that is not committed"
    );
    let status = tree.git(&["status", "--porcelain", "--untracked-files=normal"])?;
    if let Some(first) = status.lines().next() {
        let (number, what) = (status.lines().count(), first.get(3..).unwrap_or(first));
        bail!(
            "{top} has changes that are not committed ({number}, the first is {what}); put them away with \
             `git stash --include-untracked`, or untracked files with `git clean -d --force`"
        );
    }

    let mut changes = Vec::new();
    let mut report = String::new();
    for (patch, file) in series.patches.iter().zip(&series.upstream.files) {
        let another = |why: &str| {
            format!(
                "{top} is not Cloud Hypervisor {RELEASE}: {} {why}; run `git checkout {RELEASE}` in it",
                file.path
            )
        };
        let before = fs::read(tree.top.join(&file.path)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => anyhow::anyhow!(another("is not there")),
            _ => anyhow::Error::new(error).context(format!("cannot read {top}/{}", file.path)),
        })?;
        ensure!(hash(&before) == file.sha256, another("is another"));
        let content = std::str::from_utf8(&before).with_context(|| file.path.clone())?;
        let after = patch.apply(content).with_context(|| file.path.clone())?;
        let _ = writeln!(report, "{}: {} lines inserted", file.path, patch.count());
        changes.push(Change {
            path: file.path.clone(),
            before: Some(before),
            after: after.into_bytes(),
        });
    }

    let number = crate_files.len();
    for path in series.files.keys() {
        let _ = writeln!(report, "{path}: added");
    }
    let _ = writeln!(report, "{CRATE}: {number} files added");
    for (path, after) in series.files.clone().into_iter().chain(crate_files) {
        ensure!(
            !tree.top.join(&path).exists(),
            "{top} is not Cloud Hypervisor {RELEASE}: it has a {path}; run `git checkout {RELEASE}` in it"
        );
        changes.push(Change {
            path,
            before: None,
            after,
        });
    }
    let lines: usize = series.patches.iter().map(Insertions::count).sum();
    let _ = writeln!(
        report,
        "done: {lines} lines inserted into {} files, {} files added; now build {top} as its documents say, with \
         --features ivsmc",
        series.patches.len(),
        series.files.len() + number
    );
    Ok((changes, report))
}

/// Writes everything or nothing.
fn write(top: &Path, changes: &[Change]) -> Result<()> {
    let mut made = Vec::new();
    for (index, change) in changes.iter().enumerate() {
        let path = top.join(&change.path);
        let written = make_folders(&path, &mut made).and_then(|()| fs::write(&path, &change.after));
        if let Err(error) = written {
            let error =
                anyhow::Error::new(error).context(format!("cannot write {}", path.display()));
            // The one that failed may have been written in part.
            return Err(match undo(top, &changes[..=index], &made) {
                Ok(()) => error.context("nothing was changed"),
                Err(left) => {
                    error.context(format!("{left:#}; `git status` tells what is left of it"))
                }
            });
        }
    }
    Ok(())
}

/// Makes the folders that a file needs, and notes which were not there, outermost first.
fn make_folders(path: &Path, made: &mut Vec<PathBuf>) -> io::Result<()> {
    let missing: Vec<_> = path
        .ancestors()
        .skip(1)
        .take_while(|folder| !folder.exists())
        .collect();
    for folder in missing.into_iter().rev() {
        fs::create_dir(folder)?;
        made.push(folder.to_owned());
    }
    Ok(())
}

/// Makes everything as it was.
fn undo(top: &Path, changes: &[Change], made: &[PathBuf]) -> Result<()> {
    for change in changes {
        let path = top.join(&change.path);
        let undone = match &change.before {
            // What could not be written need not be written back.
            Some(before) if fs::read(&path).is_ok_and(|now| now == *before) => Ok(()),
            Some(before) => fs::write(&path, before),
            None if path.symlink_metadata().is_ok() => fs::remove_file(&path),
            None => Ok(()),
        };
        undone.with_context(|| format!("{} cannot be made as it was", path.display()))?;
    }
    for folder in made.iter().rev() {
        fs::remove_dir(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(())
}

/// Writes vmm-patches/ anew from a tree; gives a report.
fn record(repository: &Path, tree: &Tree) -> Result<String> {
    let top = tree.top.display();
    let head = tree.git(&["rev-parse", "HEAD"])?;
    let release = tree
        .git(&["rev-parse", &format!("refs/tags/{RELEASE}^{{commit}}")])
        .with_context(|| {
            format!(
                "{top} has no tag {RELEASE}: run `git fetch --depth 1 origin tag {RELEASE}` in it"
            )
        })?;
    ensure!(
        head == release,
        "{top} has commits that {RELEASE} does not have: what is to be recorded must not be committed; run \
         `git reset --soft {RELEASE}` in it"
    );

    let mut patches = diff::from_git(&tree.git(&[
        "diff",
        "--unified=0",
        "--no-color",
        "--no-ext-diff",
        "--no-textconv",
        "--no-renames",
        "--minimal",
        "--inter-hunk-context=0",
        "--src-prefix=a/",
        "--dst-prefix=b/",
        "HEAD",
    ])?)
    .with_context(|| format!("{top} is changed in ways that cannot be recorded"))?;
    patches.sort_by(|a, b| a.path.cmp(&b.path));
    let mut upstream = Vec::new();
    for patch in &patches {
        let content = tree.git(&["show", &format!("HEAD:{}", patch.path)])?;
        upstream.push(UpstreamFile::new(&patch.path, &content));
    }

    let added = [
        "diff",
        "--name-only",
        "--no-renames",
        "--diff-filter=A",
        "-z",
        "HEAD",
    ];
    let untracked = ["ls-files", "--others", "--exclude-standard", "-z"];
    let paths: BTreeSet<_> = tree
        .paths(&added)?
        .into_iter()
        .chain(tree.paths(&untracked)?)
        .collect();
    let (mut files, mut copied) = (Files::new(), Files::new());
    for path in paths {
        let content = tree.read(&path)?;
        let of = if is_crate_file(&path) {
            &mut copied
        } else {
            &mut files
        };
        of.insert(path, content);
    }
    same_crate(&crate_files(repository)?, &copied).with_context(|| {
        format!("{top}/{CRATE} is not this repository's, which is not recorded from there")
    })?;

    let folder = Series::folder(repository);
    // The prose is ours alone: it stays.
    for patch in &mut patches {
        let old = fs::read_to_string(folder.join("patches").join(patch_name(&patch.path)));
        if let Some(old) = old.ok().and_then(|text| Insertions::parse(&text).ok()) {
            patch.description = old.description;
        }
    }
    let mut report = String::new();
    for patch in &patches {
        let _ = write!(report, "{}: {} lines inserted", patch.path, patch.count());
        report += if patch.description.trim().is_empty() {
            " (its patch has no description: write some lines before the diff)\n"
        } else {
            "\n"
        };
    }
    for path in files.keys() {
        let _ = writeln!(report, "{path}: a file of ours");
    }
    let lines: usize = patches.iter().map(Insertions::count).sum();
    let _ = writeln!(
        report,
        "written: {} ({lines} lines inserted)",
        folder.display()
    );

    let series = Series {
        upstream: Upstream {
            release: RELEASE.to_owned(),
            files: upstream,
        },
        patches,
        files,
    };
    series.check()?;
    save(&series, &folder).with_context(|| format!("cannot write {}", folder.display()))?;
    Ok(report)
}

/// Compares the crate here with the one in a tree.
fn same_crate(here: &Files, there: &Files) -> Result<()> {
    for path in here.keys().chain(there.keys()) {
        ensure!(
            here.get(path) == there.get(path),
            "{path} differs: make both the same, and record again"
        );
    }
    Ok(())
}

/// The name of a file's patch.
fn patch_name(path: &str) -> String {
    format!("{}.patch", path.replace('/', "-"))
}

/// Writes the folder of a series in place of the one that is there.
fn save(series: &Series, folder: &Path) -> Result<()> {
    let header = "# The files of the release that patches/ inserts into, as they are there.\n";
    let mut changes = Files::from([(
        "upstream.toml".to_owned(),
        (header.to_owned() + &toml::to_string(&series.upstream)?).into_bytes(),
    )]);
    for patch in &series.patches {
        let path = format!("patches/{}", patch_name(&patch.path));
        let other = changes.insert(path.clone(), patch.render().into_bytes());
        ensure!(other.is_none(), "two patches would be called {path}");
    }
    for (path, content) in &series.files {
        changes.insert(format!("files/{path}"), content.clone());
    }
    for part in ["patches", "files"] {
        crate::cache::remove(&folder.join(part))?;
    }
    for (path, content) in changes {
        let path = folder.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(path, content)?;
    }
    Ok(())
}

/// The files in a folder and in those in it.
fn read_files(folder: &Path) -> Result<Files> {
    let mut files = Files::new();
    for entry in
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?
    {
        let entry = entry?;
        let name = entry.file_name();
        let name = name
            .to_str()
            .with_context(|| format!("{}: its name is no text", entry.path().display()))?;
        if entry.file_type()?.is_dir() {
            for (inner, content) in read_files(&entry.path())? {
                files.insert(format!("{name}/{inner}"), content);
            }
        } else {
            files.insert(name.to_owned(), fs::read(entry.path())?);
        }
    }
    Ok(files)
}

/// SHA-256 in hexadecimal.
fn hash(content: &[u8]) -> String {
    Sha256::digest(content)
        .iter()
        .fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

#[cfg(test)]
mod tests;
