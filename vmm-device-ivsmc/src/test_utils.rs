// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A VMM without a VM, for tests: it notes what the device asks for, and plays KVM's part.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::mem::{self, ManuallyDrop};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once};
use std::thread;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use crate::{Event, EventKind, Host, Window};

/// The variable that makes the crate take this kernel for one that cannot refuse descriptors.
pub const OLD_KERNEL: &str = "IVSMC_TEST_OLD_KERNEL";

/// How long an event may take to be told on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Inner {
    /// By guest address: address in this process, size, link.
    windows: BTreeMap<u64, (usize, u64, usize)>,
    /// The device keeps these descriptors open as long as they are here.
    doorbells: BTreeMap<(u64, Option<u32>), RawFd>,
    /// The eventfds connected to each vector, which the device keeps open as well.
    vectors: BTreeMap<usize, Vec<RawFd>>,
    /// Vector 0 was raised, and how often.
    is_raised: bool,
    raised: u64,
}

#[derive(Default)]
pub struct FakeHost {
    inner: Mutex<Inner>,
    fail_windows: AtomicBool,
    /// The address of a doorbell for which no descriptor is an eventfd; 0: none.
    refused_doorbell: AtomicU64,
    /// Doorbells are to take long now, and one does.
    holds: AtomicBool,
    is_holding: AtomicBool,
    events: Mutex<Vec<Event>>,
}

impl FakeHost {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    pub fn fail_windows(&self, fail: bool) {
        self.fail_windows.store(fail, Ordering::Relaxed);
    }

    /// From now on a doorbell at this address is refused, as one that is no eventfd.
    pub fn refuse_doorbell(&self, gpa: u64) {
        self.refused_doorbell.store(gpa, Ordering::Relaxed);
    }

    /// Whether doorbells cannot be placed or removed until further notice, or for 20 seconds.
    pub fn hold(&self, hold: bool) {
        self.holds.store(hold, Ordering::Relaxed);
    }

    /// Whether the device waits for one.
    pub fn is_holding(&self) -> bool {
        self.is_holding.load(Ordering::Relaxed)
    }

    fn wait(&self) {
        let start = Instant::now();
        while self.holds.load(Ordering::Relaxed) && start.elapsed() < Duration::from_secs(20) {
            self.is_holding.store(true, Ordering::Relaxed);
            thread::sleep(Duration::from_millis(1));
        }
        self.is_holding.store(false, Ordering::Relaxed);
    }

    /// The guest stores `value` to `address`. Returns whether a doorbell took it.
    pub fn store(&self, address: u64, value: u32) -> bool {
        let inner = self.inner();
        let bells = [None, Some(value)].map(|value| inner.doorbells.get(&(address, value)));
        for &&bell in bells.iter().flatten() {
            // SAFETY: it is open, and stays the device's.
            let bell = ManuallyDrop::new(unsafe { EventFd::from_raw_fd(bell) });
            bell.write(1).unwrap();
        }
        bells.iter().any(Option::is_some)
    }

    /// The vectors that have been interrupted since the last call.
    pub fn interrupts(&self) -> Vec<usize> {
        let mut inner = self.inner();
        let mut interrupted = BTreeSet::new();
        if mem::take(&mut inner.is_raised) {
            interrupted.insert(0);
        }
        for (&vector, fds) in &inner.vectors {
            for &fd in fds {
                // SAFETY: it is open, and stays the device's.
                let fd = ManuallyDrop::new(unsafe { EventFd::from_raw_fd(fd) });
                if fd.read().is_ok() {
                    interrupted.insert(vector);
                }
            }
        }
        interrupted.into_iter().collect()
    }

    /// How often vector 0 has been raised so far.
    pub fn raised(&self) -> u64 {
        self.inner().raised
    }

    /// How many eventfds are connected to each vector.
    pub fn connected(&self) -> BTreeMap<usize, usize> {
        let inner = self.inner();
        let vectors = inner.vectors.iter();
        vectors.map(|(&vector, fds)| (vector, fds.len())).collect()
    }

    /// As long as this is held, who tells of an event waits.
    pub fn hold_events(&self) -> MutexGuard<'_, Vec<Event>> {
        self.events.lock().unwrap()
    }

    /// The events since the last call.
    pub fn events(&self) -> Vec<Event> {
        mem::take(&mut self.events.lock().unwrap())
    }

    /// The events since the last call, of which there will be as many: a VMM is told of what has happened, after it has.
    pub fn awaited_events(&self, count: usize) -> Vec<Event> {
        let end = Instant::now() + PATIENCE;
        while self.events.lock().unwrap().len() < count {
            assert!(Instant::now() < end, "there are no {count} events in time");
            thread::sleep(Duration::from_millis(2));
        }
        self.events()
    }

    /// The kinds of the events since the last call, and their links.
    pub fn event_kinds(&self) -> Vec<(EventKind, Option<usize>)> {
        let events = self.events();
        events.iter().map(|each| (each.kind, each.link)).collect()
    }

    /// The windows in the guest: address, size, link.
    pub fn windows(&self) -> Vec<(u64, u64, usize)> {
        let inner = self.inner();
        inner
            .windows
            .iter()
            .map(|(&at, &(_, size, link))| (at, size, link))
            .collect()
    }

    /// The guest's memory at an address.
    pub fn memory(&self, address: u64) -> *mut u8 {
        let inner = self.inner();
        let (&at, &(start, size, _)) = inner.windows.range(..=address).next_back().unwrap();
        assert!(address - at < size, "no memory at {address:#x}");
        (start + (address - at) as usize) as *mut u8
    }

    pub fn doorbells(&self) -> Vec<(u64, Option<u32>)> {
        self.inner().doorbells.keys().copied().collect()
    }

    /// Nothing of the device is left in the guest.
    pub fn is_empty(&self) -> bool {
        let inner = self.inner();
        inner.windows.is_empty() && inner.doorbells.is_empty() && inner.vectors.is_empty()
    }
}

fn is_eventfd(fd: &EventFd) -> bool {
    let link = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    link.is_ok_and(|target| target.to_string_lossy() == "anon_inode:[eventfd]")
}

impl Host for FakeHost {
    fn map_window(&self, link: usize, gpa: u64, window: &Window) -> io::Result<()> {
        if self.fail_windows.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let mut inner = self.inner();
        let overlaps = |&(&at, &(_, size, _)): &(&u64, &(usize, u64, usize))| {
            at < gpa + window.len() && gpa < at + size
        };
        assert!(
            inner.windows.iter().find(overlaps).is_none(),
            "windows overlap"
        );
        inner
            .windows
            .insert(gpa, (window.host_addr() as usize, window.len(), link));
        Ok(())
    }

    fn unmap_window(&self, link: usize, gpa: u64, window: &Window) -> io::Result<()> {
        let gone = self.inner().windows.remove(&gpa);
        assert_eq!(
            gone,
            Some((window.host_addr() as usize, window.len(), link))
        );
        Ok(())
    }

    fn set_doorbell(&self, gpa: u64, value: Option<u32>, fd: &EventFd) -> io::Result<()> {
        self.wait();
        if !is_eventfd(fd) || gpa == self.refused_doorbell.load(Ordering::Relaxed) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let old = self.inner().doorbells.insert((gpa, value), fd.as_raw_fd());
        assert!(old.is_none(), "two doorbells at {gpa:#x} {value:?}");
        Ok(())
    }

    fn clear_doorbell(&self, gpa: u64, value: Option<u32>, fd: &EventFd) -> io::Result<()> {
        self.wait();
        let gone = self.inner().doorbells.remove(&(gpa, value));
        assert_eq!(gone, Some(fd.as_raw_fd()), "at {gpa:#x} {value:?}");
        Ok(())
    }

    fn connect_vector(&self, vector: usize, fd: &EventFd) -> io::Result<()> {
        let fds = &mut self.inner().vectors;
        fds.entry(vector).or_default().push(fd.as_raw_fd());
        Ok(())
    }

    fn disconnect_vector(&self, vector: usize, fd: &EventFd) -> io::Result<()> {
        let vectors = &mut self.inner().vectors;
        let fds = vectors.get_mut(&vector).unwrap();
        let at = fds.iter().position(|&other| other == fd.as_raw_fd());
        fds.remove(at.expect("it is not connected"));
        if fds.is_empty() {
            vectors.remove(&vector);
        }
        Ok(())
    }

    fn raise(&self) -> io::Result<()> {
        let mut inner = self.inner();
        inner.is_raised = true;
        inner.raised += 1;
        Ok(())
    }

    fn event(&self, event: &Event) {
        self.events.lock().unwrap().push(event.clone());
    }
}

static LOG: Log = Log(Mutex::new(Vec::new()));

/// Keeps what is logged.
struct Log(Mutex<Vec<String>>);

impl log::Log for Log {
    fn enabled(&self, metadata: &log::Metadata) -> bool {
        metadata.level() <= log::Level::Info
    }

    fn log(&self, record: &log::Record) {
        if self.enabled(record.metadata()) {
            let line = format!("{}: {}", record.level(), record.args());
            self.0.lock().unwrap().push(line);
        }
    }

    fn flush(&self) {}
}

/// From now on what is logged is kept for [`logged`].
pub fn keep_log() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&LOG).unwrap();
        log::set_max_level(log::LevelFilter::Info);
    });
}

/// How many of the lines logged, by this or any other test of the process, have all these words in them.
pub fn logged(words: &[&str]) -> usize {
    let lines = LOG.0.lock().unwrap();
    let has_all = |line: &&String| words.iter().all(|&word| line.contains(word));
    lines.iter().filter(has_all).count()
}
