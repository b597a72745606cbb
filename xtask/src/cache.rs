// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The cache: a folder outside the repository that keeps what is fetched and built.
//!
//! What it holds is named by a [`Key`] over all that it was made from, and is complete or not there:
//! it is made under another name and renamed, or (what make can resume) made in place and stamped when
//! finished.

use std::fmt::Write as _;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

/// The cache folder, locked against other runs of `cargo xtask`.
pub struct Cache {
    root: PathBuf,
    _lock: File,
}

impl Cache {
    /// Opens the cache, after whoever uses it now.
    pub fn open() -> Result<Self> {
        let root = location(|name| std::env::var_os(name).map(PathBuf::from))?;
        fs::create_dir_all(&root)
            .with_context(|| format!("cannot create the cache folder {}", root.display()))?;
        let root = root.canonicalize()?;
        // The kernel's build system refuses such folders, with a less helpful message.
        if root.to_string_lossy().contains([' ', ':']) {
            bail!(
                "the cache folder {} has a space or a colon in its name, which make cannot handle; \
                 set IVSMC_CACHE to another folder",
                root.display()
            );
        }
        let lock = File::create(root.join("lock"))
            .with_context(|| format!("cannot write to the cache folder {}", root.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                println!(
                    "cache: another cargo xtask uses {}; waiting for it",
                    root.display()
                );
                lock.lock()?;
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).context("cannot lock the cache folder");
            }
        }
        Ok(Self { root, _lock: lock })
    }

    /// The path of `name` in the cache.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.join(name)
    }

    /// The log file called `name`.
    pub fn log(&self, name: &str) -> Result<PathBuf> {
        let folder = self.path("log");
        fs::create_dir_all(&folder)?;
        Ok(folder.join(format!("{name}.log")))
    }

    /// An empty folder called `name`; what was in it is removed.
    pub fn fresh(&self, name: impl AsRef<Path>) -> Result<PathBuf> {
        let path = self.path(name);
        remove(&path)?;
        fs::create_dir_all(&path)?;
        Ok(path)
    }
}

/// Where the cache is, as the environment says.
fn location(variable: impl Fn(&str) -> Option<PathBuf>) -> Result<PathBuf> {
    if let Some(path) = variable("IVSMC_CACHE") {
        Ok(path)
    } else if let Some(path) = variable("XDG_CACHE_HOME").filter(|path| path.is_absolute()) {
        Ok(path.join("ivsmc"))
    } else if let Some(path) = variable("HOME") {
        Ok(path.join(".cache/ivsmc"))
    } else {
        bail!("none of IVSMC_CACHE, XDG_CACHE_HOME and HOME is set: set IVSMC_CACHE to a folder")
    }
}

/// Removes a folder and what is in it, if it is there.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// The mark of a folder whose content is finished.
pub fn is_finished(folder: &Path) -> bool {
    folder.join("finished").exists()
}

/// Marks a folder's content as finished.
pub fn set_finished(folder: &Path) -> Result<()> {
    Ok(fs::write(folder.join("finished"), "")?)
}

/// Names something in the cache by all that it is made from.
#[derive(Default)]
pub struct Key(Sha256);

impl Key {
    /// Adds a named text.
    pub fn text(mut self, name: &str, value: &str) -> Self {
        for part in [name, value] {
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
        self
    }

    /// Adds the files of a folder, with their names.
    pub fn folder(self, folder: &Path) -> Result<Self> {
        self.entries(folder, true)
    }

    /// The same without the folders in it.
    pub fn files(self, folder: &Path) -> Result<Self> {
        self.entries(folder, false)
    }

    fn entries(mut self, folder: &Path, all: bool) -> Result<Self> {
        let mut entries: Vec<_> = fs::read_dir(folder)
            .and_then(Iterator::collect::<io::Result<_>>)
            .with_context(|| format!("cannot read {}", folder.display()))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type()?.is_dir() {
                if all {
                    self = self
                        .text("folder", &name)
                        .folder(&entry.path())?
                        .text("end", &name);
                }
            } else {
                self = self.text("file", &name);
                let content = fs::read(entry.path())?;
                self.0.update((content.len() as u64).to_le_bytes());
                self.0.update(content);
            }
        }
        Ok(self)
    }

    /// The name.
    pub fn finish(self) -> String {
        self.0
            .finalize()
            .iter()
            .take(8)
            .fold(String::new(), |mut name, byte| {
                // Writing to a String does not fail.
                let _ = write!(name, "{byte:02x}");
                name
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn location_prefers_its_own_variable() {
        let set = |names: &'static [&str]| {
            location(move |name| names.contains(&name).then(|| PathBuf::from("/").join(name)))
        };
        assert_eq!(
            set(&["IVSMC_CACHE", "XDG_CACHE_HOME", "HOME"]).unwrap(),
            Path::new("/IVSMC_CACHE")
        );
        assert_eq!(
            set(&["XDG_CACHE_HOME", "HOME"]).unwrap(),
            Path::new("/XDG_CACHE_HOME/ivsmc")
        );
        assert_eq!(set(&["HOME"]).unwrap(), Path::new("/HOME/.cache/ivsmc"));
        assert!(set(&[]).is_err());
    }

    #[test]
    fn keys_tell_name_from_value() {
        let key = |name, value| Key::default().text(name, value).finish();
        assert_eq!(key("a", "b"), key("a", "b"));
        assert_ne!(key("a", "bc"), key("ab", "c"));
        assert_eq!(key("a", "b").len(), 16);
    }

    #[test]
    fn keys_of_folders_see_names_and_contents() {
        let folder = std::env::temp_dir().join(format!("ivsmc-xtask-{}", std::process::id()));
        let key = || Key::default().folder(&folder).unwrap().finish();
        fs::create_dir_all(folder.join("sub")).unwrap();
        fs::write(folder.join("sub/a"), "1").unwrap();
        let first = key();
        fs::write(folder.join("sub/a"), "2").unwrap();
        let second = key();
        fs::rename(folder.join("sub/a"), folder.join("sub/b")).unwrap();
        let third = key();
        let files = || Key::default().files(&folder).unwrap().finish();
        fs::write(folder.join("c"), "1").unwrap();
        let fourth = files();
        fs::write(folder.join("sub/b"), "3").unwrap();
        let fifth = files();
        fs::write(folder.join("c"), "2").unwrap();
        let sixth = files();
        fs::remove_dir_all(&folder).unwrap();
        assert_ne!(first, second);
        assert_ne!(second, third);
        assert_eq!(fourth, fifth);
        assert_ne!(fifth, sixth);
    }
}
