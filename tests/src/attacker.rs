// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A hostile peer VMM, as the runner sees it: this same program, which does an [`attack`](crate::attack).

use crate::process::Process;
use anyhow::{Context, Result, bail, ensure};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

/// How long it may take to end by itself. It cannot be killed while it is the server of a file system some of whose
/// files it has open itself: the kernel closes these first, and that waits for the server.
const END: Duration = Duration::from_secs(10);

/// A process that attacks a device; dropping it ends it.
#[derive(Debug)]
pub struct Attacker {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Attacker {
    /// Starts one. `attack` is its part of a command line.
    pub fn start(socket: &Path, attack: &[&str]) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["attack", "--socket"])
            .arg(socket)
            .args(attack)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the hostile process")?;
        let input = child.stdin.take();
        let output = child.stdout.take().context("no standard output")?;
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Attacker {
            child,
            input,
            lines,
        })
    }

    /// The next line that it writes.
    pub fn line(&mut self, patience: Duration) -> Result<String> {
        match self.lines.recv_timeout(patience) {
            Ok(line) => Ok(line),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                bail!("the hostile process says nothing for {patience:?}")
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                let status = self.child.wait()?;
                bail!("the hostile process has ended: {status}")
            }
        }
    }

    /// The next line, if it has written one.
    pub fn written(&mut self) -> Result<Option<String>> {
        match self.lines.try_recv() {
            Ok(line) => Ok(Some(line)),
            Err(mpsc::TryRecvError::Empty) => Ok(None),
            Err(mpsc::TryRecvError::Disconnected) => self.line(Duration::ZERO).map(Some),
        }
    }

    /// Waits until it says that it is so far.
    pub fn wait_for(&mut self, wanted: &str, patience: Duration) -> Result<()> {
        let line = self.line(patience)?;
        ensure!(line == wanted, "the hostile process says {line}");
        Ok(())
    }

    /// Tells it to go on.
    pub fn go_on(&mut self) -> Result<()> {
        let input = self.input.as_mut().context("no standard input")?;
        Ok(input.write_all(b"\n")?)
    }

    /// The processor time that it has used, in ticks of 10 ms.
    pub fn ticks(&self) -> Result<u64> {
        let threads = Process(self.child.id()).threads()?;
        Ok(threads.iter().map(|thread| thread.ticks).sum())
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        drop(self.input.take());
        let start = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && start.elapsed() < END {
            std::thread::sleep(Duration::from_millis(10));
        }
        // If it has ended already there is nothing to do; if it cannot be killed, nothing that could be done.
        let _ = self.child.kill();
        let _ = self.child.try_wait();
    }
}
