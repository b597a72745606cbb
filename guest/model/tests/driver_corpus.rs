// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The driver's own rings, DMBs and headers, in user space with sanitizers, on the corpus of its fuzz target.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

#[test]
fn corpus_of_the_driver() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ivpci/fuzz");
    let count = fs::read_dir(folder.join("corpus")).unwrap().count();
    assert!(count >= 10, "{count} files are no corpus");
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("driver_corpus");
    let output = Command::new("make")
        .args(["check", "-B", "-C"])
        .arg(&folder)
        .arg(format!("OUT={}", out.display()))
        // cargo may run under another make.
        .env_remove("MAKEFLAGS")
        .output()
        .expect("there is no make; install make and gcc");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    let runs = said.lines().filter(|line| line.starts_with("corpus/"));
    assert_eq!(runs.count(), count);
}
