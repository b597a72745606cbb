// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The agent's side in the guest.

use super::{Command, MAX_LINE, Outcome, Request, Response};
use rustix::event::{PollFd, PollFlags};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, PidfdFlags};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ExitStatus};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How much of a program's output is passed on, in bytes.
const MAX_OUTPUT: u64 = 8 << 20;

/// Serves clients for ever, each in its own thread.
pub fn serve(listener: &TcpListener) -> io::Result<()> {
    let background = Arc::new(Background::default());
    loop {
        let (stream, _) = listener.accept()?;
        let background = Arc::clone(&background);
        std::thread::Builder::new().spawn(move || {
            if let Err(error) = converse(&stream, &background) {
                eprintln!("ivsmc-traffic: client: {error}");
            }
        })?;
    }
}

fn converse(stream: &TcpStream, background: &Background) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.by_ref().take(MAX_LINE).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let response = serde_json::from_str(&line)
            .map_err(io::Error::from)
            .and_then(|request| answer(&request, background))
            .unwrap_or_else(|error| Response::Failed {
                message: error.to_string(),
            });
        let mut line = serde_json::to_vec(&response)?;
        line.push(b'\n');
        (&mut &*stream).write_all(&line)?;
    }
}

fn answer(request: &Request, background: &Background) -> io::Result<Response> {
    match request {
        Request::Run(command) => {
            let mut program = Program::start(command)?;
            let timeout = Duration::from_millis(command.timeout_ms);
            let timed_out = program.wait(timeout)?.is_none();
            if timed_out {
                program.signal(libc::SIGKILL)?;
            }
            let status = program.child.wait()?;
            Ok(Response::Finished(program.outcome(status, timed_out)?))
        }
        Request::Spawn(command) => Ok(Response::Spawned {
            id: background.add(Program::start(command)?),
        }),
        Request::Wait { id, timeout_ms } => {
            let mut program = background.take(*id)?;
            match program.wait(Duration::from_millis(*timeout_ms))? {
                Some(status) => Ok(Response::Finished(program.outcome(status, false)?)),
                None => {
                    background.put_back(*id, program);
                    Ok(Response::StillRunning)
                }
            }
        }
        Request::Kill { id, signal } => {
            let program = background.take(*id)?;
            let sent = program.signal(*signal);
            background.put_back(*id, program);
            sent.map(|()| Response::Killed)
        }
    }
}

/// The programs that run while clients do other things.
#[derive(Default)]
struct Background {
    next: AtomicU64,
    programs: Mutex<HashMap<u64, Program>>,
}

impl Background {
    fn programs(&self) -> MutexGuard<'_, HashMap<u64, Program>> {
        self.programs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, program: Program) -> u64 {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.put_back(id, program);
        id
    }

    fn put_back(&self, id: u64, program: Program) {
        self.programs().insert(id, program);
    }

    fn take(&self, id: u64) -> io::Result<Program> {
        self.programs().remove(&id).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                format!("no background program {id}"),
            )
        })
    }
}

/// A started program. What it writes goes to files, so that nobody has to read along.
struct Program {
    child: Child,
    stdout: File,
    stderr: File,
}

impl Program {
    fn start(command: &Command) -> io::Result<Self> {
        let Some((program, arguments)) = command.argv.split_first() else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "empty command"));
        };
        let mut stdin = tempfile::tempfile()?;
        stdin.write_all(command.stdin.as_bytes())?;
        stdin.rewind()?;
        let (stdout, stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
        let child = std::process::Command::new(program)
            .args(arguments)
            .envs(command.env.iter().map(|(name, value)| (name, value)))
            .stdin(stdin)
            .stdout(stdout.try_clone()?)
            .stderr(stderr.try_clone()?)
            .process_group(0)
            .spawn()
            .map_err(|error| io::Error::new(error.kind(), format!("{program}: {error}")))?;
        Ok(Program {
            child,
            stdout,
            stderr,
        })
    }

    /// Waits for its end, without looking after it meanwhile: it may be one whose speed is measured.
    fn wait(&mut self, timeout: Duration) -> io::Result<Option<ExitStatus>> {
        let pid = Pid::from_child(&self.child);
        let ended = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        let timeout = timeout.try_into().map_err(io::Error::other)?;
        let mut poll = [PollFd::new(&ended, PollFlags::IN)];
        retry_on_intr(|| rustix::event::poll(&mut poll, Some(&timeout)))?;
        self.child.try_wait()
    }

    /// Signals the program and all that it started.
    fn signal(&self, signal: i32) -> io::Result<()> {
        let group = i32::try_from(self.child.id()).map_err(io::Error::other)?;
        // SAFETY: takes no pointers. The child has not been waited for, so the group is its own.
        if unsafe { libc::kill(-group, signal) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    fn outcome(mut self, status: ExitStatus, timed_out: bool) -> io::Result<Outcome> {
        Ok(Outcome {
            status: status.code(),
            signal: status.signal(),
            timed_out,
            stdout: written(&mut self.stdout)?,
            stderr: written(&mut self.stderr)?,
        })
    }
}

fn written(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.take(MAX_OUTPUT).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
