// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The fabric thread: it finds peers, shakes hands with them, and notices when they are gone. While links are up
//! and nothing changes, it sleeps.
//!
//! - [`Fabric`], here, is its loop, and how connections begin and end ([`ending`]: why).
//! - [`joining`] and [`listening`] are where they come from; [`connectors`] and [`folder`] say whom to join.
//! - [`connection`] is one of them, [`handshake`] what it has come to, [`wire`] the messages, [`socket`] and
//!   [`socket_file`] what they travel through.
//! - [`unread`] is what ended before the other end had taken what was sent.
//! - [`backoff`] keeps peers from coming and going too often; [`reaper`] closes what they supply.

mod backoff;
mod connection;
pub mod connectors;
mod ending;
pub mod folder;
pub mod handshake;
mod joining;
mod listening;
pub mod reaper;
pub mod socket;
pub mod socket_file;
mod unread;
pub mod wire;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use self::backoff::Backoff;
use self::connection::{Connection, Context, Stage};
use self::connectors::{Connector, Connectors, FIRST_RETRY};
use self::ending::{Ending, internal};
use self::folder::Folders;
use self::handshake::Handshake;
use self::joining::{OWN_FOLDER, watch_folder};
use self::listening::Listening;
use self::reaper::{Account, Reaper, Reaping};
use self::socket::{Socket, own_user};
use self::unread::Unread;
use self::wire::{Bye, Message};
use crate::event::Limiter;
use crate::{Device, Event, EventKind, Gid};

/// How long a connection may take to become a link.
const HANDSHAKE: Duration = Duration::from_secs(2);

const WAKE: u64 = 0;
const LISTENER: u64 = 1;
const FOLDERS: u64 = 2;
const FIRST_CONNECTION: u64 = 3;

/// What the fabric thread runs. The VMM moves it to a thread of its own and calls [`run`](Self::run).
pub struct Fabric {
    device: Arc<Device>,
    epoll: Epoll,
    listening: Listening,
    connectors: Connectors,
    /// The folders among them that are watched, and the own socket's. If there is nothing to watch them with, they are
    /// looked at each second.
    folders: Option<Folders>,
    /// Something has happened in a folder: when to look. It is not heard of any more until then.
    scan_at: Option<Instant>,
    connections: BTreeMap<u64, Connection>,
    /// What has become of those whose other end has not taken what was sent.
    unread: Unread,
    next_id: u64,
    /// [`HANDSHAKE`], but for tests.
    handshake_time: Duration,
    /// Which peers' links come and go too often.
    backoff: Backoff,
    /// How often others have made this end complain, by who they are.
    complaints: BTreeMap<Account, Limiter>,
    /// How often something has failed at this end.
    errors: Limiter,
    /// The reaper, until the VMM takes it.
    reaper: Option<Reaper>,
    // The last field: the reaper ends when everything else is dropped.
    reaping: Reaping,
}

impl Fabric {
    pub(crate) fn new(device: Arc<Device>, listener: Option<Socket>) -> io::Result<Self> {
        let now = Instant::now();
        let folders = Folders::new().inspect_err(|error| {
            let name = &device.name;
            log::warn!("{name}: looks into folders each second, no inotify: {error}");
        });
        let (reaping, reaper) = Reaping::new(&device.name);
        // Those who wait in its queue may be anybody.
        let strangers = reaping.closer(Account::Stranger);
        let fabric = Fabric {
            epoll: Epoll::new()?,
            listening: Listening::new(listener.map(|socket| strangers.guard(socket)), now),
            connectors: Connectors::new(&device.config.peers, now),
            folders: folders.ok(),
            scan_at: None,
            connections: BTreeMap::new(),
            unread: Unread::new(),
            next_id: FIRST_CONNECTION,
            handshake_time: HANDSHAKE,
            backoff: Backoff::default(),
            complaints: BTreeMap::new(),
            errors: Limiter::default(),
            reaper: Some(reaper),
            reaping,
            device,
        };
        fabric.watch(fabric.device.wake.as_raw_fd(), WAKE)?;
        fabric.listen_to_folders(ControlOperation::Add)?;
        Ok(fabric)
    }

    /// What closes everything that peers supply. The VMM has to [run](Reaper::run) it on a thread of its own, which it never
    /// joins, before it calls [`run`](Self::run). There is one: `None` if it was taken before.
    pub fn reaper(&mut self) -> Option<Reaper> {
        self.reaper.take()
    }

    /// Limits that a test on a busy machine does not run into by itself: how long a handshake takes, and how much waits to
    /// be closed.
    #[cfg(test)]
    pub(crate) fn relax(&mut self) {
        self.handshake_time = 60 * HANDSHAKE;
        self.reaping.set_limits(1024, 4096);
    }

    fn watch(&self, fd: RawFd, id: u64) -> io::Result<()> {
        self.epoll
            .ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, id))
    }

    /// It is closed later, and must not be heard of any more.
    fn unwatch(&self, fd: RawFd) {
        let event = EpollEvent::default();
        // It fails only if it was not watched.
        let _ = self.epoll.ctl(ControlOperation::Delete, fd, event);
    }

    /// Serves the fabric until [`Device::shutdown`](crate::Device::shutdown), and then ends all links.
    ///
    /// Nothing that a peer does or holds makes it wait, as long as the [`reaper`](Self::reaper) runs.
    pub fn run(mut self) {
        if self.reaper.is_some() {
            log::error!(
                "{}: no links: the VMM does not run Fabric::reaper()",
                self.device.name
            );
            return;
        }
        let mut events = [EpollEvent::default(); 32];
        while !self.device.is_stopping() {
            match self.epoll.wait(self.timeout(), &mut events) {
                Ok(count) => {
                    for event in events.iter().take(count) {
                        match event.data() {
                            WAKE => self.woken(),
                            LISTENER => self.accept(),
                            FOLDERS => self.scan_at = Some(Instant::now() + self.scan_delay()),
                            id => self.readable(id),
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    log::error!("{}: the fabric thread ends: {error}", self.device.name);
                    return;
                }
            }
            self.expire();
        }
    }

    /// Milliseconds until something is due; -1: nothing is.
    fn timeout(&self) -> i32 {
        if self.device.is_held() {
            return -1;
        }
        let waiting = self
            .connections
            .values()
            .filter(|connection| connection.is_waiting());
        let deadlines = waiting.map(|connection| connection.deadline);
        let retries = [
            self.listening.paused,
            self.scan_at,
            self.listening.again.next,
            self.listening.check.next,
            self.connectors.next(),
            self.unread.check.next,
        ];
        let Some(due) = deadlines.chain(retries.into_iter().flatten()).min() else {
            return -1;
        };
        let wait = due.saturating_duration_since(Instant::now());
        // One more, so that it is due when the wait is over.
        i32::try_from(wait.as_millis() + 1).unwrap_or(i32::MAX)
    }

    /// Does what is due.
    fn expire(&mut self) {
        if self.device.is_held() {
            return;
        }
        let now = Instant::now();
        if self.listening.again.is_due(now) {
            self.listen(now);
        }
        if self.scan_at.is_some_and(|until| until <= now) {
            self.scan(now);
        }
        if self.listening.check.is_due(now) {
            self.check_file(now);
        }
        if self.listening.paused.is_some_and(|until| until <= now) {
            self.resume_accepting(now);
        }
        if self.unread.check.is_due(now) {
            self.unread.look(now);
        }
        let is_late =
            |connection: &Connection| connection.is_waiting() && connection.deadline <= now;
        let late: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, each)| is_late(each))
            .map(|(&id, _)| id)
            .collect();
        for id in late {
            self.end(id, &Ending::TimedOut);
        }
        for id in self.connectors.due(now) {
            self.attempt(id, now);
        }
    }

    /// The device stops, or is held no longer, or the guest has let go of windows, or the device was reset, or links are
    /// to end.
    fn woken(&mut self) {
        // It is nobody else's and does not block; an error says that it is empty.
        let _ = self.device.wake.read();
        if self.device.reap() {
            self.connectors.retry_soon(Instant::now(), |_| true);
        }
        let is_gone = |connection: &Connection| match connection.stage {
            Stage::Up {
                link, generation, ..
            } => !self.device.is_up(link, generation),
            _ => false,
        };
        let gone: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, each)| is_gone(each))
            .map(|(&id, _)| id)
            .collect();
        for id in gone {
            self.end(id, &Ending::Closing);
        }
        let dropped = self.device.take_dropped();
        let is_dropped = |each: &Connection| {
            each.handshake
                .peer()
                .is_some_and(|gid| dropped.contains(&gid))
        };
        let all = self.connections.iter();
        let ids: Vec<u64> = all
            .filter(|(_, each)| is_dropped(each))
            .map(|(&id, _)| id)
            .collect();
        for id in ids {
            self.end(id, &Ending::Dropped);
        }
    }

    /// Both ends of a new connection introduce themselves, if the other one is admitted. Until it is, nothing that it
    /// sends is looked at.
    fn begin(&mut self, mut socket: Socket, connector: Option<u64>, now: Instant) {
        self.unread.look(now);
        let admitted = self.admit(&socket);
        let account = match &admitted {
            Ok(user) => Account::User(*user),
            Err(_) => Account::Stranger,
        };
        let closer = self.reaping.closer(account);
        let hello = self.device.hello();
        let id = self.next_id;
        self.next_id += 1;
        let started = admitted.and_then(|user| {
            if closer.is_full() {
                return Err(Ending::NoPlace(Bye::Busy));
            }
            if connector.is_none()
                && let Some(ending) = self.has_too_many(user)
            {
                return Err(ending);
            }
            if self.unread.is_full(user) {
                let why =
                    "too many of its connections have ended with descriptors that it has not taken";
                return Err(Ending::Crowded(why.into()));
            }
            socket
                .allow_rights()
                .map_err(internal("take descriptors"))?;
            self.watch(socket.as_raw_fd(), id)
                .map_err(internal("watch it"))?;
            socket
                .send(&Message::Hello(hello).encode(), &[])
                .map_err(internal("send HELLO"))?;
            Ok(user)
        });
        let connection = Connection {
            socket: closer.guard(socket),
            closer,
            user: started.as_ref().ok().copied(),
            connector,
            handshake: Handshake::new(hello),
            deadline: now + self.handshake_time,
            stage: Stage::Talking,
            has_sent: false,
        };
        self.connections.insert(id, connection);
        if let Err(ending) = started {
            self.end(id, &ending);
        }
    }

    /// The user at the other end, if this end admits it.
    fn admit(&self, socket: &Socket) -> Result<u32, Ending> {
        let (user, group) = socket
            .peer_user()
            .map_err(internal("tell the other end's user"))?;
        let config = &self.device.config;
        if user == own_user() || config.allows_user(user) {
            return Ok(user);
        }
        if config.allows_groups() {
            let mut groups = socket
                .peer_groups()
                .map_err(internal("tell the other end's groups"))?;
            groups.push(group);
            if groups.iter().any(|group| config.allows_group(*group)) {
                return Ok(user);
            }
        }
        let why = format!(
            "user {user} is at the other end, of group {group}; allow={user} would admit it"
        );
        Err(Ending::Refused(why))
    }

    /// There is something to read on a connection, or it was closed.
    fn readable(&mut self, id: u64) {
        // It may have ended a moment ago, in the same round.
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let result = connection.readable(&mut Context {
            device: &self.device,
            backoff: &mut self.backoff,
            now: Instant::now(),
        });
        if let Some(gid) = connection.handshake.peer() {
            if let Some(id) = connection.connector {
                if let Some(connector) = self.connectors.get_mut(id) {
                    connector.gid = Some(gid);
                    if !connection.is_waiting() {
                        connector.retry.delay = FIRST_RETRY;
                    }
                    self.device.found_at(gid, &connector.path);
                }
            } else if !connection.is_waiting()
                && let Some(path) = self.connectors.path_of(gid)
            {
                self.device.found_at(gid, path);
            }
        }
        if let Err(ending) = result {
            self.end(id, &ending);
        }
    }

    /// Ends a connection, and the link that it was.
    fn end(&mut self, id: u64, ending: &Ending) {
        let Some(connection) = self.connections.remove(&id) else {
            return;
        };
        let device = &self.device;
        self.unwatch(connection.socket.as_raw_fd());
        let now = Instant::now();
        let is_unread = connection.has_sent && connection.socket.has_unread();
        if let Some(reason) = ending.bye() {
            // The other end may be gone, or not listen: it learns from the connection's end anyway.
            let _ = connection.socket.send(&Message::Bye(reason).encode(), &[]);
        }
        // It is closed later; the other end learns of it, and cannot send any more, from here on.
        connection.socket.shut_down();
        if connection.socket.is_without_rights() {
            drop(connection.socket.into_inner());
        } else if is_unread {
            self.unread.keep(connection.user, connection.socket, now);
        }
        device.count(|counters| match ending {
            Ending::Crowded(_) | Ending::Refused(_) => counters.handshakes_refused += 1,
            Ending::Protocol(_) => counters.protocol_errors += 1,
            Ending::TimedOut => counters.handshakes_timed_out += 1,
            _ => {}
        });
        let peer = connection.handshake.peer();
        let is_refused = matches!(
            ending,
            Ending::Crowded(_) | Ending::Refused(_) | Ending::Protocol(_) | Ending::TimedOut
        );
        let account = connection.closer.account();
        let (is_warning, why) = ending.describe();
        let mut has_lost = false;
        match connection.stage {
            Stage::Talking => {}
            Stage::Offered { link, .. } => device.cancel(link),
            Stage::Up {
                link,
                generation,
                since,
            } => {
                device.lose(link, generation, &why);
                let peer = peer.map(|gid| gid.to_string()).unwrap_or_default();
                log::info!("{}: link {link} to {peer} ends: {why}", device.name);
                has_lost = true;
                // What this end ended is not the peer's doing.
                if !matches!(ending, Ending::Closing | Ending::Dropped)
                    && let (Some(user), Some(gid)) = (connection.user, connection.handshake.peer())
                {
                    let stood = now.saturating_duration_since(since);
                    self.backoff.ended(user, gid, stood, now);
                }
            }
        }
        let mut warns = false;
        match connection.connector {
            Some(id) => {
                if let Some(connector) = self.connectors.get_mut(id) {
                    connector.say(is_warning, &device.name, &why);
                }
                self.connectors.ended(id, now);
            }
            None => {
                log::debug!("{}: a connection ends: {why}", device.name);
                warns = is_warning;
            }
        }
        if warns || is_refused {
            // What fails at this end is not kept back because somebody has made it complain.
            let limiter = match ending {
                Ending::Internal(_) => &mut self.errors,
                _ => self.complaints.entry(account).or_default(),
            };
            if let Some(left_out) = limiter.pass(now) {
                self.complain(why, left_out, peer, warns, is_refused);
            }
        }
        if let Some(gid) = peer {
            self.connectors.unpark(gid, now);
        }
        if has_lost {
            let is_its = |connector: &Connector| connector.gid == peer;
            self.connectors.retry_soon(now, is_its);
        }
    }

    /// Warns of a connection that has ended, and tells the VMM if it was refused.
    fn complain(
        &self,
        mut reason: String,
        left_out: u64,
        peer: Option<Gid>,
        warns: bool,
        is_refused: bool,
    ) {
        if left_out > 0 {
            reason += &format!(" (and {left_out} more that were not told)");
        }
        if warns {
            log::warn!("{}: a connection ends: {reason}", self.device.name);
        }
        if is_refused {
            let (kind, link) = (EventKind::Refused, None);
            self.device.tell(&Event {
                kind,
                link,
                peer,
                reason,
            });
        }
    }
}

impl Drop for Fabric {
    fn drop(&mut self) {
        // While this end still listens, so that nobody replaces the file in between.
        self.device.remove_file();
        self.end_listening();
        for id in self.connections.keys().copied().collect::<Vec<_>>() {
            self.end(id, &Ending::Closing);
        }
        self.device.close();
    }
}
