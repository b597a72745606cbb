// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `ivsmc-guest run` is transparent, with or without SMC in the kernel.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ivsmc-guest"))
        .arg("run")
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn exit_status_and_signal_are_the_programs() {
    assert_eq!(run(&["sh", "-c", "exit 7"]).status.code(), Some(7));
    assert_eq!(run(&["sh", "-c", "kill -9 $$"]).status.signal(), Some(9));
    assert_eq!(run(&["/no/such/program"]).status.code(), Some(127));
    assert_eq!(run(&["/"]).status.code(), Some(126));
}

#[test]
fn output_ends_with_the_program() {
    let output = run(&["sh", "-c", "echo out; echo err >&2; wait"]);
    assert_eq!(
        (&output.stdout[..], &output.stderr[..]),
        (&b"out\n"[..], &b"err\n"[..])
    );
}

#[test]
fn options_go_to_the_program() {
    assert_eq!(run(&["echo", "--version", "-x"]).stdout, b"--version -x\n");
}

#[test]
fn within_itself_it_says_why_not() {
    let output = run(&[env!("CARGO_BIN_EXE_ivsmc-guest"), "run", "true"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && text.contains("Once is enough"),
        "{text}"
    );
}
