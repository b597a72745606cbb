// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The agent's client.

use super::{Command, MAX_LINE, Outcome, Request, Response};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// What the agent may take longer than the program itself.
const GRACE: Duration = Duration::from_secs(10);
/// How long one attempt to connect may take.
const ATTEMPT: Duration = Duration::from_millis(500);
/// How long to wait between attempts.
const PAUSE: Duration = Duration::from_millis(50);

/// Why the guest did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The agent cannot be reached or has gone.
    #[error("the agent at {address}: {source}")]
    Connection {
        /// Where it should be.
        address: SocketAddr,
        /// What went wrong.
        source: io::Error,
    },
    /// The agent could not do it.
    #[error("in the guest: {0}")]
    Agent(String),
    /// The program did not succeed.
    #[error("`{command}` in the guest: {outcome}")]
    Program {
        /// The program and its arguments.
        command: String,
        /// How it ended.
        outcome: Outcome,
    },
    /// The agent answered something else.
    #[error("unexpected answer of the agent: {0}")]
    Unexpected(String),
}

/// A connection to a guest's agent.
#[derive(Debug)]
pub struct Agent {
    address: SocketAddr,
    stream: BufReader<TcpStream>,
}

impl Agent {
    /// Connects, trying until `timeout` is over.
    pub fn connect(address: SocketAddr, timeout: Duration) -> Result<Self, Error> {
        let deadline = Instant::now() + timeout;
        loop {
            match TcpStream::connect_timeout(&address, ATTEMPT) {
                Ok(stream) => {
                    stream
                        .set_nodelay(true)
                        .map_err(|source| Error::Connection { address, source })?;
                    return Ok(Agent {
                        address,
                        stream: BufReader::new(stream),
                    });
                }
                Err(source) if Instant::now() >= deadline => {
                    return Err(Error::Connection { address, source });
                }
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }

    /// Another connection to the same agent.
    pub fn another(&self) -> Result<Self, Error> {
        Agent::connect(self.address, GRACE)
    }

    /// Runs a program to its end.
    pub fn run(&mut self, command: &Command) -> Result<Outcome, Error> {
        let timeout = Duration::from_millis(command.timeout_ms);
        match self.ask(&Request::Run(command.clone()), timeout)? {
            Response::Finished(outcome) => Ok(outcome),
            other => Err(unexpected(&other)),
        }
    }

    /// Runs a program that has to succeed, and gives what it wrote.
    pub fn check(&mut self, command: &Command) -> Result<String, Error> {
        let outcome = self.run(command)?;
        if outcome.success() {
            Ok(outcome.stdout)
        } else {
            Err(Error::Program {
                command: command.to_string(),
                outcome,
            })
        }
    }

    /// Runs a line of shell that has to succeed, and gives what it wrote.
    pub fn shell(&mut self, line: &str) -> Result<String, Error> {
        self.check(&Command::shell(line))
    }

    /// Starts a program and leaves it running; its time limit is not observed.
    pub fn spawn(&mut self, command: &Command) -> Result<u64, Error> {
        match self.ask(&Request::Spawn(command.clone()), Duration::ZERO)? {
            Response::Spawned { id } => Ok(id),
            other => Err(unexpected(&other)),
        }
    }

    /// Waits for a spawned program; `None` if it still runs.
    pub fn wait(&mut self, id: u64, timeout: Duration) -> Result<Option<Outcome>, Error> {
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        match self.ask(&Request::Wait { id, timeout_ms }, timeout)? {
            Response::Finished(outcome) => Ok(Some(outcome)),
            Response::StillRunning => Ok(None),
            other => Err(unexpected(&other)),
        }
    }

    /// Signals a spawned program and all that it started.
    pub fn kill(&mut self, id: u64, signal: i32) -> Result<(), Error> {
        match self.ask(&Request::Kill { id, signal }, Duration::ZERO)? {
            Response::Killed => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    fn ask(&mut self, request: &Request, timeout: Duration) -> Result<Response, Error> {
        self.exchange(request, timeout.saturating_add(GRACE))
            .map_err(|source| Error::Connection {
                address: self.address,
                source,
            })
            .and_then(|response| match response {
                Response::Failed { message } => Err(Error::Agent(message)),
                other => Ok(other),
            })
    }

    fn exchange(&mut self, request: &Request, timeout: Duration) -> io::Result<Response> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        let stream = self.stream.get_mut();
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        stream.write_all(&line)?;
        let mut answer = String::new();
        if self.stream.by_ref().take(MAX_LINE).read_line(&mut answer)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_str(&answer)?)
    }
}

fn unexpected(response: &Response) -> Error {
    Error::Unexpected(format!("{response:?}"))
}
