// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How far apart the two processors are between which data moves.
//!
//! Where the machine is itself a virtual one its processors may be neighbours now and far apart a second later, and what one
//! of them wrote takes several times as long to come to the other. Whatever moves memory is slower then, so whoever
//! measures that has to know.

use crate::measure::{PROCESSORS, median};
use anyhow::{Result, anyhow, ensure};
use rustix::thread::{CpuSet, sched_setaffinity};
use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// How many times the usual distance is far. Emulation adds the same to all, so it is less than processors differ by.
const FAR: f64 = 1.4;
/// How long one look takes.
const TIME: Duration = Duration::from_millis(20);
/// How many looks at the word come between two looks at the clock.
const SPINS: u32 = 1 << 20;
/// How long at least it waits for a word before it gives up, looking at the clock seldom.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often the word goes there and back between two looks at the clock.
const BATCH: u32 = 100;

/// A word on a cache line of its own, whatever is fetched along with it.
#[derive(Default)]
#[repr(align(256))]
struct Line(AtomicU32);

/// Half a round trip of a word between the two processors, in nanoseconds; none on a machine that has only one.
///
/// Both have to be idle otherwise.
pub fn look() -> Result<Option<f64>> {
    if std::thread::available_parallelism()?.get() == 1 {
        return Ok(None);
    }
    distance().map(Some)
}

/// Says how the processors were to each other, from the looks of a run; nothing if there are none.
pub fn words(looks: &[f64]) -> Option<String> {
    let least = looks.iter().copied().min_by(f64::total_cmp)?;
    let most = looks.iter().copied().max_by(f64::total_cmp)?;
    let usual = median(looks);
    let far = looks.iter().filter(|&&look| look >= FAR * usual).count();
    Some(format!(
        "a word takes {least:.0} to {most:.0} ns from one to the other, {usual:.0} in the middle; {FAR} times that and more at \
         {far} of {} looks",
        looks.len()
    ))
}

fn distance() -> Result<f64> {
    let (there, back, done) = (Line::default(), Line::default(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Where it may not run there, the word comes back more slowly.
            let _ = stay_on(PROCESSORS[1]);
            while !done.load(Relaxed) {
                back.0.store(there.0.load(Relaxed), Relaxed);
                spin_loop();
            }
        });
        let thrown = scope.spawn(|| {
            let result = stay_on(PROCESSORS[0]).and_then(|()| {
                // The first may wait until the other thread is there.
                throw(&there.0, &back.0, Duration::ZERO)?;
                throw(&there.0, &back.0, TIME)
            });
            done.store(true, Relaxed);
            result
        });
        thrown
            .join()
            .map_err(|_| anyhow!("the thread has panicked"))?
    })
}

/// Throws the word and waits until it is back, for so long; gives half the time of a round trip, in nanoseconds: that of
/// the batch in the middle, as some are interrupted.
fn throw(there: &AtomicU32, back: &AtomicU32, time: Duration) -> Result<f64> {
    let start = Instant::now();
    let mut batches = Vec::new();
    loop {
        let begin = Instant::now();
        for _ in 0..BATCH {
            let next = there.load(Relaxed).wrapping_add(1);
            there.store(next, Relaxed);
            let mut spins = 0_u32;
            while back.load(Relaxed) != next {
                spins = spins.wrapping_add(1);
                // The clock takes longer to read than the word takes.
                ensure!(
                    !spins.is_multiple_of(SPINS) || start.elapsed() < PATIENCE,
                    "a word did not come from one processor to the other and back"
                );
                spin_loop();
            }
        }
        batches.push(begin.elapsed().as_secs_f64() * 1e9 / f64::from(BATCH) / 2.0);
        if start.elapsed() >= time {
            return Ok(median(&batches));
        }
    }
}

fn stay_on(processor: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(processor);
    Ok(sched_setaffinity(None, &set)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_what_there_was() {
        assert_eq!(words(&[]), None);
        let told = words(&[50.0, 260.0, 51.0]).unwrap();
        assert!(
            told.contains("50 to 260 ns") && told.contains("51 in") && told.contains("1 of 3"),
            "{told}"
        );
    }

    #[test]
    fn a_word_comes_back() {
        assert!(look().unwrap().is_none_or(|look| look > 0.0));
    }
}
