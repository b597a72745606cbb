// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! poll, select, epoll.

use super::{Errno, Fd, Out, flags, out};
use std::fmt;

/// Events as poll and epoll name them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Events(pub u32);

impl fmt::Display for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (libc::EPOLLIN as u32, "IN"),
            (libc::EPOLLPRI as u32, "PRI"),
            (libc::EPOLLOUT as u32, "OUT"),
            (libc::EPOLLERR as u32, "ERR"),
            (libc::EPOLLHUP as u32, "HUP"),
            (libc::EPOLLRDHUP as u32, "RDHUP"),
            (libc::POLLNVAL as u32, "NVAL"),
        ];
        f.write_str(&flags(self.0, &names, "0"))
    }
}

/// What poll is asked for if a case asks for all.
pub const ALL: i16 = libc::POLLIN | libc::POLLPRI | libc::POLLOUT | libc::POLLRDHUP;

/// `poll()` of one descriptor.
pub fn poll(fd: Fd, events: i16, milliseconds: i32) -> Result<Events, Errno> {
    let mut entry = libc::pollfd {
        fd,
        events,
        revents: 0,
    };
    // SAFETY: there is one entry.
    out(unsafe { libc::poll(&raw mut entry, 1, milliseconds) })?;
    Ok(Events(entry.revents as u16 as u32))
}

/// `select()` of one descriptor for all that it can be asked for: "r", "w", "x".
pub fn select(fd: Fd, milliseconds: i64) -> Result<String, Errno> {
    let mut time = libc::timeval {
        tv_sec: milliseconds / 1000,
        tv_usec: milliseconds % 1000 * 1000,
    };
    // SAFETY: a set that is all zero is empty; descriptors of cases are small numbers.
    unsafe {
        let mut sets: [libc::fd_set; 3] = std::mem::zeroed();
        for set in &mut sets {
            libc::FD_SET(fd, set);
        }
        let [read, write, except] = &mut sets;
        out(libc::select(fd + 1, read, write, except, &raw mut time))?;
        let set = |set: &libc::fd_set| libc::FD_ISSET(fd, set);
        let ready: String = [('r', set(read)), ('w', set(write)), ('x', set(except))]
            .iter()
            .filter(|(_, is_set)| *is_set)
            .map(|(name, _)| *name)
            .collect();
        Ok(if ready.is_empty() { "0".into() } else { ready })
    }
}

/// `epoll_create1()`
pub fn epoll() -> Fd {
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::epoll_create1(0) };
    assert!(out(fd).is_ok(), "no epoll");
    fd
}

fn control(epoll: Fd, what: i32, fd: Fd, events: i32) -> Out {
    let mut event = libc::epoll_event {
        events: events as u32,
        u64: fd as u64,
    };
    // SAFETY: the event is alive during the call.
    out(unsafe { libc::epoll_ctl(epoll, what, fd, &raw mut event) })
}

/// `EPOLL_CTL_ADD`
pub fn epoll_add(epoll: Fd, fd: Fd, events: i32) -> Out {
    control(epoll, libc::EPOLL_CTL_ADD, fd, events)
}

/// `EPOLL_CTL_MOD`
pub fn epoll_mod(epoll: Fd, fd: Fd, events: i32) -> Out {
    control(epoll, libc::EPOLL_CTL_MOD, fd, events)
}

/// `epoll_wait()` for one event.
pub fn epoll_wait(epoll: Fd, milliseconds: i32) -> Result<Events, Errno> {
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    // SAFETY: there is room for one event.
    let count = out(unsafe { libc::epoll_wait(epoll, &raw mut event, 1, milliseconds) })?;
    Ok(Events(if count == 0 { 0 } else { event.events }))
}
