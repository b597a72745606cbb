// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Patching and recording small trees that are made up; and the rules that the real patches keep.

use std::collections::BTreeSet;
use std::process::Command;

use super::series::{LATER, patch_name, read_files};
use super::*;
use crate::diff::FileDiff;
use crate::process;
use tempfile::TempDir;

/// The most lines that the patches may insert, all together.
const MOST_LINES: usize = 950;

/// A repository like ours and a checkout like a user's.
struct Setup {
    folder: TempDir,
}

impl Setup {
    fn new() -> Self {
        let setup = Self {
            folder: TempDir::new().unwrap(),
        };
        setup.fill(
            "repository",
            &[
                ("vmm-device-ivsmc/Cargo.toml", "[package]\n"),
                ("vmm-device-ivsmc/README.md", "# The device\n"),
                ("vmm-device-ivsmc/src/lib.rs", "//! Ours.\n"),
                ("vmm-device-ivsmc/src/pci/mod.rs", "//! Ours, too.\n"),
                ("vmm-device-ivsmc/tests/it.rs", "// not theirs\n"),
            ],
        );
        setup.fill(
            "tree",
            &[
                ("Cargo.toml", "[workspace]\nmembers = [\n  \"vmm\",\n]\n"),
                (
                    "vmm/src/lib.rs",
                    "mod a;\nmod z;\n\nfn upstreams() {\n    one();\n    two();\n}\n",
                ),
                ("docs", "a file, where another tree has a folder\n"),
                (".gitignore", "/target\n"),
            ],
        );
        setup.git(&["init", "--quiet"]);
        setup.git(&["add", "."]);
        setup.commit("release");
        setup.git(&["tag", RELEASE]);
        setup
    }

    /// One whose tree has been edited, recorded, and made clean again.
    fn recorded() -> Self {
        let setup = Self::new();
        setup.edit();
        record(&setup.repository(), &setup.open()).unwrap();
        setup.clean();
        setup
    }

    fn repository(&self) -> PathBuf {
        self.folder.path().join("repository")
    }

    fn tree(&self) -> PathBuf {
        self.folder.path().join("tree")
    }

    fn open(&self) -> Tree {
        Tree::open(&self.tree()).unwrap()
    }

    fn fill(&self, place: &str, files: &[(&str, &str)]) {
        for (path, content) in files {
            let path = self.folder.path().join(place).join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }

    /// What a maintainer does to the tree.
    fn edit(&self) {
        self.fill(
            "tree",
            &[
                (
                    "vmm/src/lib.rs",
                    "mod a;\nmod ivsmc;\nmod z;\n\nfn upstreams() {\n    one();\n    ours();\n    ours();\n    two();\n}\n",
                ),
                ("Cargo.toml", "[workspace]\nmembers = [\n  \"vmm\",\n  \"vmm-device-ivsmc\",\n]\n"),
                ("vmm/src/ivsmc.rs", "//! The adapter.\n"),
                ("vmm-device-ivsmc/Cargo.toml", "[package]\nname = \"x\"\n"),
                ("vmm-device-ivsmc/README.md", "# The device\n"),
                ("vmm-device-ivsmc/src/lib.rs", "//! Ours.\n"),
                ("vmm-device-ivsmc/src/pci/mod.rs", "//! Ours, too.\n"),
                ("target/debug/thing", "built\n"),
            ],
        );
    }

    fn git(&self, arguments: &[&str]) -> String {
        let identity = [
            "-c",
            "user.name=x",
            "-c",
            "user.email=x@x",
            "-c",
            "init.defaultBranch=main",
        ];
        let mut command = Command::new("git");
        command
            .arg("-C")
            .arg(self.tree())
            .args(identity)
            .args(arguments);
        process::output(&mut command).unwrap()
    }

    fn commit(&self, message: &str) {
        self.git(&[
            "commit",
            "--quiet",
            "--all",
            "--no-gpg-sign",
            "--message",
            message,
        ]);
    }

    fn clean(&self) {
        self.git(&["reset", "--quiet", "--hard"]);
        self.git(&["clean", "--quiet", "-d", "--force", "-x"]);
    }

    /// All that there is in the tree, git's own aside.
    fn content(&self) -> Files {
        let mut files = read_files(&self.tree()).unwrap();
        files.retain(|path, _| !path.starts_with(".git/"));
        files
    }

    /// Patching has to fail and to leave the tree as it is; gives the error.
    fn refused(&self) -> String {
        let before = self.content();
        let result = Tree::open(&self.tree()).and_then(|tree| patch(&self.repository(), &tree));
        assert_eq!(self.content(), before);
        format!("{:#}", result.unwrap_err())
    }
}

fn assert_has(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
}

#[test]
fn what_was_recorded_is_applied() {
    let setup = Setup::new();
    setup.edit();
    let wanted = setup.content();
    let report = record(&setup.repository(), &setup.open()).unwrap();
    assert_has(
        &report,
        &["vmm/src/lib.rs: 3 lines", "no description", "(4 lines"],
    );
    setup.clean();

    let report = patch(&setup.repository(), &setup.open()).unwrap();
    assert_has(
        &report,
        &[
            "vmm/src/lib.rs: 3 lines inserted at 2 places\n",
            "vmm/src/ivsmc.rs: added",
            "vmm-device-ivsmc: 3 files",
            "2 files have 4 lines inserted at 3 places, 5 files were added",
            "--features ivsmc",
        ],
    );
    let mut patched = setup.content();
    patched.insert("target/debug/thing".into(), b"built\n".into());
    assert_eq!(patched, wanted);
}

#[test]
fn what_is_recorded_has_nothing_of_upstreams() {
    let setup = Setup::recorded();
    let folder = Series::folder(&setup.repository());
    let files: Vec<_> = read_files(&folder).unwrap().into_keys().collect();
    assert_eq!(
        files,
        [
            "files/vmm-device-ivsmc/Cargo.toml",
            "files/vmm/src/ivsmc.rs",
            "patches/Cargo.toml.patch",
            "patches/vmm-src-lib.rs.patch",
        ]
    );
    let patch = fs::read_to_string(folder.join("patches/vmm-src-lib.rs.patch")).unwrap();
    let lines: Vec<_> = patch
        .lines()
        .map(|line| line.split("@@ ").collect::<Vec<_>>())
        .collect();
    let lines: Vec<_> = lines.iter().map(|parts| (parts[0], parts.get(1))).collect();
    let numbers = ["-1,0 +2 ", "-5,0 +7,2 "];
    assert_eq!(lines.len(), 7, "{patch}");
    assert_eq!(lines[0].0, "--- a/vmm/src/lib.rs");
    assert_eq!(lines[1].0, "+++ b/vmm/src/lib.rs");
    assert_eq!(
        (lines[2].1, lines[4].1),
        (Some(&numbers[0]), Some(&numbers[1]))
    );
    assert_eq!(
        [lines[3].0, lines[5].0, lines[6].0],
        ["+mod ivsmc;", "+    ours();", "+    ours();"]
    );
    // Behind the numbers there are hashes.
    for hunk in &Series::read(&setup.repository()).unwrap().patches[1].hunks {
        assert!(patch.contains(&format!("@@{}\n", hunk.around)), "{patch}");
    }
}

#[test]
fn recording_again_keeps_descriptions_and_drops_what_is_gone() {
    let setup = Setup::recorded();
    let patch = Series::folder(&setup.repository()).join("patches/Cargo.toml.patch");
    let text = fs::read_to_string(&patch).unwrap();
    fs::write(&patch, format!("A member more.\n\n{text}")).unwrap();
    setup.edit();
    setup.git(&["checkout", "--quiet", "vmm/src/lib.rs"]);
    // What was added to git's index is as good as what was not.
    setup.git(&["add", "vmm/src/ivsmc.rs"]);
    let report = record(&setup.repository(), &setup.open()).unwrap();
    assert!(!report.contains("no description"), "{report}");
    assert_has(
        &fs::read_to_string(&patch).unwrap(),
        &["A member more.\n\n--- a/Cargo.toml"],
    );
    let series = Series::read(&setup.repository()).unwrap();
    assert_eq!(series.patches.len(), 1);
    assert!(series.files.contains_key(MARK));
}

#[test]
fn what_is_not_an_insertion_is_not_recorded() {
    let setup = Setup::recorded();
    let before = read_files(&Series::folder(&setup.repository())).unwrap();
    let refused = |words: &[&str]| {
        let error = format!(
            "{:#}",
            record(&setup.repository(), &setup.open()).unwrap_err()
        );
        assert_has(&error, words);
        assert_eq!(
            read_files(&Series::folder(&setup.repository())).unwrap(),
            before
        );
    };
    setup.edit();
    setup.fill("tree", &[("vmm/src/lib.rs", "mod a;\n")]);
    refused(&["vmm/src/lib.rs", "more than insert"]);

    setup.edit();
    fs::remove_file(setup.tree().join("docs")).unwrap();
    refused(&["docs", "deleted"]);
    setup.git(&["checkout", "--quiet", "docs"]);

    setup.fill(
        "tree",
        &[("vmm-device-ivsmc/src/lib.rs", "//! Mended there.\n")],
    );
    refused(&["vmm-device-ivsmc/src/lib.rs differs"]);
    fs::remove_file(setup.tree().join("vmm-device-ivsmc/src/lib.rs")).unwrap();
    refused(&["vmm-device-ivsmc/src/lib.rs differs"]);
    setup.edit();
    setup.fill(
        "tree",
        &[("vmm-device-ivsmc/src/more.rs", "//! New there.\n")],
    );
    refused(&["vmm-device-ivsmc/src/more.rs differs"]);
    fs::remove_file(setup.tree().join("vmm-device-ivsmc/src/more.rs")).unwrap();

    setup.commit("ours");
    refused(&["commits", "git reset --soft v53.0"]);
    setup.git(&["tag", "--delete", RELEASE]);
    refused(&["no tag v53.0", "git fetch"]);
}

#[test]
fn a_tree_that_is_not_far_from_the_release_is_patched() {
    let setup = Setup::recorded();
    setup.fill(
        "tree",
        &[(
            "vmm/src/lib.rs",
            "mod new;\nmod a;\nmod z;\n\nfn another() {}\n\nfn upstreams() {\n    one();\n    two();\n    three();\n}\n",
        )],
    );
    setup.commit("later");
    let report = patch(&setup.repository(), &setup.open()).unwrap();
    assert_has(
        &report,
        &[
            "vmm/src/lib.rs: 3 lines inserted at 2 places (2 moved by up to 3 lines)",
            "4 lines inserted at 3 places (2 moved by up to 3 lines)",
        ],
    );
    assert_eq!(
        fs::read_to_string(setup.tree().join("vmm/src/lib.rs")).unwrap(),
        "mod new;\nmod a;\nmod ivsmc;\nmod z;\n\nfn another() {}\n\nfn upstreams() {\n    one();\n    ours();\n\
         \x20   ours();\n    two();\n    three();\n}\n"
    );
}

#[test]
fn trees_that_are_too_far_from_the_release_are_refused() {
    let setup = Setup::recorded();
    setup.fill("tree", &[("vmm/src/lib.rs", "mod another_release;\n")]);
    setup.commit("later");
    let error = setup.refused();
    assert_has(
        &error,
        &[
            "too far",
            "git checkout v53.0",
            "vmm/src/lib.rs: `mod ivsmc;`: none of the 7 lines around it is there; it is after line 1 in v53.0",
            "vmm/src/lib.rs: `ours();`: none of",
        ],
    );
    for hunk in &Series::read(&setup.repository()).unwrap().patches[1].hunks {
        assert_has(&error, &[&format!("the hashes{}", hunk.around)]);
    }
    assert!(!error.contains("Cargo.toml"), "{error}");
    fs::remove_file(setup.tree().join("vmm/src/lib.rs")).unwrap();
    setup.commit("later still");
    assert_has(
        &setup.refused(),
        &[
            "vmm/src/lib.rs: there is no such file",
            "git checkout v53.0",
        ],
    );
    setup.git(&["checkout", "--quiet", RELEASE]);
    setup.fill("tree", &[("vmm-device-ivsmc/README.md", "another's\n")]);
    setup.git(&["add", "."]);
    setup.commit("a namesake");
    assert_has(
        &setup.refused(),
        &["has a vmm-device-ivsmc/README.md", "git checkout v53.0"],
    );
}

#[test]
fn what_later_trees_have_more_is_patched_there() {
    let setup = Setup::recorded();
    let text = "# Threats\n\nThere are some.\n\n# Others\n";
    setup.fill("tree", &[("threats.md", text)]);
    setup.git(&["add", "."]);
    setup.commit("later");
    patch(&setup.repository(), &setup.open()).unwrap();
    let edited = "# Threats\n\nThere are some.\n\n# Ours\n\n# Others\n";
    setup.fill("tree", &[("threats.md", edited)]);
    let before = read_files(&Series::folder(&setup.repository())).unwrap();
    record(&setup.repository(), &setup.open()).unwrap();
    let mut after = read_files(&Series::folder(&setup.repository())).unwrap();
    let recorded = after.remove("patches/later/threats.md.patch");
    assert_has(&String::from_utf8(recorded.unwrap()).unwrap(), &["+# Ours"]);
    assert_eq!(before, after);

    setup.clean();
    let report = patch(&setup.repository(), &setup.open()).unwrap();
    assert_has(&report, &["threats.md: 2 lines", "3 files have 6 lines"]);
    assert_eq!(
        fs::read_to_string(setup.tree().join("threats.md")).unwrap(),
        edited
    );
    // The release does not have the file; and recording from there leaves the later patch as it is.
    setup.clean();
    setup.git(&["checkout", "--quiet", RELEASE]);
    let report = patch(&setup.repository(), &setup.open()).unwrap();
    assert_has(&report, &["2 files have 4 lines"]);
    assert!(!report.contains("threats.md"), "{report}");
    record(&setup.repository(), &setup.open()).unwrap();
    assert_eq!(Series::read(&setup.repository()).unwrap().later.len(), 1);
}

#[test]
fn what_cannot_be_told_apart_is_not_recorded() {
    let setup = Setup::recorded();
    let twice = "mod a;\nmod b;\nmod z;\n\n".repeat(5);
    setup.fill("tree", &[("vmm/src/lib.rs", &twice)]);
    setup.commit("repeats itself");
    setup.git(&["tag", "--force", RELEASE]);
    setup.edit();
    let edited = twice.replacen("mod z;\n\nmod a", "mod z;\n\nmod ivsmc;\nmod a", 3);
    setup.fill("tree", &[("vmm/src/lib.rs", &edited)]);
    let error = record(&setup.repository(), &setup.open()).unwrap_err();
    assert_has(
        &format!("{error:#}"),
        &["vmm/src/lib.rs", "told apart", "`mod ivsmc;`"],
    );
    // One place of three that are alike has been forgotten.
    let names = ["one", "two", "three"];
    let file = names.map(|name| format!("{name}\n").repeat(8) + "a: None,\nb: None,\n}\n\n");
    setup.fill("tree", &[("vmm/src/lib.rs", &file.concat())]);
    setup.git(&[
        "commit",
        "--quiet",
        "--no-gpg-sign",
        "--message",
        "x",
        "vmm/src/lib.rs",
    ]);
    setup.git(&["tag", "--force", RELEASE]);
    let edited = file
        .concat()
        .replacen("b: None,\n", "b: None,\nours: None,\n", 2);
    setup.fill("tree", &[("vmm/src/lib.rs", &edited)]);
    let error = record(&setup.repository(), &setup.open()).unwrap_err();
    assert_has(
        &format!("{error:#}"),
        &["vmm/src/lib.rs", "more than once", "after line 34"],
    );
}

#[test]
fn dirty_trees_are_refused() {
    let setup = Setup::recorded();
    setup.fill("tree", &[("new.txt", "not committed\n")]);
    assert_has(
        &setup.refused(),
        &["not committed", "new.txt", "git stash", "git clean"],
    );
    setup.git(&["add", "new.txt"]);
    assert_has(&setup.refused(), &["not committed", "new.txt"]);
    setup.clean();
    setup.fill("tree", &[("docs", "changed\n")]);
    assert_has(&setup.refused(), &["not committed", "docs", "git stash"]);
    setup.clean();
    // What git ignores does not matter.
    setup.fill("tree", &[("target/thing", "built\n")]);
    patch(&setup.repository(), &setup.open()).unwrap();
}

#[test]
fn patched_trees_are_refused() {
    let setup = Setup::recorded();
    patch(&setup.repository(), &setup.open()).unwrap();
    assert_has(
        &setup.refused(),
        &["has the patches already", "git reset --hard v53.0"],
    );
    setup.git(&["add", "."]);
    setup.commit("patched");
    assert_has(&setup.refused(), &["has the patches already"]);
}

#[test]
fn what_is_no_checkout_is_refused() {
    let setup = Setup::recorded();
    let error = |path: &Path| format!("{:#}", Tree::open(path).err().unwrap());
    assert_has(&error(&setup.repository()), &["not a git checkout"]);
    assert_has(&error(&setup.tree().join("vmm")), &["not the top", "tree"]);
    assert_has(
        &error(&setup.tree().join("nowhere")),
        &["nowhere", "no such folder"],
    );
}

#[test]
fn what_fails_midway_is_undone() {
    let setup = Setup::recorded();
    // A folder is needed where the tree has a file; files before it have been written then, and a folder made.
    let files = Series::folder(&setup.repository()).join("files");
    for path in ["abc/new/file", "docs/ivsmc.md"] {
        let path = files.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "ours\n").unwrap();
    }
    assert_has(
        &setup.refused(),
        &["nothing was changed", "cannot write", "docs/ivsmc.md"],
    );
    assert!(!setup.tree().join("abc").exists());
    assert_eq!(setup.git(&["status", "--porcelain"]), "");
}

#[test]
fn a_series_that_does_not_fit_together_is_refused() {
    let setup = Setup::recorded();
    let folder = Series::folder(&setup.repository());
    let patch = folder.join("patches/Cargo.toml.patch");
    let text = fs::read_to_string(&patch).unwrap();
    fs::write(&patch, text.replace(" @@ ", " @@ members = [ ")).unwrap();
    assert_has(&setup.refused(), &["Cargo.toml.patch", "no hashes"]);
    fs::write(&patch, &text).unwrap();
    fs::write(folder.join("patches/again.patch"), &text).unwrap();
    assert_has(&setup.refused(), &["two patches of Cargo.toml"]);
}

/// The real patches, and the repository that they are in.
fn real() -> (PathBuf, Series) {
    let repository = crate::repository().unwrap();
    let series = Series::read(&repository).unwrap();
    (repository, series)
}

#[test]
fn the_real_series_keeps_its_rules() {
    let (repository, series) = real();
    series.check().unwrap();
    let patches = series.patches.iter().chain(&series.later);
    let lines: usize = patches.clone().map(FileDiff::count).sum();
    assert!(lines < MOST_LINES, "{lines} lines are inserted");
    for (name, content) in read_files(&Series::folder(&repository).join("patches")).unwrap() {
        // Read and written again it is the same: there is nothing else in it.
        let patch = FileDiff::parse_insertions(std::str::from_utf8(&content).unwrap()).unwrap();
        assert_eq!(patch.render().as_bytes(), content, "{name}");
        assert_eq!(name.trim_start_matches(LATER), patch_name(&patch.path));
        assert!(
            !patch.description.trim().is_empty(),
            "{name} does not say why"
        );
    }
    assert!(series.files.contains_key(MARK));
    let mut ours = crate_files(&repository).unwrap();
    ours.retain(|path, _| series.files.contains_key(path));
    assert!(
        ours.is_empty(),
        "files/ has what comes from the crate: {:?}",
        ours.keys()
    );
}

#[test]
fn the_real_manifest_of_the_crate_has_its_dependencies() {
    let (repository, series) = real();
    let manifest = |text: &str| text.parse::<toml::Table>().unwrap();
    let names = |manifest: &toml::Table, section: &str| -> BTreeSet<String> {
        let section = manifest.get(section).and_then(toml::Value::as_table);
        section
            .into_iter()
            .flat_map(toml::Table::keys)
            .cloned()
            .collect()
    };
    let here = fs::read_to_string(repository.join(CRATE).join("Cargo.toml")).unwrap();
    let there = &series.files[&format!("{CRATE}/Cargo.toml")];
    let (here, there) = (
        manifest(&here),
        manifest(std::str::from_utf8(there).unwrap()),
    );
    assert!(!names(&here, "dependencies").is_empty());
    assert_eq!(names(&there, "dependencies"), names(&here, "dependencies"));
    // Its tests are run there, too, but not those for which KVM's crates are needed.
    let of_tests = "dev-dependencies";
    assert!(names(&there, of_tests).is_subset(&names(&here, of_tests)));
    assert_eq!(there["package"]["name"], here["package"]["name"]);
}
