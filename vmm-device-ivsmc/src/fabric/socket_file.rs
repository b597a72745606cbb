// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The file that a device listens on: made, found again, removed.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::SystemTime;

use super::socket::Socket;

/// The umask with which a socket's file is open to all, as a socket's mode is 0777 without one.
const UMASK_FOR_ALL: libc::mode_t = 0o111;

/// Device, inode and birth: what tells a file from another one of the same name. (Inodes are used again soon.)
type FileIdentity = (u64, u64, Option<SystemTime>);

fn identity(path: &Path) -> io::Result<FileIdentity> {
    fs::symlink_metadata(path).map(|found| identity_of(&found))
}

fn identity_of(metadata: &Metadata) -> FileIdentity {
    (metadata.dev(), metadata.ino(), metadata.created().ok())
}

/// The file of a socket that listens. Dropping it removes the file, unless it is another's by now; while the socket
/// still listens, nobody replaces it in between.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: FileIdentity,
}

impl SocketFile {
    /// Listens on `path`, in place of a socket there that nobody listens on any more. With `for_all` every user who
    /// can reach the file can connect, else those to whom the process's umask leaves it. The calling thread then has a
    /// umask and a working folder of its own: it must be one that nobody else uses.
    ///
    /// # Errors
    /// AddrInUse if somebody does; AlreadyExists if it is something else than a socket.
    pub fn listen(path: &Path, for_all: bool) -> io::Result<(Socket, Self)> {
        match Self::listen_anew(path, for_all) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if !fs::symlink_metadata(path)?.file_type().is_socket() {
                    return Err(io::ErrorKind::AlreadyExists.into());
                }
                let found = identity(path)?;
                match Socket::connect(path) {
                    Err(stale) if stale.kind() == io::ErrorKind::ConnectionRefused => {}
                    _ => return Err(error),
                }
                // Somebody else may have replaced it since.
                if identity(path)? != found {
                    return Err(error);
                }
                fs::remove_file(path)?;
                Self::listen_anew(path, for_all)
            }
            other => other,
        }
    }

    /// The same, on any thread.
    ///
    /// # Errors
    /// As above.
    pub fn listen_at_first(path: &Path, for_all: bool) -> io::Result<(Socket, Self)> {
        let listen = || Self::listen(path, for_all);
        if !for_all {
            return listen();
        }
        thread::scope(|scope| {
            let thread = thread::Builder::new().spawn_scoped(scope, listen)?;
            let panicked = |_| Err(io::Error::other("the thread that was to listen panicked"));
            thread.join().unwrap_or_else(panicked)
        })
    }

    /// The same where nothing is.
    ///
    /// # Errors
    /// AddrInUse if there is anything.
    pub fn listen_anew(path: &Path, for_all: bool) -> io::Result<(Socket, Self)> {
        let socket = if for_all {
            bind_for_all(path)?
        } else {
            Socket::bind(path)?
        };
        // From here on, dropping it removes the file.
        let file = SocketFile {
            path: path.into(),
            identity: identity(path)?,
        };
        socket.listen()?;
        Ok((socket, file))
    }

    /// Whether it is still at its path, and not another file.
    ///
    /// # Errors
    /// NotFound if there is nothing.
    pub fn is_there(&self) -> io::Result<bool> {
        identity(&self.path).map(|found| found == self.identity)
    }
}

/// A socket whose file every user may connect to. It is made with that mode: a change of a file's mode could hit
/// another file that somebody put in its place. The umask is this thread's alone from here on.
fn bind_for_all(path: &Path) -> io::Result<Socket> {
    // SAFETY: plain system calls, which change nothing but the umask and folder that this thread shares with others.
    let old = unsafe {
        if libc::unshare(libc::CLONE_FS) < 0 {
            let error = io::Error::last_os_error();
            let why = format!("a file for other users (allow) needs unshare(CLONE_FS): {error}");
            return Err(io::Error::other(why));
        }
        libc::umask(UMASK_FOR_ALL)
    };
    let socket = Socket::bind(path);
    // SAFETY: as above.
    unsafe { libc::umask(old) };
    socket
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_there().is_ok_and(|is_there| is_there)
            && let Err(error) = fs::remove_file(&self.path)
        {
            log::warn!("ivsmc: cannot remove {}: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{File, Permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listen = |path: &Path| SocketFile::listen(path, false);
        let kind = |path: &Path| listen(path).map(drop).unwrap_err().kind();
        let (socket, file) = listen(&path).unwrap();
        assert_eq!(kind(&path), io::ErrorKind::AddrInUse);
        drop(socket);
        let anew = SocketFile::listen_anew(&path, false).map(drop);
        assert_eq!(anew.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert!(file.is_there().unwrap());
        let (_socket, new_file) = listen(&path).unwrap();
        assert!(!file.is_there().unwrap());
        drop(file);
        assert!(path.exists(), "it is another's by now");
        fs::rename(&path, folder.path().join("moved")).unwrap();
        assert_eq!(
            new_file.is_there().unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        fs::rename(folder.path().join("moved"), &path).unwrap();
        drop(new_file);
        assert!(!path.exists());
        File::create(&path).unwrap();
        assert_eq!(kind(&path), io::ErrorKind::AlreadyExists);
        assert_eq!(kind(&folder.path().join("no/s")), io::ErrorKind::NotFound);
    }

    /// Somebody who can write to the folder puts other files in the socket's place as fast as possible.
    #[test]
    fn a_file_for_all_is_for_all_and_no_other_is() {
        const TRIES: usize = 2000;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        let listen = || {
            thread::scope(|scope| {
                let listen = || SocketFile::listen_anew(&path, true);
                scope.spawn(listen).join().unwrap()
            })
        };
        drop(
            listen()
                .inspect(|_| assert_eq!(mode(&path), 0o666))
                .unwrap(),
        );
        let secret = folder.path().join("secret");
        File::create(&secret).unwrap();
        fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
        let is_done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let name = folder.path().join("name");
                while !is_done.load(Ordering::Relaxed) {
                    // As soon as it is there, a second name of the secret replaces it.
                    let _ = fs::hard_link(&secret, &name);
                    while fs::symlink_metadata(&path).is_err() {
                        if is_done.load(Ordering::Relaxed) {
                            return;
                        }
                    }
                    let _ = fs::rename(&name, &path);
                }
            });
            for _ in 0..TRIES {
                let _ = listen();
                let _ = fs::remove_file(&path);
            }
            is_done.store(true, Ordering::Relaxed);
        });
        assert_eq!(mode(&secret), 0o600, "another file was opened to all");
    }
}
