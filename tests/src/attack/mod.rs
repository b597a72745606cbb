// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A hostile peer VMM: a process of another admitted user that speaks the fabric's protocol to a device, and does with
//! its links what it likes. It says on its standard output, in lines, how far it is, and does the rest when it is told to
//! on its standard input.
//!
//! | module | what it does |
//! |---|---|
//! | [`closing`] | hands over descriptors whose close() blocks |
//! | [`writing`] | stands still in a write() to a window; fills one |
//! | [`links`] | has links that come and go |
//! | [`gids`] | says that it is another guest |
//! | [`kinds`] | hands over descriptors of every kind, everywhere |
//! | [`place`] | where a descriptor can be |
//! | [`link`](mod@link) | a link of its own |
//! | [`last`] | all that can be in a device's way when its VMM ends |

pub mod closing;
pub mod gids;
pub mod kinds;
pub mod last;
pub mod link;
pub mod links;
pub mod place;
pub mod writing;

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};
use std::fmt;
use std::io::{self, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use vmm_device_ivsmc::Gid;

/// The user that the hostile process runs as.
pub const USER: u32 = 1001;
/// How long to wait for the device.
const PATIENCE: Duration = Duration::from_secs(20);

/// Whom to attack.
#[derive(Debug, Clone, Args)]
pub struct Target {
    /// The device's socket
    #[arg(long)]
    pub socket: PathBuf,
    /// The user to become
    #[arg(long, default_value_t = USER)]
    pub user: u32,
    /// log2 of the size of the windows that it wants
    #[arg(long, default_value_t = 25)]
    pub window_shift: u32,
}

/// How to attack.
#[derive(Debug, Clone, Subcommand)]
pub enum Attack {
    /// Hand over sockets that linger, in every message and beside them
    Lingering,
    /// Hand over files of a file system that does not answer any more
    Fuse,
    /// Stand still in the middle of a write() to the windows of two links, until told to go on
    Write,
    /// Put this many bytes into the window of a link, until told to end the link
    Fill {
        /// How many
        bytes: u64,
    },
    /// Have links that come and go
    Links {
        /// How many times
        count: u64,
        /// How often in a second
        per_second: u64,
    },
    /// Present the GID of another guest, and its halves
    Gids {
        /// That of its device
        gid: Gid,
    },
    /// Hand over descriptors of every kind in every message
    Kinds,
    /// Be in the way of the VMM's end
    Last,
}

/// Attacks.
pub fn run(target: &Target, attack: &Attack) -> Result<()> {
    match *attack {
        Attack::Lingering => closing::lingering(target),
        Attack::Fuse => closing::fuse(target),
        Attack::Write => writing::write(target),
        Attack::Fill { bytes } => writing::fill(target, bytes),
        Attack::Links { count, per_second } => links::come_and_go(target, count, per_second),
        Attack::Gids { gid } => gids::impersonate(target, gid),
        Attack::Kinds => kinds::hand_over(target),
        Attack::Last => last::be_in_the_way(target),
    }
}

impl Target {
    /// Becomes the user; what only root can do is done by now.
    fn become_user(&self) -> Result<()> {
        // SAFETY: takes no pointers.
        let changed = unsafe { libc::setresuid(self.user, self.user, self.user) };
        ensure!(
            changed == 0,
            "user {}: {}",
            self.user,
            io::Error::last_os_error()
        );
        Ok(())
    }
}

/// Says how far it is.
fn say(what: impl fmt::Display) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{what}")?;
    Ok(out.flush()?)
}

/// Waits until it is told to go on, or nobody is there any more to do so.
fn wait() -> Result<()> {
    io::stdin().read_line(&mut String::new())?;
    Ok(())
}

/// Tries until it is so.
fn wait_until(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !is_so()? {
        ensure!(start.elapsed() < PATIENCE, "not after {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// The descriptor that a system call has returned.
fn owned(result: i64, what: &str) -> Result<OwnedFd> {
    let fd = i32::try_from(result)?;
    if fd < 0 {
        return Err(io::Error::last_os_error()).context(what.to_owned());
    }
    // SAFETY: it is new, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A new eventfd.
fn eventfd() -> Result<OwnedFd> {
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    owned(fd.into(), "eventfd")
}
