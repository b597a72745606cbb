// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The asking end: traffic that checks every byte and what SMC's diagnosis says on both sides.

use crate::pattern::{Pattern, Random};
use crate::service::{self, Failure, Order, Verdict};
use crate::splice;
use ivsmc_guest::connections::Mode;
use ivsmc_guest::socket::{self, Transport};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Barrier, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a link group may take to end its connections.
const ENDING: Duration = Duration::from_secs(10);

/// What the connections have to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Expect {
    /// SMC-D on both sides, with matching tokens.
    Smcd,
    /// SMC-D on this side, to a proxy that is in between.
    Proxied,
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
    /// After so long without a byte a connection counts as hung.
    pub patience: Duration,
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
    /// Connections that failed, where that is counted and does not end it all.
    #[serde(default)]
    pub failed: u64,
    /// What was wrong with the first of them.
    #[serde(default)]
    pub failure: String,
    /// Bytes sent and received.
    pub bytes: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Round trip times in microseconds: median and 99th percentile.
    pub round_trip_us: Option<(f64, f64)>,
    /// Times that `connect()` took, likewise.
    #[serde(default)]
    pub connect_us: Option<(f64, f64)>,
}

impl Report {
    /// Adds up what can be.
    pub fn add(&mut self, other: &Report) {
        self.connections += other.connections;
        self.smcd += other.smcd;
        self.fallbacks += other.fallbacks;
        self.bytes += other.bytes;
        self.failed += other.failed;
        if self.failure.is_empty() {
            self.failure.clone_from(&other.failure);
        }
        if !other.reason.is_empty() {
            self.reason.clone_from(&other.reason);
        }
    }
}

/// How connections ended that were to be received on until something ends them.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Ends {
    /// With an error of `recv()`.
    pub errors: u64,
    /// What the first of them was.
    pub error: String,
    /// With an end of file.
    pub ends_of_file: u64,
    /// Those of them after which SO_ERROR had an error.
    pub told_by_so_error: u64,
    /// Not at all.
    pub hung: u64,
}

impl Ends {
    fn add(&mut self, other: &Ends) {
        self.errors += other.errors;
        self.ends_of_file += other.ends_of_file;
        self.told_by_so_error += other.told_by_so_error;
        self.hung += other.hung;
        if self.error.is_empty() {
            self.error.clone_from(&other.error);
        }
    }
}

impl Target {
    pub(crate) fn open(&self, order: Order) -> Result<TcpStream, Failure> {
        let mut stream = self.connect()?;
        stream.write_all(&order.to_bytes())?;
        Ok(stream)
    }

    fn connect(&self) -> Result<TcpStream, Failure> {
        let stream = socket::connect(self.address, self.transport)
            .map_err(|error| format!("connect to {}: {error}", self.address))?;
        stream.set_read_timeout(Some(self.patience))?;
        stream.set_write_timeout(Some(self.patience))?;
        Ok(stream)
    }

    /// Hears the server's verdict, looks at this side, and judges.
    fn conclude(&self, mut stream: &TcpStream, bytes: u64) -> Result<Report, Failure> {
        let verdict = service::read_verdict(&mut stream)?;
        let mut report = self.judge(stream, &verdict)?;
        report.bytes = bytes;
        Ok(report)
    }

    /// Fails with the error of a connection that is about to end: when a link group ends, its
    /// connections have no buffers or no mode for SMC's diagnosis before they are ended, one by
    /// one. The server sends nothing until it is asked.
    fn outlives_its_link_group(&self, mut stream: &TcpStream) -> io::Result<()> {
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
        stream.set_read_timeout(Some(self.patience.min(ENDING)))?;
        match stream.read(&mut [0]) {
            Err(error)
                if !matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                ) =>
            {
                Err(error)
            }
            _ => Ok(()),
        }
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
                        (Some(_), None) if self.expect == Expect::Proxied => report.smcd = 1,
                        (here, there) => {
                            self.outlives_its_link_group(stream)?;
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
                mode => {
                    self.outlives_its_link_group(stream)?;
                    return Err(format!("the connection is in mode {mode}").into());
                }
            }
        }
        match self.expect {
            Expect::Smcd | Expect::Proxied if report.smcd != 1 => Err(format!(
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
        let mut stream = self.connect()?;
        let connected = start.elapsed();
        stream.write_all(&Order::Echo { seed, size, count }.to_bytes())?;
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
        let mut report = self.conclude(&stream, 2 * received.position())?;
        report.round_trip_us = percentiles(&mut times);
        report.connect_us = percentiles(&mut [connected]);
        report.seconds = start.elapsed().as_secs_f64();
        Ok(report)
    }

    /// Sends and receives at the same time.
    pub fn bulk(&self, seed: u64, up: u64, down: u64) -> Result<Report, Failure> {
        let start = Instant::now();
        let stream = self.open(Order::Exchange { seed, up, down })?;
        self.exchange(&stream, seed, up, down, start)
    }

    fn exchange(
        &self,
        stream: &TcpStream,
        seed: u64,
        up: u64,
        down: u64,
        start: Instant,
    ) -> Result<Report, Failure> {
        service::exchange(stream, (seed, up), (!seed, down))?;
        let mut report = self.conclude(stream, up + down)?;
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
        self.conclude(&stream, 0)?;
        Ok(result)
    }

    /// So many connections at once, each with data both ways.
    ///
    /// They are opened a few at a time: SMC gives a handshake six seconds, which on a busy machine are too few for all.
    pub fn many(&self, seed: u64, connections: u64, bytes: u64) -> Result<Report, Failure> {
        let start = Instant::now();
        let barrier = Barrier::new(usize::try_from(connections)?);
        let turns: [Mutex<()>; HANDSHAKES] = std::array::from_fn(|_| Mutex::new(()));
        let mut total = self.while_warm(|| {
            std::thread::scope(|scope| {
                let mut threads = Vec::new();
                for (index, turn) in (0..connections).zip(turns.iter().cycle()) {
                    let (barrier, seed) = (&barrier, seed.wrapping_add(index));
                    let work = move || {
                        let (up, down) = (bytes, bytes);
                        let opened = {
                            let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
                            self.open(Order::Exchange { seed, up, down })
                        };
                        barrier.wait();
                        self.exchange(&opened?, seed, up, down, start)
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
        let connects = Mutex::new(Vec::new());
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
                            let mut connects =
                                connects.lock().unwrap_or_else(PoisonError::into_inner);
                            let time = report.connect_us.map_or(0.0, |(median, _)| median);
                            connects.push(Duration::from_secs_f64(time / 1e6));
                        }
                    };
                    threads.push(std::thread::Builder::new().spawn_scoped(scope, work)?);
                }
                join(threads)
            })
        })?;
        let mut connects = connects
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        total.connect_us = percentiles(&mut connects);
        total.seconds = start.elapsed().as_secs_f64();
        Ok(total)
    }

    /// So many connections at once with none there before; what fails is counted.
    ///
    /// What can go wrong then does if the client handles the server's answers in another order than they were sent.
    /// So the first one begins alone, and its thread gives way to all others when it has asked and the answer is
    /// due. When that is the seed varies.
    pub fn cold(&self, seed: u64, connections: u64, bytes: u64) -> Result<Report, Failure> {
        let start = Instant::now();
        let others = &Barrier::new(usize::try_from(connections)?);
        let (tell, hear) = std::sync::mpsc::channel();
        let mut total = std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for index in 1..connections {
                let work = move || {
                    others.wait();
                    Ok(counted(self.bulk(seed.wrapping_add(index), bytes, bytes)))
                };
                threads.push(std::thread::Builder::new().spawn_scoped(scope, work)?);
            }
            let first = move || {
                // SAFETY: takes no pointers.
                let _ = tell.send(unsafe { libc::gettid() });
                Ok(counted(self.bulk(seed, bytes, bytes)))
            };
            threads.push(std::thread::Builder::new().spawn_scoped(scope, first)?);
            let first = hear.recv();
            // SMC's handshake begins as soon as there is a TCP connection, with a message of the client's.
            let waited = self.wait_for_tcp_connection();
            std::thread::sleep(Duration::from_millis(1 + seed % 4));
            if let Ok(thread) = first {
                give_way(thread);
            }
            others.wait();
            spin(HELD);
            waited?;
            join(threads)
        })?;
        total.seconds = start.elapsed().as_secs_f64();
        Ok(total)
    }

    /// Waits until there is a TCP connection to the server, whoever has it.
    fn wait_for_tcp_connection(&self) -> io::Result<()> {
        let (port, start) = (format!(":{:04X}", self.address.port()), Instant::now());
        while start.elapsed() < HELD {
            // Number, local address, remote address, state; 1 is established.
            let found = std::fs::read_to_string("/proc/net/tcp")?
                .lines()
                .any(|line| {
                    let mut words = line.split_whitespace().skip(2);
                    words.next().is_some_and(|remote| remote.ends_with(&port))
                        && words.next() == Some("01")
                });
            if found {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Opens connections, `parallel` at a time, until `file` appears; what fails is counted.
    pub fn restless(
        &self,
        seed: u64,
        parallel: u64,
        bytes: u64,
        file: &Path,
    ) -> Result<Report, Failure> {
        let start = Instant::now();
        let next = AtomicU64::new(0);
        let mut total = std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for _ in 0..parallel {
                threads.push(std::thread::Builder::new().spawn_scoped(scope, || {
                    let mut total = Report::default();
                    while !file.exists() {
                        let seed = seed.wrapping_add(next.fetch_add(1, Ordering::Relaxed));
                        total.add(&counted(self.bulk(seed, bytes, bytes)));
                    }
                    Ok(total)
                })?);
            }
            join(threads)
        })?;
        total.seconds = start.elapsed().as_secs_f64();
        Ok(total)
    }

    /// Exchanges data on one connection, `bytes` each way at a time with a pause after it, until the file `until`
    /// appears. Each time both ends judge what came, and what the connection is; then how often they have is
    /// in the file `progress`, which is removed in the end.
    pub fn stream(
        &self,
        seed: u64,
        bytes: u64,
        pause: Duration,
        until: &Path,
        progress: &Path,
    ) -> Result<Report, Failure> {
        let result = self.exchange_until(seed, bytes, pause, until, progress);
        match std::fs::remove_file(progress) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => result.and(Err(error.into())),
            _ => result,
        }
    }

    fn exchange_until(
        &self,
        seed: u64,
        bytes: u64,
        pause: Duration,
        until: &Path,
        progress: &Path,
    ) -> Result<Report, Failure> {
        let start = Instant::now();
        let mut stream = self.connect()?;
        let mut total = Report::default();
        for round in 1u64.. {
            let seed = seed.wrapping_add(round);
            let order = Order::Exchange {
                seed,
                up: bytes,
                down: bytes,
            };
            stream.write_all(&order.to_bytes())?;
            service::exchange(&stream, (seed, bytes), (!seed, bytes))?;
            let mut report = self.conclude(&stream, 2 * bytes)?;
            report.bytes += total.bytes;
            // It is one connection, however often it is looked at.
            total = report;
            replace(progress, &round.to_string())?;
            if until.exists() {
                break;
            }
            std::thread::sleep(pause);
        }
        total.seconds = start.elapsed().as_secs_f64();
        Ok(total)
    }

    /// Receives on so many connections until something ends them. `flowing` is created as soon as data has
    /// arrived on all of them.
    pub fn receive(&self, seed: u64, connections: u64, flowing: &Path) -> Result<Ends, Failure> {
        let started = AtomicU64::new(0);
        let mut result = None;
        let warm = self.while_warm(|| {
            // All of them first: while data flows a handshake can take too long.
            let streams = (0..connections)
                .map(|_| self.connect())
                .collect::<Result<Vec<_>, _>>()?;
            let all = std::thread::scope(|scope| {
                let mut threads = Vec::new();
                for (index, stream) in (0..).zip(streams) {
                    let started = &started;
                    threads.push(std::thread::Builder::new().spawn_scoped(scope, move || {
                        let first = || {
                            if started.fetch_add(1, Ordering::SeqCst) + 1 == connections {
                                File::create(flowing)?;
                            }
                            Ok(())
                        };
                        receive_one(stream, seed.wrapping_add(index), first)
                    })?);
                }
                let mut total = Ends::default();
                for thread in threads {
                    total.add(&thread.join().map_err(|_| "a thread panicked")??);
                }
                Ok(total)
            });
            result = Some(all);
            Ok(())
        });
        match result {
            // The connection that was open before them has ended as they have.
            Some(result) => result,
            None => warm.and(Err("nothing was received".into())),
        }
    }

    /// So many pieces of traffic of all kinds and sizes, as the seed chooses; says on stderr what it is at.
    pub fn mix(&self, seed: u64, runs: u64) -> Result<Report, Failure> {
        let start = Instant::now();
        let mut random = Random::new(seed);
        let mut total = Report::default();
        for run in 0..runs {
            let seed = random.next_number();
            // Of all magnitudes alike: it is the small and the odd ones that find something.
            let mut size = |bits: u64| {
                let limit = 1 << random.below(bits);
                1 + random.below(limit)
            };
            let (up, down) = (size(23), size(23));
            let (small, count) = (size(17), 1 + size(7));
            eprintln!("run {run}: seed {seed}, {up} up, {down} down, {count} messages of {small}");
            total.add(&match random.below(6) {
                0 => self.ping_pong(seed, u32::try_from(small)?, count)?,
                1 => self.bulk(seed, up, down)?,
                2 => self.bulk(seed, up, 0)?,
                3 => self.bulk(seed, 0, down)?,
                4 => self.many(seed, count, up >> 3)?,
                _ => self.splice(seed, down)?,
            });
        }
        total.seconds = start.elapsed().as_secs_f64();
        Ok(total)
    }

    /// Holds so many connections on which nothing happens. `ready` is created when they are there; they end when
    /// `until` is.
    pub fn idle(&self, connections: u64, ready: &Path, until: &Path) -> Result<Report, Failure> {
        let start = Instant::now();
        let mut total = Report::default();
        self.while_warm(|| {
            let mut streams = Vec::new();
            for seed in 0..connections {
                let order = Order::Echo {
                    seed,
                    size: 1,
                    count: 1,
                };
                streams.push((seed, self.open(order)?));
            }
            File::create(ready)?;
            while !until.exists() {
                std::thread::sleep(IDLE_LOOK);
            }
            for (seed, mut stream) in streams {
                let mut byte = [0];
                Pattern::new(seed).fill(&mut byte);
                stream.write_all(&byte)?;
                stream.read_exact(&mut byte)?;
                total.add(&self.conclude(&stream, 2)?);
            }
            Ok(())
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
        splice::to_file(stream.as_fd(), &file, bytes)?;
        let mut total = self.conclude(&stream, bytes)?;
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
        splice::send_file(&file, stream.as_fd(), bytes)?;
        total.add(&self.conclude(&stream, bytes)?);
        total.seconds = start.elapsed().as_secs_f64();
        Ok(total)
    }

    /// Splices out of the socket into a pipe, doubles what is in that with tee(), and checks both.
    pub fn tee(&self, seed: u64, bytes: u64) -> Result<Report, Failure> {
        let start = Instant::now();
        let stream = self.open(Order::Exchange {
            seed,
            up: 0,
            down: bytes,
        })?;
        splice::check_twice(stream.as_fd(), !seed, bytes)?;
        let mut total = self.conclude(&stream, bytes)?;
        total.seconds = start.elapsed().as_secs_f64();
        Ok(total)
    }

    /// Splices out of the socket onto a disk, past the page cache, and reads it back. Returns `None` if the kernel
    /// refuses that.
    pub fn to_disk(&self, seed: u64, bytes: u64, disk: &Path) -> Result<Option<Report>, Failure> {
        let start = Instant::now();
        let stream = self.open(Order::Exchange {
            seed,
            up: 0,
            down: bytes,
        })?;
        if !splice::to_disk(stream.as_fd(), disk, bytes)? {
            return Ok(None);
        }
        let mut total = self.conclude(&stream, bytes)?;
        splice::check_disk(disk, !seed, bytes)?;
        total.seconds = start.elapsed().as_secs_f64();
        Ok(Some(total))
    }
}

/// Median and 99th percentile, in microseconds; sorts them.
pub(crate) fn percentiles(times: &mut [Duration]) -> Option<(f64, f64)> {
    times.sort_unstable();
    let at = |part: usize| {
        let time = times.get(times.len() * part / 100)?;
        Some(time.as_secs_f64() * 1e6)
    };
    Some((at(50)?, at(99)?))
}

/// Receives until something ends the connection. `first` is called when data has arrived.
fn receive_one(
    mut stream: TcpStream,
    seed: u64,
    mut first: impl FnMut() -> io::Result<()>,
) -> Result<Ends, Failure> {
    let order = Order::Exchange {
        seed,
        up: 0,
        down: u64::MAX,
    };
    stream.write_all(&order.to_bytes())?;
    let mut pattern = Pattern::new(!seed);
    let (mut buffer, mut ends) = (vec![0; 64 << 10], Ends::default());
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => {
                ends.ends_of_file = 1;
                ends.told_by_so_error = stream.take_error()?.is_some().into();
                return Ok(ends);
            }
            Ok(count) => {
                if pattern.position() == 0 {
                    first()?;
                }
                pattern.check(&buffer[..count])?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                ends.hung = 1;
                return Ok(ends);
            }
            Err(error) => {
                (ends.errors, ends.error) = (1, error.to_string());
                return Ok(ends);
            }
        }
    }
}

/// Has a thread run only when no other of its processor's wants to.
fn give_way(thread: libc::pid_t) {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameters are alive during the call.
    unsafe { libc::sched_setscheduler(thread, libc::SCHED_IDLE, &raw const parameters) };
}

fn spin(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// The report of a connection that may fail.
fn counted(result: Result<Report, Failure>) -> Report {
    result.unwrap_or_else(|error| Report {
        failed: 1,
        failure: error.to_string(),
        ..Report::default()
    })
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

/// How often to look whether idle connections are to end: seldom, because what they cost is measured.
const IDLE_LOOK: Duration = Duration::from_secs(1);
/// Connections of [`Target::many`] whose handshakes run at the same time.
const HANDSHAKES: usize = 16;
/// How long the first of many connections is held up.
const HELD: Duration = Duration::from_millis(800);
/// Has a file hold this text: whoever reads it meanwhile finds what it held before, or all of the new.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, text)?;
    std::fs::rename(new, path)
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
