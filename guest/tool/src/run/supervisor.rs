// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The supervisor: two processes, one that answers calls and one that waits until it has to take over.
//!
//! A filter whose listener nobody has any more answers ENOSYS, so that either of them has it, and as soon as one is
//! gone the other makes a new one. A call that the first had taken and not answered is in the slot, and is answered by
//! whoever comes after.

use super::listener::{self, Listener};
use super::namespace::{Home, Wish};
use super::process::{self, Fork};
use super::slot::Slot;
use crate::owners;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// A partner that lasts less is one that somebody is after: the next one is made after a pause, which doubles.
const SHORT_LIFE: Duration = Duration::from_millis(100);
/// The longest such pause, and how long to wait where no partner can be made.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long calls may be refused to us, though there are some, before callers get ENOSYS rather than no answer.
const REFUSED_FOR: Duration = Duration::from_secs(10);

/// What both processes have.
struct Supervisor {
    listener: Listener,
    slot: Slot,
    home: Home,
    protocol: i32,
}

/// The other process.
enum Partner {
    /// It waits; the stream ends when it does.
    Waiting(UnixStream),
    /// We are what was made to wait, and who had made us is gone.
    Us,
    /// It cannot be made, for now.
    None,
}

/// Why a process stops answering calls.
enum End {
    /// No process is left under the filter.
    Done,
    /// The other process is gone, or it is time to make one.
    Alone,
}

/// The life of the supervisor from its first process on. `channel` brings the listener, and takes a byte when all is
/// ready.
pub(super) fn live(channel: UnixStream, program: libc::pid_t, protocol: i32) -> ! {
    process::detach(channel.as_raw_fd(), program);
    let done = prepare(&channel, protocol).and_then(|supervisor| supervisor.work(Some(channel)));
    process::exit(i32::from(done.is_err()))
}

fn prepare(channel: &UnixStream, protocol: i32) -> io::Result<Supervisor> {
    Ok(Supervisor {
        home: Home::find()?,
        slot: Slot::new()?,
        listener: Listener::new(listener::receive(channel)?),
        protocol,
    })
}

impl Supervisor {
    /// Answers calls, always with a partner that would go on, until no process is left under the filter.
    fn work(&self, mut ready: Option<UnixStream>) -> io::Result<()> {
        let mut pause = Duration::ZERO;
        loop {
            let born = Instant::now();
            let (partner, limit) = match self.make_partner() {
                Partner::Waiting(partner) => (Some(partner), None),
                Partner::Us if self.slot.is_closed() => return Ok(()),
                Partner::Us => {
                    self.take_over();
                    (None, Some(Duration::ZERO))
                }
                Partner::None => (None, Some(LONGEST_PAUSE)),
            };
            process::hurry();
            if let Some(mut channel) = ready.take() {
                // If nobody is there to read it, nobody is under the filter.
                let _ = channel.write_all(&[0]);
            }
            if let End::Done = self.answer(partner.as_ref(), limit)? {
                return Ok(());
            }
            if partner.is_none() || born.elapsed() >= SHORT_LIFE {
                pause = Duration::ZERO;
                continue;
            }
            if let End::Done = self.answer(None, Some(pause))? {
                return Ok(());
            }
            pause = (2 * pause).clamp(Duration::from_millis(1), LONGEST_PAUSE);
        }
    }

    /// Makes the process that waits, and which takes our place when we are gone. Comes back in that, too, when it has to.
    fn make_partner(&self) -> Partner {
        let Ok((ours, theirs)) = UnixStream::pair() else {
            return Partner::None;
        };
        match process::fork_sibling() {
            Err(_) => Partner::None,
            Ok(Fork::Parent(_)) => Partner::Waiting(ours),
            Ok(Fork::Child) => {
                drop(ours);
                wait_for_end(theirs.as_raw_fd());
                Partner::Us
            }
        }
    }

    /// Answers calls until the partner is gone, or without one, for so long.
    fn answer(&self, partner: Option<&UnixStream>, limit: Option<Duration>) -> io::Result<End> {
        let end = limit.map(|limit| Instant::now() + limit);
        let mut refused_since = None;
        loop {
            let mut polls = [
                (self.listener.as_raw_fd(), libc::POLLIN),
                // poll() leaves out what is negative.
                (partner.map_or(-1, AsRawFd::as_raw_fd), 0),
            ]
            .map(|(fd, events)| libc::pollfd {
                fd,
                events,
                revents: 0,
            });
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            poll(&mut polls, left)?;
            let [calls, partner] = polls.map(|poll| poll.revents);
            if calls & libc::POLLIN != 0 {
                match self.slot.receive(&self.listener) {
                    Ok(call) => {
                        refused_since = None;
                        self.slot.count();
                        self.decide(&call);
                        self.slot.clear();
                    }
                    // The caller was killed or interrupted in between.
                    Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                    Err(error) => {
                        let since = *refused_since.get_or_insert_with(Instant::now);
                        if since.elapsed() > REFUSED_FOR {
                            self.slot.close();
                            return Err(error);
                        }
                        std::thread::sleep(Duration::from_millis(10));
                    }
                }
            } else if calls != 0 {
                return Ok(End::Done);
            }
            if partner != 0 || left.is_some_and(|left| left.is_zero()) {
                return Ok(End::Alone);
            }
        }
    }

    /// Answers the call that our partner has left, if there is one. What was begun twice may be what one dies of.
    fn take_over(&self) {
        if let Some(call) = self.slot.call() {
            if self.added(&call).is_none() && self.slot.count() < 2 {
                self.decide(&call);
            } else {
                self.finish();
            }
        }
        self.slot.clear();
    }

    /// Answers a call with a socket of ours, or lets it go on.
    fn decide(&self, call: &libc::seccomp_notif) {
        let [domain, kind, ..] = call.data.args.map(|argument| argument as i32);
        let wish = Wish {
            id: call.id,
            thread: call.pid,
            domain,
            kind,
            protocol: self.protocol,
        };
        if self.home.grant(&self.listener, &self.slot, &wish).is_err() {
            self.finish();
        }
    }

    /// Answers the call that is in the slot with the socket that its caller has got, or lets it go on.
    fn finish(&self) {
        if let Some(call) = self.slot.call() {
            match self.added(&call) {
                Some(fd) => self.listener.answer(call.id, fd),
                None => self.listener.go_on(call.id),
            }
        }
    }

    /// The descriptor that a caller has for the socket that it was to get.
    fn added(&self, call: &libc::seccomp_notif) -> Option<RawFd> {
        let inode = self.slot.socket()?;
        descriptor(call.pid, inode)
    }
}

/// The descriptor that a process has for a socket.
fn descriptor(process: u32, inode: u64) -> Option<RawFd> {
    let mut sockets = owners::sockets(process);
    sockets.find(|&(_, found)| found == inode).map(|(fd, _)| fd)
}

/// Waits until nobody has the other end any more.
fn wait_for_end(fd: RawFd) {
    let mut polls = [libc::pollfd {
        fd,
        events: 0,
        revents: 0,
    }];
    // An error ends the wait: it is better to be two than none.
    let _ = poll(&mut polls, None);
}

fn poll(polls: &mut [libc::pollfd], limit: Option<Duration>) -> io::Result<()> {
    // Rounded up, so that the time is over afterwards.
    let limit = limit.map_or(-1, |limit| limit.as_micros().div_ceil(1000) as libc::c_int);
    // SAFETY: the structures are alive during the call, and as many as it says.
    if unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, limit) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
