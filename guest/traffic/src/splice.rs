// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Data that goes through pipes: from sockets to files, disks and other sockets.

use crate::pattern::Pattern;
use crate::service::{self, Failure};
use ivsmc_guest::connections::Mode;
use ivsmc_guest::socket::{self, Transport};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::net::{Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Largest piece that is spliced at once, in bytes.
const SPLICE_PIECE: u64 = 64 << 10;
/// What a disk is written in, past the page cache.
const BLOCK: u64 = 4096;

/// Serves connections for ever: each is continued by a plain TCP connection to `to`, and all that comes is spliced from
/// one to the other. A connection that is not SMC-D is closed at once.
pub fn proxy(listener: &TcpListener, to: SocketAddrV4) -> io::Result<()> {
    loop {
        let (stream, peer) = listener.accept()?;
        std::thread::Builder::new().spawn(move || {
            if let Err(error) = pass_on(&stream, to) {
                eprintln!("ivsmc-traffic: connection from {peer}: {error}");
            }
        })?;
    }
}

fn pass_on(from: &TcpStream, to: SocketAddrV4) -> Result<(), Failure> {
    let mode = socket::diagnosis(from)?.map(|connection| connection.mode);
    if mode != Some(Mode::SmcD) {
        return Err(format!("not SMC-D: {mode:?}").into());
    }
    let to = socket::connect(to, Transport::Tcp)?;
    std::thread::scope(|scope| {
        let back = std::thread::Builder::new().spawn_scoped(scope, || splice_all(&to, from))?;
        let there = splice_all(from, &to);
        let back = back.join().map_err(|_| "the way back panicked")?;
        there.and(back)
    })
}

/// Splices until the stream ends, and then ends the other.
fn splice_all(from: &TcpStream, to: &TcpStream) -> Result<(), Failure> {
    let (pipe_out, pipe_in) = io::pipe()?;
    loop {
        let mut piped = splice(from.as_fd(), pipe_in.as_fd(), SPLICE_PIECE)?;
        if piped == 0 {
            return Ok(to.shutdown(Shutdown::Write)?);
        }
        while piped > 0 {
            piped -= splice(pipe_out.as_fd(), to.as_fd(), piped)?;
        }
    }
}

/// Receives the seed's pattern into a pipe, doubles it with tee(), and checks both.
pub fn check_twice(from: BorrowedFd<'_>, seed: u64, bytes: u64) -> Result<(), Failure> {
    let (mut first_out, first_in) = io::pipe()?;
    let (mut second_out, second_in) = io::pipe()?;
    let (mut first, mut second) = (Pattern::new(seed), Pattern::new(seed));
    while first.position() < bytes {
        let left = bytes - first.position();
        let piped = splice(from, first_in.as_fd(), left.min(SPLICE_PIECE))?;
        if piped == 0 {
            return Err(format!("the stream ended {left} bytes early").into());
        }
        let length = usize::try_from(piped)?;
        // SAFETY: takes no pointers.
        let doubled = unsafe { libc::tee(first_out.as_raw_fd(), second_in.as_raw_fd(), length, 0) };
        if moved(doubled).map_err(|error| format!("tee: {error}"))? != piped {
            return Err(format!("tee: {doubled} of {piped} bytes").into());
        }
        let mut data = vec![0; length];
        first_out.read_exact(&mut data)?;
        first.check(&data)?;
        second_out.read_exact(&mut data)?;
        second.check(&data)?;
    }
    Ok(())
}

/// Splices from a socket onto a disk past the page cache. Returns false if the kernel refuses to.
pub fn to_disk(from: BorrowedFd<'_>, disk: &Path, bytes: u64) -> Result<bool, Failure> {
    let (pipe_out, pipe_in) = io::pipe()?;
    let disk = direct(OpenOptions::new().write(true), disk)?;
    let mut left = bytes;
    while left > 0 {
        // Whole blocks, out of as many pieces as they come in.
        let mut piped = 0;
        while piped < left.min(BLOCK) {
            match splice(from, pipe_in.as_fd(), left.min(BLOCK) - piped)? {
                0 => return Err(format!("the stream ended {left} bytes early").into()),
                more => piped += more,
            }
        }
        left -= piped;
        while piped > 0 {
            // SAFETY: both descriptors are open, no offsets are given.
            let result = unsafe {
                libc::splice(
                    pipe_out.as_raw_fd(),
                    std::ptr::null_mut(),
                    disk.as_raw_fd(),
                    std::ptr::null_mut(),
                    usize::try_from(piped)?,
                    libc::SPLICE_F_MOVE,
                )
            };
            match moved(result) {
                Ok(count) => piped -= count,
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(false),
                Err(error) => return Err(format!("splice to the disk: {error}").into()),
            }
        }
    }
    disk.sync_all()?;
    Ok(true)
}

/// Checks that a disk begins with the seed's pattern.
pub fn check_disk(disk: &Path, seed: u64, bytes: u64) -> Result<(), Failure> {
    service::check_pattern(File::open(disk)?, seed, bytes)
        .map_err(|error| format!("on the disk: {error}").into())
}

fn direct(options: &mut OpenOptions, path: &Path) -> Result<File, Failure> {
    let opened = options.custom_flags(libc::O_DIRECT).open(path);
    Ok(opened.map_err(|error| format!("{}: {error}", path.display()))?)
}

/// Splices so many bytes from a socket to a file.
pub fn to_file(from: BorrowedFd<'_>, to: &File, bytes: u64) -> Result<(), Failure> {
    let (pipe_out, pipe_in) = io::pipe()?;
    let mut left = bytes;
    while left > 0 {
        let mut piped = splice(from, pipe_in.as_fd(), left.min(SPLICE_PIECE))?;
        if piped == 0 {
            return Err(format!("the stream ended {left} bytes early").into());
        }
        left -= piped;
        while piped > 0 {
            piped -= splice(pipe_out.as_fd(), to.as_fd(), piped)?;
        }
    }
    Ok(())
}

fn moved(result: isize) -> io::Result<u64> {
    u64::try_from(result).map_err(|_| io::Error::last_os_error())
}

pub(crate) fn splice(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    length: u64,
) -> Result<u64, Failure> {
    // SAFETY: both descriptors are open, no offsets are given.
    let result = unsafe {
        libc::splice(
            from.as_raw_fd(),
            std::ptr::null_mut(),
            to.as_raw_fd(),
            std::ptr::null_mut(),
            usize::try_from(length)?,
            libc::SPLICE_F_MOVE,
        )
    };
    Ok(moved(result).map_err(|error| format!("splice: {error}"))?)
}

/// Sends so many bytes of a file.
pub fn send_file(from: &File, to: BorrowedFd<'_>, bytes: u64) -> Result<(), Failure> {
    let mut left = bytes;
    while left > 0 {
        let length = usize::try_from(left)?;
        // SAFETY: both descriptors are open, no offset is given.
        let result = unsafe {
            libc::sendfile(
                to.as_raw_fd(),
                from.as_raw_fd(),
                std::ptr::null_mut(),
                length,
            )
        };
        match moved(result).map_err(|error| format!("sendfile: {error}"))? {
            0 => return Err(format!("the file ended {left} bytes early").into()),
            sent => left -= sent,
        }
    }
    Ok(())
}
