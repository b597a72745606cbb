// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What `socket()` gives to a program, once and under load: for tests of whoever replaces its sockets.

use ivsmc_guest::socket;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// A call, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// The address family that was asked for.
    pub domain: i32,
    /// The type, with its flags.
    pub kind: i32,
    /// The protocol.
    pub protocol: i32,
    /// The protocol that the socket says it has, or a negative errno.
    pub got: i32,
    /// The flags that the descriptor has, as they are in a type.
    pub flags: i32,
}

fn try_one(domain: i32, kind: i32, protocol: i32) -> Opened {
    let (got, flags) = match socket::open_kind(domain, kind, protocol) {
        Ok(opened) => {
            let got = socket::protocol(&opened).unwrap_or_else(negative);
            // SAFETY: takes no pointers.
            let (close, flags) = unsafe {
                let fd = opened.as_raw_fd();
                (
                    libc::fcntl(fd, libc::F_GETFD),
                    libc::fcntl(fd, libc::F_GETFL),
                )
            };
            let close = if close & libc::FD_CLOEXEC == 0 {
                0
            } else {
                libc::SOCK_CLOEXEC
            };
            (got, close | flags & libc::O_NONBLOCK)
        }
        Err(error) => (negative(error), 0),
    };
    Opened {
        domain,
        kind,
        protocol,
        got,
        flags,
    }
}

fn negative(error: io::Error) -> i32 {
    -error.raw_os_error().unwrap_or(libc::EIO)
}

/// A socket of each kind that a TCP program may ask for, and of some that none does.
pub fn kinds() -> Vec<Opened> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    let kinds = [0, libc::SOCK_NONBLOCK, libc::SOCK_CLOEXEC, flags];
    let mut opened = Vec::new();
    for domain in [libc::AF_INET, libc::AF_INET6] {
        for kind in kinds {
            for protocol in [0, libc::IPPROTO_TCP, libc::IPPROTO_MPTCP] {
                opened.push(try_one(domain, libc::SOCK_STREAM | kind, protocol));
            }
        }
        opened.push(try_one(domain, libc::SOCK_DGRAM, 0));
        // Not a flag.
        opened.push(try_one(domain, libc::SOCK_STREAM | 0x10, 0));
    }
    opened.push(try_one(libc::AF_UNIX, libc::SOCK_STREAM, 0));
    opened
}

/// What came of a storm.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Storm {
    /// How many sockets of each protocol there were; a negative errno for none.
    pub got: BTreeMap<i32, u64>,
    /// How many processes were killed meanwhile, most of them while they opened sockets.
    pub killed: u64,
    /// How many more descriptors there are after it than before it.
    pub left_over: usize,
    /// How long it took.
    pub milliseconds: u64,
}

/// Has `threads` threads open and close `count` sockets each, while processes that do the same are started and killed.
pub fn storm(threads: u32, count: u32) -> io::Result<Storm> {
    let start = Instant::now();
    let descriptors = || std::fs::read_dir("/proc/self/fd").map(Iterator::count);
    let before = descriptors()?;
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let killers: Vec<_> = (0..4)
            .map(|seed| {
                let over = &over;
                scope.spawn(move || kill_until(over, seed))
            })
            .collect();
        let workers: Vec<_> = (0..threads)
            .map(|_| scope.spawn(move || open_many(count)))
            .collect();
        let mut storm = Storm::default();
        for worker in workers {
            for (got, count) in worker.join().unwrap_or_default() {
                *storm.got.entry(got).or_default() += count;
            }
        }
        over.store(true, Ordering::Relaxed);
        for killer in killers {
            storm.killed += killer
                .join()
                .map_err(|_| io::Error::other("a thread's panic"))??;
        }
        storm.left_over = descriptors()?.saturating_sub(before);
        storm.milliseconds = start.elapsed().as_millis() as u64;
        Ok(storm)
    })
}

fn open_many(count: u32) -> BTreeMap<i32, u64> {
    let mut got = BTreeMap::new();
    for index in 0..count {
        let domain = [libc::AF_INET, libc::AF_INET6][index as usize % 2];
        let opened = try_one(domain, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        *got.entry(opened.got).or_default() += 1;
    }
    got
}

/// Starts processes that open sockets, and kills each after a moment; gives their number.
fn kill_until(over: &AtomicBool, seed: u64) -> io::Result<u64> {
    let (mut killed, mut random) = (0, seed + 1);
    while !over.load(Ordering::Relaxed) {
        // SAFETY: the child makes system calls only, which are safe in a process that had other threads.
        let child = unsafe { libc::fork() };
        match child {
            -1 => return Err(io::Error::last_os_error()),
            0 => {
                // SAFETY: takes no pointers. Its parent is the thread, which lasts until it is killed.
                unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
                loop {
                    // SAFETY: closes what it has opened.
                    unsafe { libc::close(libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0)) };
                }
            }
            _ => {}
        }
        // A linear congruential generator will do.
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        thread::sleep(Duration::from_micros((random >> 33) % 3000));
        // SAFETY: the child is ours and has not been waited for.
        let waited = unsafe {
            libc::kill(child, libc::SIGKILL);
            libc::waitpid(child, std::ptr::null_mut(), 0)
        };
        if waited < 0 {
            return Err(io::Error::last_os_error());
        }
        killed += 1;
    }
    Ok(killed)
}
