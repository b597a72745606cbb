// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Files of a FUSE file system whose server does not answer any more: close() waits for it.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::closing::{PROMPT, nobody_waits, time};
use super::hostile::{ACCEPT, HIGH, LOW, OFFER, Scene, eventfd};
use super::*;
use crate::Window;
use crate::fabric::wire::Message;

/// Requests of the protocol (linux/fuse.h).
const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
/// Bytes of a request's and of an answer's header.
const IN_HEADER: usize = 40;
const OUT_HEADER: u32 = 16;
/// The root's number, and that of every file in it.
const ROOT: u64 = 1;
const FILE: u64 = 2;

#[derive(Default)]
struct Shared {
    /// Nothing is answered any more.
    is_silent: AtomicBool,
    is_over: AtomicBool,
    /// close() calls that wait.
    held: AtomicUsize,
}

/// A file system, of this thread's and its children's mount namespace, whose every name is an empty file. When it is
/// dropped, whoever waits for its server does not wait any more.
struct Fuse {
    folder: tempfile::TempDir,
    shared: Arc<Shared>,
    server: Option<JoinHandle<()>>,
    /// What is open, to be closed when nobody has to wait for that.
    files: Vec<File>,
}

impl Fuse {
    fn new() -> io::Result<Self> {
        let check = |result: i32| match result {
            ..0 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        };
        let folder = tempfile::tempdir()?;
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
        let path = CString::new(folder.path().as_os_str().as_bytes())?;
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
            folder,
            shared,
            server: Some(server),
            files: Vec::new(),
        })
    }

    fn open(&mut self, name: &str) -> RawFd {
        let file = File::open(self.folder.path().join(name)).unwrap();
        let fd = file.as_raw_fd();
        self.files.push(file);
        fd
    }

    fn held(&self) -> usize {
        self.shared.held.load(Ordering::Relaxed)
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
        let path = CString::new(self.folder.path().as_os_str().as_bytes()).unwrap();
        // SAFETY: the path outlives the call.
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
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

/// Answers until it is over. Then the device is closed, and every request that waits fails.
fn serve(mut device: File, shared: &Shared) {
    let mut request = vec![0; 1 << 18];
    while !shared.is_over.load(Ordering::Relaxed) {
        let Ok(len) = device.read(&mut request) else {
            thread::sleep(Duration::from_millis(1));
            continue;
        };
        assert!(len >= IN_HEADER);
        let word = |at: usize| u64::from_le_bytes(request[at..at + 8].try_into().unwrap());
        let (kind, unique, node) = ((word(0) >> 32) as u32, word(8), word(16));
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

/// What comes with a message, one of it this.
type Descriptors<'a> = &'a dyn Fn(RawFd) -> Vec<RawFd>;

#[test]
fn a_file_of_a_file_system_that_does_not_answer_holds_up_nobody() {
    alone("tests::fuse::files_of_a_silent_server");
}

#[test]
#[ignore = "makes a mount namespace; run by a_file_of_a_file_system_that_does_not_answer_holds_up_nobody"]
fn files_of_a_silent_server() {
    // SAFETY: plain system call.
    if !fs::exists("/dev/fuse").unwrap_or(false) || unsafe { libc::geteuid() } != 0 {
        println!("SKIPPED: there is no /dev/fuse, or this is not root");
        return;
    }
    let scene = Scene::new();
    let mut fuse = match Fuse::new() {
        Ok(fuse) => fuse,
        Err(error) => {
            println!("SKIPPED: a FUSE file system cannot be mounted: {error}");
            return;
        }
    };
    let window = Window::create(WINDOW, false).unwrap();
    let bell = eventfd();
    let (window, bell) = (window.file().as_raw_fd(), bell.as_raw_fd());
    let places: [(&str, u8, Message, Descriptors); 3] = [
        ("OFFER's window", LOW, OFFER, &|fd| vec![fd, bell]),
        ("OFFER's doorbell", LOW, OFFER, &|fd| vec![window, fd]),
        ("ACCEPT's doorbell", HIGH, ACCEPT, &|fd| vec![fd]),
    ];
    let files = places.map(|(name, ..)| fuse.open(name));
    fuse.shared.is_silent.store(true, Ordering::Relaxed);
    let mut clients = Vec::new();
    for ((name, own, message, descriptors), file) in places.iter().zip(files) {
        let client = scene.connect();
        client.hello(*own);
        assert!(matches!(client.next(), Some((Message::Hello(_), _))));
        client.send(*message, &descriptors(file));
        eventually("it is closed, which waits", || fuse.held() > 0);
        nobody_waits(&scene, name);
        clients.push(client);
    }
    let Scene { vm, good, .. } = scene;
    let end = time(|| vm.stop());
    assert!(end < PROMPT, "shutdown took {end:?}");
    drop(fuse);
    drop((clients, good));
}
