// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Closes what peers have a hand in, on threads that nobody waits for.
//!
//! close() of a descriptor that a peer supplied may block for as long as the peer likes: a TCP socket that lingers, a
//! file of a FUSE file system, an eventfd in an epoll set of the peer's. Closing a Unix socket closes the descriptors
//! in its queue, read or not. So all of these are [`Foreign`]: dropping one only puts it into a queue, on whatever thread
//! and under whatever lock. Each [`Account`] has a queue and, while there is something in it, a thread of its own.
//! Who makes one block holds up the closing of its own descriptors, and is not served beyond [`SHARE`] of them.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// How many items of one account may wait to be closed before its connections are refused. (A link that ends has
/// 34 at most.)
const SHARE: usize = 64;
/// How many there may be before no connection is accepted or made any more. Only on kernels before 6.16 can it come
/// to that (see [`Socket::block_rights`](super::socket::Socket::block_rights)).
const LIMIT: usize = 256;
/// When to try again to start a thread.
const PAUSE: Duration = Duration::from_millis(100);
/// What the thread needs to drop something.
const STACK: usize = 128 << 10;

/// Who answers for what is to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Account {
    /// All who are not admitted.
    Stranger,
    /// All processes of an admitted user.
    User(u32),
}

#[derive(Default)]
struct Queue {
    items: VecDeque<Box<dyn Send>>,
    /// How many are in the queue or being closed.
    pending: usize,
    has_thread: bool,
}

struct State {
    queues: BTreeMap<Account, Queue>,
    /// [`SHARE`] and [`LIMIT`], but for tests.
    share: usize,
    limit: usize,
    /// The device is gone: nothing more comes.
    is_closed: bool,
}

impl Default for State {
    fn default() -> Self {
        State {
            queues: BTreeMap::new(),
            share: SHARE,
            limit: LIMIT,
            is_closed: false,
        }
    }
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes what one account has, until there is no more.
    fn serve(&self, account: Account) {
        let mut state = self.lock();
        while let Entry::Occupied(mut queue) = state.queues.entry(account) {
            let Some(item) = queue.get_mut().items.pop_front() else {
                queue.remove();
                return;
            };
            drop(state);
            // This may block.
            drop(item);
            state = self.lock();
            if let Some(queue) = state.queues.get_mut(&account) {
                queue.pending -= 1;
            }
        }
    }
}

/// Closes what peers have a hand in. The VMM moves it to a thread of its own, beside the fabric's, and calls
/// [`run`](Self::run).
pub struct Reaper {
    shared: Arc<Shared>,
    name: String,
}

impl Reaper {
    /// Runs until the device is gone and there is nothing left to be closed, starting further threads as it needs them:
    /// one for each user with something to close, which ends when that is done.
    ///
    /// A peer can make those threads block for as long as it likes: never join a thread that runs this.
    pub fn run(self) {
        let changed = &self.shared.changed;
        let mut state = self.shared.lock();
        loop {
            let has_failed = self.start_threads(&mut state);
            if state.is_closed && !has_failed {
                return;
            }
            state = if has_failed {
                let waited = changed.wait_timeout(state, PAUSE);
                waited.unwrap_or_else(PoisonError::into_inner).0
            } else {
                changed.wait(state).unwrap_or_else(PoisonError::into_inner)
            };
        }
    }

    /// Starts a thread for each queue that has none. Returns whether one could not be started.
    fn start_threads(&self, state: &mut State) -> bool {
        let mut has_failed = false;
        for (&account, queue) in &mut state.queues {
            if queue.has_thread {
                continue;
            }
            let shared = self.shared.clone();
            let thread = thread::Builder::new()
                .name("reaper".into())
                .stack_size(STACK)
                .spawn(move || shared.serve(account));
            queue.has_thread = thread.is_ok();
            if let Err(error) = thread {
                log::warn!(
                    "{}: no thread to close descriptors, tries again: {error}",
                    self.name
                );
                has_failed = true;
            }
        }
        has_failed
    }
}

/// What the fabric knows of a [`Reaper`]. When it is dropped, the reaper ends.
pub struct Reaping(Arc<Shared>);

impl Reaping {
    /// A reaper for the device of this name, which is to be [run](Reaper::run).
    pub fn new(name: &str) -> (Self, Reaper) {
        let shared = Arc::<Shared>::default();
        let reaper = Reaper {
            shared: shared.clone(),
            name: name.into(),
        };
        (Reaping(shared), reaper)
    }

    /// What closes things at this account's expense.
    pub fn closer(&self, account: Account) -> Closer {
        Closer {
            shared: self.0.clone(),
            account,
        }
    }

    /// So much may wait to be closed from now on: of one account, and in all.
    #[cfg(test)]
    pub fn set_limits(&self, share: usize, limit: usize) {
        let mut state = self.0.lock();
        (state.share, state.limit) = (share, limit);
    }

    /// So much waits to be closed that there must not be more.
    pub fn is_full(&self) -> bool {
        let state = self.0.lock();
        let pending: usize = state.queues.values().map(|queue| queue.pending).sum();
        pending >= state.limit
    }
}

impl Drop for Reaping {
    fn drop(&mut self) {
        self.0.lock().is_closed = true;
        self.0.changed.notify_all();
    }
}

/// Closes things at an account's expense.
#[derive(Clone)]
pub struct Closer {
    shared: Arc<Shared>,
    account: Account,
}

impl Closer {
    /// Something that is not to be dropped here.
    pub fn guard<T: Send + 'static>(&self, item: T) -> Foreign<T> {
        Foreign {
            item: ManuallyDrop::new(item),
            closer: self.clone(),
        }
    }

    /// Whose it is.
    pub fn account(&self) -> Account {
        self.account
    }

    /// Whether as much waits to be closed as one account may have.
    pub fn is_full(&self) -> bool {
        let state = self.shared.lock();
        let queue = state.queues.get(&self.account);
        queue.is_some_and(|queue| queue.pending >= state.share)
    }

    fn close(&self, item: Box<dyn Send>) {
        let mut state = self.shared.lock();
        let queue = state.queues.entry(self.account).or_default();
        queue.items.push_back(item);
        queue.pending += 1;
        if !queue.has_thread {
            self.shared.changed.notify_all();
        }
    }
}

/// Something that a peer has a hand in, so that dropping it may block: it is dropped by the [`Reaper`].
pub struct Foreign<T: Send + 'static> {
    item: ManuallyDrop<T>,
    closer: Closer,
}

impl<T: Send + 'static> Foreign<T> {
    /// The thing itself, to be dropped here after all.
    pub fn into_inner(self) -> T {
        let mut foreign = ManuallyDrop::new(self);
        // SAFETY: `foreign` is not used any more, nor dropped; its closer, which is, is not touched.
        let item = unsafe { ManuallyDrop::take(&mut foreign.item) };
        // SAFETY: as above: the closer is dropped once, here.
        drop(unsafe { (&raw const foreign.closer).read() });
        item
    }

    /// The same, as something else.
    pub fn map<U: Send + 'static>(self, change: impl FnOnce(T) -> U) -> Foreign<U> {
        let closer = self.closer.clone();
        closer.guard(change(self.into_inner()))
    }
}

impl<T: Send + 'static> Deref for Foreign<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.item
    }
}

impl<T: Send + 'static> Drop for Foreign<T> {
    fn drop(&mut self) {
        // SAFETY: the item is not used any more.
        let item = unsafe { ManuallyDrop::take(&mut self.item) };
        self.closer.close(Box::new(item));
    }
}
