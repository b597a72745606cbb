// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What can be had of an ivsmc device at best: a word, copies and doorbells between two programs that have the same
//! window, with no SMC, no driver and no socket between them. What SMC-D reaches is measured against it.
//!
//! No driver may be bound. Word and copies go through /dev/mem, which maps a BAR cached, as ivpci does; VFIO does not.
//! Each side has one word: who runs says which run it is of, in the upper bits, so that what an earlier one left is not
//! taken for an answer.

use crate::ivshmem::{self, Device};
use crate::mapping::Mapping;
use crate::service::Failure;
use crate::traffic::{Report, percentiles};
use std::fs::{self, OpenOptions};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long the other side may take to come, and to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Where the words are in the window: on lines of their own.
const WORDS: [usize; 2] = [0, 256];
/// Where the messages are.
const DATA: usize = 4096;
/// How many there is room for: as much as SMC's largest buffer has.
const SLOTS: u64 = 16;
/// Bytes of a message.
const MESSAGE: usize = 64 << 10;
/// Round trips that are timed together: one of them takes not much longer than to look at the clock.
const BATCH: u32 = 64;
/// Turns of a loop that waits after which it looks at the clock.
const TURNS: u32 = 1 << 16;
/// In a word, behind the run's number: this is the last message.
const LAST: u64 = 1 << 39;
const RUN_SHIFT: u32 = 40;

/// Which end of it this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The one that begins, and measures.
    First,
    /// The one that answers, or receives.
    Second,
}

/// This side's word, and the other side's.
struct Words<'a> {
    memory: &'a Mapping,
    own: usize,
    peer: usize,
    run: u64,
}

impl<'a> Words<'a> {
    /// Begins a run, with `value`; waits for the other side to do so. Gives its first value.
    fn meet(memory: &'a Mapping, end: End, run: u32, value: u64) -> Result<(Self, u64), Failure> {
        let [first, second] = WORDS;
        let (own, peer) = match end {
            End::First => (first, second),
            End::Second => (second, first),
        };
        let run = u64::from(run) << RUN_SHIFT;
        let words = Words {
            memory,
            own,
            peer,
            run,
        };
        words.say(value);
        let there = words.wait(|_| true)?;
        Ok((words, there))
    }

    fn say(&self, value: u64) {
        self.memory.write(self.own, self.run | value);
    }

    /// Waits until the other side's value is as wanted.
    fn wait(&self, wanted: impl Fn(u64) -> bool) -> Result<u64, Failure> {
        let start = Instant::now();
        loop {
            for _ in 0..TURNS {
                let value = self.memory.read::<u64>(self.peer) ^ self.run;
                if value >> RUN_SHIFT == 0 && wanted(value) {
                    return Ok(value);
                }
                std::hint::spin_loop();
            }
            if start.elapsed() > PATIENCE {
                return Err(format!("the other side does not answer within {PATIENCE:?}").into());
            }
            std::thread::yield_now();
        }
    }
}

/// The first window of the device, while no driver has it.
struct Window {
    device: PathBuf,
    memory: Mapping,
}

impl Window {
    fn open() -> Result<Self, Failure> {
        let device = ivshmem::find()?;
        fs::write(device.join("enable"), "1")
            .map_err(|error| format!("cannot enable the device (has it a driver?): {error}"))?;
        // "START END FLAGS" for each BAR.
        let resources = fs::read_to_string(device.join("resource"))?;
        let start = resources
            .lines()
            .nth(2)
            .and_then(|line| line.split(' ').next()?.strip_prefix("0x"))
            .ok_or_else(|| format!("BAR2 in {resources}"))?;
        let start = u64::from_str_radix(start, 16)?;
        let file = OpenOptions::new().read(true).write(true).open("/dev/mem")?;
        let size = DATA + SLOTS as usize * MESSAGE;
        let memory = Mapping::new(file.as_fd(), start + ivshmem::SHARED, size)
            .map_err(|error| format!("mmap of BAR2: {error}"))?;
        Ok(Window { device, memory })
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // Only a count: whoever binds the device next enables it for himself.
        let _ = fs::write(self.device.join("enable"), "0");
    }
}

/// A word goes to and fro for `time`; times are of whole round trips.
pub fn word(end: End, run: u32, time: Duration) -> Result<Report, Failure> {
    let window = Window::open()?;
    let (words, _) = Words::meet(&window.memory, end, run, 0)?;
    let (start, mut number) = (Instant::now(), 0);
    let mut times = Vec::new();
    match end {
        End::First => {
            while start.elapsed() < time {
                let begin = Instant::now();
                for _ in 0..BATCH {
                    number += 1;
                    words.say(number);
                    words.wait(|value| value == number)?;
                }
                times.push(begin.elapsed() / BATCH);
            }
            words.say(LAST);
        }
        End::Second => loop {
            let next = words.wait(|value| value > number)?;
            if next == LAST {
                break;
            }
            number = next;
            words.say(number);
        },
    }
    Ok(Report {
        bytes: 8 * number,
        seconds: start.elapsed().as_secs_f64(),
        round_trip_us: percentiles(&mut times),
        ..Report::default()
    })
}

/// Messages of 64 KiB go one way for `time`: copied into the window, and out of it.
pub fn copies(end: End, run: u32, time: Duration) -> Result<Report, Failure> {
    let window = Window::open()?;
    let (words, _) = Words::meet(&window.memory, end, run, 0)?;
    let mut message = vec![0x5a; MESSAGE];
    let place = |number: u64| DATA + (number % SLOTS) as usize * MESSAGE;
    let start = Instant::now();
    let mut done = 0;
    match end {
        End::First => {
            while start.elapsed() < time {
                words.wait(|received| done - received < SLOTS)?;
                window.memory.copy_in(place(done), &message);
                done += 1;
                words.say(done);
            }
            words.say(LAST | done);
            words.wait(|received| received == done)?;
        }
        End::Second => loop {
            let sent = words.wait(|sent| sent & !LAST > done || sent & LAST != 0)?;
            if sent & !LAST == done {
                break;
            }
            window.memory.copy_out(place(done), &mut message);
            done += 1;
            words.say(done);
        },
    }
    Ok(Report {
        bytes: done * MESSAGE as u64,
        seconds: start.elapsed().as_secs_f64(),
        ..Report::default()
    })
}

/// Each side rings when the other one's doorbell has interrupted it, `count` times; times are of whole round trips.
pub fn doorbell(end: End, run: u32, count: u32) -> Result<Report, Failure> {
    let device = Device::open()?;
    let own = u64::from(device.position());
    let (_, peer) = Words::meet(device.shared(), end, run, own)?;
    let peer = u32::try_from(peer)?;
    let start = Instant::now();
    let mut times = Vec::new();
    for _ in 0..count {
        let begin = Instant::now();
        if end == End::First {
            device.ring(peer);
        }
        device.wait_for_interrupt()?;
        times.push(begin.elapsed());
        if end == End::Second {
            device.ring(peer);
        }
    }
    Ok(Report {
        seconds: start.elapsed().as_secs_f64(),
        round_trip_us: percentiles(&mut times),
        ..Report::default()
    })
}
