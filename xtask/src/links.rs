// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The test that links between the repository's documents lead somewhere.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What is not looked into: documents that become part of another project's tree.
const OTHERS: &str = "vmm-patches/files";

/// All Markdown files below a folder.
fn documents(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy();
        if name.starts_with('.') || name == "target" || path.ends_with(OTHERS) {
            continue;
        }
        if path.is_dir() && !path.is_symlink() {
            documents(&path, found);
        } else if name.ends_with(".md") {
            found.push(path);
        }
    }
}

/// The lines of a document that are not in a block of code.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut is_code = false;
    text.lines().enumerate().filter(move |(_, line)| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_fence && !is_code
    })
}

/// A line without what is between backquotes.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect()
}

/// The targets of the links `[text](target)` in a line, or in a definition `[name]: target`.
fn targets(line: &str) -> Vec<String> {
    let line = without_code(line);
    let mut found: Vec<_> = line
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target.to_owned())
        .collect();
    if let Some((_, target)) = line.split_once("]: ")
        && line.starts_with('[')
    {
        found.push(target.to_owned());
    }
    found
}

/// The anchors that a document's headings have where it is shown.
fn anchors(text: &str) -> Vec<String> {
    let mut seen = HashMap::<_, usize>::new();
    let mut anchors = Vec::new();
    for (_, line) in lines(text) {
        let heading = line.trim_start_matches('#');
        if heading.len() == line.len() || !heading.starts_with(' ') {
            continue;
        }
        let mut anchor = String::new();
        for letter in heading.trim().to_lowercase().chars() {
            match letter {
                ' ' => anchor.push('-'),
                letter if letter.is_alphanumeric() || "-_".contains(letter) => anchor.push(letter),
                _ => {}
            }
        }
        let count = seen.entry(anchor.clone()).or_default();
        anchors.push(match *count {
            0 => anchor,
            count => format!("{anchor}-{count}"),
        });
        *count += 1;
    }
    anchors
}

/// What is wrong with the links of a document, each with its line; and how many links there are.
fn broken(document: &Path) -> (Vec<String>, usize) {
    let text = fs::read_to_string(document).unwrap();
    let mut wrong = Vec::new();
    let mut count = 0;
    for (number, line) in lines(&text) {
        for target in targets(line) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            count += 1;
            let (path, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let path = match path {
                "" => document.to_owned(),
                path => document.parent().unwrap().join(path),
            };
            let place = format!("{}:{}: {target}", document.display(), number + 1);
            if !path.exists() {
                wrong.push(format!("{place}: there is no such file"));
            } else if !anchor.is_empty() {
                let known = fs::read_to_string(&path).map(|text| anchors(&text));
                if !known.unwrap_or_default().iter().any(|a| a == anchor) {
                    wrong.push(format!("{place}: there is no such heading"));
                }
            }
        }
    }
    (wrong, count)
}

#[test]
fn links_between_documents_resolve() {
    let mut found = Vec::new();
    documents(&crate::repository().unwrap(), &mut found);
    let (mut wrong, mut count) = (Vec::new(), 0);
    for document in &found {
        let (more, links) = broken(document);
        wrong.extend(more);
        count += links;
    }
    assert!(
        found.len() > 20 && count > 100,
        "{count} links in {found:?}"
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn broken_links_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write(
        "a.md",
        "# A\n[b](b.md), [c](c.md) `[no](link)`\n[here](#a) [there](b.md#what-is-b)\n\
         ```\n[no](link)\n# No heading\n```\n[x](#no-heading) [y](b.md#c) [z](https://a.example/#b)\n",
    );
    write("b.md", "## What is `b`?\n## Twice\n## Twice\n");
    let (wrong, count) = broken(&folder.path().join("a.md"));
    assert_eq!(count, 6);
    let wrong: Vec<_> = wrong
        .iter()
        .map(|line| line.rsplit_once("a.md:").unwrap().1)
        .collect();
    assert_eq!(
        wrong,
        [
            "2: c.md: there is no such file",
            "8: #no-heading: there is no such heading",
            "8: b.md#c: there is no such heading"
        ]
    );
    let text = fs::read_to_string(folder.path().join("b.md")).unwrap();
    assert_eq!(anchors(&text), ["what-is-b", "twice", "twice-1"]);
}
