// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The socket that others connect to: listening on it, keeping its file in place, taking connections.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use super::backoff::Bucket;
use super::connectors::{LAST_RETRY, Retry};
use super::reaper::{Account, Foreign};
use super::socket::Socket;
use super::{Connection, Ending, Fabric, LISTENER, OWN_FOLDER, watch_folder};
use crate::limits::explain;

/// How many connections that others made may be waiting to become links: of one user, and in all.
const MAX_WAITING_OF_USER: usize = 16;
const MAX_WAITING: usize = 64;
/// How many connections are accepted: at once, and in a second.
const ACCEPTS: Bucket = Bucket::new(100, 1000);
/// How long not to accept connections when there were too many, or the process is out of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Where others connect to.
pub struct Listening {
    /// There is none as long as the path is in use.
    socket: Option<Foreign<Socket>>,
    /// Whether epoll tells of connections.
    is_watched: bool,
    /// When to try to listen.
    pub again: Retry,
    /// When to begin to accept connections (again), if not now.
    pub paused: Option<Instant>,
    /// When to look whether the socket's file is still there.
    pub check: Retry,
    accepts: Bucket,
}

impl Listening {
    pub fn new(socket: Option<Foreign<Socket>>, now: Instant) -> Self {
        Listening {
            again: Retry::from(socket.is_none().then_some(now)),
            // A device that is held begins later.
            paused: socket.is_some().then_some(now),
            socket,
            is_watched: false,
            check: Retry::from(Some(now)),
            accepts: ACCEPTS,
        }
    }
}

impl Fabric {
    /// Listens, now that the path may be free.
    pub(super) fn listen(&mut self, now: Instant) {
        let (name, path) = (&self.device.name, self.device.config.path.display());
        match self.device.listen() {
            Ok(Some(socket)) => {
                log::info!("{name}: listens on {path} now");
                self.listening.again.next = None;
                self.listening.check.next = Some(now);
                self.listen_on(socket, now);
            }
            // The device stops.
            Ok(None) => self.listening.again.next = None,
            Err(error) => {
                if self.listening.again.is_news(&error.to_string()) {
                    log::info!("{name}: listens on {path} as soon as it can: {error}");
                }
                self.listening.again.later(now);
            }
        }
    }

    /// From now on connections come from this socket.
    fn listen_on(&mut self, socket: Socket, now: Instant) {
        self.end_listening();
        // Those who wait in its queue may be anybody.
        let closer = self.reaping.closer(Account::Stranger);
        self.listening.socket = Some(closer.guard(socket));
        self.listening.paused = Some(now);
    }

    /// Nobody can connect any more.
    pub(super) fn end_listening(&mut self) {
        self.stop_accepting();
        if let Some(socket) = self.listening.socket.take() {
            socket.shut_down();
        }
    }

    /// Connections stay in the socket's queue from now on.
    fn stop_accepting(&mut self) {
        if let Some(socket) = &self.listening.socket
            && self.listening.is_watched
        {
            self.unwatch(socket.as_raw_fd());
        }
        self.listening.is_watched = false;
    }

    /// The same for a moment.
    fn pause(&mut self, now: Instant) {
        self.stop_accepting();
        self.listening.paused = Some(now + PAUSE);
    }

    /// The pause is over.
    pub(super) fn resume_accepting(&mut self, now: Instant) {
        self.listening.paused = None;
        if self.listening.is_watched {
            return;
        }
        let Some(socket) = &self.listening.socket else {
            return;
        };
        match self.watch(socket.as_raw_fd(), LISTENER) {
            Ok(()) => self.listening.is_watched = true,
            Err(error) => {
                if self.errors.pass(now).is_some() {
                    log::error!("{}: no peer can connect for now: {error}", self.device.name);
                }
                self.listening.paused = Some(now + PAUSE);
            }
        }
    }

    /// Takes the connection that somebody has made.
    pub(super) fn accept(&mut self) {
        let now = Instant::now();
        if self.reaping.is_full() || !self.listening.accepts.take(now) {
            self.pause(now);
            return;
        }
        let Some(listener) = &self.listening.socket else {
            return;
        };
        match listener.accept() {
            Ok(Some(socket)) => {
                self.device
                    .count(|counters| counters.connections_accepted += 1);
                self.begin(socket, None, now);
            }
            Ok(None) => {}
            Err(error) => {
                if self.errors.pass(now).is_some() {
                    let name = &self.device.name;
                    log::error!("{name}: cannot accept a connection: {}", explain(&error));
                }
                // The connection stays in the queue: look again when there may be descriptors.
                self.pause(now);
            }
        }
    }

    /// Why a connection that this user made cannot wait to become a link, if it cannot.
    pub(super) fn has_too_many(&self, user: u32) -> Option<Ending> {
        let accepted = |each: &&Connection| each.connector.is_none() && each.is_waiting();
        let waiting = || self.connections.values().filter(accepted);
        let of_user = waiting().filter(|each| each.user == Some(user)).count();
        (of_user >= MAX_WAITING_OF_USER || waiting().count() >= MAX_WAITING)
            .then(|| Ending::Crowded("too many connections wait to become links".into()))
    }

    /// Sees to it that peers can connect: if the own socket's file is gone, perhaps with its folder, it is made again.
    /// Another file in its place is not ours to remove.
    pub(super) fn check_file(&mut self, now: Instant) {
        self.listening.check.next = None;
        if self.listening.socket.is_none() {
            return;
        }
        let path = &self.device.config.path;
        let folder = path.parent().filter(|path| !path.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        let watched = watch_folder(&mut self.folders, OWN_FOLDER, folder);
        let (name, path) = (&self.device.name, path.display());
        match self.device.listen_anew() {
            Ok(made) => {
                let is_again = self.listening.check.is_news("");
                if watched.is_err() {
                    self.listening.check.next = Some(now + LAST_RETRY);
                }
                if let Some(socket) = made {
                    log::warn!("{name}: the file {path} was gone and is made again");
                    self.listen_on(socket, now);
                } else if is_again {
                    log::info!("{name}: the file {path} is there again");
                }
            }
            Err(error) => {
                if self.listening.check.is_news(&error.to_string()) {
                    log::warn!(
                        "{name}: no peer can connect: the file {path} is gone, and is made again as soon as it can \
                         be: {error}"
                    );
                }
                self.listening.check.next = Some(now + LAST_RETRY);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::OwnedFd;

    use super::*;
    use crate::test_utils::FakeHost;
    use crate::{Config, Device};

    /// It was tried once, and never again.
    #[test]
    fn a_listener_that_epoll_does_not_take_is_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::new(folder.path().join("a"));
        let (device, mut fabric) = Device::new("test", config, FakeHost::new(), None).unwrap();
        device.resume();
        // epoll takes no file.
        let closer = fabric.reaping.closer(Account::Stranger);
        let file = File::open("/proc/self/exe").unwrap();
        let listener = fabric
            .listening
            .socket
            .replace(closer.guard(Socket::from(OwnedFd::from(file))));
        let start = Instant::now();
        fabric.resume_accepting(start);
        assert!(!fabric.listening.is_watched);
        assert!(fabric.listening.paused.is_some_and(|until| until > start));
        fabric.listening.socket = listener;
        fabric.resume_accepting(start + PAUSE);
        assert!(fabric.listening.is_watched && fabric.listening.paused.is_none());
        device.shutdown();
    }
}
