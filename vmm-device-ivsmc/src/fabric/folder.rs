// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Folders: which sockets are in one, and when to look again. What becomes of them is for others.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::sys::check;

/// What can change the answer.
const CHANGES: u32 = libc::IN_CREATE
    | libc::IN_DELETE
    | libc::IN_MOVED_FROM
    | libc::IN_MOVED_TO
    | libc::IN_DELETE_SELF
    | libc::IN_MOVE_SELF
    | libc::IN_ONLYDIR;
/// How much is read at once of what inotify has to say, and how often. What is left makes its descriptor readable
/// again, which does no harm.
const EVENTS: usize = 4096;
const READS: usize = 64;

/// Folders that are watched, all through one descriptor (a user can have few of its kind): it is readable when
/// something in one of them, or one itself, has come or gone. (But not when a folder above it has been renamed.)
#[derive(Debug)]
pub struct Folders {
    inotify: File,
    /// The watches, by numbers that the caller picks. Two numbers of one folder have the same watch.
    watches: BTreeMap<u64, i32>,
}

impl Folders {
    /// No folders yet.
    pub fn new() -> io::Result<Self> {
        // SAFETY: plain system call; the result is checked.
        let fd = check(unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) })?;
        // SAFETY: the descriptor is new and nobody else's.
        let inotify = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        Ok(Folders {
            inotify,
            watches: BTreeMap::new(),
        })
    }

    /// Watches the folder that is at `path` now, if it is not watched already. What changes from here on is there to
    /// be read.
    pub fn watch(&mut self, id: u64, path: &Path) -> io::Result<()> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let inotify = self.inotify.as_raw_fd();
        // SAFETY: the path is a C string that outlives the call; the result is checked. (Of a folder that is watched
        // already it is the watch that there is.)
        let watch = check(unsafe { libc::inotify_add_watch(inotify, path.as_ptr(), CHANGES) })?;
        if let Some(old) = self.watches.insert(id, watch) {
            self.end_unused(old);
        }
        Ok(())
    }

    /// Does not watch this folder any more.
    pub fn forget(&mut self, id: u64) {
        if let Some(old) = self.watches.remove(&id) {
            self.end_unused(old);
        }
    }

    fn end_unused(&self, watch: i32) {
        if !self.watches.values().any(|&used| used == watch) {
            // SAFETY: plain system call. It fails if the folder is gone, and its watch with it.
            unsafe { libc::inotify_rm_watch(self.inotify.as_raw_fd(), watch) };
        }
    }

    /// Whether this folder is watched.
    pub fn is_watched(&self, id: u64) -> bool {
        self.watches.contains_key(&id)
    }

    /// The numbers of those that are watched.
    pub fn watched(&self) -> impl Iterator<Item = u64> {
        self.watches.keys().copied()
    }

    /// Forgets what there is to be read.
    pub fn drain(&self) {
        let mut events = [0; EVENTS];
        let mut inotify = &self.inotify;
        for _ in 0..READS {
            if inotify.read(&mut events).is_err() {
                break;
            }
        }
    }
}

impl AsRawFd for Folders {
    fn as_raw_fd(&self) -> RawFd {
        self.inotify.as_raw_fd()
    }
}

/// The paths of the sockets that are in a folder, but for `own`, however that spells the folder.
pub fn sockets(folder: &Path, own: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let own_folder = own.parent().filter(|path| !path.as_os_str().is_empty());
    let is_own_folder = is_same(folder, own_folder.unwrap_or(Path::new(".")));
    let mut sockets = BTreeSet::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let is_own = is_own_folder && Some(entry.file_name().as_os_str()) == own.file_name();
        // It may be gone by now.
        if !is_own && entry.file_type().is_ok_and(|kind| kind.is_socket()) {
            sockets.insert(entry.path());
        }
    }
    Ok(sockets)
}

fn is_same(one: &Path, other: &Path) -> bool {
    let identity = |path| fs::metadata(path).map(|found| (found.dev(), found.ino()));
    matches!((identity(one), identity(other)), (Ok(one), Ok(other)) if one == other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    fn is_readable(folder: &Folders) -> bool {
        let (fd, events, revents) = (folder.as_raw_fd(), libc::POLLIN, 0);
        let mut poll = libc::pollfd {
            fd,
            events,
            revents,
        };
        // SAFETY: one pollfd that outlives the call.
        unsafe { libc::poll(&mut poll, 1, 0) == 1 }
    }

    #[test]
    fn only_sockets_and_not_the_own_one() {
        let temporary = tempfile::tempdir().unwrap();
        let at = |name: &str| temporary.path().join(name);
        let folder = at("folder");
        fs::create_dir_all(folder.join("sub")).unwrap();
        fs::write(folder.join("file"), "").unwrap();
        let bind = |path: &str| UnixListener::bind(at(path)).unwrap();
        let _bound = ["folder/a", "folder/b", "folder/sub/c", "a"].map(bind);
        symlink(&folder, at("link")).unwrap();
        symlink(at("a"), folder.join("link")).unwrap();
        let (a, b) = (folder.join("a"), folder.join("b"));
        let both = BTreeSet::from([a.clone(), b.clone()]);
        assert_eq!(sockets(&folder, &at("a")).unwrap(), both);
        assert_eq!(sockets(&folder, Path::new("a")).unwrap(), both);
        assert_eq!(sockets(&folder, &at("no/a")).unwrap(), both);
        for own in [a, at("link/a"), at("link/../folder/a")] {
            let others = BTreeSet::from([b.clone()]);
            assert_eq!(sockets(&folder, &own).unwrap(), others, "{own:?}");
        }
        sockets(&at("no"), &b).unwrap_err();
        sockets(&at("a"), &b).unwrap_err();
    }

    #[test]
    fn what_comes_and_goes_is_noticed() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("folder");
        let mut folders = Folders::new().unwrap();
        folders.watch(1, &path).unwrap_err();
        assert!(!folders.is_watched(1));
        fs::create_dir(&path).unwrap();
        folders.watch(1, &path).unwrap();
        assert!(folders.is_watched(1));
        let mut changed = || {
            let is_readable = is_readable(&folders);
            folders.drain();
            (is_readable, folders.watch(1, &path).is_ok())
        };
        assert_eq!(changed(), (false, true));
        let bound = UnixListener::bind(path.join("a")).unwrap();
        assert_eq!(changed(), (true, true));
        assert_eq!(changed(), (false, true));
        drop(bound);
        fs::rename(path.join("a"), path.join("b")).unwrap();
        assert_eq!(changed(), (true, true));
        fs::remove_file(path.join("b")).unwrap();
        assert_eq!(changed(), (true, true));
        // The folder is replaced.
        let old = temporary.path().join("old");
        fs::rename(&path, &old).unwrap();
        assert_eq!(changed(), (true, false));
        fs::create_dir(&path).unwrap();
        assert!(changed().1);
        fs::write(old.join("a"), "").unwrap();
        changed();
        assert_eq!(changed(), (false, true));
        fs::write(path.join("a"), "").unwrap();
        assert_eq!(changed(), (true, true));
        fs::remove_dir_all(&path).unwrap();
        assert_eq!(changed(), (true, false));
    }
    #[test]
    fn one_folder_under_two_numbers_is_watched_until_both_are_forgotten() {
        let temporary = tempfile::tempdir().unwrap();
        let at = |name: &str| temporary.path().join(name);
        fs::create_dir(at("a")).unwrap();
        fs::create_dir(at("b")).unwrap();
        let mut folders = Folders::new().unwrap();
        for (id, name) in [(1, "a"), (2, "a"), (3, "b")] {
            folders.watch(id, &at(name)).unwrap();
        }
        assert_eq!(folders.watched().collect::<Vec<_>>(), [1, 2, 3]);
        let stirs = |folders: &Folders, file: &str| {
            folders.drain();
            fs::write(at(file), "").unwrap();
            is_readable(folders)
        };
        assert!(stirs(&folders, "a/1") && stirs(&folders, "b/1"));
        folders.forget(1);
        assert!(stirs(&folders, "a/2"));
        folders.watch(2, &at("b")).unwrap();
        assert!(!stirs(&folders, "a/3") && stirs(&folders, "b/2"));
        folders.forget(3);
        assert!(stirs(&folders, "b/3"));
        folders.forget(2);
        folders.forget(2);
        assert!(!stirs(&folders, "b/4"));
    }
}
