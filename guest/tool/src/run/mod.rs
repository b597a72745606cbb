// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Runs a program so that its TCP sockets become SMC sockets, and those of its children too.
//!
//! A seccomp filter hands every `socket()` call that asks for TCP to a supervisor, which opens an SMC
//! socket and puts that into the program instead. Programs need not be dynamically linked, nor know
//! of it. Where SMC cannot be had the call goes on as it was, and the program has its TCP socket.
//!
//! The supervisor is two processes of their own, detached from everything, which end when the last process
//! under the filter has ended. The program takes the place of the caller: its process ID, its parent,
//! its exit status and its signals are what they would be without us.
//!
//! A filter cannot be taken back. So all of it is first tried in a process that ends then, and what does not work there
//! has the program run without it.
//!
//! Sockets opened through io_uring do not pass seccomp and stay TCP.

mod filter;
mod listener;
mod namespace;
mod process;
mod slot;
mod supervisor;

use crate::{sigpipe, socket};
use process::Fork;
use std::ffi::{CString, OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How long the trial may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a program could not be run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter is there, but the supervisor is gone already.
    #[error("the supervisor has ended: {0}")]
    Supervisor(io::Error),
    /// The program could not be executed.
    #[error("cannot run {program:?}: {source}")]
    Execute {
        /// The program's name.
        program: OsString,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Why a program is run without us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Obstacle {
    /// The kernel has no SMC. `status` says that as well.
    #[error("the kernel has no SMC")]
    NoSmc,
    #[error("the supervisor cannot be started")]
    Supervisor,
    #[error("the kernel takes no seccomp filter")]
    Filter,
    #[error("a seccomp supervisor watches this process already, and Linux has one of them at most")]
    Taken,
    #[error("something, such as a seccomp filter, keeps the supervisor from answering calls")]
    Unanswered,
}

impl Obstacle {
    const ALL: [Obstacle; 5] = [
        Obstacle::NoSmc,
        Obstacle::Supervisor,
        Obstacle::Filter,
        Obstacle::Taken,
        Obstacle::Unanswered,
    ];
}

/// Becomes `program`, its TCP sockets made sockets of `protocol`, which is SMC's but for tests; comes back only with an
/// error.
pub fn run(program: &OsStr, arguments: &[OsString], protocol: i32) -> Error {
    // What we say may have no reader: the program runs all the same.
    sigpipe::ignore();
    // Sockets are TCP's by themselves, with which tests stand in for SMC.
    if protocol != libc::IPPROTO_TCP && is_ours(protocol) {
        // Within another `run` that goes without saying.
        if !is_filtered() {
            let program = program.display();
            let _ = writeln!(
                io::stderr(),
                "ivsmc-guest: the TCP sockets of {program} are SMC sockets already, by `ivsmc-guest enable`"
            );
        }
    } else {
        match try_out(protocol) {
            Ok(()) => {
                let started = start(protocol).map_err(io::Error::other);
                if let Err(error) = started.and_then(|channel| confirmed(&channel)) {
                    return Error::Supervisor(error);
                }
            }
            // Nothing is wrong with who has asked for it.
            Err(Obstacle::NoSmc) => {}
            Err(obstacle) => {
                let _ = writeln!(
                    io::stderr(),
                    "ivsmc-guest: {} runs with TCP: {obstacle}",
                    program.display()
                );
            }
        }
    }
    Error::Execute {
        program: program.to_owned(),
        source: execute(program, arguments),
    }
}

/// Starts the supervisor and puts this process under the filter. The channel tells when both are ready.
fn start(protocol: i32) -> Result<UnixStream, Obstacle> {
    let (ours, theirs) = UnixStream::pair().map_err(|_| Obstacle::Supervisor)?;
    // SAFETY: takes no pointers.
    let program = unsafe { libc::getpid() };
    match process::fork_stranger() {
        Err(_) => return Err(Obstacle::Supervisor),
        Ok(Fork::Child) => supervisor::live(theirs, program, protocol),
        Ok(Fork::Parent(_)) => drop(theirs),
    }
    let listener = filter::install().map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY) => Obstacle::Taken,
        _ => Obstacle::Filter,
    })?;
    listener::send(&ours, &listener).map_err(|_| Obstacle::Unanswered)?;
    Ok(ours)
}

/// Waits until the supervisor is ready.
fn confirmed(mut channel: &UnixStream) -> io::Result<()> {
    channel.read_exact(&mut [0])
}

/// Does all of it in a process of its own, down to a socket that is what it is to be.
fn try_out(protocol: i32) -> Result<(), Obstacle> {
    if open(protocol).is_err() {
        return Err(Obstacle::NoSmc);
    }
    let (ours, theirs) = UnixStream::pair().map_err(|_| Obstacle::Supervisor)?;
    ours.set_read_timeout(Some(PATIENCE))
        .map_err(|_| Obstacle::Supervisor)?;
    match process::fork().map_err(|_| Obstacle::Supervisor)? {
        Fork::Child => {
            drop(ours);
            process::adopt();
            try_here(protocol, theirs);
            // The supervisor ends when who asked it has.
            while process::wait(-1).is_ok() {}
            process::exit(0)
        }
        Fork::Parent(child) => {
            drop(theirs);
            let mut code = [0];
            let said = (&ours).read_exact(&mut code);
            if said.is_err() {
                // Something hangs, or was killed.
                process::kill(child);
            }
            let _ = process::wait(child);
            match code {
                _ if said.is_err() => Err(Obstacle::Unanswered),
                [0] => Ok(()),
                [code] => Err(*Obstacle::ALL
                    .get(usize::from(code) - 1)
                    .unwrap_or(&Obstacle::Unanswered)),
            }
        }
    }
}

/// The trial, in a child of this process; says on `channel` how it went.
fn try_here(protocol: i32, mut channel: UnixStream) {
    if !matches!(process::fork(), Ok(Fork::Child)) {
        return;
    }
    // Whoever waits for us has its limits, and we would be what is left of it.
    process::end_with_parent();
    let tried = start(protocol).and_then(|started| match confirmed(&started) {
        Ok(()) if is_ours(protocol) => Ok(()),
        _ => Err(Obstacle::Unanswered),
    });
    let code = match tried {
        Ok(()) => 0,
        Err(obstacle) => {
            1 + Obstacle::ALL
                .iter()
                .position(|&o| o == obstacle)
                .unwrap_or(0)
        }
    };
    let _ = channel.write_all(&[code as u8]);
    process::exit(0)
}

/// Whether a TCP socket that this process opens is one of `protocol`.
fn is_ours(protocol: i32) -> bool {
    let opened = open(0).and_then(|opened| socket::protocol(&opened));
    opened.is_ok_and(|got| got == protocol)
}

/// Whether a seccomp filter watches this process.
fn is_filtered() -> bool {
    // SAFETY: takes no pointers.
    unsafe { libc::prctl(libc::PR_GET_SECCOMP) == libc::SECCOMP_MODE_FILTER as i32 }
}

fn open(protocol: i32) -> io::Result<OwnedFd> {
    socket::open_kind(
        libc::AF_INET,
        libc::SOCK_STREAM | libc::SOCK_CLOEXEC,
        protocol,
    )
}

/// Becomes the program; comes back only if that cannot be.
fn execute(program: &OsStr, arguments: &[OsString]) -> io::Error {
    let words = [program]
        .into_iter()
        .chain(arguments.iter().map(OsString::as_os_str));
    let words: Result<Vec<_>, _> = words.map(|word| CString::new(word.as_bytes())).collect();
    let words = match words {
        Ok(words) => words,
        Err(error) => return error.into(),
    };
    let mut pointers: Vec<_> = words.iter().map(|word| word.as_ptr()).collect();
    pointers.push(std::ptr::null());
    sigpipe::restore();
    // SAFETY: a list of strings that ends with null, all alive during the call.
    unsafe { libc::execvp(pointers[0], pointers.as_ptr()) };
    io::Error::last_os_error()
}
