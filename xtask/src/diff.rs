// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Unified diffs that only insert lines, without context: they hold no line of the file that they are for, but hashes
//! of those around each insertion, by which it is placed in another version of the file ([`place`]).

pub mod place;

use std::fmt::Write as _;

use anyhow::{Context, Result, bail, ensure};

use place::Neighbours;

/// What is inserted into one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Insertions {
    /// The file, from the top of the tree.
    pub path: String,
    /// Prose before the diff.
    pub description: String,
    pub hunks: Vec<Hunk>,
}

/// Lines that are inserted at one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hunk {
    /// How many lines of the file are before it.
    pub after: usize,
    pub lines: Vec<String>,
    /// What is around it.
    pub around: Neighbours,
}

impl Insertions {
    /// Reads a patch of one file. All that does more than insert is refused.
    pub fn parse(text: &str) -> Result<Self> {
        let mut lines = Lines::new(text);
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
        let hunks = hunks(&mut lines, Neighbours::parse)?;
        if let Some(line) = lines.next() {
            bail!("`{line}` is neither a hunk nor an inserted line");
        }
        Ok(Self {
            path,
            description,
            hunks,
        })
    }

    /// The patch as text.
    pub fn render(&self) -> String {
        let mut text = format!("{}--- a/{1}\n+++ b/{1}\n", self.description, self.path);
        let mut before = 0;
        for hunk in &self.hunks {
            let count = match hunk.lines.len() {
                1 => String::new(),
                count => format!(",{count}"),
            };
            // Writing to a String does not fail.
            let _ = writeln!(
                text,
                "@@ -{},0 +{}{count} @@{}",
                hunk.after,
                hunk.after + before + 1,
                hunk.around
            );
            for line in &hunk.lines {
                let _ = writeln!(text, "+{line}");
            }
            before += hunk.lines.len();
        }
        text
    }

    /// How many lines it inserts.
    pub fn count(&self) -> usize {
        self.hunks.iter().map(|hunk| hunk.lines.len()).sum()
    }

    /// Notes what is around each insertion in the file that the diff was made against.
    pub fn look_around(&mut self, content: &str) {
        let lines: Vec<_> = content.lines().collect();
        for hunk in &mut self.hunks {
            hunk.around = Neighbours::of(&lines, hunk.after);
        }
    }
}

/// Reads what `git diff --unified=0` prints. A line that is removed or changed, or a file that is, as a whole, is
/// refused; files that are added are left out.
pub fn from_git(text: &str) -> Result<Vec<Insertions>> {
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
        let hunks = hunks(&mut lines, nothing).with_context(|| path.clone())?;
        if !added {
            files.push(Insertions {
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

/// Reads hunks, with what is to be made of the text behind the second `@@`.
fn hunks(lines: &mut Lines<'_>, around: impl Fn(&str) -> Option<Neighbours>) -> Result<Vec<Hunk>> {
    let mut hunks = Vec::new();
    let (mut inserted, mut last) = (0, None);
    while let Some(header) = lines.next_if(|line| line.starts_with("@@ ")) {
        let (after, first, count, heading) = hunk_header(header)
            .with_context(|| format!("`{header}` does more than insert lines"))?;
        let around = around(heading)
            .with_context(|| format!("`{header}`: behind the second @@ are no hashes"))?;
        ensure!(
            first == after + inserted + 1 && last < Some(after),
            "`{header}` does not follow from the hunks before it"
        );
        let mut hunk = Vec::with_capacity(count);
        for _ in 0..count {
            let line = lines
                .next_if(|line| line.starts_with('+'))
                .with_context(|| format!("`{header}` is followed by fewer than {count} lines"))?;
            hunk.push(line[1..].to_owned());
        }
        hunks.push(Hunk {
            after,
            lines: hunk,
            around,
        });
        (inserted, last) = (inserted + count, Some(after));
    }
    ensure!(!hunks.is_empty(), "there is no hunk");
    Ok(hunks)
}

/// The numbers in `@@ -AFTER,0 +FIRST,COUNT @@HEADING`, if it is like that.
fn hunk_header(line: &str) -> Option<(usize, usize, usize, &str)> {
    let (numbers, heading) = line.strip_prefix("@@ -")?.split_once(" @@")?;
    let (after, new) = numbers.split_once(",0 +")?;
    let (first, count) = new.split_once(',').unwrap_or((new, "1"));
    let count = count.parse().ok().filter(|count| *count > 0)?;
    Some((after.parse().ok()?, first.parse().ok()?, count, heading))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATCH: &str = "Why it is so.\n\n--- a/src/lib.rs\n+++ b/src/lib.rs\n\
        @@ -0,0 +1 @@ | 00000001 00000002\n+zero\n\
        @@ -2,0 +4,2 @@ 00000001 00000002 |\n+two and a half\n+--- a/x\n";

    #[test]
    fn a_patch_is_read_and_written() {
        let patch = Insertions::parse(PATCH).unwrap();
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
            let error = format!("{:#}", Insertions::parse(&text).unwrap_err());
            assert!(error.contains(word), "{word}: {error}");
        }
        assert!(Insertions::parse("--- a/x\n+++ b/x\n").is_err());
        assert!(Insertions::parse("prose\n").is_err());
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
