// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the driver uses of Linux, on loom's primitives: accesses, barriers, what wakes whom.
//!
//! Where Linux promises more than C11 can say, the model promises less.

use std::sync::atomic::{AtomicBool as Bool, Ordering as Std};

use loom::cell::Cell;
use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use loom::sync::{Condvar, Mutex};

use crate::step::{Step, present};

/// `READ_ONCE()`
pub fn read_once(word: &AtomicU32) -> u32 {
    word.load(Ordering::Relaxed)
}

/// `WRITE_ONCE()`
pub fn write_once(word: &AtomicU32, value: u32) {
    word.store(value, Ordering::Relaxed);
}

/// `virt_load_acquire()`
pub fn virt_load_acquire(word: &AtomicU32, step: Step) -> u32 {
    word.load(if present(step) {
        Ordering::Acquire
    } else {
        Ordering::Relaxed
    })
}

/// `virt_store_release()`
pub fn virt_store_release(word: &AtomicU32, value: u32, step: Step) {
    let order = if present(step) {
        Ordering::Release
    } else {
        Ordering::Relaxed
    };
    word.store(value, order);
}

/// `virt_mb()`
pub fn virt_mb(step: Step) {
    if present(step) {
        fence(Ordering::SeqCst);
    }
}

/// `virt_rmb()`
pub fn virt_rmb(step: Step) {
    if present(step) {
        fence(Ordering::Acquire);
    }
}

/// `virt_wmb()`
pub fn virt_wmb(step: Step) {
    if present(step) {
        fence(Ordering::Release);
    }
}

/// A variable that is no atomic: two accesses that nothing orders fail the test.
#[derive(Default)]
pub struct Plain<T>(Cell<T>);

// SAFETY: loom runs all threads of a model on one thread, and fails before two accesses can race.
unsafe impl<T: Send> Sync for Plain<T> {}

impl<T: Copy> Plain<T> {
    /// Reads it.
    pub fn get(&self) -> T {
        self.0.get()
    }

    /// Writes it.
    pub fn set(&self, value: T) {
        self.0.set(value);
    }
}

/// Something that one thread waits for. It is kept until then; what happens more than once meanwhile has happened once.
/// All before `set()` comes before what is after `wait()`.
///
/// An eventfd that is an irqfd is one: KVM adds up doorbells until the interrupt is taken. So is a work item.
#[derive(Default)]
pub struct Event {
    happened: Mutex<bool>,
    changed: Condvar,
}

impl Event {
    /// It happens.
    pub fn set(&self) {
        let mut happened = self.happened.lock().unwrap();
        *happened = true;
        self.changed.notify_one();
    }

    /// It happens, but a thread that is waiting goes on to wait.
    pub fn set_quietly(&self) {
        *self.happened.lock().unwrap() = true;
    }

    /// Waits until it has happened.
    pub fn wait(&self) {
        let mut happened = self.happened.lock().unwrap();
        while !*happened {
            happened = self.changed.wait(happened).unwrap();
        }
        *happened = false;
    }
}

/// A kernel thread's state, as far as `wake_up_process()` knows it.
#[derive(Default)]
pub struct Task {
    idle: AtomicBool,
    woken: Event,
}

impl Task {
    /// `set_current_state(TASK_IDLE)`
    pub fn set_idle(&self, step: Step) {
        self.idle.store(true, Ordering::Relaxed);
        virt_mb(step);
    }

    /// `__set_current_state(TASK_RUNNING)`
    pub fn set_running(&self) {
        self.idle.store(false, Ordering::Relaxed);
    }

    /// `schedule()`, which returns at once if the thread was woken since it said that it would sleep.
    pub fn schedule(&self) {
        self.woken.wait();
    }

    /// `wake_up_process()`, which begins with a full barrier.
    pub fn wake_up_process(&self) {
        fence(Ordering::SeqCst);
        if self.idle.load(Ordering::Relaxed) {
            self.woken.set();
        }
    }
}

/// A note of the test's own, which loom does not see: it orders nothing, and no execution begins at it.
#[derive(Default)]
pub struct Mark(Bool);

impl Mark {
    /// Sets it, and returns whether it was set.
    pub fn set(&self) -> bool {
        self.0.swap(true, Std::Relaxed)
    }

    /// Whether it is set.
    pub fn is_set(&self) -> bool {
        self.0.load(Std::Relaxed)
    }
}
