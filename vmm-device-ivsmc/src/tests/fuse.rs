// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Files of a FUSE file system whose server does not answer any more: close() waits for it.

use std::fs;
use std::os::fd::{AsRawFd, RawFd};

use super::closing::{PROMPT, nobody_waits, time};
use super::hostile::{ACCEPT, HIGH, LOW, OFFER, Scene, eventfd};
use super::*;
use crate::Window;
use crate::fabric::wire::Message;
use crate::peer::Fuse;

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
    let folder = tempfile::tempdir().unwrap();
    let mut fuse = match Fuse::mount(folder.path()) {
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
    let files = places.map(|(name, ..)| fuse.open(name).unwrap());
    fuse.silence();
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
