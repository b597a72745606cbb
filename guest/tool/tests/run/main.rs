// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! No program is worse off under `ivsmc-guest run` than without it. No SMC is needed: the supervisor is told to give
//! sockets of another protocol, which say of themselves that they are ours.

mod programs;

use ivsmc_traffic::sockets::{Opened, Storm};
use libtest_mimic::{Arguments, Trial};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Output, Stdio};
use std::time::{Duration, Instant};

const TOOL: &str = env!("CARGO_BIN_EXE_ivsmc-guest");
/// What takes SMC's place.
const MPTCP: i32 = libc::IPPROTO_MPTCP;
const TCP: i32 = libc::IPPROTO_TCP;
/// How long anything may take that is not measured.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, how, name, arguments @ ..] = &arguments[..]
        && how == "as"
    {
        return match programs::run(name, arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                println!("{name}: {error}");
                ExitCode::FAILURE
            }
        };
    }
    let test = |name: &str, test: fn()| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    };
    let privileged = |name: &str, f: fn()| test(name, f).with_ignored_flag(!is_root());
    let trials = vec![
        test("exit_status_and_signal_are_the_programs", exit_status),
        test("output_ends_with_the_program", output_ends),
        test("options_go_to_the_program", options),
        test("sockets_of_each_kind", kinds),
        test("multipath_sockets", multipath),
        test("within_itself", within_itself),
        test("under_another_listener", under_another_listener),
        test("with_a_listener_of_its_own", with_a_listener_of_its_own),
        test("without_smc_there_is_no_supervisor", without_smc),
        test("what_an_outer_filter_refuses", refusals),
        test("sigpipe_is_the_callers", sigpipe),
        test("nobody_reads_the_output", nobody_reads),
        test("a_signal_seldom_interrupts", signals),
        test("what_stops_services", what_stops_services),
        test("a_supervisor_is_killed", one_is_killed),
        test("a_supervisor_is_killed_over_and_over", killed_under_load),
        test("both_are_killed_at_once", both_are_killed),
        test("a_search_for_the_program_finds_no_other", title),
        test("programs_of_32_bits", foreign),
        test("storm", storm),
        privileged("memory_runs_out", memory),
        privileged("network_namespaces", namespaces),
        privileged("network_namespaces_of_users", namespaces_of_users),
        privileged("processes_that_hide", hidden),
        privileged("first_process_of_a_container", first_process),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn is_root() -> bool {
    // SAFETY: takes no pointers.
    unsafe { libc::geteuid() == 0 }
}

/// A command that runs `words` with `protocol` in the place of SMC's.
fn command(protocol: i32, words: &[&str]) -> Command {
    let mut command = Command::new(TOOL);
    command
        .args(["run", "--protocol", &protocol.to_string()])
        .args(words);
    command
}

fn output(protocol: i32, words: &[&str]) -> Output {
    command(protocol, words).output().unwrap()
}

fn own() -> String {
    std::env::current_exe()
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned()
}

/// What one of our own programs says, run like that.
fn said(protocol: i32, words: &[&str]) -> String {
    let own = own();
    let words: Vec<_> = [&own, "as"].iter().chain(words).copied().collect();
    let output = output(protocol, &words);
    assert!(output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout)
        .unwrap()
        .trim_end()
        .to_owned()
}

/// A program that opens a socket when it is asked to.
struct Answering {
    child: Child,
    asks: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Answering {
    fn start() -> Self {
        let mut child = command(MPTCP, &[&own(), "as", "answer"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut program = Answering {
            asks: child.stdin.take(),
            answers: BufReader::new(child.stdout.take().unwrap()),
            child,
        };
        assert_eq!(program.line(), "ready");
        program
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// The protocol of a new socket, or a negative errno.
    fn ask(&mut self) -> i32 {
        self.asks.as_ref().unwrap().write_all(b"\n").unwrap();
        self.line().parse().unwrap()
    }

    fn supervisors(&self) -> Vec<i32> {
        supervisors(self.child.id())
    }

    /// Waits until there are so many supervisors.
    fn wait_for(&self, count: usize) -> Vec<i32> {
        wait_for(self.child.id(), count)
    }

    /// Ends the program; its supervisors end with it.
    fn end(mut self) {
        let pid = self.child.id();
        drop(self.asks.take());
        assert!(self.child.wait().unwrap().success());
        wait_for(pid, 0);
    }
}

/// The processes that supervise `program`.
fn supervisors(program: u32) -> Vec<i32> {
    let title = format!("ivsmc-guest: supervisor of process {program}\0");
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.starts_with(title.as_bytes())
        })
        .collect()
}

fn wait_for(program: u32, count: usize) -> Vec<i32> {
    let start = Instant::now();
    loop {
        let found = supervisors(program);
        if found.len() == count {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "{found:?}, and not {count}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn kill(pid: i32, signal: i32) {
    // SAFETY: takes no pointers.
    unsafe { libc::kill(pid, signal) };
}

/// Kills a supervisor, and waits until it is dead: a test that takes the dying for the living kills the last one.
fn kill_supervisor(program: u32, pid: i32) {
    kill(pid, libc::SIGKILL);
    while supervisors(program).contains(&pid) {
        std::thread::yield_now();
    }
}

fn exit_status() {
    for protocol in [MPTCP, 256] {
        assert_eq!(
            output(protocol, &["sh", "-c", "exit 7"]).status.code(),
            Some(7)
        );
        let killed = output(protocol, &["sh", "-c", "kill -9 $$"]);
        assert_eq!(killed.status.signal(), Some(9));
        assert_eq!(
            output(protocol, &["/no/such/program"]).status.code(),
            Some(127)
        );
        assert_eq!(output(protocol, &["/"]).status.code(), Some(126));
    }
}

fn output_ends() {
    let output = output(MPTCP, &["sh", "-c", "echo out; echo err >&2; wait"]);
    assert_eq!(
        (&output.stdout[..], &output.stderr[..]),
        (&b"out\n"[..], &b"err\n"[..])
    );
}

fn options() {
    let output = output(MPTCP, &["echo", "--version", "--protocol", "-x"]);
    assert_eq!(output.stdout, b"--version --protocol -x\n");
}

fn kinds() {
    let all: Vec<Opened> = serde_json::from_str(&said(MPTCP, &["kinds"])).unwrap();
    let without = Command::new(own()).args(["as", "kinds"]).output().unwrap();
    let without: Vec<Opened> = serde_json::from_slice(&without.stdout).unwrap();
    assert_eq!(all.len(), without.len());
    for (opened, without) in all.into_iter().zip(without) {
        let got = match opened.protocol {
            0 | TCP if without.got == TCP => MPTCP,
            _ => without.got,
        };
        assert_eq!(opened, Opened { got, ..without });
    }
}

fn multipath() {
    let all: Vec<Opened> = serde_json::from_str(&said(TCP, &["kinds"])).unwrap();
    let mut multipath = all.iter().filter(|opened| opened.protocol == MPTCP);
    assert!(multipath.clone().count() >= 8);
    assert!(multipath.all(|opened| opened.got == TCP), "{all:?}");
}

fn within_itself() {
    let protocol = MPTCP.to_string();
    let words = [TOOL, "run", "--protocol", &protocol, &own(), "as", "one"];
    let output = output(MPTCP, &words);
    assert_eq!(output.stdout, b"262\n", "{output:?}");
    assert!(output.status.success() && output.stderr.is_empty());
}

fn under_another_listener() {
    let (own, protocol) = (own(), MPTCP.to_string());
    let words = [
        "as",
        "watched",
        TOOL,
        "run",
        "--protocol",
        &protocol,
        &own,
        "as",
        "one",
    ];
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let unread = Command::new(&own).args(words).stderr(writer).output();
    assert_eq!(unread.unwrap().stdout, b"6\n");
    let output = Command::new(&own).args(words).output().unwrap();
    assert_eq!(output.stdout, b"6\n", "{output:?}");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.contains("runs with TCP: a seccomp supervisor"),
        "{text}"
    );
}

/// Linux has one listener at most for a process. What it refuses is refused cleanly.
fn with_a_listener_of_its_own() {
    let busy = std::io::Error::from_raw_os_error(libc::EBUSY);
    assert_eq!(
        said(MPTCP, &["listener"]),
        format!("{:?} {MPTCP}", Some(busy))
    );
}

fn without_smc() {
    // SCTP makes no stream sockets of this kind here, and where it does there is something to see.
    assert_eq!(said(999, &["one"]), "6");
    let count = "grep -c . /proc/self/status; grep Seccomp_filters: /proc/self/status";
    let output = output(999, &["sh", "-c", count]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("Seccomp_filters:\t0"), "{text}");
}

/// Each of these calls is refused to the tool in some way; the program has a socket all the same, and at once.
fn refusals() {
    const RECV: u32 = 0xc050_2100;
    const ADDFD: u32 = 0x4018_2103;
    let errno = |errno: i32| libc::SECCOMP_RET_ERRNO | errno as u32;
    let kill = libc::SECCOMP_RET_KILL_PROCESS;
    let ioctl = libc::SYS_ioctl;
    for (call, argument, action, got) in [
        (ioctl, RECV, errno(libc::EPERM), TCP),
        (ioctl, RECV, errno(libc::ENOSYS), TCP),
        (ioctl, RECV, kill, TCP),
        (ioctl, ADDFD, errno(libc::EACCES), TCP),
        (ioctl, ADDFD, kill, TCP),
        (libc::SYS_seccomp, 0, errno(libc::EPERM), TCP),
        (libc::SYS_seccomp, 0, kill, TCP),
        (libc::SYS_sendmsg, 0, errno(libc::EPERM), TCP),
        (libc::SYS_clone, 0, errno(libc::EAGAIN), TCP),
        (libc::SYS_close_range, 0, errno(libc::EPERM), MPTCP),
        (libc::SYS_setns, 0, kill, MPTCP),
        (libc::SYS_sched_setscheduler, 0, errno(libc::EPERM), MPTCP),
    ] {
        let [call, argument, action] =
            [call as u32, argument, action].map(|number| number.to_string());
        let (own, protocol) = (own(), MPTCP.to_string());
        let start = Instant::now();
        let output = Command::new(&own)
            .args(["as", "confined", &call, &argument, &action])
            .args([TOOL, "run", "--protocol", &protocol, &own, "as", "one"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(
            said.trim_end(),
            got.to_string(),
            "{call} {argument} {action}: {output:?}"
        );
        assert!(start.elapsed() < PATIENCE / 2, "{call} {argument} {action}");
    }
}

fn sigpipe() {
    for action in [libc::SIG_IGN, libc::SIG_DFL] {
        let mut command = command(MPTCP, &["grep", "SigIgn", "/proc/self/status"]);
        // SAFETY: signal() may be called between fork and exec.
        unsafe {
            command.pre_exec(move || {
                libc::signal(libc::SIGPIPE, action);
                Ok(())
            })
        };
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let ignored = text.split_whitespace().nth(1).unwrap();
        let ignored = u64::from_str_radix(ignored, 16).unwrap();
        assert_eq!(
            ignored >> (libc::SIGPIPE - 1) & 1 == 1,
            action == libc::SIG_IGN
        );
    }
}

/// Whatever a command has to say, it does not panic where nobody reads it, and tells where nobody can write it.
fn nobody_reads() {
    for words in [
        &["--help"][..],
        &["status"],
        &["status", "--json"],
        &["ueid", "list"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        for stdout in [Stdio::from(writer), Stdio::from(full)] {
            let mut command = Command::new(TOOL);
            let command = command.args(words).stdout(stdout).stderr(Stdio::piped());
            let output = command.spawn().and_then(Child::wait_with_output).unwrap();
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(!text.contains("panicked"), "{words:?}: {text}");
        }
    }
}

/// A signal can interrupt a call until the supervisor has it, and no longer. How soon that is depends on what else runs.
fn signals() {
    let [calls, interrupted, other, signals]: [u64; 4] =
        serde_json::from_str(&said(MPTCP, &["signals", "100"])).unwrap();
    println!("{calls} calls, {interrupted} interrupted, {signals} signals");
    assert_eq!(other, 0);
    assert!(signals > 100, "{signals}");
    // With the privilege to come first, or without.
    let most = if is_root() { signals / 5 } else { calls / 4 };
    assert!(
        interrupted < most,
        "{interrupted} of {calls}, {signals} signals"
    );
}

/// Signals to all of a service's processes, as systemd's control-group has it, or to the program alone (mixed). What
/// does not end the program does not end what it needs.
fn what_stops_services() {
    let mut program = Answering::start();
    let own = program.child.id() as i32;
    let both = program.wait_for(2);
    assert_eq!(program.ask(), MPTCP);
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGCONT] {
        for pid in both.iter().chain([&own]) {
            kill(*pid, signal);
        }
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(program.ask(), MPTCP, "signal {signal}");
    }
    for signal in 1..=64 {
        if ![libc::SIGKILL, libc::SIGSTOP].contains(&signal) {
            both.iter().for_each(|pid| kill(*pid, signal));
        }
    }
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(program.ask(), MPTCP);
    assert_eq!(program.supervisors(), both);
    program.end();

    // In the end all are killed, and nothing is left.
    let mut program = Answering::start();
    let pid = program.child.id();
    for pid in program.wait_for(2).into_iter().chain([pid as i32]) {
        kill(pid, libc::SIGKILL);
    }
    program.child.wait().unwrap();
    wait_for(pid, 0);
}

fn one_is_killed() {
    let mut program = Answering::start();
    for round in 0..40 {
        let both = program.wait_for(2);
        kill_supervisor(program.child.id(), both[round % 2]);
        assert_eq!(program.ask(), MPTCP, "round {round}");
    }
    program.end();
}

/// Calls that are on their way when a supervisor is killed get an answer as well.
fn killed_under_load() {
    let mut storm = command(MPTCP, &[&own(), "as", "storm", "4", "3000"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let start = Instant::now();
    let mut killed = 0;
    while storm.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < PATIENCE, "{killed} supervisors killed");
        if let [one, other] = supervisors(storm.id())[..] {
            kill_supervisor(storm.id(), [one, other][killed % 2]);
            killed += 1;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let pid = storm.id();
    let output = storm.wait_with_output().unwrap();
    let Storm { got, left_over, .. } = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(left_over, 0);
    println!("{killed} supervisors killed: {got:?}");
    let sockets: u64 = got.values().sum();
    assert_eq!(sockets, 4 * 3000);
    // A call at which two of them were killed, one after the other, becomes TCP.
    let tcp = got.get(&TCP).copied().unwrap_or(0);
    assert_eq!(
        got.get(&MPTCP).copied().unwrap_or(0) + tcp,
        sockets,
        "{got:?}"
    );
    assert!(killed > 3 && tcp * 4 <= killed as u64, "{killed}: {got:?}");
    wait_for(pid, 0);
}

/// What Linux does not allow us to mend (docs/operations.md).
fn both_are_killed() {
    let mut program = Answering::start();
    let both = program.wait_for(2);
    both.iter().for_each(|pid| kill(*pid, libc::SIGSTOP));
    both.iter().for_each(|pid| kill(*pid, libc::SIGKILL));
    program.wait_for(0);
    assert_eq!(program.ask(), -libc::ENOSYS);
    program.end();
}

fn title() {
    let program = Answering::start();
    for pid in program.wait_for(2) {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        let line = String::from_utf8(line).unwrap();
        assert!(!line.contains(&own()) && !line.contains("answer"), "{line}");
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
        assert_eq!(name, "ivsmc-supervise\n");
    }
    program.end();
}

fn foreign() {
    let with = said(MPTCP, &["foreign"]);
    let without = Command::new(own())
        .args(["as", "foreign"])
        .output()
        .unwrap();
    let without = String::from_utf8(without.stdout).unwrap();
    // Without SO_PROTOCOL of its own the kernel may have no calls of 32 bits.
    let first = without.lines().next().unwrap().replace("6", "262");
    let second = without.lines().nth(1).unwrap();
    assert_eq!(with, format!("{first}\n{second}"));
}

/// By hand: `IVSMC_STORM=64,10000 cargo test -p ivsmc-guest --test run storm -- --nocapture`.
fn storm() {
    let size = std::env::var("IVSMC_STORM").unwrap_or("16,250".to_owned());
    let (threads, count) = size.split_once(',').unwrap();
    let mut storm = command(MPTCP, &[&own(), "as", "storm", threads, count])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = storm.id();
    let start = Instant::now();
    let mut most = BTreeMap::new();
    while storm.try_wait().unwrap().is_none() {
        for pid in supervisors(pid) {
            // Not to be read but by root.
            if let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) {
                let most = most.entry(pid).or_insert(0);
                *most = open.count().max(*most);
            }
        }
        assert!(start.elapsed() < 60 * PATIENCE);
        std::thread::sleep(Duration::from_millis(10));
    }
    let ended = Instant::now();
    wait_for(pid, 0);
    let output = storm.wait_with_output().unwrap();
    let Storm {
        got,
        killed,
        left_over,
        milliseconds,
    } = serde_json::from_slice(&output.stdout).unwrap();
    println!(
        "{got:?}, {killed} processes killed, {milliseconds} ms, supervisors ended {:?} after it, \
         with at most {most:?} descriptors",
        ended.elapsed()
    );
    let [threads, count]: [u64; 2] = [threads, count].map(|number| number.parse().unwrap());
    assert_eq!(left_over, 0);
    assert_eq!(got, BTreeMap::from([(MPTCP, threads * count)]));
    // The listener, the own namespace, the partner's end, and what one call needs.
    assert!(most.values().all(|&most| most <= 6), "{most:?}");
}

fn memory() {
    // Root may be without that privilege.
    let may = ["-c", "echo -1000 >/proc/self/oom_score_adj"];
    let may = Command::new("sh")
        .args(may)
        .stderr(Stdio::null())
        .status()
        .unwrap();
    let program = Answering::start();
    let own = fs::read_to_string(format!("/proc/{}/oom_score_adj", program.child.id())).unwrap();
    let expected = if may.success() { "-1000\n" } else { &own };
    for pid in program.wait_for(2) {
        let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
        assert_eq!(score, expected);
    }
    assert_eq!(own, fs::read_to_string("/proc/self/oom_score_adj").unwrap());
    program.end();
}

fn namespaces() {
    let there_and_home = format!("{MPTCP} true false\n{MPTCP} true true");
    assert_eq!(said(MPTCP, &["namespace", "network"]), there_and_home);
}

/// What one of our own programs says to somebody without privilege, with the tool and without it.
fn said_to_a_user(words: &[&str]) -> [String; 2] {
    // For somebody who may not look into our folders.
    let folder = tempfile::tempdir().unwrap();
    let everybody = fs::Permissions::from_mode(0o755);
    fs::set_permissions(folder.path(), everybody).unwrap();
    let [tool, own] = [TOOL.to_owned(), own()].map(|program| {
        let copy = folder.path().join(program.rsplit('/').next().unwrap());
        fs::copy(program, &copy).unwrap();
        copy
    });
    let mut with = Command::new(tool);
    with.args(["run", "--protocol", &MPTCP.to_string()])
        .arg(&own);
    [with, Command::new(own)].map(|mut command| {
        let command = command.arg("as").args(words).uid(65534).gid(65534);
        let said = command.output().unwrap().stdout;
        String::from_utf8(said).unwrap().trim_end().to_owned()
    })
}

fn namespaces_of_users() {
    let [with, without] = said_to_a_user(&["namespace", "user"]);
    if without == "6 true false" {
        assert_eq!(with, format!("{MPTCP} true false"));
    } else {
        // Users may have no namespaces here.
        assert_eq!(with, without);
    }
}

/// Nobody but root may know the namespace of such a process.
fn hidden() {
    assert_eq!(said_to_a_user(&["hidden"]), ["6", "6"]);
    assert_eq!(said(MPTCP, &["hidden"]), MPTCP.to_string());
}

/// It takes orphans in: the supervisors are none, and wait() has nobody to wait for.
fn first_process() {
    let output = Command::new("unshare")
        .args(["--pid", "--fork", "--mount-proc", TOOL, "run", "--protocol"])
        .args([&MPTCP.to_string(), &own(), "as", "wait"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said, format!("{}\n", -libc::ECHILD), "{output:?}");
}
