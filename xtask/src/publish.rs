// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The test that the crates that are meant for crates.io can be packaged.

use std::process::Command;

use crate::{process, programs};

/// Those that others build on, and what they depend on.
const CRATES: [&str; 3] = ["vmm-device-ivsmc", "ivsmc-toolkit", "ivsmc-guest"];

/// A package that lacks what it shows, or its licences, or whose dependencies have no version, is refused only on the day it is published.
#[test]
fn crates_can_be_published() {
    let repository = crate::repository().unwrap();
    let target = tempfile::tempdir().unwrap();
    let package = |arguments: &[&str]| {
        let mut command = programs::cargo(&repository);
        command
            .args(["package", "--offline", "--allow-dirty", "--no-verify"])
            .arg("--target-dir")
            .arg(target.path())
            .args(arguments);
        process::output(&mut command).unwrap()
    };
    for name in CRATES {
        let listed = package(&["--list", "--package", name]);
        for file in [
            "src/lib.rs",
            "README.md",
            "LICENSE-Apache-2.0.txt",
            "LICENSE-BSD-3-Clause.txt",
        ] {
            assert!(listed.lines().any(|line| line == file), "{name}: no {file}");
        }
    }
    package(&CRATES.map(|name| ["--package", name]).concat());
    for name in CRATES {
        let archive = format!("package/{name}-{}.crate", env!("CARGO_PKG_VERSION"));
        let mut command = Command::new("tar");
        command
            .arg("--extract")
            .arg("--to-stdout")
            .arg("--file")
            .arg(target.path().join(archive))
            .args(["--wildcards", "*/Cargo.toml", "*/LICENSE-Apache-2.0.txt"]);
        let content = process::output(&mut command).unwrap();
        for part in [
            "description = ",
            "license = ",
            "readme = ",
            "Apache License",
        ] {
            assert!(content.contains(part), "{name}: {part}");
        }
        assert!(!content.contains("publish = false"), "{name}");
    }
}
