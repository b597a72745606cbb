// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Patches for Linux: [`diff`](crate::diff)s, which find their places also in a kernel near the one that they were
//! recorded from; and `cargo xtask record-linux`, which records them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::cache::{self, Cache};
use crate::diff::FileDiff;
use crate::diff::place::Unplaced;
use crate::kernel_source::Source;

/// Where the patches are that every kernel has, from the repository's top.
pub const LAB: &str = "guest/linux-patches/lab";
/// Where those of a mended kernel are, which come after them.
pub const SMC: &str = "guest/linux-patches/smc";

/// The patches of a folder, in the order of their names.
pub fn sorted(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = fs::read_dir(folder)
        .with_context(|| format!("cannot read {}", folder.display()))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    files.retain(|file| {
        file.extension()
            .is_some_and(|extension| extension == "patch")
    });
    files.sort();
    Ok(files)
}

/// Applies a patch to a source tree: the whole of it or nothing.
pub fn apply(patch: &Path, tree: &Path) -> Result<()> {
    let files = FileDiff::parse(&read(patch)?)?;
    let mut changed = BTreeMap::new();
    for file in &files {
        let path = tree.join(&file.path);
        let content = read(&path)?;
        let placed = file
            .place(&content)
            .map_err(|unplaced| explain(&file.path, &unplaced))?;
        if let Some(line) = placed.more.first() {
            bail!(
                "{}: what it inserts more than once would go after line {line} as well",
                file.path
            );
        }
        let is_first = changed.insert(path, placed.content).is_none();
        ensure!(is_first, "{} is in it twice", file.path);
    }
    for (path, content) in changed {
        // The file may be shared with another tree.
        let new = path.with_extension("new");
        fs::write(&new, content)?;
        fs::rename(&new, &path)?;
    }
    Ok(())
}

/// Which changes have no place.
fn explain(path: &str, unplaced: &[Unplaced]) -> anyhow::Error {
    let all = unplaced
        .iter()
        .map(|it| format!("`{}` (line {}): {}", it.heading, it.after, it.why));
    anyhow::anyhow!("{path}: {}", all.collect::<Vec<_>>().join("; "))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// `cargo xtask record-linux`
pub fn main() -> Result<()> {
    let repository = crate::repository()?;
    let cache = Cache::open()?;
    let source = Source::debians(&cache)?;
    let tree = cache.fresh("record-linux")?;
    for folder in [LAB, SMC] {
        for patch in sorted(&repository.join(folder))? {
            record(&patch, &source.folder, &tree)
                .with_context(|| format!("{} and Linux {}", patch.display(), source.version))?;
        }
    }
    cache::remove(&tree)?;
    println!("recorded from Linux {}", source.version);
    Ok(())
}

/// Writes a patch anew, with what is around each of its changes. It is applied by its line numbers to the files of `tree`,
/// which are as the patches before it have made them, or else to those of `source`.
fn record(patch: &Path, source: &Path, tree: &Path) -> Result<()> {
    let mut files = FileDiff::parse_unrecorded(&read(patch)?)?;
    let mut text = String::new();
    for file in &mut files {
        let path = tree.join(&file.path);
        let before = if path.exists() {
            read(&path)?
        } else {
            read(&source.join(&file.path))?
        };
        let after = file.apply_by_number(&before)?;
        file.look_around(&before);
        match file.place(&before) {
            Ok(placed) if placed.content == after => {}
            Ok(_) => bail!("{}: changes would not go where they are", file.path),
            Err(unplaced) => return Err(explain(&file.path, &unplaced)),
        }
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, after)?;
        text += &file.render();
    }
    Ok(fs::write(patch, text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "a\nb\nc\nd\ne\nf\ng\nh\n";
    const PATCH: &str =
        "Why.\n--- a/x/y.c\n+++ b/x/y.c\n@@ -3 +3,2 @@\n-c\n+C\n+CC\n@@ -6,2 +6,0 @@\n-f\n-g\n";

    #[test]
    fn a_patch_is_recorded_and_finds_its_places_in_another_version() {
        let folder = tempfile();
        let [source, tree, other] = ["source", "tree", "other"].map(|name| folder.join(name));
        for root in [&source, &other] {
            fs::create_dir_all(root.join("x")).unwrap();
        }
        fs::create_dir_all(&tree).unwrap();
        fs::write(source.join("x/y.c"), BEFORE).unwrap();
        let patch = folder.join("1.patch");
        fs::write(&patch, PATCH).unwrap();
        record(&patch, &source, &tree).unwrap();
        let made = read(&tree.join("x/y.c")).unwrap();
        assert_eq!(made, "a\nb\nC\nCC\nd\ne\nh\n");

        fs::write(other.join("x/y.c"), format!("new\nnewer\n{BEFORE}")).unwrap();
        apply(&patch, &other).unwrap();
        assert_eq!(
            read(&other.join("x/y.c")).unwrap(),
            format!("new\nnewer\n{made}")
        );
        // There is nothing to remove any more.
        let error = format!("{:#}", apply(&patch, &other).unwrap_err());
        assert!(error.contains("`C` (line 2)"), "{error}");
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn the_patches_are_recorded() {
        for folder in [LAB, SMC] {
            for patch in sorted(&crate::repository().unwrap().join(folder)).unwrap() {
                let text = read(&patch).unwrap();
                let files = FileDiff::parse(&text).unwrap();
                let again: String = files.iter().map(FileDiff::render).collect();
                assert_eq!(again, text, "{}", patch.display());
            }
        }
    }

    fn tempfile() -> PathBuf {
        let folder =
            std::env::temp_dir().join(format!("ivsmc-kernel-patch-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }
}
