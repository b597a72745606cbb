// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The program itself: killed, ended, and with nobody who reads what it says.

use super::{ALL, Host, LIMIT, Vmm, until};
use ivsmc_host::list::Listing;
use std::fs;
use std::io::{Read, pipe};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

const PROGRAM: &str = env!("CARGO_BIN_EXE_ivsmc-host");
/// The variable with the command that runs programs which are for another processor: cargo tells tests nothing of its own.
const RUNNER: &str = "IVSMC_TEST_RUNNER";

/// The program, without arguments.
fn program() -> Command {
    let runner = std::env::var(RUNNER).unwrap_or_default();
    let mut words = runner.split_whitespace().chain([PROGRAM]);
    let mut command = Command::new(words.next().unwrap());
    command.args(words);
    command
}

/// The program in the background, which is killed with this.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn command(host: &Host, fabrics: &str, name: &str) -> Command {
    let policy = host.at("policy.toml");
    fs::write(&policy, host.text(fabrics)).unwrap();
    let mut command = program();
    command.arg(name).arg("--policy").arg(policy);
    command.arg("--run-dir").arg(host.at("run"));
    command.stdin(Stdio::null());
    command
}

fn attach(host: &Host, fabrics: &str, stderr: Stdio) -> Program {
    let mut command = command(host, fabrics, "attach");
    command.args(["--faster", "20"]).stderr(stderr);
    Program(command.spawn().unwrap())
}

pub async fn output(mut command: Command) -> Output {
    // VMMs live in this runtime.
    spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap()
}

/// Numbers without a pattern, the same in each run.
fn random(state: &mut u64, below: u64) -> u64 {
    *state = state
        .wrapping_mul(6364136223846793005)
        .wrapping_add(1442695040888963407);
    (*state >> 33) % below
}

#[tokio::test]
async fn killed_again_and_again_it_ends_in_the_same_state() {
    let host = Host::new();
    let fabrics =
        "[[fabric]]\nname = \"blue\"\nvms = [\"b*\"]\n[[fabric]]\nname = \"red\"\nvms = [\"r*\"]\n";
    let names = ["b1", "b2", "r1", "r2"];
    let mut vms = names.map(|vm| Vmm::start(host.socket(vm)));
    let mut program = attach(&host, fabrics, Stdio::null());
    let mut seed = 13;
    for round in 0..20 {
        let n = random(&mut seed, 4) as usize;
        // Killed, and started again at the same path; the program is killed before, in between, after, or not at all.
        let when = random(&mut seed, 4);
        let pause = Duration::from_millis(random(&mut seed, 150));
        for step in 0..3 {
            if when == step {
                drop(program);
                sleep(pause).await;
                program = attach(&host, fabrics, Stdio::null());
            }
            match step {
                0 => vms[n].state().vm = Err(500),
                1 => vms[n] = Vmm::start(host.socket(names[n])),
                _ => sleep(pause).await,
            }
        }
        for (vm, vmm) in names.iter().zip(&vms) {
            until("it has a device", || !vmm.paths().is_empty()).await;
            let fabric = if vm.starts_with('b') { "blue" } else { "red" };
            assert_eq!(vmm.paths(), [host.device(fabric, vm)], "round {round}");
            assert!(vmm.state().adds <= 2, "round {round}");
        }
    }
    for (fabric, names) in [("blue", ["b1", "b2"]), ("red", ["r1", "r2"])] {
        let mut files: Vec<_> = fs::read_dir(host.at("run").join(fabric))
            .unwrap()
            .map(|file| file.unwrap().file_name())
            .collect();
        files.sort();
        assert_eq!(files, names);
    }
    let mut list = command(&host, fabrics, "list");
    list.arg("--json");
    let listing: Listing = serde_json::from_slice(&output(list).await.stdout).unwrap();
    assert_eq!(listing.vms.len(), 4);
    assert!(listing.vms.iter().all(|vm| vm.attached), "{listing:?}");
}

#[tokio::test]
async fn it_ends_at_once_when_asked_and_leaves_devices() {
    let host = Host::new();
    let vmm = Vmm::start(host.socket("a"));
    let hangs = Vmm::with(host.socket("b"), super::Mode::Silent, Ok("Running"));
    let mut program = attach(&host, ALL, Stdio::null());
    until("it has a device", || !vmm.paths().is_empty()).await;
    until("the other one hangs", || hangs.state().calls > 0).await;
    let pid = rustix::process::Pid::from_child(&program.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let begin = Instant::now();
    let status = loop {
        if let Some(status) = program.0.try_wait().unwrap() {
            break status;
        }
        assert!(begin.elapsed() < LIMIT, "it goes on");
        sleep(Duration::from_millis(5)).await;
    };
    assert!(status.success(), "{status}");
    assert_eq!(vmm.paths().len(), 1);
    assert!(host.at("run/all/a").exists());
}

#[tokio::test]
async fn nobody_reads_what_it_says() {
    let host = Host::new();
    let vmm = Vmm::start(host.socket("a"));
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    let mut program = attach(&host, ALL, writer.into());
    until("it has a device", || !vmm.paths().is_empty()).await;
    let later = Vmm::start(host.socket("b"));
    until("it has a device", || !later.paths().is_empty()).await;
    assert!(program.0.try_wait().unwrap().is_none());
    for json in [&["--json"][..], &[]] {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let mut list = command(&host, ALL, "list");
        list.args(json).stdout(writer).stderr(Stdio::piped());
        let output = output(list).await;
        assert!(output.status.success(), "{output:?}");
        assert!(output.stderr.is_empty(), "{output:?}");
    }
}

#[tokio::test]
async fn list_for_people() {
    let host = Host::new();
    let vmm = Vmm::start(host.socket("a"));
    let (mut reader, writer) = pipe().unwrap();
    let program = attach(&host, ALL, writer.into());
    until("it has a device", || !vmm.paths().is_empty()).await;
    let _other = Vmm::with(host.socket("b"), super::Mode::Silent, Ok("Running"));
    let output = output(command(&host, ALL, "list")).await;
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("all: 1 VMs, in "), "{said}");
    assert!(said.contains("no answer within 2s"), "{said}");
    drop(program);
    let mut log = String::new();
    reader.read_to_string(&mut log).unwrap();
    assert!(log.contains("has got a device"), "{log}");
}

#[tokio::test]
async fn bad_policies_are_refused_with_their_line() {
    let host = Host::new();
    let bad = "[[fabric]]\nname = \"web\"\nvms = [\"*\"]\nsize = \"3M\"\n";
    for (name, rest) in [
        ("attach", &[][..]),
        ("list", &[]),
        ("drop", &["a", "b"]),
        ("allow", &["a", "b"]),
    ] {
        let mut command = command(&host, bad, name);
        command.args(rest);
        let output = output(command).await;
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            said.contains("policy.toml: line 6, column 8: ivsmc: size=3M"),
            "{said}"
        );
    }
    let mut check = program();
    check.arg("check-policy").arg(host.at("policy.toml"));
    let output = output(check).await;
    assert_eq!(output.status.code(), Some(1));
    let mut check = program();
    check.arg("check-policy").arg(host.at("none.toml"));
    let missing = super::program::output(check).await;
    assert!(String::from_utf8_lossy(&missing.stderr).contains("cannot be read"));
    fs::write(host.at("policy.toml"), host.text(ALL)).unwrap();
    let mut check = program();
    check.arg("check-policy").arg(host.at("policy.toml"));
    let good = super::program::output(check).await;
    assert!(good.status.success(), "{good:?}");
    assert!(String::from_utf8_lossy(&good.stdout).contains("fabrics all"));
}
