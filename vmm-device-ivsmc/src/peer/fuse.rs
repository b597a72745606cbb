// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A FUSE file system whose server does not answer any more: close() of its files waits for it.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::sys::check;

/// Requests of the protocol (linux/fuse.h).
const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
/// Bytes of an answer's header.
const OUT_HEADER: u32 = 16;
/// The root's number, and that of every file in it.
const ROOT: u64 = 1;
const FILE: u64 = 2;

#[derive(Debug, Default)]
struct Shared {
    /// Nothing is answered any more.
    is_silent: AtomicBool,
    is_over: AtomicBool,
    /// close() calls that wait.
    held: AtomicUsize,
}

/// A file system, of this thread's and its children's mount namespace, whose every name is an empty file. When it is
/// dropped, whoever waits for its server does not wait any more. The process must not end in any other way: it would wait
/// for itself.
#[derive(Debug)]
pub struct Fuse {
    folder: PathBuf,
    shared: Arc<Shared>,
    server: Option<JoinHandle<()>>,
    /// What is open, to be closed when nobody has to wait for that.
    files: Vec<File>,
}

impl Fuse {
    /// Mounts it, which wants root.
    ///
    /// # Errors
    /// When this kernel or this user cannot.
    pub fn mount(folder: &Path) -> io::Result<Self> {
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/fuse")?;
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0",
            device.as_raw_fd()
        );
        let options = CString::new(options)?;
        let path = CString::new(folder.as_os_str().as_bytes())?;
        let (fuse, none) = (c"fuse".as_ptr(), ptr::null());
        let private = libc::MS_REC | libc::MS_PRIVATE;
        // SAFETY: all strings outlive the calls.
        unsafe {
            check(libc::unshare(libc::CLONE_NEWNS))?;
            check(libc::mount(none, c"/".as_ptr(), none, private, none.cast()))?;
            let options = options.as_ptr().cast();
            check(libc::mount(fuse, path.as_ptr(), fuse, 0, options))?;
        }
        let shared = Arc::<Shared>::default();
        let server = thread::spawn({
            let shared = shared.clone();
            move || serve(device, &shared)
        });
        Ok(Fuse {
            folder: folder.to_owned(),
            shared,
            server: Some(server),
            files: Vec::new(),
        })
    }

    /// Opens a file.
    ///
    /// # Errors
    /// Those of open().
    pub fn open(&mut self, name: &str) -> io::Result<RawFd> {
        let file = File::open(self.folder.join(name))?;
        let fd = file.as_raw_fd();
        self.files.push(file);
        Ok(fd)
    }

    /// From now on it answers nothing.
    pub fn silence(&self) {
        self.shared.is_silent.store(true, Ordering::Relaxed);
    }

    /// How many close() calls have waited for an answer.
    pub fn held(&self) -> usize {
        self.shared.held.load(Ordering::Relaxed)
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
        if let Ok(path) = CString::new(self.folder.as_os_str().as_bytes()) {
            // SAFETY: the path outlives the call.
            unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
        }
    }
}

/// `struct fuse_attr`: the root is a folder, everything else a file.
fn attributes(node: u64) -> Vec<u8> {
    let mode: u32 = if node == ROOT { 0o40755 } else { 0o100_644 };
    let mut bytes = node.to_le_bytes().to_vec();
    bytes.extend([0; 52]);
    bytes.extend(mode.to_le_bytes());
    bytes.extend(1u32.to_le_bytes());
    bytes.resize(88, 0);
    bytes
}

/// Eight bytes of a request.
fn word(request: &[u8], at: usize) -> Option<u64> {
    let bytes = request.get(at..at + 8)?.try_into().ok()?;
    Some(u64::from_le_bytes(bytes))
}

/// Answers until it is over. Then the device is closed, and every request that waits fails.
fn serve(mut device: File, shared: &Shared) {
    let mut request = vec![0; 1 << 18];
    while !shared.is_over.load(Ordering::Relaxed) {
        let Ok(len) = device.read(&mut request) else {
            thread::sleep(Duration::from_millis(1));
            continue;
        };
        let (Some(kind), Some(unique), Some(node)) = (
            word(&request[..len], 0),
            word(&request[..len], 8),
            word(&request[..len], 16),
        ) else {
            continue;
        };
        let kind = (kind >> 32) as u32;
        if shared.is_silent.load(Ordering::Relaxed) {
            let is_close = usize::from(kind == FLUSH);
            shared.held.fetch_add(is_close, Ordering::Relaxed);
            continue;
        }
        let (error, body) = match kind {
            FORGET => continue,
            INIT => {
                let mut body = [7u32, 31, 0, 0, 0, 4096].map(u32::to_le_bytes).concat();
                body.resize(64, 0);
                (0, body)
            }
            LOOKUP => {
                let mut body = FILE.to_le_bytes().to_vec();
                body.resize(40, 0);
                body.extend(attributes(FILE));
                (0, body)
            }
            GETATTR => (0, [vec![0; 16], attributes(node)].concat()),
            OPEN => (0, vec![0; 16]),
            FLUSH => (0, vec![]),
            _ => (-libc::ENOSYS, vec![]),
        };
        let mut answer = (OUT_HEADER + body.len() as u32).to_le_bytes().to_vec();
        answer.extend(i32::to_le_bytes(error));
        answer.extend(unique.to_le_bytes());
        answer.extend(body);
        // It may not be waited for any more.
        let _ = device.write(&answer);
    }
}
