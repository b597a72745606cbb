// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Descriptors of every kind, in every message.

use super::place::Place;
use super::{PATIENCE, Target, eventfd, owned, say};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::time::Duration;
use vmm_device_ivsmc::peer::{self, Bye, Client, Message};

/// From one connection to the next.
const PAUSE: Duration = Duration::from_millis(30);
/// A connection that has not ended in this time is a link.
const MOMENT: Duration = Duration::from_millis(300);
const SEALS: i32 = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;

/// Where a descriptor is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Good {
    Nowhere,
    AsWindow,
    AsDoorbell,
}

/// A kind of descriptor.
struct Kind {
    name: &'static str,
    fd: OwnedFd,
    good: Good,
    /// What it is one end of.
    _rest: Option<OwnedFd>,
}

/// What came of it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// The kinds that this kernel has.
    pub kinds: Vec<String>,
    /// How often the connection ended with the reason *protocol*, as it had to.
    pub refused: u64,
    /// How often there was a link, as there had to be.
    pub links: u64,
    /// What else happened.
    pub wrong: Vec<String>,
}

fn memfd(size: u64, flags: u32, seals: i32) -> Result<OwnedFd> {
    let name: &CStr = c"ivsmc-window";
    // SAFETY: the name outlives the call.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | flags) };
    let fd = owned(fd.into(), "memfd_create")?;
    let file = File::from(fd);
    file.set_len(size)?;
    if seals != 0 {
        // SAFETY: takes no pointers.
        let sealed = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) };
        if sealed < 0 {
            return Err(io::Error::last_os_error()).context("F_ADD_SEALS");
        }
    }
    Ok(file.into())
}

/// All kinds that this kernel has, to a peer whose windows are of `size`.
fn kinds(size: u64) -> Result<Vec<Kind>> {
    let mut kinds = Vec::new();
    let mut add = |name, fd: Result<OwnedFd>, good, rest| match fd {
        Ok(fd) => kinds.push(Kind {
            name,
            fd,
            good,
            _rest: rest,
        }),
        // A kernel need not have all of them.
        Err(error) => eprintln!("no {name}: {error:#}"),
    };
    let (none, window, doorbell) = (Good::Nowhere, Good::AsWindow, Good::AsDoorbell);
    let sealable = libc::MFD_ALLOW_SEALING;
    let open = |path: &str| -> Result<OwnedFd> { Ok(File::open(path)?.into()) };
    let system = |result: i64| owned(result, "system call");

    for (name, path) in [
        ("file of a file system", "/proc/self/exe"),
        ("directory", "/"),
        ("/dev/null", "/dev/null"),
        ("/dev/zero", "/dev/zero"),
        ("/dev/kvm", "/dev/kvm"),
        ("namespace", "/proc/self/ns/mnt"),
    ] {
        add(name, open(path), none, None);
    }
    let path = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open("/");
    add(
        "O_PATH",
        path.map(Into::into).map_err(Into::into),
        none,
        None,
    );
    let shared = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .open("/tmp");
    let shared = shared.and_then(|file| file.set_len(size).map(|()| file.into()));
    add("file of tmpfs", shared.map_err(Into::into), none, None);

    let (reader, writer) = io::pipe()?;
    add("pipe", Ok(reader.into()), none, None);
    add("pipe to write to", Ok(writer.into()), none, None);
    let (one, other) = UnixStream::pair()?;
    add("Unix socket", Ok(one.into()), none, Some(other.into()));
    let (one, other) = UnixDatagram::pair()?;
    add(
        "Unix datagram socket",
        Ok(one.into()),
        none,
        Some(other.into()),
    );
    let folder = tempfile::tempdir()?;
    add(
        "Unix socket that listens",
        Ok(UnixListener::bind(folder.path().join("socket"))?.into()),
        none,
        None,
    );
    add(
        "TCP socket that listens",
        Ok(TcpListener::bind("127.0.0.1:0")?.into()),
        none,
        None,
    );
    add(
        "UDP socket",
        Ok(UdpSocket::bind("127.0.0.1:0")?.into()),
        none,
        None,
    );

    let pid = std::process::id();
    // SAFETY: no pointers but null ones, which these calls take.
    unsafe {
        let timer = libc::timerfd_create(libc::CLOCK_MONOTONIC, 0);
        add("timerfd", system(timer.into()), none, None);
        add("epoll", system(libc::epoll_create1(0).into()), none, None);
        add("inotify", system(libc::inotify_init1(0).into()), none, None);
        add(
            "pidfd",
            system(libc::syscall(libc::SYS_pidfd_open, pid, 0)),
            none,
            None,
        );
        add(
            "userfaultfd",
            system(libc::syscall(libc::SYS_userfaultfd, 0)),
            none,
            None,
        );
        add(
            "secret memory",
            system(libc::syscall(libc::SYS_memfd_secret, 0)),
            none,
            None,
        );
        let fanotify = libc::syscall(libc::SYS_fanotify_init, 0, 0);
        add("fanotify", system(fanotify), none, None);
        let semaphore = libc::eventfd(0, libc::EFD_SEMAPHORE);
        add(
            "eventfd that blocks",
            system(semaphore.into()),
            doorbell,
            None,
        );
        let mut signals = std::mem::zeroed();
        libc::sigemptyset(&mut signals);
        add(
            "signalfd",
            system(libc::signalfd(-1, &signals, 0).into()),
            none,
            None,
        );
    }
    let full = eventfd().map(File::from).and_then(|mut full| {
        full.write_all(&(u64::MAX - 1).to_ne_bytes())?;
        Ok(full.into())
    });
    add("eventfd that is full", full, doorbell, None);
    add("eventfd", eventfd(), doorbell, None);

    add("memfd that cannot be sealed", memfd(size, 0, 0), none, None);
    add("memfd without seals", memfd(size, sealable, 0), none, None);
    for (name, seals) in [
        ("memfd that can shrink", SEALS & !libc::F_SEAL_SHRINK),
        ("memfd that can grow", SEALS & !libc::F_SEAL_GROW),
        ("memfd that can be sealed more", SEALS & !libc::F_SEAL_SEAL),
        ("memfd sealed against writing", SEALS | libc::F_SEAL_WRITE),
        (
            "memfd sealed against writing in future",
            SEALS | libc::F_SEAL_FUTURE_WRITE,
        ),
    ] {
        add(name, memfd(size, sealable, seals), none, None);
    }
    add(
        "memfd of half the size",
        memfd(size / 2, sealable, SEALS),
        none,
        None,
    );
    add("memfd of no size", memfd(0, sealable, SEALS), none, None);
    let huge = memfd(size, sealable | libc::MFD_HUGETLB, SEALS);
    add("memfd of huge pages", huge, none, None);
    let good = memfd(size, sealable, SEALS)?;
    let name = format!("/proc/self/fd/{}", good.as_raw_fd());
    add("window that can only be read", open(&name), none, None);
    let write_only = OpenOptions::new().write(true).open(&name);
    add(
        "window that can only be written",
        write_only.map(Into::into).map_err(Into::into),
        none,
        None,
    );
    add("window", Ok(good), window, None);
    Ok(kinds)
}

/// Hands all of them over.
pub fn hand_over(target: &Target) -> Result<()> {
    let size = 1 << target.window_shift;
    let kinds = kinds(size)?;
    target.become_user()?;
    let (window, bell) = (peer::window(size)?, eventfd()?);
    let good = (window.as_raw_fd(), bell.as_raw_fd());
    let mut report = Report {
        kinds: kinds.iter().map(|kind| kind.name.to_owned()).collect(),
        ..Report::default()
    };
    say("ready")?;
    let mut number = 1 << 32;
    for kind in &kinds {
        for place in Place::IN_MESSAGES {
            number += 1;
            one(target, kind, place, number, good, &mut report)?;
            std::thread::sleep(PAUSE);
        }
    }
    say(serde_json::to_string(&report)?)
}

/// One connection.
fn one(
    target: &Target,
    kind: &Kind,
    place: Place,
    number: u64,
    good: (RawFd, RawFd),
    report: &mut Report,
) -> Result<()> {
    let is_good = match place {
        Place::OffersWindow => kind.good == Good::AsWindow,
        Place::OffersDoorbell | Place::AcceptsDoorbell => kind.good == Good::AsDoorbell,
        _ => false,
    };
    let client = Client::connect(&target.socket, PATIENCE)?;
    for (bytes, descriptors) in
        place.packets(kind.fd.as_raw_fd(), good, number, target.window_shift)
    {
        client.send_soon(&bytes, &descriptors, PATIENCE)?;
    }
    let is_link = is_good && is_link(&client, place)?;
    let reason = if is_link {
        drop(client);
        None
    } else {
        client.end(PATIENCE)?
    };
    match (is_good, is_link, reason) {
        (true, true, _) => report.links += 1,
        (false, _, Some(Bye::Protocol)) => report.refused += 1,
        _ => report
            .wrong
            .push(format!("{} in {place:?}: {reason:?}", kind.name)),
    }
    Ok(())
}

/// Whether there is a link.
fn is_link(client: &Client, place: Place) -> Result<bool> {
    if place == Place::AcceptsDoorbell {
        // Nothing is said of it: the connection stays.
        while let Ok(next) = client.next(MOMENT) {
            if matches!(next, None | Some((Message::Bye(_), _))) {
                return Ok(false);
            }
        }
        return Ok(true);
    }
    while let Some((message, _)) = client.next(PATIENCE)? {
        if matches!(message, Message::Accept { .. }) {
            return Ok(true);
        }
    }
    Ok(false)
}
