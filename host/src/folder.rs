// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The fabrics' folders: one for each, in which the devices of its VMs listen. Who is in a folder is a peer to all in it.

use crate::name::Name;
use crate::policy::Fabric;
use crate::scan::files;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Stat, fchmod, fchown, fstat, mkdir, open, openat, statat,
    unlinkat,
};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{Gid, geteuid};
use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often a socket that somebody listens on, but no VM that is known, is tried.
const LIVE: Duration = Duration::from_secs(60);

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The system says no.
    #[error("the fabric's folder {folder} cannot be {what}: {source}")]
    System {
        /// The folder.
        folder: PathBuf,
        /// What was to be done.
        what: &'static str,
        /// Why it was not.
        source: io::Error,
    },
    /// Something else, or a link to one.
    #[error("the fabric's folder {0} is no folder; remove what is there")]
    NoFolder(PathBuf),
    /// Another user's.
    #[error(
        "the fabric's folder {folder} belongs to user {owner}; it has to belong to root or to the user of ivsmc-host"
    )]
    Owner {
        /// The folder.
        folder: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// Anybody could be a peer.
    #[error("everybody may write to the fabric's folder {0}; take that away with chmod o-w")]
    ForAll(PathBuf),
    /// Another group's than the policy says.
    #[error(
        "the fabric's folder {folder} has group {is}, and the policy says group = {wanted}; change one of them"
    )]
    Group {
        /// The folder.
        folder: PathBuf,
        /// Its group.
        is: u32,
        /// The policy's.
        wanted: u32,
    },
}

/// A fabric's folder, made if there is none.
///
/// # Errors
/// There is something else, or it would let in whom it should not.
pub fn prepare(fabric: &Fabric) -> Result<OwnedFd, FolderError> {
    let path = &fabric.folder;
    let failed = |what: &'static str| {
        move |error: Errno| FolderError::System {
            folder: path.clone(),
            what,
            source: error.into(),
        }
    };
    let folder = match open_folder(path) {
        Err(Errno::NOENT) => {
            make(path).map_err(failed("made"))?;
            let folder = open_folder(path).map_err(failed("opened"))?;
            if let Some(group) = fabric.group {
                // What it makes belongs to the group, and none of it can be removed by another member.
                fchown(&folder, None, Some(Gid::from_raw(group)))
                    .map_err(failed("given to its group"))?;
                fchmod(&folder, Mode::from_raw_mode(0o3770))
                    .map_err(failed("opened to its group"))?;
            }
            folder
        }
        Err(Errno::NOTDIR | Errno::LOOP) => return Err(FolderError::NoFolder(path.clone())),
        opened => opened.map_err(failed("opened"))?,
    };
    let stat = fstat(&folder).map_err(failed("looked at"))?;
    check(fabric, &stat)?;
    Ok(folder)
}

fn check(fabric: &Fabric, stat: &Stat) -> Result<(), FolderError> {
    let folder = fabric.folder.clone();
    if stat.st_uid != 0 && stat.st_uid != geteuid().as_raw() {
        let owner = stat.st_uid;
        return Err(FolderError::Owner { folder, owner });
    }
    if stat.st_mode & 0o002 != 0 {
        return Err(FolderError::ForAll(folder));
    }
    match fabric.group {
        Some(wanted) if wanted != stat.st_gid => Err(FolderError::Group {
            folder,
            is: stat.st_gid,
            wanted,
        }),
        _ => Ok(()),
    }
}

fn open_folder(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    open(path, flags, Mode::empty())
}

fn make(path: &Path) -> Result<(), Errno> {
    match mkdir(path, Mode::RWXU) {
        Err(Errno::NOENT) => {
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)
                    .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            }
            mkdir(path, Mode::RWXU)
        }
        // Somebody was faster; what it is gets checked.
        Err(Errno::EXIST) => Ok(()),
        made => made,
    }
}

/// Removes sockets that VMs have left: a VMM that is killed leaves its device's.
#[derive(Debug, Default)]
pub struct Tidier {
    /// Sockets on which nobody listened, and since when that is known.
    dead: HashMap<PathBuf, ((u64, u64), Instant)>,
    /// Sockets on which somebody listened at that time.
    live: HashMap<PathBuf, Instant>,
}

impl Tidier {
    /// Looks for such sockets in a fabric's folder, and removes those on which nobody has listened for `patience`.
    /// Those of VMs that are there are left alone, as their VMMs replace them themselves. Returns what was removed.
    pub fn tidy(
        &mut self,
        fabric: &Fabric,
        present: &BTreeSet<Name>,
        patience: Duration,
    ) -> Vec<PathBuf> {
        let Ok(folder) = open_folder(&fabric.folder) else {
            return Vec::new();
        };
        let now = Instant::now();
        let mut seen = BTreeSet::new();
        let mut removed = Vec::new();
        for file in files(&folder).unwrap_or_default() {
            // Other names were not given by this program.
            let Ok(name) = Name::new(file.as_bytes()) else {
                continue;
            };
            if present.contains(&name) {
                continue;
            }
            let path = fabric.path_of(&name);
            seen.insert(path.clone());
            let is_recent = |at: &Instant| now.saturating_duration_since(*at) < LIVE;
            if self.live.get(&path).is_some_and(is_recent) {
                continue;
            }
            self.live.remove(&path);
            match listener(&folder, &file) {
                Listener::Somebody => {
                    self.dead.remove(&path);
                    self.live.insert(path, now);
                }
                Listener::NoSocket => {
                    self.dead.remove(&path);
                }
                Listener::Nobody(file_id) => {
                    // A socket has nobody who listens for a moment after it was made, too.
                    let (known, since) = *self.dead.entry(path.clone()).or_insert((file_id, now));
                    if known != file_id {
                        self.dead.insert(path, (file_id, now));
                    } else if now.saturating_duration_since(since) >= patience
                        && is_still(&folder, &file, file_id)
                        && unlinkat(&folder, &file, AtFlags::empty()).is_ok()
                    {
                        self.dead.remove(&path);
                        removed.push(path);
                    }
                }
            }
        }
        let is_gone =
            |path: &PathBuf| path.parent() == Some(&fabric.folder) && !seen.contains(path);
        self.dead.retain(|path, _| !is_gone(path));
        self.live.retain(|path, _| !is_gone(path));
        removed
    }
}

enum Listener {
    Somebody,
    Nobody((u64, u64)),
    NoSocket,
}

/// Whether somebody listens on a device's socket.
fn listener(folder: &OwnedFd, file: &OsStr) -> Listener {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(place) = openat(folder, file, flags, Mode::empty()) else {
        return Listener::NoSocket;
    };
    let Ok(stat) = fstat(&place) else {
        return Listener::NoSocket;
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        return Listener::NoSocket;
    }
    let try_it = || {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let address = SocketAddrUnix::new(format!("/proc/self/fd/{}", place.as_raw_fd()))?;
        connect(&socket, &address)
    };
    match try_it() {
        Err(Errno::CONNREFUSED) => Listener::Nobody(id(&stat)),
        // Also if that cannot be told: what may be in use stays.
        _ => Listener::Somebody,
    }
}

#[allow(clippy::unnecessary_cast)] // Their types are not the same everywhere.
fn id(stat: &Stat) -> (u64, u64) {
    (stat.st_dev as u64, stat.st_ino as u64)
}

fn is_still(folder: &OwnedFd, file: &OsStr, file_id: (u64, u64)) -> bool {
    let stat = statat(folder, file, AtFlags::SYMLINK_NOFOLLOW);
    stat.is_ok_and(|stat| id(&stat) == file_id)
}
