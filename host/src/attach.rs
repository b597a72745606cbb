// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `ivsmc-host attach`: looks for sockets again and again, and has a task for each VM, so that none waits for another.
//! All that it knows it finds out anew, so it can end at any point.

use crate::complaints::Complaints;
use crate::folder::{self, Tidier};
use crate::policy::Policy;
use crate::scan::{Found, Scan, Verdict, merge, scan};
use crate::vm::{self, Standing};
use crate::watch::Watch;
use log::Level;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, TryLockError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, spawn_blocking};
use tokio::time::{Instant, sleep, sleep_until};

/// How long things take.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Between two looks for sockets when nothing happens.
    pub rescan: Duration,
    /// Between two looks when things do happen.
    pub settle: Duration,
    /// What a call of the API may take.
    pub call: Duration,
    /// Before a VM is asked again: at first, doubled each time.
    pub first: Duration,
    /// The longest such time for a VM that does not run yet.
    pub wait: Duration,
    /// The longest such time for one with which something is wrong.
    pub retry: Duration,
    /// Between two looks at a VM that has its device.
    pub recheck: Duration,
    /// How long a device's socket has to be dead before it is removed.
    pub dead: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            rescan: Duration::from_secs(5),
            settle: Duration::from_millis(100),
            call: Duration::from_secs(10),
            first: Duration::from_millis(100),
            wait: Duration::from_secs(2),
            retry: Duration::from_secs(30),
            recheck: Duration::from_secs(30),
            dead: Duration::from_secs(10),
        }
    }
}

impl Timing {
    /// All of it that many times faster, for tests.
    pub fn faster(self, times: u32) -> Self {
        let times = times.max(1);
        Timing {
            rescan: self.rescan / times,
            settle: self.settle / times,
            call: self.call / times,
            first: self.first / times,
            wait: self.wait / times,
            retry: self.retry / times,
            recheck: self.recheck / times,
            dead: self.dead / times,
        }
    }
}

/// What tasks have in common.
struct Shared {
    policy: Policy,
    timing: Timing,
    complaints: Complaints,
}

/// A pattern, and the last look for its sockets. Each has a thread of its own: a file system can keep one waiting.
#[derive(Default)]
struct Slot {
    last: Option<Scan>,
    is_running: bool,
    is_wanted: bool,
}

/// A VM's task, which ends with this.
struct Task {
    found: Found,
    abort: Option<AbortHandle>,
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(abort) = &self.abort {
            abort.abort();
        }
    }
}

struct Attach {
    shared: Arc<Shared>,
    slots: Vec<Slot>,
    tasks: BTreeMap<PathBuf, Task>,
    tidier: Arc<Mutex<Tidier>>,
    watch: Watch,
    results: mpsc::UnboundedSender<(usize, Scan, Duration)>,
    started: Instant,
}

/// Gives devices to VMs, until it is dropped.
pub async fn attach(policy: Policy, timing: Timing) -> Infallible {
    let (results, mut done) = mpsc::unbounded_channel();
    let mut attach = Attach {
        slots: policy.patterns.iter().map(|_| Slot::default()).collect(),
        shared: Arc::new(Shared {
            policy,
            timing,
            complaints: Complaints::new(),
        }),
        tasks: BTreeMap::new(),
        tidier: Arc::default(),
        watch: Watch::new(),
        results,
        started: Instant::now(),
    };
    attach.tidy();
    // When to look again; whether something has happened; when that was done last, and how long it took.
    let (mut due, mut is_told) = (Instant::now(), false);
    let (mut looked, mut took) = (Instant::now(), Duration::ZERO);
    let mut tidied = Instant::now();
    loop {
        let soon = looked + timing.settle.max(10 * took);
        tokio::select! {
            Some((slot, scan, time)) = done.recv() => {
                took = time;
                if attach.take(slot, scan) {
                    (due, is_told) = (due.min(soon), true);
                }
            }
            event = attach.watch.event(), if !is_told => {
                if let Err(error) = event {
                    log::warn!("inotify has failed ({error}): new VMs are found later");
                    attach.watch.give_up();
                }
                (due, is_told) = (due.min(soon), true);
            }
            () = sleep_until(due) => {
                attach.watch.drain();
                for slot in 0..attach.slots.len() {
                    attach.scan(slot);
                }
                if tidied.elapsed() >= timing.rescan {
                    attach.tidy();
                    tidied = Instant::now();
                }
                (looked, due, is_told) = (Instant::now(), Instant::now() + timing.rescan, false);
            }
        }
    }
}

impl Attach {
    fn scan(&mut self, slot: usize) {
        let state = &mut self.slots[slot];
        if state.is_running {
            state.is_wanted = true;
            return;
        }
        (state.is_running, state.is_wanted) = (true, false);
        let (shared, results) = (self.shared.clone(), self.results.clone());
        spawn_blocking(move || {
            let begin = Instant::now();
            let scan = scan(&shared.policy, &shared.policy.patterns[slot]);
            // Nobody takes it when the program ends.
            let _ = results.send((slot, scan, begin.elapsed()));
        });
    }

    /// Takes what was found; returns whether to look again soon.
    fn take(&mut self, slot: usize, scan: Scan) -> bool {
        for (path, reason) in &scan.skipped {
            let of = format!("{path:?}");
            self.shared
                .complaints
                .say(Level::Warn, &of, format_args!("skipped: {reason}"));
        }
        let state = &mut self.slots[slot];
        state.last = Some(scan);
        state.is_running = false;
        let is_wanted = state.is_wanted;
        // Names that collide are only known when all is, unless a pattern's folder keeps everybody waiting.
        let is_whole = self.slots.iter().all(|slot| slot.last.is_some());
        if is_whole || self.started.elapsed() > self.shared.timing.call {
            self.update();
        }
        let scans = self.slots.iter().filter_map(|slot| slot.last.as_ref());
        let folders = scans.flat_map(|scan| scan.folders.iter().cloned());
        self.watch.set(&folders.collect()) || is_wanted
    }

    fn update(&mut self) {
        let scans = self.slots.iter().filter_map(|slot| slot.last.as_ref());
        let mut before = std::mem::take(&mut self.tasks);
        for found in merge(scans) {
            let socket = found.socket.clone();
            let task = match before.remove(&socket) {
                Some(task) if task.found == found => task,
                other => {
                    // The task of the VM that was there has ended before the new one's begins.
                    drop(other);
                    self.begin(found)
                }
            };
            self.tasks.insert(socket, task);
        }
        for socket in before.into_keys() {
            let of = socket.display().to_string();
            self.shared.complaints.say(Level::Info, &of, "gone");
        }
    }

    fn begin(&self, found: Found) -> Task {
        let of = found.socket.display().to_string();
        let complaints = &self.shared.complaints;
        let mut task = Task {
            found: found.clone(),
            abort: None,
        };
        match &found.verdict {
            Verdict::Fabric(fabric) => {
                complaints.forget(&of);
                let tend = tend(self.shared.clone(), found.clone(), *fabric);
                task.abort = Some(tokio::spawn(tend).abort_handle());
            }
            verdict => {
                let level = match verdict {
                    Verdict::NoRule => Level::Info,
                    _ => Level::Warn,
                };
                complaints.say(level, &of, format_args!("no device: {}", why_not(verdict)));
            }
        }
        task
    }

    /// Makes the fabrics' folders, and removes what VMs that are gone have left in them, if it is known which are there.
    fn tidy(&self) {
        let is_whole = self.slots.iter().all(|slot| slot.last.is_some());
        let names = self.tasks.values().map(|task| task.found.name.clone());
        let names: Option<BTreeSet<_>> = is_whole.then(|| names.collect());
        let (shared, tidier) = (self.shared.clone(), self.tidier.clone());
        spawn_blocking(move || {
            // If the last time takes that long it is enough.
            let mut tidier = match tidier.try_lock() {
                Ok(tidier) => tidier,
                Err(TryLockError::Poisoned(tidier)) => tidier.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            let complaints = &shared.complaints;
            for fabric in &shared.policy.fabrics {
                if let Err(error) = folder::prepare(fabric) {
                    complaints.say(Level::Warn, &fabric.folder.display().to_string(), error);
                    continue;
                }
                let Some(names) = &names else {
                    continue;
                };
                for path in tidier.tidy(fabric, names, shared.timing.dead) {
                    let of = path.display().to_string();
                    let what = "removed: nobody listens, and the VM is gone";
                    complaints.say(Level::Info, &of, what);
                }
            }
        });
    }
}

/// Why a VM gets no device, if that is the policy's doing.
pub fn why_not(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Fabric(_) => String::new(),
        Verdict::NoRule => "no fabric of the policy's has a rule that matches it".into(),
        Verdict::Labels(error) => error.clone(),
        Verdict::Namesake(other) => {
            let other = other.display();
            format!(
                "{other} has the same name in the same fabric; give them fabrics of their own, or other names"
            )
        }
    }
}

/// Looks after one VM.
async fn tend(shared: Arc<Shared>, found: Found, fabric: usize) {
    let timing = shared.timing;
    let Some(fabric) = shared.policy.fabrics.get(fabric) else {
        return;
    };
    let of = found.socket.display().to_string();
    let (mut last, mut pause) = (None, timing.first);
    loop {
        let done = vm::attach(&found, fabric, timing.call).await;
        let standing = done.as_ref().ok().map(|(standing, _)| standing.clone());
        if standing.is_some() && standing != last {
            pause = timing.first;
        }
        let longest = match &done {
            Ok((Standing::Attached, is_new)) => {
                let path = fabric.path_of(&found.name);
                let path = path.display();
                if *is_new {
                    let what = format_args!("has got a device, {path}");
                    shared.complaints.say(Level::Info, &of, what);
                } else if last != standing {
                    let what = format_args!("has its device, {path}");
                    shared.complaints.say(Level::Info, &of, what);
                }
                pause = timing.recheck;
                timing.recheck
            }
            Ok((Standing::Other(why), _)) => {
                let what = format_args!("no device: {why}");
                shared.complaints.say(Level::Warn, &of, what);
                pause = timing.recheck;
                timing.recheck
            }
            Ok((Standing::Waits(why), _)) => {
                let what = format_args!("no device yet: {why}");
                shared.complaints.say(Level::Debug, &of, what);
                timing.wait
            }
            Ok((Standing::Free, _)) => timing.wait,
            Err(error) => {
                let level = match error.is_gone() {
                    true => Level::Debug,
                    false => Level::Warn,
                };
                let what = format_args!("no device: {error}");
                shared.complaints.say(level, &of, what);
                timing.retry
            }
        };
        last = standing;
        sleep(pause.min(longest)).await;
        pause = (2 * pause).min(longest);
    }
}
