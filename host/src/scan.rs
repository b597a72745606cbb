// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Looks for API sockets. Below a pattern's first `*` folders are others': symbolic links are not followed there, as
//! they could put a VM into a fabric of somebody else's choice.

use crate::labels::{self, Labels};
use crate::name::Name;
use crate::pattern::{Part, Pattern};
use crate::policy::Policy;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, open, openat, statat};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// The most VMs of a host.
pub const MAX_VMS: usize = 4096;
/// The most files of a folder that are looked at.
const MAX_FILES: usize = 16 * MAX_VMS;
/// The most folders that are looked into for one pattern.
const MAX_FOLDERS: usize = 2 * MAX_VMS;

/// Which file a socket is: a VMM that is started anew makes another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    device: u64,
    inode: u64,
    changed: (i64, i64),
}

/// What the policy says of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It belongs to this fabric of the policy's.
    Fabric(usize),
    /// No rule matches.
    NoRule,
    /// It cannot be told, as its label file is none.
    Labels(String),
    /// Another socket's VM has the same name in the same fabric, and so they would have the same path.
    Namesake(PathBuf),
}

/// An API socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its path.
    pub socket: PathBuf,
    /// The VM's name.
    pub name: Name,
    /// Which file it is.
    pub identity: Identity,
    /// What the policy says.
    pub verdict: Verdict,
    /// The part of the path that is the administrator's.
    folder: PathBuf,
}

/// What was found for one pattern.
#[derive(Clone, Debug, Default)]
pub struct Scan {
    /// The sockets.
    pub found: Vec<Found>,
    /// Folders in which something may appear.
    pub folders: BTreeSet<PathBuf>,
    /// What could have been meant, and why it is not taken.
    pub skipped: Vec<(PathBuf, String)>,
}

impl Identity {
    #[allow(clippy::unnecessary_cast)] // Their types are not the same everywhere.
    fn of(stat: &Stat) -> Self {
        Identity {
            device: stat.st_dev as u64,
            inode: stat.st_ino as u64,
            changed: (stat.st_ctime as i64, stat.st_ctime_nsec as i64),
        }
    }
}

/// Looks for a pattern's sockets. This can wait, if a file system does.
pub fn scan(policy: &Policy, pattern: &Pattern) -> Scan {
    let mut walk = Walk {
        policy,
        pattern,
        scan: Scan::default(),
    };
    match open_folder(&pattern.folder) {
        Ok(folder) => walk.descend(&folder, &pattern.folder, &pattern.parts, None),
        Err(Errno::NOENT) => {
            // It may be made later, and its parents with it.
            let exists = |folder: &&Path| folder.is_dir();
            let parent = pattern.folder.ancestors().find(exists);
            walk.scan.folders.extend(parent.map(Path::to_path_buf));
        }
        Err(error) => walk.skip(&pattern.folder, &error),
    }
    walk.scan
}

/// All that was found, in order: each socket once, and with whose names collide marked. (No VM of two with the same name
/// gets a device: which one came first is not known after a restart.)
pub fn merge<'a>(scans: impl Iterator<Item = &'a Scan>) -> Vec<Found> {
    let mut all: BTreeMap<PathBuf, Found> = BTreeMap::new();
    for found in scans.flat_map(|scan| &scan.found) {
        if all.len() < MAX_VMS {
            all.entry(found.socket.clone())
                .or_insert_with(|| found.clone());
        }
    }
    let mut by_name: BTreeMap<(usize, Name), Vec<PathBuf>> = BTreeMap::new();
    for found in all.values() {
        if let Verdict::Fabric(fabric) = found.verdict {
            let sockets = by_name.entry((fabric, found.name.clone())).or_default();
            sockets.push(found.socket.clone());
        }
    }
    for sockets in by_name.into_values().filter(|sockets| sockets.len() > 1) {
        for (n, socket) in sockets.iter().enumerate() {
            let other = &sockets[usize::from(n == 0)];
            if let Some(found) = all.get_mut(socket) {
                found.verdict = Verdict::Namesake(other.clone());
            }
        }
    }
    all.into_values().collect()
}

struct Walk<'a> {
    policy: &'a Policy,
    pattern: &'a Pattern,
    scan: Scan,
}

impl Walk<'_> {
    /// `name`: what the last `*` so far stands for.
    fn descend(&mut self, folder: &OwnedFd, path: &Path, parts: &[Part], name: Option<&Name>) {
        let Some((part, rest)) = parts.split_first() else {
            return;
        };
        if self.scan.folders.len() >= MAX_FOLDERS {
            return self.skip(path, &format!("there are more than {MAX_FOLDERS} folders"));
        }
        self.scan.folders.insert(path.into());
        match part {
            Part::Literal(file) => {
                if let Some(name) = name {
                    self.step(folder, path, OsStr::new(file), rest, name);
                }
            }
            Part::Star { .. } => {
                let files = match files(folder) {
                    Ok(files) => files,
                    Err(error) => return self.skip(path, &error),
                };
                for file in files {
                    match part.stands_for(file.as_bytes()) {
                        None => {}
                        Some(Ok(name)) => self.step(folder, path, &file, rest, &name),
                        Some(Err(error)) => self.skip(&path.join(&file), &error),
                    }
                }
            }
        }
    }

    fn step(&mut self, folder: &OwnedFd, path: &Path, file: &OsStr, rest: &[Part], name: &Name) {
        let path = path.join(file);
        let stat = match statat(folder, file, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return,
            Err(error) => return self.skip(&path, &error),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => self.skip(&path, &"symbolic links are not followed here"),
            FileType::Socket if rest.is_empty() => {
                if self.scan.found.len() >= MAX_VMS {
                    return self.skip(&path, &format!("there are more than {MAX_VMS} VMs"));
                }
                let verdict = self.verdict(folder, &path, name);
                self.scan.found.push(Found {
                    identity: Identity::of(&stat),
                    name: name.clone(),
                    folder: self.pattern.folder.clone(),
                    socket: path,
                    verdict,
                });
            }
            FileType::Directory if !rest.is_empty() => match child(folder, file) {
                Ok(folder) => self.descend(&folder, &path, rest, Some(name)),
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(error) => self.skip(&path, &error),
            },
            // Other things that happen to be there.
            _ => {}
        }
    }

    fn verdict(&self, folder: &OwnedFd, socket: &Path, name: &Name) -> Verdict {
        let labels = match self.policy.label_file(name) {
            None => Labels::new(),
            Some(file) => match labels::read(folder, &file) {
                Ok(labels) => labels,
                Err(error) => return Verdict::Labels(error.to_string()),
            },
        };
        match self.policy.fabric_of(name, socket, &labels) {
            Some(fabric) => Verdict::Fabric(fabric),
            None => Verdict::NoRule,
        }
    }

    fn skip(&mut self, path: &Path, reason: &dyn ToString) {
        // What is logged of it is limited; what is kept has to be, too.
        if self.scan.skipped.len() < 64 {
            self.scan.skipped.push((path.into(), reason.to_string()));
        }
    }
}

/// A folder of the administrator's.
fn open_folder(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open(path, flags, Mode::empty())
}

/// A folder in one, which is not a link.
fn child(folder: impl AsFd, file: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(folder, file, flags, Mode::empty())
}

/// The names of what is in a folder.
pub(crate) fn files(folder: impl AsFd) -> Result<Vec<std::ffi::OsString>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut files = Vec::new();
    for file in Dir::new(openat(folder, ".", flags, Mode::empty())?)? {
        let file = file?;
        let name = file.file_name().to_bytes();
        if name != b"." && name != b".." {
            files.push(OsStr::from_bytes(name).into());
        }
        if files.len() == MAX_FILES {
            break;
        }
    }
    Ok(files)
}

impl Found {
    /// The socket that was found, and no other one that has taken its place: to be connected to through
    /// /proc/self/fd.
    ///
    /// # Errors
    /// It is gone.
    pub fn open(&self) -> io::Result<OwnedFd> {
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        let rest = self.socket.strip_prefix(&self.folder);
        let mut at = open_folder(&self.folder)?;
        let mut rest = rest.map_err(|_| gone())?.components().peekable();
        while let Some(Component::Normal(file)) = rest.next() {
            at = if rest.peek().is_some() {
                child(&at, file)?
            } else {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                openat(&at, file, flags, Mode::empty())?
            };
        }
        let stat = fstat(&at)?;
        let is_socket = FileType::from_raw_mode(stat.st_mode) == FileType::Socket;
        match is_socket && Identity::of(&stat) == self.identity {
            true => Ok(at),
            false => Err(gone()),
        }
    }
}
