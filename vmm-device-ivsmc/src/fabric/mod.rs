// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The fabric thread: it finds peers, shakes hands with them, and notices when they are gone. While links are up
//! and nothing changes, it sleeps.

pub mod connectors;
pub mod folder;
pub mod handshake;
pub mod socket;
pub mod wire;

use std::collections::BTreeMap;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::Device as Core;
use crate::connectors::{Connector, Connectors, FIRST_RETRY, LAST_RETRY, Retry};
use crate::event::Limiter;
use crate::folder::Folders;
use crate::guest::wiring::{WiringError, share};
use crate::handshake::{End, Handshake, Step, Terms};
use crate::socket::{Packet, Socket, into_eventfd, own_user};
use crate::wire::{Bye, Message};
use crate::{Event, EventKind, Gid, Window};

/// How long a connection may take to become a link.
const HANDSHAKE: Duration = Duration::from_secs(2);
/// How many connections that others made may be waiting to become links.
const MAX_WAITING: usize = 16;
/// How many that this end made may be: no fewer than the most peers that can be listed. Folders can have more.
const MAX_JOINING: usize = 64;
/// How long to let folders come to rest before they are looked at.
const REST: Duration = Duration::from_millis(50);
/// The same if there are no folders of peers, but only the own socket's.
const OWN_REST: Duration = Duration::from_secs(1);
/// How long not to accept connections when the process is out of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

const WAKE: u64 = 0;
const LISTENER: u64 = 1;
const FOLDERS: u64 = 2;
const FIRST_CONNECTION: u64 = 3;
/// The number, among folders, of the one that the device's own socket is in. The others have their connector's.
const OWN_FOLDER: u64 = u64::MAX;

/// What the fabric thread runs. The VMM moves it to a thread of its own and calls [`run`](Self::run).
pub struct Fabric {
    core: Arc<Core>,
    epoll: Epoll,
    /// There is none as long as the path is in use.
    listener: Option<Socket>,
    /// When to try to listen.
    listening: Retry,
    /// When to begin to accept connections (again), if not now.
    paused: Option<Instant>,
    connectors: Connectors,
    /// The folders among them that are watched, and the own socket's. If there is nothing to watch them with, they are
    /// looked at each second.
    folders: Option<Folders>,
    /// Something has happened in a folder: when to look. It is not heard of any more until then.
    stirred: Option<Instant>,
    /// When to look whether the own socket's file is still there.
    guarding: Retry,
    connections: BTreeMap<u64, Connection>,
    next_id: u64,
    /// How often others have made this end complain.
    limiter: Limiter,
}

struct Connection {
    socket: Socket,
    /// The connector that made it; `None` if the other end did.
    connector: Option<u64>,
    handshake: Handshake,
    deadline: Instant,
    stage: Stage,
}

/// What a connection holds.
enum Stage {
    Talking,
    /// Side 0 has made and offered a window.
    Offered {
        link: usize,
        window: Window,
        vectors: Vec<EventFd>,
    },
    Up {
        link: usize,
        generation: u32,
    },
}

/// Why a connection ends.
enum Ending {
    /// The other end closed or said BYE.
    Left(Option<Bye>),
    /// There is no place for it, or none for now.
    NoPlace(Bye),
    /// This end does not want it.
    Refused(String),
    /// The other end broke the protocol.
    Protocol(String),
    /// It took too long.
    TimedOut,
    /// The device closes, or was reset.
    Closing,
    /// Something failed here.
    Internal(String),
}

impl Ending {
    /// What to tell the other end.
    fn bye(&self) -> Option<Bye> {
        match self {
            Ending::Left(_) => None,
            Ending::NoPlace(reason) => Some(*reason),
            Ending::Refused(_) => Some(Bye::Refused),
            Ending::Protocol(_) => Some(Bye::Protocol),
            Ending::TimedOut | Ending::Closing => Some(Bye::Closing),
            Ending::Internal(_) => Some(Bye::Internal),
        }
    }

    /// Whether it is worth a warning, and what to say.
    fn describe(&self) -> (bool, String) {
        match self {
            Ending::Left(None) => (false, "the other end has closed it".into()),
            Ending::Left(Some(reason @ (Bye::Closing | Bye::Duplicate | Bye::Busy))) => {
                (false, format!("the other end says {reason:?}"))
            }
            Ending::Left(Some(reason)) => (true, format!("the other end says {reason:?}")),
            Ending::NoPlace(reason @ (Bye::Duplicate | Bye::Busy)) => {
                (false, format!("this end says {reason:?}"))
            }
            Ending::NoPlace(reason) => (true, format!("this end says {reason:?}")),
            Ending::Refused(why) => (true, format!("refused: {why}")),
            Ending::Protocol(why) => (true, format!("the other end broke the protocol: {why}")),
            Ending::TimedOut => (true, "it did not become a link in time".into()),
            Ending::Closing => (false, "this end closes".into()),
            Ending::Internal(why) => (true, why.clone()),
        }
    }
}

impl From<End> for Ending {
    fn from(end: End) -> Self {
        match end {
            End::Bye(reason) => Ending::Left(Some(reason)),
            End::Refused(why) => Ending::Refused(why.into()),
            End::Protocol(why) => Ending::Protocol(why.into()),
        }
    }
}

impl From<WiringError> for Ending {
    fn from(error: WiringError) -> Self {
        match error {
            WiringError::NotAnEventfd => Ending::Protocol(error.to_string()),
            WiringError::Host(error) => internal("place the link in the guest")(error),
        }
    }
}

/// Watches a folder, if there is anything to watch it with.
fn watch_folder(folders: &mut Option<Folders>, id: u64, path: &Path) -> io::Result<()> {
    match folders {
        Some(folders) => folders.watch(id, path),
        None => Err(io::Error::other("there is no inotify for it")),
    }
}

/// An error of this end's own.
fn internal(what: &'static str) -> impl Fn(io::Error) -> Ending {
    move |error| Ending::Internal(format!("cannot {what}: {error}"))
}

impl Fabric {
    /// The system calls that [`run`](Self::run) makes, for a seccomp filter of the thread that runs it: those of
    /// its own, of the allocator, of thread exit, and of the calls of a [`Host`](crate::Host) that does what it must with
    /// ioctls. What else the host and the logger make has to be added.
    pub const SYSCALLS: &'static [i64] = &[
        // The loop.
        #[cfg(target_arch = "x86_64")]
        libc::SYS_epoll_wait,
        libc::SYS_epoll_pwait,
        libc::SYS_epoll_ctl,
        libc::SYS_clock_gettime,
        libc::SYS_restart_syscall,
        // Connections and descriptors in them.
        libc::SYS_socket,
        libc::SYS_bind,
        libc::SYS_listen,
        libc::SYS_connect,
        libc::SYS_accept4,
        libc::SYS_getsockopt,
        libc::SYS_geteuid,
        libc::SYS_sendmsg,
        libc::SYS_recvmsg,
        libc::SYS_close,
        // The socket's file, if the path was in use at first or it has been removed.
        libc::SYS_statx,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_chmod,
        libc::SYS_fchmodat,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_lstat,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_unlink,
        libc::SYS_unlinkat,
        // Folders of peers.
        #[cfg(target_arch = "x86_64")]
        libc::SYS_stat,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_open,
        libc::SYS_inotify_init1,
        libc::SYS_inotify_add_watch,
        libc::SYS_inotify_rm_watch,
        libc::SYS_openat,
        libc::SYS_getdents64,
        // Windows.
        libc::SYS_memfd_create,
        libc::SYS_ftruncate,
        libc::SYS_fcntl,
        libc::SYS_fstat,
        libc::SYS_newfstatat,
        libc::SYS_fstatfs,
        libc::SYS_mmap,
        libc::SYS_munmap,
        // Interrupt lines; the log.
        libc::SYS_eventfd2,
        libc::SYS_read,
        libc::SYS_preadv2,
        libc::SYS_write,
        // The host: KVM_SET_USER_MEMORY_REGION, KVM_IOEVENTFD, KVM_IRQFD, KVM_SET_GSI_ROUTING.
        libc::SYS_ioctl,
        // The lock, the allocator, the thread's end.
        libc::SYS_futex,
        libc::SYS_brk,
        libc::SYS_mremap,
        libc::SYS_mprotect,
        libc::SYS_madvise,
        libc::SYS_sched_yield,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        libc::SYS_exit,
    ];

    pub(crate) fn new(core: Arc<Core>, listener: Option<Socket>) -> io::Result<Self> {
        let now = Instant::now();
        let folders = Folders::new().inspect_err(|error| {
            let name = &core.name;
            log::warn!("{name}: looks into folders each second, no inotify: {error}");
        });
        let fabric = Fabric {
            epoll: Epoll::new()?,
            listening: Retry::from(listener.is_none().then_some(now)),
            // A device that is held begins later.
            paused: listener.is_some().then_some(now),
            listener,
            connectors: Connectors::new(&core.config.peers, now),
            folders: folders.ok(),
            stirred: None,
            guarding: Retry::from(Some(now)),
            connections: BTreeMap::new(),
            next_id: FIRST_CONNECTION,
            limiter: Limiter::default(),
            core,
        };
        fabric.watch(fabric.core.wake.as_raw_fd(), WAKE)?;
        fabric.listen_to_folders(ControlOperation::Add)?;
        Ok(fabric)
    }

    /// Folders are heard of once from now on.
    fn listen_to_folders(&self, operation: ControlOperation) -> io::Result<()> {
        let Some(folders) = &self.folders else {
            return Ok(());
        };
        let event = EpollEvent::new(EventSet::IN | EventSet::ONE_SHOT, FOLDERS);
        self.epoll.ctl(operation, folders.as_raw_fd(), event)
    }

    fn watch(&self, fd: RawFd, id: u64) -> io::Result<()> {
        self.epoll
            .ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, id))
    }

    /// Serves the fabric until [`Device::shutdown`](crate::Device::shutdown), and then ends all links.
    pub fn run(mut self) {
        let mut events = [EpollEvent::default(); 32];
        while !self.core.is_stopping() {
            match self.epoll.wait(self.timeout(), &mut events) {
                Ok(count) => {
                    for event in events.iter().take(count) {
                        match event.data() {
                            WAKE => self.woken(),
                            LISTENER => self.accept(),
                            FOLDERS => self.stirred = Some(Instant::now() + self.rest()),
                            id => self.readable(id),
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    log::error!("{}: the fabric thread ends: {error}", self.core.name);
                    return;
                }
            }
            self.expire();
        }
    }

    /// Milliseconds until something is due; -1: nothing is.
    fn timeout(&self) -> i32 {
        if self.core.is_held() {
            return -1;
        }
        let waiting = self
            .connections
            .values()
            .filter(|connection| connection.is_waiting());
        let deadlines = waiting.map(|connection| connection.deadline);
        let retries = [
            self.paused,
            self.stirred,
            self.listening.next,
            self.guarding.next,
            self.connectors.next(),
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
        if self.core.is_held() {
            return;
        }
        let now = Instant::now();
        if self.listening.is_due(now) {
            self.listen(now);
        }
        if self.stirred.is_some_and(|until| until <= now) {
            self.look_around(now);
        }
        if self.guarding.is_due(now) {
            self.guard(now);
        }
        if self.paused.is_some_and(|until| until <= now)
            && let Some(listener) = &self.listener
        {
            if let Err(error) = self.watch(listener.as_raw_fd(), LISTENER) {
                log::error!("{}: no peer can connect: {error}", self.core.name);
            }
            self.paused = None;
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

    /// Listens, now that the path may be free.
    fn listen(&mut self, now: Instant) {
        let (name, path) = (&self.core.name, self.core.config.path.display());
        match self.core.listen() {
            Ok(Some(listener)) => {
                log::info!("{name}: listens on {path} now");
                self.listener = Some(listener);
                self.listening.next = None;
                self.paused = Some(now);
                self.guarding.next = Some(now);
            }
            // The device stops.
            Ok(None) => self.listening.next = None,
            Err(error) => {
                if self.listening.is_news(&error.to_string()) {
                    log::info!("{name}: listens on {path} as soon as it can: {error}");
                }
                self.listening.later(now);
            }
        }
    }

    /// The device stops, or is held no longer, or the guest has let go of windows, or the device was reset.
    fn woken(&mut self) {
        // It is nobody else's and does not block; an error says that it is empty.
        let _ = self.core.wake.read();
        if self.core.reap() {
            self.connectors.hasten(Instant::now(), |_| true);
        }
        let is_gone = |connection: &Connection| match connection.stage {
            Stage::Up { link, generation } => !self.core.is_up(link, generation),
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
    }

    /// Joins a peer, or looks into a folder of them. What is listed may be either, and become the other.
    fn attempt(&mut self, id: u64, now: Instant) {
        let Some(connector) = self.connectors.get_mut(id) else {
            return;
        };
        let folders = self.folders.as_ref();
        let is_watched = folders.is_some_and(|folders| folders.is_watched(id));
        if connector.is_listed() && (is_watched || connector.path.is_dir()) {
            self.look(id, now);
        } else {
            self.join(id, now);
        }
    }

    /// How long to leave folders alone in which something has happened: who does a lot in them must not keep this
    /// thread busy.
    fn rest(&self) -> Duration {
        let mut watched = self.folders.iter().flat_map(Folders::watched);
        if watched.any(|id| id != OWN_FOLDER) {
            REST
        } else {
            OWN_REST
        }
    }

    /// Something has happened in a folder a moment ago: all are looked at.
    fn look_around(&mut self, now: Instant) {
        self.stirred = None;
        if let Some(folders) = &self.folders {
            folders.drain();
            self.connectors.look_at(folders.watched(), now);
            self.guarding.next = Some(now);
        }
        if let Err(error) = self.listen_to_folders(ControlOperation::Modify) {
            log::error!("{}: does not hear of folders: {error}", self.core.name);
        }
    }

    /// Sees to it that peers can connect: if the own socket's file is gone, perhaps with its folder, it is made again.
    /// Another file in its place is not ours to remove.
    fn guard(&mut self, now: Instant) {
        self.guarding.next = None;
        if self.listener.is_none() {
            return;
        }
        let path = &self.core.config.path;
        let folder = path.parent().filter(|path| !path.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        let watched = watch_folder(&mut self.folders, OWN_FOLDER, folder);
        let (name, path) = (&self.core.name, path.display());
        match self.core.listen_anew() {
            Ok(made) => {
                let is_again = self.guarding.is_news("");
                if let Some(listener) = made {
                    log::warn!("{name}: the file {path} was gone and is made again");
                    self.listener = Some(listener);
                    self.paused = Some(now);
                } else if is_again {
                    log::info!("{name}: the file {path} is there again");
                }
                if watched.is_err() {
                    self.guarding.next = Some(now + LAST_RETRY);
                }
            }
            Err(error) => {
                if self.guarding.is_news(&error.to_string()) {
                    log::warn!(
                        "{name}: no peer can connect: the file {path} is gone, and is made again as soon as it can \
                         be: {error}"
                    );
                }
                self.guarding.next = Some(now + LAST_RETRY);
            }
        }
    }

    /// Looks which sockets are in a folder, and again when that changes.
    fn look(&mut self, id: u64, now: Instant) {
        let own = &self.core.config.path;
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
                    let (name, path) = (&self.core.name, connector.path.display());
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
        if connector.gid.is_some_and(|gid| self.core.is_joined(gid)) {
            self.connectors.rest(id);
            return;
        }
        let is_joining = |each: &&Connection| each.connector.is_some() && each.is_waiting();
        if self.connections.values().filter(is_joining).count() >= MAX_JOINING {
            connector.retry.next = Some(now + FIRST_RETRY);
            return;
        }
        match Socket::connect(&connector.path) {
            Ok(socket) => {
                connector.retry.next = None;
                self.core.count(|counters| counters.connections_made += 1);
                self.begin(socket, Some(id));
            }
            Err(error) => {
                connector.say(false, &self.core.name, &error.to_string());
                connector.retry.later(now);
            }
        }
    }

    /// Takes the connection that somebody has made.
    fn accept(&mut self) {
        let Some(listener) = &self.listener else {
            return;
        };
        match listener.accept() {
            Ok(Some(socket)) => {
                self.core
                    .count(|counters| counters.connections_accepted += 1);
                let is_waiting = |each: &&Connection| each.connector.is_none() && each.is_waiting();
                if self.connections.values().filter(is_waiting).count() >= MAX_WAITING {
                    self.core.count(|counters| counters.handshakes_refused += 1);
                    let _ = socket.send(&Message::Bye(Bye::Full).encode(), &[]);
                    let why = "refused: too many connections wait to become links";
                    self.complain(why, None, true, true);
                } else {
                    self.begin(socket, None);
                }
            }
            Ok(None) => {}
            Err(error) => {
                let fd = listener.as_raw_fd();
                if self.limiter.pass(Instant::now()).is_some() {
                    log::error!("{}: cannot accept a connection: {error}", self.core.name);
                }
                // The connection stays in the queue: look again when there may be descriptors.
                if self
                    .epoll
                    .ctl(ControlOperation::Delete, fd, EpollEvent::default())
                    .is_ok()
                {
                    self.paused = Some(Instant::now() + PAUSE);
                }
            }
        }
    }

    /// Both ends of a new connection introduce themselves.
    fn begin(&mut self, socket: Socket, connector: Option<u64>) {
        let hello = self.core.hello();
        let id = self.next_id;
        self.next_id += 1;
        let mut ending = self
            .watch(socket.as_raw_fd(), id)
            .err()
            .map(internal("watch it"));
        match socket.peer_user() {
            Ok(user) if user == own_user() || self.core.config.allows(user) => {}
            Ok(user) => {
                let why = format!("user {user} is at the other end; allow={user} would admit it");
                ending = Some(Ending::Refused(why));
            }
            Err(error) => ending = Some(internal("tell the other end's user")(error)),
        }
        if ending.is_none() {
            let sent = socket.send(&Message::Hello(hello).encode(), &[]);
            ending = sent.err().map(internal("send HELLO"));
        }
        let handshake = Handshake::new(hello);
        let deadline = Instant::now() + HANDSHAKE;
        let stage = Stage::Talking;
        self.connections.insert(
            id,
            Connection {
                socket,
                connector,
                handshake,
                deadline,
                stage,
            },
        );
        if let Some(ending) = ending {
            self.end(id, &ending);
        }
    }

    /// There is something to read on a connection, or it was closed.
    fn readable(&mut self, id: u64) {
        // It may have ended a moment ago, in the same round.
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let result = match connection.socket.receive() {
            Ok(None) => Ok(()),
            Ok(Some(packet)) => connection.receive(packet, &self.core),
            Err(_) => Err(Ending::Left(None)),
        };
        if let Some(gid) = connection.handshake.peer()
            && let Some(id) = connection.connector
            && let Some(connector) = self.connectors.get_mut(id)
        {
            connector.gid = Some(gid);
            if !connection.is_waiting() {
                connector.retry.delay = FIRST_RETRY;
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
        let core = &self.core;
        if let Some(reason) = ending.bye() {
            // The other end may be gone, or not listen: it learns from the connection's end anyway.
            let _ = connection.socket.send(&Message::Bye(reason).encode(), &[]);
        }
        core.count(|counters| match ending {
            Ending::Refused(_) => counters.handshakes_refused += 1,
            Ending::Protocol(_) => counters.protocol_errors += 1,
            Ending::TimedOut => counters.handshakes_timed_out += 1,
            _ => {}
        });
        let peer = connection.handshake.peer();
        let is_refused = matches!(
            ending,
            Ending::Refused(_) | Ending::Protocol(_) | Ending::TimedOut
        );
        let (is_warning, why) = ending.describe();
        let mut has_lost = false;
        match connection.stage {
            Stage::Talking => {}
            Stage::Offered { link, .. } => core.cancel(link),
            Stage::Up { link, generation } => {
                core.lose(link, generation, &why);
                let peer = peer.map(|gid| gid.to_string()).unwrap_or_default();
                log::info!("{}: link {link} to {peer} ends: {why}", core.name);
                has_lost = true;
            }
        }
        let now = Instant::now();
        let mut warns = false;
        match connection.connector {
            Some(id) => {
                if let Some(connector) = self.connectors.get_mut(id) {
                    connector.say(is_warning, &core.name, &why);
                }
                self.connectors.ended(id, now);
            }
            None => {
                log::debug!("{}: a connection ends: {why}", core.name);
                warns = is_warning;
            }
        }
        if warns || is_refused {
            self.complain(&why, peer, warns, is_refused);
        }
        if let Some(gid) = peer {
            self.connectors.rouse(gid, now);
        }
        if has_lost {
            let is_its = |connector: &Connector| connector.gid == peer;
            self.connectors.hasten(now, is_its);
        }
    }

    /// Warns of a connection that has ended, and tells the VMM if it was refused; but not as often as others like.
    fn complain(&mut self, why: &str, peer: Option<Gid>, warns: bool, is_refused: bool) {
        let reason = match self.limiter.pass(Instant::now()) {
            Some(0) => why.into(),
            Some(more) => format!("{why} (and {more} more that were not told)"),
            None => return,
        };
        if warns {
            log::warn!("{}: a connection ends: {reason}", self.core.name);
        }
        if is_refused {
            let (kind, link) = (EventKind::Refused, None);
            self.core.tell(&Event {
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
        for id in self.connections.keys().copied().collect::<Vec<_>>() {
            self.end(id, &Ending::Closing);
        }
        self.core.close();
    }
}

impl Connection {
    /// Whether it is not a link yet.
    fn is_waiting(&self) -> bool {
        !matches!(self.stage, Stage::Up { .. })
    }

    /// A packet came in.
    fn receive(&mut self, packet: Packet, core: &Core) -> Result<(), Ending> {
        if packet.is_cut {
            return Err(Ending::Protocol(
                "a message that is too long, in bytes or descriptors".into(),
            ));
        }
        if packet.is_short {
            let why = "this process has too many descriptors open to take those that came";
            return Err(Ending::Internal(why.into()));
        }
        if packet.bytes().is_empty() {
            return Err(Ending::Left(None));
        }
        let message =
            Message::decode(packet.bytes()).map_err(|error| Ending::Protocol(error.to_string()))?;
        if packet.descriptors.len() as u64 != message.descriptors() {
            return Err(Ending::Protocol(format!(
                "{} descriptors with a message that has {}",
                packet.descriptors.len(),
                message.descriptors()
            )));
        }
        match self.handshake.receive(&message)? {
            Step::Wait => Ok(()),
            Step::Offer(terms) => self.offer(terms, core),
            Step::Accept(terms) => self.accept(terms, packet, core),
            Step::Accepted(terms) => self.accepted(terms, packet, core),
        }
    }

    /// Side 0 makes the window and offers it.
    fn offer(&mut self, terms: Terms, core: &Core) -> Result<(), Ending> {
        let link = core.reserve(terms.gid).map_err(Ending::NoPlace)?;
        let offer = || {
            let size = 1 << terms.window_shift;
            let window = Window::create(size, core.config.hugepages).map_err(internal(
                if core.config.hugepages {
                    "make a window of huge pages (are there enough?)"
                } else {
                    "make a window"
                },
            ))?;
            let vectors = core
                .new_vectors()
                .map_err(internal("make eventfds for vectors"))?;
            let mut descriptors = vec![window.file().as_raw_fd()];
            descriptors.extend(vectors.iter().map(AsRawFd::as_raw_fd));
            let message = Message::Offer {
                window_shift: terms.window_shift,
                vectors: vectors.len() as u32,
            };
            self.socket
                .send(&message.encode(), &descriptors)
                .map_err(internal("send OFFER"))?;
            Ok((window, vectors))
        };
        match offer() {
            Ok((window, vectors)) => {
                self.stage = Stage::Offered {
                    link,
                    window,
                    vectors,
                };
                Ok(())
            }
            Err(ending) => {
                core.cancel(link);
                Err(ending)
            }
        }
    }

    /// Side 1 takes the window, and says so.
    fn accept(&mut self, terms: Terms, packet: Packet, core: &Core) -> Result<(), Ending> {
        let mut descriptors = packet.descriptors.into_iter();
        let file = descriptors
            .next()
            .ok_or_else(|| Ending::Protocol("no window".into()))?;
        let window = Window::accept(file, 1 << terms.window_shift, core.config.hugepages).map_err(
            |error| match error.kind() {
                io::ErrorKind::InvalidData => Ending::Protocol(error.to_string()),
                _ => internal("map the window")(error),
            },
        )?;
        let link = core.reserve(terms.gid).map_err(Ending::NoPlace)?;
        let bells = descriptors.map(into_eventfd).collect();
        let accept = || {
            let vectors = core
                .new_vectors()
                .map_err(internal("make eventfds for vectors"))?;
            // They move into the guest before the peer gets to know them.
            let shared: io::Result<Vec<_>> = vectors.iter().map(share).collect();
            let shared = shared.map_err(internal("share eventfds for vectors"))?;
            let generation = core.bring_up(link, terms, window, bells, vectors)?;
            Ok((generation, shared))
        };
        let (generation, shared) = accept().inspect_err(|_: &Ending| core.cancel(link))?;
        self.came_up(link, generation, terms, core);
        let message = Message::Accept {
            vectors: shared.len() as u32,
        };
        let descriptors: Vec<RawFd> = shared.iter().map(AsRawFd::as_raw_fd).collect();
        self.socket
            .send(&message.encode(), &descriptors)
            .map_err(internal("send ACCEPT"))
    }

    /// Side 0's window has been taken.
    fn accepted(&mut self, terms: Terms, packet: Packet, core: &Core) -> Result<(), Ending> {
        let stage = mem::replace(&mut self.stage, Stage::Talking);
        let Stage::Offered {
            link,
            window,
            vectors,
        } = stage
        else {
            return Err(Ending::Internal("nothing was offered".into()));
        };
        let bells = packet.descriptors.into_iter().map(into_eventfd).collect();
        let generation = core
            .bring_up(link, terms, window, bells, vectors)
            .inspect_err(|_| core.cancel(link))?;
        self.came_up(link, generation, terms, core);
        Ok(())
    }

    fn came_up(&mut self, link: usize, generation: u32, terms: Terms, core: &Core) {
        self.stage = Stage::Up { link, generation };
        let Terms {
            gid,
            side,
            window_shift,
            ..
        } = terms;
        let size = (1u64 << window_shift) >> 20;
        log::info!(
            "{}: link {link} to {gid} is up: side {side}, {size} MiB",
            core.name
        );
    }
}
