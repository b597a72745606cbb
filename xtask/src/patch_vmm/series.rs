// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is brought in: the folder `vmm-patches/`, and the device's crate.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::diff::FileDiff;

/// The device's crate: its folder here and in the tree, and what of it goes there as it is.
pub const CRATE: &str = "vmm-device-ivsmc";
const CRATE_PARTS: [&str; 2] = ["src", "README.md"];
/// The folder, among the patches, of those that are not for the release.
pub const LATER: &str = "later/";

/// Files by their paths from the top of a tree.
pub type Files = BTreeMap<String, Vec<u8>>;

/// What `vmm-patches/` has.
pub struct Series {
    pub patches: Vec<FileDiff>,
    /// Those of files that the release does not have: they are for trees that have these.
    pub later: Vec<FileDiff>,
    pub files: Files,
}

impl Series {
    pub fn folder(repository: &Path) -> PathBuf {
        repository.join("vmm-patches")
    }

    pub fn read(repository: &Path) -> Result<Self> {
        let folder = Self::folder(repository);
        let (mut patches, mut later) = (Vec::new(), Vec::new());
        for (name, content) in read_files(&folder.join("patches"))? {
            let patch = String::from_utf8(content)
                .map_err(Into::into)
                .and_then(|text| FileDiff::parse_insertions(&text))
                .with_context(|| format!("{}/patches/{name}", folder.display()))?;
            let of = if name.starts_with(LATER) {
                &mut later
            } else {
                &mut patches
            };
            of.push(patch);
        }
        sort(&mut patches);
        sort(&mut later);
        let files = read_files(&folder.join("files"))?;
        Ok(Self {
            patches,
            later,
            files,
        })
    }

    /// What else is wrong with it, if anything is.
    pub fn check(&self) -> Result<()> {
        let mut patched = BTreeSet::new();
        for patch in self.patches.iter().chain(&self.later) {
            let path = &patch.path;
            ensure!(patched.insert(path), "there are two patches of {path}");
            ensure!(
                !self.files.contains_key(path),
                "{path} is both patched and a file of ours"
            );
        }
        Ok(())
    }
}

/// Puts patches in the order of their files.
pub fn sort(patches: &mut [FileDiff]) {
    patches.sort_by(|a, b| a.path.cmp(&b.path));
}

/// The crate's files that a tree gets as they are.
pub fn crate_files(repository: &Path) -> Result<Files> {
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
pub fn is_crate_file(path: &str) -> bool {
    let parts = path
        .strip_prefix(CRATE)
        .and_then(|rest| rest.strip_prefix('/'));
    parts.is_some_and(|rest| CRATE_PARTS.contains(&rest.split('/').next().unwrap_or(rest)))
}

/// The name of a file's patch.
pub fn patch_name(path: &str) -> String {
    format!("{}.patch", path.replace('/', "-"))
}

/// Writes the folder of a series in place of the one that is there.
pub fn save(series: &Series, folder: &Path) -> Result<()> {
    let mut changes = Files::new();
    let patches = series.patches.iter().map(|patch| ("", patch));
    let later = series.later.iter().map(|patch| (LATER, patch));
    for (part, patch) in patches.chain(later) {
        let path = format!("patches/{part}{}", patch_name(&patch.path));
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
pub fn read_files(folder: &Path) -> Result<Files> {
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
