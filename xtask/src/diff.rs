// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Unified diffs without context: of the file that they are for they hold no line but those that are removed, if any
//! are, and hashes of the lines around each change, by which it is placed in another version of the file ([`place`]).

pub mod place;

use std::fmt::Write as _;

use anyhow::{Context, Result, bail, ensure};

use place::Neighbours;

/// What is changed in one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileDiff {
    /// The file, from the top of the tree.
    pub path: String,
    /// Prose before the diff.
    pub description: String,
    pub hunks: Vec<Hunk>,
}

/// Lines that are removed and inserted at one place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hunk {
    /// How many lines of the file are before it.
    pub after: usize,
    pub removed: Vec<String>,
    pub lines: Vec<String>,
    /// What is around it.
    pub around: Neighbours,
}

impl FileDiff {
    /// Reads a patch of one file. All that does more than insert is refused.
    pub fn parse_insertions(text: &str) -> Result<Self> {
        let mut lines = Lines::new(text);
        let file = Self::read(&mut lines, MayRemove::No, Neighbours::parse)?;
        if let Some(line) = lines.next() {
            bail!("`{line}` is neither a hunk nor an inserted line");
        }
        Ok(file)
    }

    /// Reads a patch of any number of files; what it says before the first one is that one's description.
    pub fn parse(text: &str) -> Result<Vec<Self>> {
        Self::read_all(text, Neighbours::parse)
    }

    /// The same of a patch in which it does not say, or not rightly, what is around the changes.
    pub fn parse_unrecorded(text: &str) -> Result<Vec<Self>> {
        Self::read_all(text, |_| Some(Neighbours::default()))
    }

    fn read_all(
        text: &str,
        around: impl Fn(&str) -> Option<Neighbours> + Copy,
    ) -> Result<Vec<Self>> {
        let mut lines = Lines::new(text);
        let mut files = Vec::new();
        while files.is_empty() || lines.0.peek().is_some() {
            files.push(Self::read(&mut lines, MayRemove::Yes, around)?);
        }
        Ok(files)
    }

    fn read(
        lines: &mut Lines<'_>,
        may_remove: MayRemove,
        around: impl Fn(&str) -> Option<Neighbours>,
    ) -> Result<Self> {
        let mut description = String::new();
        while let Some(line) = lines.next_if(|line| !line.starts_with("--- ")) {
            description = description + line + "\n";
        }
        let old = lines.next().context("there is no line `--- a/PATH`")?;
        let path = name(old, "--- a/")?;
        let new = lines.next().context("there is no line `+++ b/PATH`")?;
        ensure!(
            name(new, "+++ b/")? == path,
            "`{old}` and `{new}` are different files"
        );
        let hunks = hunks(lines, may_remove, around)?;
        Ok(Self {
            path,
            description,
            hunks,
        })
    }

    /// The patch as text.
    pub fn render(&self) -> String {
        let mut text = format!("{}--- a/{1}\n+++ b/{1}\n", self.description, self.path);
        let (mut inserted, mut removed) = (0, 0);
        for hunk in &self.hunks {
            // The number of the first line, or, where there is none, of the one before.
            let first = |before: usize, lines: &[String]| match lines.len() {
                0 => format!("{before},0"),
                1 => format!("{}", before + 1),
                count => format!("{},{count}", before + 1),
            };
            // Writing to a String does not fail.
            let _ = writeln!(
                text,
                "@@ -{} +{} @@{}",
                first(hunk.after, &hunk.removed),
                first(hunk.after + inserted - removed, &hunk.lines),
                hunk.around
            );
            for line in &hunk.removed {
                let _ = writeln!(text, "-{line}");
            }
            for line in &hunk.lines {
                let _ = writeln!(text, "+{line}");
            }
            inserted += hunk.lines.len();
            removed += hunk.removed.len();
        }
        text
    }

    /// How many lines it inserts.
    pub fn count(&self) -> usize {
        self.hunks.iter().map(|hunk| hunk.lines.len()).sum()
    }

    /// The file after the changes, which are made where their line numbers say.
    pub fn apply_by_number(&self, content: &str) -> Result<String> {
        let lines: Vec<_> = content.lines().collect();
        let mut new = Vec::with_capacity(lines.len());
        let mut done = 0;
        for hunk in &self.hunks {
            let end = hunk.after + hunk.removed.len();
            let there = lines.get(hunk.after..end);
            ensure!(
                there.is_some_and(|there| there == hunk.removed),
                "{}: what is removed after line {} is not there",
                self.path,
                hunk.after
            );
            new.extend_from_slice(&lines[done..hunk.after]);
            new.extend(hunk.lines.iter().map(String::as_str));
            done = end;
        }
        new.extend_from_slice(&lines[done..]);
        Ok(new.join("\n") + "\n")
    }

    /// Notes what is around each change in the file that the diff was made against.
    pub fn look_around(&mut self, content: &str) {
        let lines: Vec<_> = content.lines().collect();
        for hunk in &mut self.hunks {
            hunk.around = Neighbours::of(&lines, hunk.after, hunk.removed.len());
        }
    }
}

/// Reads what `git diff --unified=0` prints. A line that is removed or changed, or a file that is, as a whole, is
/// refused; files that are added are left out.
pub fn from_git(text: &str) -> Result<Vec<FileDiff>> {
    let mut lines = Lines::new(text);
    let mut files = Vec::new();
    while let Some(header) = lines.next() {
        ensure!(
            header.starts_with("diff --git "),
            "git diff prints what was not expected: `{header}`"
        );
        let mut added = false;
        while let Some(line) =
            lines.next_if(|line| !line.starts_with("--- ") && !line.starts_with("diff --git "))
        {
            added |= line.starts_with("new file mode");
            ensure!(
                added || line.starts_with("index "),
                "more than inserted lines ({line}): `{header}`"
            );
        }
        if lines.next_if(|line| line.starts_with("--- ")).is_none() {
            continue; // an empty file was added
        }
        let path = name(lines.next().unwrap_or_default(), "+++ b/")
            .with_context(|| format!("a file is removed: `{header}`"))?;
        // What git writes behind the second `@@` is a line of the file: it must not come in.
        let nothing = |_: &str| Some(Neighbours::default());
        let hunks = hunks(&mut lines, MayRemove::No, nothing).with_context(|| path.clone())?;
        if !added {
            files.push(FileDiff {
                path,
                description: String::new(),
                hunks,
            });
        }
    }
    Ok(files)
}

/// Lines, of which the next can be looked at.
struct Lines<'a>(std::iter::Peekable<std::str::Lines<'a>>);

impl<'a> Lines<'a> {
    fn new(text: &'a str) -> Self {
        Self(text.lines().peekable())
    }

    fn next(&mut self) -> Option<&'a str> {
        self.0.next()
    }

    fn next_if(&mut self, wanted: impl Fn(&str) -> bool) -> Option<&'a str> {
        self.0.next_if(|line| wanted(line))
    }
}

/// The path in a line like `+++ b/PATH`.
fn name(line: &str, prefix: &str) -> Result<String> {
    let path = line
        .strip_prefix(prefix)
        .with_context(|| format!("`{line}` does not begin with `{prefix}`"))?;
    // git quotes names that a header cannot hold, and may add a tab to those with a space.
    ensure!(
        !path.is_empty() && !path.contains(['"', '\\', '\t']),
        "`{line}` has no plain path"
    );
    ensure!(
        path.split('/').all(|part| !["", ".", ".."].contains(&part)),
        "`{line}`: the path leads out of the tree"
    );
    Ok(path.to_owned())
}

/// Whether a diff may remove lines.
#[derive(Clone, Copy, PartialEq, Eq)]
enum MayRemove {
    Yes,
    No,
}

/// Reads hunks, with what is to be made of the text behind the second `@@`.
fn hunks(
    lines: &mut Lines<'_>,
    may_remove: MayRemove,
    around: impl Fn(&str) -> Option<Neighbours>,
) -> Result<Vec<Hunk>> {
    let mut hunks: Vec<Hunk> = Vec::new();
    let (mut inserted, mut removed) = (0, 0);
    while let Some(header) = lines.next_if(|line| line.starts_with("@@ ")) {
        let (old, new, heading) = hunk_header(header)
            .with_context(|| format!("`{header}` is no hunk without context"))?;
        ensure!(
            old.count == 0 || may_remove == MayRemove::Yes,
            "`{header}` does more than insert lines"
        );
        let around = around(heading)
            .with_context(|| format!("`{header}`: behind the second @@ are no hashes"))?;
        let is_next = hunks
            .last()
            .is_none_or(|last| old.before > last.after + last.removed.len());
        ensure!(
            is_next && new.before + removed == old.before + inserted,
            "`{header}` does not follow from the hunks before it"
        );
        let mut read = |sign: char, count: usize| {
            let line = |_| {
                let line = lines.next_if(|line| line.starts_with(sign));
                let line = line.with_context(|| {
                    format!("`{header}` is followed by fewer than {count} lines with {sign}")
                });
                line.map(|line| line[1..].to_owned())
            };
            (0..count).map(line).collect::<Result<Vec<_>>>()
        };
        let hunk = Hunk {
            after: old.before,
            removed: read('-', old.count)?,
            lines: read('+', new.count)?,
            around,
        };
        (inserted, removed) = (inserted + new.count, removed + old.count);
        hunks.push(hunk);
    }
    ensure!(!hunks.is_empty(), "there is no hunk");
    Ok(hunks)
}

/// One side of a hunk's header.
struct Side {
    /// How many lines are before it.
    before: usize,
    count: usize,
}

impl Side {
    /// Reads `FIRST`, `FIRST,COUNT`, or `BEFORE,0`.
    fn parse(text: &str) -> Option<Self> {
        let (first, count) = text.split_once(',').unwrap_or((text, "1"));
        let (first, count) = (first.parse::<usize>().ok()?, count.parse().ok()?);
        let before = if count == 0 {
            first
        } else {
            first.checked_sub(1)?
        };
        Some(Self { before, count })
    }
}

/// The two sides, and the heading, in `@@ -OLD +NEW @@HEADING`.
fn hunk_header(line: &str) -> Option<(Side, Side, &str)> {
    let (numbers, heading) = line.strip_prefix("@@ -")?.split_once(" @@")?;
    let (old, new) = numbers.split_once(" +")?;
    let (old, new) = (Side::parse(old)?, Side::parse(new)?);
    (old.count + new.count > 0).then_some((old, new, heading))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATCH: &str = "Why it is so.\n\n--- a/src/lib.rs\n+++ b/src/lib.rs\n\
        @@ -0,0 +1 @@ | 00000001 00000002\n+zero\n\
        @@ -2,0 +4,2 @@ 00000001 00000002 |\n+two and a half\n+--- a/x\n";

    #[test]
    fn a_patch_is_read_and_written() {
        let patch = FileDiff::parse_insertions(PATCH).unwrap();
        assert_eq!(patch.path, "src/lib.rs");
        assert_eq!(patch.description, "Why it is so.\n\n");
        assert_eq!(patch.count(), 3);
        assert_eq!(patch.render(), PATCH);
    }

    #[test]
    fn what_does_more_than_insert_is_refused() {
        for (from, to, word) in [
            ("--- a/", "--- b/", "begin"),
            ("+++ b/src", "+++ b/lib", "different files"),
            (
                "a/src/lib.rs\n+++ b/src/lib.rs",
                "a/../x\n+++ b/../x",
                "out of the tree",
            ),
            ("@@ | 0", "@@ fn upstreams() | 0", "no hashes"),
            (" | 00000001 00000002", "", "no hashes"),
            (" | 00000001 00000002", " |", "no hashes"),
            ("@@ | 00000001", "@@ | 0000000G", "no hashes"),
            ("@@ | 00000001", "@@ | 1", "no hashes"),
            ("@@ -0,0 +1", "@@ -1 +1", "more than insert"),
            ("+zero\n", "+zero\n zero\n", "neither"),
            ("+zero\n", "-zero\n", "fewer than 1"),
            ("+4,2", "+3,2", "follow"),
            ("@@ -2,0 +4,2", "@@ -0,0 +2,2", "follow"),
            ("+4,2", "+4,3", "fewer than 3"),
            (
                "+--- a/x\n",
                "+--- a/x\n\\ No newline at end of file\n",
                "neither",
            ),
        ] {
            let text = PATCH.replacen(from, to, 1);
            assert_ne!(text, PATCH);
            let error = format!("{:#}", FileDiff::parse_insertions(&text).unwrap_err());
            assert!(error.contains(word), "{word}: {error}");
        }
        assert!(FileDiff::parse_insertions("--- a/x\n+++ b/x\n").is_err());
        assert!(FileDiff::parse_insertions("prose\n").is_err());
    }

    #[test]
    fn gits_own_are_read_without_upstreams_lines() {
        let git = "diff --git a/a b/a\nindex 1..2 100644\n--- a/a\n+++ b/a\n\
            @@ -3,0 +4 @@ fn upstreams() {\n+ours\n\
            diff --git a/empty b/empty\nnew file mode 100644\nindex 0..0\n\
            diff --git a/new b/new\nnew file mode 100644\nindex 0..2\n--- /dev/null\n+++ b/new\n@@ -0,0 +1 @@\n+new\n\
            diff --git a/b b/b\nindex 1..2 100644\n--- a/b\n+++ b/b\n@@ -9,0 +10,2 @@\n+x\n+y\n";
        let files = from_git(git).unwrap();
        assert_eq!(
            files.iter().map(|file| &*file.path).collect::<Vec<_>>(),
            ["a", "b"]
        );
        assert_eq!(
            files[0].render(),
            "--- a/a\n+++ b/a\n@@ -3,0 +4 @@ |\n+ours\n"
        );
        assert!(from_git("").unwrap().is_empty());
    }

    #[test]
    fn gits_own_that_do_more_are_refused() {
        for (git, word) in [
            (
                "diff --git a/a b/a\nold mode 100644\nnew mode 100755\n",
                "old mode",
            ),
            (
                "diff --git a/a b/a\nindex 1..2 100644\n--- a/a\n+++ b/a\n@@ -3 +3 @@\n-x\n+y\n",
                "-3 +3",
            ),
            (
                "diff --git a/a b/a\ndeleted file mode 100644\nindex 1..0\n--- a/a\n+++ /dev/null\n@@ -1 +0,0 @@\n-x\n",
                "deleted",
            ),
            (
                "diff --git a/a b/a\nindex 1..2 100644\nBinary files a/a and b/a differ\n",
                "Binary",
            ),
        ] {
            let error = format!("{:#}", from_git(git).unwrap_err());
            assert!(error.contains(word), "{word}: {error}");
        }
    }
}
