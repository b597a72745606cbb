// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The agent: runs programs in a guest for a client outside, over one plain TCP port.
//!
//! Requests and responses are JSON, one a line, answered in order; who wants things done at the same
//! time opens more connections. There is no protection: it is for test guests only.

mod client;
mod server;

pub use client::{Agent, Error};
pub use server::serve;

use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// The port that the agent listens on.
pub const PORT: u16 = 7000;
/// Longest line either side takes, in bytes.
const MAX_LINE: u64 = 32 << 20;

/// A program to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Command {
    argv: Vec<String>,
    env: Vec<(String, String)>,
    stdin: String,
    timeout_ms: u64,
}

impl Command {
    /// The program and its arguments; by default it has 30 s and no input.
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        Command {
            argv: argv.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            stdin: String::new(),
            timeout_ms: 30_000,
        }
    }

    /// A line for `sh`.
    pub fn shell(line: &str) -> Self {
        Command::new(["sh", "-c", line])
    }

    /// What the program reads.
    pub fn stdin(mut self, text: &str) -> Self {
        text.clone_into(&mut self.stdin);
        self
    }

    /// Adds to the environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// How long it may take before it is killed, with all that it started.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        self
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.argv.join(" "))
    }
}

/// How a program ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Its exit code, if it exited.
    pub status: Option<i32>,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
    /// Whether it was killed because its time was up.
    pub timed_out: bool,
    /// What it wrote.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
}

impl Outcome {
    /// Whether it exited with 0.
    pub fn success(&self) -> bool {
        self.status == Some(0) && !self.timed_out
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.timed_out, self.status, self.signal) {
            (true, ..) => write!(f, "timed out")?,
            (_, Some(status), _) => write!(f, "exit status {status}")?,
            (_, _, Some(signal)) => write!(f, "signal {signal}")?,
            _ => write!(f, "unknown end")?,
        }
        for (name, text) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            if !text.trim().is_empty() {
                write!(f, "\n{name}: {}", text.trim_end())?;
            }
        }
        Ok(())
    }
}

/// What a client asks for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Request {
    Run(Command),
    Spawn(Command),
    Wait { id: u64, timeout_ms: u64 },
    Kill { id: u64, signal: i32 },
}

/// What the agent answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Response {
    Finished(Outcome),
    Spawned { id: u64 },
    StillRunning,
    Killed,
    Failed { message: String },
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn agent() -> Agent {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || serve(&listener));
        Agent::connect(address, Duration::from_secs(5)).unwrap()
    }

    #[test]
    fn runs_and_tells_all() {
        let mut agent = agent();
        let command = Command::shell("cat; echo $A >&2; exit 3")
            .stdin("in")
            .env("A", "b");
        let outcome = agent.run(&command).unwrap();
        assert_eq!(
            (outcome.status, &outcome.stdout[..], &outcome.stderr[..]),
            (Some(3), "in", "b\n")
        );
        assert!(matches!(
            agent.run(&Command::new(["/no/such"])),
            Err(Error::Agent(_))
        ));
        assert_eq!(agent.check(&Command::new(["echo", "ok"])).unwrap(), "ok\n");
        assert!(matches!(
            agent.check(&Command::new(["false"])),
            Err(Error::Program { .. })
        ));
    }

    #[test]
    fn kills_what_takes_too_long_with_its_children() {
        let mut agent = agent();
        let command = Command::shell("sleep 60 & sleep 60").timeout(Duration::from_millis(100));
        assert!(agent.run(&command).unwrap().timed_out);
    }

    #[test]
    fn background_programs_are_waited_for_and_killed() {
        let mut agent = agent();
        let id = agent
            .spawn(&Command::shell("echo up; exec sleep 60"))
            .unwrap();
        assert_eq!(agent.wait(id, Duration::from_millis(200)).unwrap(), None);
        agent.kill(id, libc::SIGTERM).unwrap();
        let outcome = agent.wait(id, Duration::from_secs(5)).unwrap().unwrap();
        assert_eq!(
            (outcome.signal, &outcome.stdout[..]),
            (Some(libc::SIGTERM), "up\n")
        );
        assert!(agent.wait(id, Duration::ZERO).is_err());
    }
}
