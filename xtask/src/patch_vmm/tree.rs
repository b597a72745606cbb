// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The checkout that is patched: what git says of it, and writing into it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::RELEASE;
use crate::process;

/// The user's checkout.
pub struct Tree {
    pub top: PathBuf,
}

impl Tree {
    pub fn open(path: &Path) -> Result<Self> {
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

    pub fn git(&self, arguments: &[&str]) -> Result<String> {
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
    pub fn paths(&self, arguments: &[&str]) -> Result<Vec<String>> {
        let output = self.git(arguments)?;
        let paths = output.split('\0').filter(|path| !path.is_empty());
        Ok(paths.map(str::to_owned).collect())
    }

    pub fn read(&self, path: &str) -> Result<Vec<u8>> {
        let path = self.top.join(path);
        fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
    }
}

/// A file that is written.
pub struct Change {
    pub path: String,
    /// What it had; none: it was not there.
    pub before: Option<Vec<u8>>,
    pub after: Vec<u8>,
}

/// Writes everything or nothing.
pub fn write(top: &Path, changes: &[Change]) -> Result<()> {
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
