// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `--record`: writes `vmm-patches/` anew from a tree that was edited.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::RELEASE;
use super::series::{
    CRATE, Files, LATER, Series, crate_files, is_crate_file, patch_name, save, sort,
};
use super::tree::Tree;
use crate::diff::{self, FileDiff};

/// Writes vmm-patches/ anew from a tree; gives a report.
pub fn record(repository: &Path, tree: &Tree) -> Result<String> {
    let top = tree.top.display();
    let head = tree.git(&["rev-parse", "HEAD"])?;
    let release = tree
        .git(&["rev-parse", &format!("refs/tags/{RELEASE}^{{commit}}")])
        .with_context(|| {
            format!(
                "{top} has no tag {RELEASE}: run `git fetch --depth 1 origin tag {RELEASE}` in it"
            )
        })?;
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
    sort(&mut patches);
    for patch in &mut patches {
        let content = tree.git(&["show", &format!("HEAD:{}", patch.path)])?;
        patch.look_around(&content);
        finds_its_places(patch, &content, &tree.read(&patch.path)?)
            .with_context(|| patch.path.clone())?;
    }

    if head != release {
        // What else is changed is as it is because the patches of the release were applied.
        let is_new = |patch: &FileDiff| {
            let there = format!("refs/tags/{RELEASE}:{}", patch.path);
            tree.git(&["cat-file", "-e", &there]).is_err()
        };
        patches.retain(is_new);
        ensure!(
            !patches.is_empty(),
            "{top} has commits that {RELEASE} does not have: what is to be recorded must not be committed; run \
             `git reset --soft {RELEASE}` in it (of a later tree only changes of files that are new in it are recorded)"
        );
        let series = Series::read(repository)?;
        return finish(
            repository,
            Series {
                later: patches,
                ..series
            },
        );
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

    let later = Series::read(repository).map_or(Vec::new(), |series| series.later);
    let series = Series {
        patches,
        later,
        files,
    };
    finish(repository, series)
}

/// Writes the series; gives a report.
fn finish(repository: &Path, mut series: Series) -> Result<String> {
    let folder = Series::folder(repository);
    let mut report = String::new();
    let patches = series.patches.iter_mut().map(|patch| ("", patch));
    let later = series.later.iter_mut().map(|patch| (LATER, patch));
    for (part, patch) in patches.chain(later) {
        // The prose is ours alone: it stays.
        let old = folder
            .join("patches")
            .join(part)
            .join(patch_name(&patch.path));
        let old = fs::read_to_string(old).ok();
        if let Some(old) = old.and_then(|text| FileDiff::parse_insertions(&text).ok()) {
            patch.description = old.description;
        }
        let _ = write!(report, "{}: {} lines inserted", patch.path, patch.count());
        report += if patch.description.trim().is_empty() {
            " (its patch has no description: write some lines before the diff)\n"
        } else {
            "\n"
        };
    }
    for path in series.files.keys() {
        let _ = writeln!(report, "{path}: a file of ours");
    }
    let lines: usize = series.patches.iter().map(FileDiff::count).sum();
    let _ = writeln!(
        report,
        "written: {} ({lines} lines inserted)",
        folder.display()
    );
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

/// Whether a patch, applied to the release's file, makes of it what is in the tree.
fn finds_its_places(patch: &FileDiff, release: &str, edited: &[u8]) -> Result<()> {
    match patch.place(release) {
        Ok(placed) if placed.content.as_bytes() == edited => Ok(()),
        Ok(placed) if !placed.more.is_empty() => bail!(
            "what is inserted more than once would also go after line {}; insert it there, or make the insertions differ",
            placed.more[0]
        ),
        Ok(_) => bail!("the insertions would not go where they are"),
        Err(unplaced) => {
            let all = unplaced
                .iter()
                .map(|it| format!("`{}`: {}", it.heading, it.why));
            bail!(
                "insertions cannot be told apart by what is around them, put them elsewhere: {}",
                all.collect::<Vec<_>>().join("; ")
            )
        }
    }
}
