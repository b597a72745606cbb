// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The asking end: traffic that checks every byte and what SMC's diagnosis says on both sides.

use crate::pattern::Pattern;
use crate::service::{self, Failure, Order, SILENCE, Verdict};
use crate::socket::{self, Transport};
use ivsmc_guest::connections::Mode;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What the connections have to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Expect {
    /// SMC-D on both sides, with matching tokens.
    Smcd,
    /// Fallen back to TCP.
    Fallback,
    /// Anything that carries the data.
    Any,
}

/// Where the server is, and how to go there.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// The server's address.
    pub address: SocketAddrV4,
    /// Which sockets to use.
    pub transport: Transport,
    /// What the connections have to be.
    pub expect: Expect,
}

/// What came of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// Connections made, each checked.
    pub connections: u64,
    /// Those that were SMC-D on both sides, with matching tokens.
    pub smcd: u64,
    /// SMC connections that fell back to TCP.
    pub fallbacks: u64,
    /// Why the last one fell back, in words.
    pub reason: String,
    /// Bytes sent and received.
    pub bytes: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Round trip times in microseconds: median and 99th percentile.
    pub round_trip_us: Option<(f64, f64)>,
}

impl Report {
    fn add(&mut self, other: &Report) {
        self.connections += other.connections;
        self.smcd += other.smcd;
        self.fallbacks += other.fallbacks;
        self.bytes += other.bytes;
        if !other.reason.is_empty() {
            self.reason.clone_from(&other.reason);
        }
    }
}

impl Target {
    fn open(&self, order: Order) -> Result<TcpStream, Failure> {
        let mut stream = socket::connect(self.address, self.transport)
            .map_err(|error| format!("connect to {}: {error}", self.address))?;
        stream.set_read_timeout(Some(SILENCE))?;
        stream.set_write_timeout(Some(SILENCE))?;
        stream.write_all(&order.to_bytes())?;
        Ok(stream)
    }

    /// Hears the server's verdict, looks at this side, and judges.
    fn close(&self, mut stream: &TcpStream, bytes: u64) -> Result<Report, Failure> {
        let verdict = service::read_verdict(&mut stream)?;
        let mut report = self.judge(stream, &verdict)?;
        report.bytes = bytes;
        Ok(report)
    }

    fn judge(&self, stream: &TcpStream, verdict: &Verdict) -> Result<Report, Failure> {
        if let Some(error) = &verdict.error {
            return Err(format!("the server says: {error}").into());
        }
        let mut report = Report {
            connections: 1,
            ..Report::default()
        };
        if let Some(here) = socket::diagnosis(stream)? {
            match here.mode {
                Mode::SmcD => {
                    let there = verdict
                        .connection
                        .as_ref()
                        .and_then(|there| there.dmb.as_ref());
                    match (&here.dmb, there) {
                        (Some(here), Some(there)) if here.mirrors(there) => report.smcd = 1,
                        (here, there) => {
                            return Err(format!(
                                "the two sides are not of one connection: {here:?} and {there:?}"
                            )
                            .into());
                        }
                    }
                }
                Mode::Tcp => {
                    report.fallbacks = 1;
                    report.reason = here.reason;
                }
                mode => return Err(format!("the connection is in mode {mode}").into()),
            }
        }
        match self.expect {
            Expect::Smcd if report.smcd != 1 => Err(format!(
                "not SMC-D: {}",
                if report.reason.is_empty() {
                    "plain TCP"
                } else {
                    &report.reason
                }
            )
            .into()),
            Expect::Fallback if report.fallbacks != 1 => Err("did not fall back to TCP".into()),
            _ => Ok(report),
        }
    }

    /// Sends messages and waits for each to come back.
    pub fn ping_pong(&self, seed: u64, size: u32, count: u64) -> Result<Report, Failure> {
        let start = Instant::now();
        let mut stream = self.open(Order::Echo { seed, size, count })?;
        let (mut sent, mut received) = (Pattern::new(seed), Pattern::new(seed));
        let mut message = vec![0; size as usize];
        let mut times = Vec::new();
        for _ in 0..count {
            sent.fill(&mut message);
            let begin = Instant::now();
            stream.write_all(&message)?;
            stream.read_exact(&mut message)?;
            times.push(begin.elapsed());
            received.check(&message)?;
        }
        let mut report = self.close(&stream, 2 * received.position())?;
        times.sort_unstable();
        let at = |part: usize| {
            times
                .get((times.len() * part / 100).min(times.len().saturating_sub(1)))
                .map_or(0.0, |time| time.as_secs_f64() * 1e6)
        };
        report.round_trip_us = Some((at(50), at(99)));
        report.seconds = start.elapsed().as_secs_f64();
        Ok(report)
    }

    /// Sends and receives at the same time.
    pub fn bulk(&self, seed: u64, up: u64, down: u64) -> Result<Report, Failure> {
        let start = Instant::now();
        let stream = self.open(Order::Exchange { seed, up, down })?;
        service::exchange(&stream, (seed, up), (!seed, down))?;
        let mut report = self.close(&stream, up + down)?;
        report.seconds = start.elapsed().as_secs_f64();
        Ok(report)
    }

    /// Opens a connection, runs `body`, and closes the connection after it.
    ///
    /// The first SMC connections between two systems fail if many are opened at once (a defect of
    /// mainline's). With one open the others find its link group.
    fn while_warm<R>(&self, body: impl FnOnce() -> Result<R, Failure>) -> Result<R, Failure> {
        let mut stream = self.open(Order::Echo {
            seed: 0,
            size: 1,
            count: 2,
        })?;
        let mut pattern = Pattern::new(0);
        let mut beat = || {
            let mut byte = [0];
            pattern.fill(&mut byte);
            stream.write_all(&byte)?;
            stream.read_exact(&mut byte)
        };
        beat()?;
        let result = body()?;
        beat()?;
        self.close(&stream, 0)?;
        Ok(result)
    }

    /// So many connections at once, each with data both ways.
    pub fn many(&self, seed: u64, connections: u64, bytes: u64) -> Result<Report, Failure> {
        let start = Instant::now();
        let barrier = Barrier::new(usize::try_from(connections)?);
        let mut total = self.while_warm(|| {
            std::thread::scope(|scope| {
                let mut threads = Vec::new();
                for index in 0..connections {
                    let barrier = &barrier;
                    let work = move || {
                        barrier.wait();
                        self.bulk(seed.wrapping_add(index), bytes, bytes)
                    };
                    threads.push(std::thread::Builder::new().spawn_scoped(scope, work)?);
                }
                join(threads)
            })
        })?;
        total.seconds = start.elapsed().as_secs_f64();
        Ok(total)
    }

    /// Opens and closes connections, `parallel` at a time.
    pub fn churn(&self, seed: u64, count: u64, parallel: u64) -> Result<Report, Failure> {
        let start = Instant::now();
        let next = AtomicU64::new(0);
        let mut total = self.while_warm(|| {
            std::thread::scope(|scope| {
                let mut threads = Vec::new();
                for _ in 0..parallel {
                    let work = || {
                        let mut total = Report::default();
                        loop {
                            let index = next.fetch_add(1, Ordering::Relaxed);
                            if index >= count {
                                return Ok(total);
                            }
                            let report = self
                                .ping_pong(seed.wrapping_add(index), 64, 1)
                                .map_err(|error| format!("connection {index}: {error}"))?;
                            total.add(&report);
                        }
                    };
                    threads.push(std::thread::Builder::new().spawn_scoped(scope, work)?);
                }
                join(threads)
            })
        })?;
        total.seconds = start.elapsed().as_secs_f64();
        Ok(total)
    }

    /// Splices data out of the socket into a file, and sends the file back with sendfile.
    pub fn splice(&self, seed: u64, bytes: u64) -> Result<Report, Failure> {
        let start = Instant::now();
        let mut file = tempfile::tempfile()?;
        let stream = self.open(Order::Exchange {
            seed,
            up: 0,
            down: bytes,
        })?;
        splice_to_file(stream.as_fd(), &file, bytes)?;
        let mut total = self.close(&stream, bytes)?;
        drop(stream);
        file.rewind()?;
        service::check_pattern(&file, !seed, bytes)
            .map_err(|error| format!("what was spliced: {error}"))?;

        file.rewind()?;
        let stream = self.open(Order::Exchange {
            seed: !seed,
            up: bytes,
            down: 0,
        })?;
        send_file(&file, stream.as_fd(), bytes)?;
        total.add(&self.close(&stream, bytes)?);
        total.seconds = start.elapsed().as_secs_f64();
        Ok(total)
    }
}

fn join(
    threads: Vec<std::thread::ScopedJoinHandle<'_, Result<Report, Failure>>>,
) -> Result<Report, Failure> {
    let mut total = Report::default();
    let (mut failed, mut first) = (0, None);
    for thread in threads {
        match thread.join().map_err(|_| "a thread panicked")? {
            Ok(report) => total.add(&report),
            Err(error) => {
                failed += 1;
                first.get_or_insert(error);
            }
        }
    }
    match first {
        None => Ok(total),
        Some(first) => Err(format!("{failed} failed; the first: {first}").into()),
    }
}

/// Largest piece that is spliced at once, in bytes.
const SPLICE_PIECE: u64 = 64 << 10;

fn splice_to_file(from: BorrowedFd<'_>, to: &File, bytes: u64) -> Result<(), Failure> {
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

fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, length: u64) -> Result<u64, Failure> {
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

fn send_file(from: &File, to: BorrowedFd<'_>, bytes: u64) -> Result<(), Failure> {
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

/// Ends the process with status 124 if it is still there after `timeout`.
pub fn watchdog(timeout: Duration) -> io::Result<()> {
    std::thread::Builder::new().spawn(move || {
        std::thread::sleep(timeout);
        eprintln!("ivsmc-traffic: still at it after {timeout:?}");
        std::process::exit(124);
    })?;
    Ok(())
}
