// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sockets in the network namespace of who asks for them.

use super::listener::Listener;
use super::process::{self, Fork};
use super::slot::Slot;
use crate::socket;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

/// A socket that a program wants.
#[derive(Clone, Copy)]
pub(super) struct Wish {
    /// The call's number, by which it is answered.
    pub(super) id: u64,
    /// The caller's thread.
    pub(super) thread: u32,
    /// The address family.
    pub(super) domain: i32,
    /// The type, with its flags.
    pub(super) kind: i32,
    /// The protocol that it is to get.
    pub(super) protocol: i32,
}

impl Wish {
    fn open(&self) -> io::Result<OwnedFd> {
        socket::open_kind(self.domain, self.kind | libc::SOCK_CLOEXEC, self.protocol)
    }

    /// Opens the socket here and answers the call with it.
    fn grant(&self, listener: &Listener, slot: &Slot) -> io::Result<()> {
        self.give(listener, slot, self.open()?)
    }

    fn give(&self, listener: &Listener, slot: &Slot, socket: OwnedFd) -> io::Result<()> {
        let socket = File::from(socket);
        slot.note(socket.metadata()?.ino());
        let cloexec = self.kind & libc::SOCK_CLOEXEC != 0;
        let added = listener.add(self.id, socket.as_fd(), cloexec);
        match &added {
            Ok(fd) => listener.answer(self.id, *fd),
            // So that nobody looks for it among all that the caller has.
            Err(_) => slot.note(0),
        }
        added.map(drop)
    }
}

/// The supervisor's own namespace, to tell others from it and to come back to it.
pub(super) struct Home {
    network: File,
    network_identity: Identity,
    user: Option<Identity>,
}

type Identity = (u64, u64);

fn identity(metadata: &Metadata) -> Identity {
    (metadata.dev(), metadata.ino())
}

impl Home {
    /// Where this process is.
    pub(super) fn find() -> io::Result<Self> {
        // With the processes of another PID namespace in /proc one would look at the wrong ones.
        let own = std::fs::read_link("/proc/self")?;
        if own.to_str() != Some(&std::process::id().to_string()) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let network = File::open("/proc/self/ns/net")?;
        Ok(Home {
            network_identity: identity(&network.metadata()?),
            network,
            // There may be no user namespaces.
            user: std::fs::metadata("/proc/self/ns/user")
                .ok()
                .map(|user| identity(&user)),
        })
    }

    /// Answers a call with a socket in its caller's namespace. After an error the call has no answer yet.
    ///
    /// Should the caller end meanwhile and its number be given to another thread, the answer finds nobody.
    pub(super) fn grant(&self, listener: &Listener, slot: &Slot, wish: &Wish) -> io::Result<()> {
        if wish.thread == 0 {
            // It is in a PID namespace out of which we cannot look.
            return Err(io::ErrorKind::NotFound.into());
        }
        let path = format!("/proc/{}/ns/net", wish.thread);
        if identity(&std::fs::metadata(&path)?) == self.network_identity {
            return wish.grant(listener, slot);
        }
        let network = File::open(path)?;
        if enter(&network, libc::CLONE_NEWNET).is_ok() {
            let socket = wish.open();
            if enter(&self.network, libc::CLONE_NEWNET).is_err() {
                // Whatever came next would be opened in the wrong place. The other supervisor is where it was.
                process::exit(1);
            }
            return wish.give(listener, slot, socket?);
        }
        self.grant_through_user_namespace(listener, slot, wish, &network)
    }

    /// Without privilege here there may be some in the caller's user namespace. The way into it is one way: a child takes
    /// it. It does not stay there, as namespaces last as long as there is somebody in them.
    fn grant_through_user_namespace(
        &self,
        listener: &Listener,
        slot: &Slot,
        wish: &Wish,
        network: &File,
    ) -> io::Result<()> {
        let user = File::open(format!("/proc/{}/ns/user", wish.thread))?;
        if self.user == Some(identity(&user.metadata()?)) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        match process::fork()? {
            Fork::Child => {
                let granted = enter(&user, libc::CLONE_NEWUSER)
                    .and_then(|()| enter(network, libc::CLONE_NEWNET))
                    .and_then(|()| wish.grant(listener, slot));
                process::exit(i32::from(granted.is_err()))
            }
            Fork::Parent(child) => match process::wait(child)? {
                0 => Ok(()),
                _ => Err(io::ErrorKind::PermissionDenied.into()),
            },
        }
    }
}

fn enter(namespace: &File, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: takes no pointers.
    if unsafe { libc::setns(namespace.as_raw_fd(), kind) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
