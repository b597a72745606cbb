// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask patch-vmm`: brings the device into a checkout of Cloud Hypervisor, and records what was changed
//! there.
//!
//! The folder `vmm-patches` has
//! - `files/`: files of ours, at the places in the tree where they go;
//! - `patches/`: what is inserted into upstream's files, a [`diff`] for each, recorded from the release [`RELEASE`].
//!
//! What is in `patches/later/` is for files that the release does not have, and left out where they are not.
//!
//! Each insertion is placed by what is around it, so that another tree than the release can be patched, too, as long
//! as all insertions find their places.
//!
//! The crate `vmm-device-ivsmc` comes in as it is in this repository, but with a manifest from `files/`: the one here
//! takes its dependencies from this workspace, and names some that only its tests need.
//!
//! [`diff`]: crate::diff

mod record;
mod series;
mod tree;

use std::fmt::{self, Write as _};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::diff::place::Placed;
use record::record;
use series::{CRATE, Files, Series, crate_files};
use tree::{Change, Tree, write};

/// The release that the patches are recorded from: its tag.
const RELEASE: &str = "v53.0";
/// A file of ours by which a tree is known that has the patches.
const MARK: &str = "vmm-device-ivsmc/Cargo.toml";

/// Options of `cargo xtask patch-vmm`.
#[derive(Args)]
pub struct Options {
    /// A clean checkout of Cloud Hypervisor: of v53.0, or of something that is not far from it.
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
    let mut tally = Tally::default();
    let mut report = String::new();
    let mut unplaced = String::new();
    let patches = series.patches.iter().map(|patch| (patch, false));
    let later = series.later.iter().map(|patch| (patch, true));
    for (patch, is_later) in patches.chain(later) {
        let path = tree.top.join(&patch.path);
        let before = match fs::read(&path) {
            Err(error) if is_later && error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let _ = write!(unplaced, "\n{}: there is no such file", patch.path);
                continue;
            }
            read => read.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let content = std::str::from_utf8(&before).with_context(|| patch.path.clone())?;
        match patch.place(content) {
            Ok(placed) => {
                let _ = writeln!(report, "{}: {}", patch.path, tally.add(&placed));
                changes.push(Change {
                    path: patch.path.clone(),
                    before: Some(before),
                    after: placed.content.into_bytes(),
                });
            }
            Err(list) => {
                for it in list {
                    let _ = write!(
                        unplaced,
                        "\n{}: `{}`: {}; it is after line {} in {RELEASE}, between lines with the hashes{}",
                        patch.path, it.heading, it.why, it.after, it.around
                    );
                }
            }
        }
    }
    ensure!(
        unplaced.is_empty(),
        "{top} is too far from Cloud Hypervisor {RELEASE}, and nothing was changed; run `git checkout {RELEASE}` in \
         it, or find places for these insertions:{unplaced}"
    );

    let (patched, number) = (changes.len(), crate_files.len());
    for path in series.files.keys() {
        let _ = writeln!(report, "{path}: added");
    }
    let _ = writeln!(report, "{CRATE}: {number} files added");
    for (path, after) in series.files.clone().into_iter().chain(crate_files) {
        ensure!(
            !tree.top.join(&path).exists(),
            "{top} has a {path}, which is to be added; run `git checkout {RELEASE}` in it"
        );
        changes.push(Change {
            path,
            before: None,
            after,
        });
    }
    let _ = writeln!(
        report,
        "done: {patched} files have {tally}, {} files were added; now build {top} as its documents say, with --features \
         ivsmc",
        series.files.len() + number
    );
    Ok((changes, report))
}

/// How insertions were placed.
#[derive(Default)]
struct Tally {
    lines: usize,
    placed: usize,
    moved: usize,
    farthest: usize,
    more: usize,
}

impl Tally {
    /// Counts those of one file; gives these alone.
    fn add(&mut self, placed: &Placed) -> Self {
        let moves = &placed.moves;
        let file = Self {
            lines: placed.lines,
            placed: moves.len() + placed.more.len(),
            moved: moves.iter().filter(|lines| **lines > 0).count(),
            farthest: moves.iter().copied().max().unwrap_or(0),
            more: placed.more.len(),
        };
        self.lines += file.lines;
        self.placed += file.placed;
        self.moved += file.moved;
        self.farthest = self.farthest.max(file.farthest);
        self.more += file.more;
        file
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            lines,
            placed,
            moved,
            farthest,
            more,
        } = self;
        let ending = |number: usize| if number == 1 { "" } else { "s" };
        write!(
            f,
            "{lines} line{} inserted at {placed} place{}",
            ending(*lines),
            ending(*placed)
        )?;
        if *more > 0 {
            write!(f, ", {more} more than in {RELEASE}")?;
        }
        if *moved > 0 {
            write!(
                f,
                " ({moved} moved by up to {farthest} line{})",
                ending(*farthest)
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
