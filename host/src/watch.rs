// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tells when something has happened in folders. What it misses is found later, by looking again.

use futures_util::{FutureExt, StreamExt};
use inotify::{EventStream, Inotify, WatchDescriptor, WatchMask};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::future::pending;
use std::io;
use std::path::PathBuf;

/// Watches folders through inotify; or nothing, if the system has none for it.
pub struct Watch {
    inotify: Option<EventStream<Vec<u8>>>,
    watched: HashMap<PathBuf, WatchDescriptor>,
}

impl Watch {
    /// Watches nothing yet.
    pub fn new() -> Self {
        let inotify = Inotify::init()
            .and_then(|inotify| inotify.into_event_stream(vec![0; 4096]))
            .inspect_err(|error| {
                log::warn!(
                    "no inotify ({error}): new VMs are found later; raise /proc/sys/fs/inotify/max_user_instances"
                );
            });
        Watch {
            inotify: inotify.ok(),
            watched: HashMap::new(),
        }
    }

    /// From now on watches these folders and no others. Returns whether there are new ones, in which something may have
    /// happened before.
    pub fn set(&mut self, folders: &BTreeSet<PathBuf>) -> bool {
        let Some(inotify) = &self.inotify else {
            return false;
        };
        let mut watches = inotify.watches();
        let mask = WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVE
            | WatchMask::CLOSE_WRITE
            | WatchMask::ATTRIB
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        let mut is_new = false;
        let mut watched = HashMap::new();
        for folder in folders {
            // Again each time: another folder may be there by now. It is the same watch if it is not.
            match watches.add(folder, mask) {
                Ok(watch) => {
                    is_new |= self.watched.remove(folder).as_ref() != Some(&watch);
                    watched.insert(folder.clone(), watch);
                }
                Err(error) => log::debug!("{folder:?} is not watched: {error}"),
            }
        }
        let kept: HashSet<&WatchDescriptor> = watched.values().collect();
        for (_, old) in self.watched.drain().filter(|(_, old)| !kept.contains(old)) {
            // It is gone already if the folder is.
            let _ = watches.remove(old);
        }
        self.watched = watched;
        is_new
    }

    /// Waits until something has happened.
    ///
    /// # Errors
    /// There will be no more events.
    pub async fn event(&mut self) -> io::Result<()> {
        let Some(inotify) = &mut self.inotify else {
            return pending().await;
        };
        match inotify.next().await {
            Some(event) => event.map(drop),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Takes the events that are there, so that they do not count any more.
    pub fn drain(&mut self) {
        if let Some(inotify) = &mut self.inotify {
            // A bound, as somebody may be making them as fast as they are read. What is left makes for another look.
            for _ in 0..1024 {
                if inotify.next().now_or_never().is_none() {
                    break;
                }
            }
        }
    }

    /// Does without: after an error.
    pub fn give_up(&mut self) {
        self.inotify = None;
        self.watched.clear();
    }
}

impl Default for Watch {
    fn default() -> Self {
        Self::new()
    }
}
