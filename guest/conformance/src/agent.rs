// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Runs ends of cases for a hub: one connection, plain TCP, for each end, and a process for it.
//!
//! The first line from the hub says what to run; the lines after it go to the process, and what the process writes
//! comes back ([`crate::end`] has these lines). The last one, `ended ...`, says how it ended. A hub that closes the connection
//! has it killed, with all that it started.

use crate::outcome::Transport;
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// The port that agents listen on in guests.
pub const PORT: u16 = 7001;

/// Which of the two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The one that connects.
    Client,
    /// The one that listens.
    Server,
}

/// What an agent is to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Order {
    /// The case's name.
    pub case: String,
    /// Which end.
    pub role: Role,
    /// What its sockets are.
    pub transport: Transport,
    /// The server's address.
    pub address: Ipv4Addr,
    /// The server's other address.
    pub address6: Ipv6Addr,
    /// The port for its listener.
    pub port: u16,
    /// Milliseconds in which what is to happen at once has happened.
    pub moment_ms: u64,
}

/// Serves hubs for ever.
pub fn serve(listener: &TcpListener) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept()?;
        thread::Builder::new().spawn(move || {
            if let Err(error) = run(&stream) {
                // If the hub has gone, nobody waits for it.
                let _ = writeln!(&stream, "ended {error}");
            }
        })?;
    }
}

fn run(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut hub = BufReader::new(stream.try_clone()?);
    let mut order = String::new();
    hub.read_line(&mut order)?;
    let mut child = Command::new("/proc/self/exe")
        .args(["end", order.trim()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(io::Error::other("no pipes"));
    };
    let group = i32::try_from(child.id()).map_err(io::Error::other)?;
    let is_over = Arc::new(AtomicBool::new(false));
    let over = Arc::clone(&is_over);
    thread::Builder::new().spawn(move || {
        // Ends when the hub has closed, or the process does not listen any more.
        // (io::copy() would splice, and hold the pipe's lock while it waits for the hub.)
        let mut line = String::new();
        while matches!(hub.read_line(&mut line), Ok(1..))
            && input.write_all(line.as_bytes()).is_ok()
        {
            line.clear();
        }
        if !over.load(Ordering::SeqCst) {
            crate::sys::kill_group(group);
        }
    })?;
    for line in BufReader::new(output).lines() {
        (&mut &*stream).write_all(format!("{}\n", line?).as_bytes())?;
    }
    // What it has left behind goes before its number can be another's.
    crate::sys::wait_without_reaping(group);
    is_over.store(true, Ordering::SeqCst);
    crate::sys::kill_group(group);
    let status = child.wait()?;
    (&mut &*stream).write_all(format!("ended {}\n", words(status)).as_bytes())?;
    stream.shutdown(std::net::Shutdown::Both)
}

fn words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(0), _) => "well".to_owned(),
        (Some(code), _) => format!("exit status {code}"),
        (_, Some(signal)) => crate::sys::signal_name(signal),
        _ => status.to_string(),
    }
}
