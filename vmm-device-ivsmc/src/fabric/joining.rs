// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Joining peers: connections to sockets that are listed, or found in folders.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, EpollEvent, EventSet};

use super::connectors::{FIRST_RETRY, LAST_RETRY};
use super::folder::{self, Folders};
use super::socket::Socket;
use super::{Connection, FOLDERS, Fabric};
use crate::limits::explain;

/// How many connections that this end made may be waiting to become links: no fewer than the most peers that can be
/// listed. Folders can have more.
const MAX_JOINING: usize = 64;
/// How long after something has happened in a folder to look into it.
const SCAN_DELAY: Duration = Duration::from_millis(50);
/// The same if there are no folders of peers, but only the own socket's.
const OWN_SCAN_DELAY: Duration = Duration::from_secs(1);
/// The number, among folders, of the one that the device's own socket is in. The others have their connector's.
pub const OWN_FOLDER: u64 = u64::MAX;

/// Watches a folder, if there is anything to watch it with.
pub fn watch_folder(folders: &mut Option<Folders>, id: u64, path: &Path) -> io::Result<()> {
    match folders {
        Some(folders) => folders.watch(id, path),
        None => Err(io::Error::other("there is no inotify for it")),
    }
}

impl Fabric {
    /// Folders are heard of once from now on.
    pub(super) fn listen_to_folders(&self, operation: ControlOperation) -> io::Result<()> {
        let Some(folders) = &self.folders else {
            return Ok(());
        };
        let event = EpollEvent::new(EventSet::IN | EventSet::ONE_SHOT, FOLDERS);
        self.epoll.ctl(operation, folders.as_raw_fd(), event)
    }

    /// Joins a peer, or looks into a folder of them. What is listed may be either, and become the other.
    pub(super) fn attempt(&mut self, id: u64, now: Instant) {
        let Some(connector) = self.connectors.get_mut(id) else {
            return;
        };
        let folders = self.folders.as_ref();
        let is_watched = folders.is_some_and(|folders| folders.is_watched(id));
        if connector.is_listed() && (is_watched || connector.path.is_dir()) {
            self.scan_folder(id, now);
        } else {
            self.join(id, now);
        }
    }

    /// How long to leave folders alone in which something has happened: who does a lot in them must not keep this
    /// thread busy.
    pub(super) fn scan_delay(&self) -> Duration {
        let mut watched = self.folders.iter().flat_map(Folders::watched);
        if watched.any(|id| id != OWN_FOLDER) {
            SCAN_DELAY
        } else {
            OWN_SCAN_DELAY
        }
    }

    /// Something has happened in a folder a moment ago: all are looked at.
    pub(super) fn scan(&mut self, now: Instant) {
        self.scan_at = None;
        if let Some(folders) = &self.folders {
            folders.drain();
            self.connectors.look_at(folders.watched(), now);
            self.listening.check.next = Some(now);
        }
        if let Err(error) = self.listen_to_folders(ControlOperation::Modify) {
            log::error!("{}: does not hear of folders: {error}", self.device.name);
        }
    }

    /// Looks which sockets are in a folder, and again when that changes.
    fn scan_folder(&mut self, id: u64, now: Instant) {
        let own = &self.device.config.path;
        let Some(connector) = self.connectors.get_mut(id) else {
            return;
        };
        let watched = watch_folder(&mut self.folders, id, &connector.path);
        let found = match watched.and_then(|()| folder::sockets(&connector.path, own)) {
            Ok(found) => {
                connector.retry.next = None;
                found
            }
            Err(error) => {
                // It is gone, or another one by now, or there is something else.
                if let Some(folders) = &mut self.folders {
                    folders.forget(id);
                }
                connector.retry.next = Some(now + LAST_RETRY);
                if connector.retry.is_news(&error.to_string()) {
                    let (name, path) = (&self.device.name, connector.path.display());
                    log::info!("{name}: looks for the folder {path} each second: {error}");
                }
                // Perhaps it can just not be watched.
                folder::sockets(&connector.path, own).unwrap_or_default()
            }
        };
        self.connectors.update(id, found, now);
    }

    /// Connects to a peer, unless there is a link to it.
    fn join(&mut self, id: u64, now: Instant) {
        let Some(connector) = self.connectors.get_mut(id) else {
            return;
        };
        if connector.gid.is_some_and(|gid| self.device.is_joined(gid)) {
            self.connectors.park(id);
            return;
        }
        let is_joining = |each: &&Connection| each.connector.is_some() && each.is_waiting();
        let count = self.connections.values().filter(is_joining).count();
        if count >= MAX_JOINING || self.reaping.is_full() {
            connector.retry.next = Some(now + FIRST_RETRY);
            return;
        }
        match Socket::connect(&connector.path) {
            Ok(socket) => {
                connector.retry.next = None;
                self.device.count(|counters| counters.connections_made += 1);
                self.begin(socket, Some(id), now);
            }
            Err(error) => {
                connector.say(false, &self.device.name, &explain(&error));
                connector.retry.later(now);
            }
        }
    }
}
