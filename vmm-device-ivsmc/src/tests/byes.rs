// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which reason each fault gets: the table of docs/fabric.md.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

use super::hostile::{ACCEPT, HIGH, LOW, MIDDLE, OFFER, Scene, eventfd, hello};
use super::*;
use crate::Window;
use crate::fabric::wire::{Bye, Hello, Message};

/// A memfd of a window's size with these seals.
fn memory(size: u64, seals: i32) -> File {
    // SAFETY: the name is a C string; the descriptor is new and ours; the seals are added to it.
    unsafe {
        let flags = libc::MFD_ALLOW_SEALING | libc::MFD_CLOEXEC;
        let file = File::from_raw_fd(libc::memfd_create(c"window".as_ptr(), flags));
        file.set_len(size).unwrap();
        assert_eq!(libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals), 0);
        file
    }
}

/// What a client that is side 0 or 1 sends, in order.
type Packets = Vec<(Message, Vec<RawFd>)>;

#[test]
fn each_fault_has_the_reason_of_the_table() {
    const NEEDED: i32 = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    let scene = Scene::new();
    let (doorbell, null) = (eventfd(), File::open("/dev/null").unwrap());
    let window = Window::create(WINDOW, false).unwrap();
    let unsealed = memory(WINDOW, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW);
    let read_only = memory(WINDOW, NEEDED | libc::F_SEAL_FUTURE_WRITE);
    let small = memory(WINDOW / 2, NEEDED);
    let name = format!("/proc/self/fd/{}", window.file().as_raw_fd());
    let half_open = [
        File::open(&name).unwrap(),
        File::options().write(true).open(&name).unwrap(),
    ];
    let (bell, null) = (doorbell.as_raw_fd(), null.as_raw_fd());
    let good = window.file().as_raw_fd();
    let Message::Hello(low) = hello(LOW) else {
        unreachable!()
    };
    let with = |change: fn(&mut Hello)| {
        let mut hello = low;
        change(&mut hello);
        vec![(Message::Hello(hello), vec![])]
    };
    let offer = |message, descriptors: &[RawFd]| {
        vec![(hello(LOW), vec![]), (message, descriptors.to_vec())]
    };
    let accept = |message, descriptors: &[RawFd]| {
        vec![(hello(HIGH), vec![]), (message, descriptors.to_vec())]
    };
    let of = |window_shift, vectors| Message::Offer {
        window_shift,
        vectors,
    };
    let (protocol, refused) = ((Bye::Protocol, "protocol"), (Bye::Refused, "refused"));
    let faults: Vec<(&str, Packets, (Bye, &str))> = vec![
        (
            "HELLO of another fabric",
            with(|hello| hello.fabric_id = 0xff01),
            refused,
        ),
        (
            "HELLO with the receiver's own GID",
            vec![(hello(MIDDLE), vec![])],
            refused,
        ),
        (
            "HELLO with a null GID",
            with(|hello| hello.gid = Gid::from_bytes([0; 16])),
            protocol,
        ),
        (
            "HELLO with a position of 0",
            with(|hello| hello.position = 0),
            protocol,
        ),
        (
            "HELLO with a position over 65535",
            with(|hello| hello.position = 65536),
            protocol,
        ),
        (
            "HELLO with no vectors",
            with(|hello| hello.vectors = 0),
            protocol,
        ),
        (
            "HELLO with more than 16 vectors",
            with(|hello| hello.vectors = 17),
            protocol,
        ),
        (
            "HELLO with a window_shift under 21",
            with(|hello| hello.window_shift = 20),
            protocol,
        ),
        (
            "HELLO with a window_shift over 40",
            with(|hello| hello.window_shift = 41),
            protocol,
        ),
        (
            "HELLO or BYE with a descriptor",
            vec![(hello(LOW), vec![bell])],
            protocol,
        ),
        (
            "OFFER of another window_shift than agreed",
            offer(of(21, 1), &[good, bell]),
            protocol,
        ),
        (
            "OFFER with other vectors than HELLO",
            offer(of(22, 2), &[good, bell, bell]),
            protocol,
        ),
        (
            "OFFER with too few descriptors",
            offer(OFFER, &[good]),
            protocol,
        ),
        (
            "OFFER with too many descriptors",
            offer(OFFER, &[good, bell, bell]),
            protocol,
        ),
        (
            "OFFER of what is no memfd",
            offer(OFFER, &[null, bell]),
            protocol,
        ),
        (
            "OFFER of a memfd without one of the seals",
            offer(OFFER, &[unsealed.as_raw_fd(), bell]),
            protocol,
        ),
        (
            "OFFER of a memfd that is sealed against writing",
            offer(OFFER, &[read_only.as_raw_fd(), bell]),
            protocol,
        ),
        (
            "OFFER of a memfd that is not open to be read and written",
            offer(OFFER, &[half_open[0].as_raw_fd(), bell]),
            protocol,
        ),
        (
            "OFFER of a memfd of another size",
            offer(OFFER, &[small.as_raw_fd(), bell]),
            protocol,
        ),
        (
            "OFFER with a doorbell that is no eventfd",
            offer(OFFER, &[good, null]),
            protocol,
        ),
        (
            "ACCEPT with a doorbell that is no eventfd",
            accept(ACCEPT, &[null]),
            protocol,
        ),
        (
            "ACCEPT with too few descriptors",
            accept(ACCEPT, &[]),
            protocol,
        ),
        (
            "a message out of its turn",
            accept(OFFER, &[good, bell]),
            protocol,
        ),
    ];
    let mut rows = Vec::new();
    for (fault, packets, (reason, name)) in faults {
        let client = scene.connect();
        for (message, descriptors) in packets {
            client.send(message, &descriptors);
        }
        assert_eq!(client.end(), Some(reason), "{fault}");
        rows.push(format!("| {fault} | {name} |"));
    }
    let client = scene.connect();
    client.send(hello(LOW), &[]);
    client.send(OFFER, &[half_open[1].as_raw_fd(), bell]);
    assert_eq!(client.end(), Some(Bye::Protocol), "it can only be written");
    assert_eq!(scene.vm.device.counters().host_errors, 0);
    // Silence, and a GID that has a link.
    let strict = Scene::strict();
    let silent = strict.connect();
    assert_eq!(silent.end(), Some(Bye::Closing));
    strict.is_as_before();
    rows.push("| no link within two seconds | closing |".into());
    let first = scene.connect();
    first.hello(HIGH);
    while !matches!(first.next(), Some((Message::Offer { .. }, _))) {}
    let second = scene.connect();
    second.hello(HIGH);
    assert_eq!(second.end(), Some(Bye::Duplicate));
    rows.push("| a GID that has a link, or is about to | duplicate |".into());
    // A link that has just ended. (The first delays may be over before a busy machine gets to the next connection.)
    let (mut client, mut is_busy) = (first, false);
    for _ in 0..8 {
        client.send(ACCEPT, &[bell]);
        eventually("up", || scene.vm.links() == 2);
        drop(client);
        eventually("down", || scene.vm.links() == 1);
        client = scene.connect();
        client.hello(HIGH);
        assert!(matches!(client.next(), Some((Message::Hello(_), _))));
        let (answer, _) = client.next().unwrap();
        if !matches!(answer, Message::Offer { .. }) {
            is_busy = answer == Message::Bye(Bye::Busy);
            break;
        }
    }
    assert!(is_busy);
    rows.push("| a peer whose last link has ended too soon before | busy |".into());
    scene.is_as_before();
    let table = rows.join("\n");
    println!("{table}");
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/fabric.md");
    // Another workspace that has this crate need not have the document.
    if let Ok(text) = fs::read_to_string(document) {
        assert!(text.contains(&table), "docs/fabric.md has another table");
    }
}
