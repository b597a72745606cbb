// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! ivpci on QEMU's ivshmem-doorbell: a minimal ivshmem server, and two guests under plain emulation.
//!
//! The server speaks what QEMU's ivshmem specification says: messages are 8 bytes, little-endian, some with a
//! descriptor. A client is told the protocol's version (0), its own ID, -1 with the memory, and one message
//! with an eventfd for every vector of every client there is; the others are told of it in the same way.

use crate::guest::{Guest, Mode};
use crate::lab::Lab;
use crate::pair::{BOTH, Pair};
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

/// Vectors of every client.
const VECTORS: usize = 2;
/// Bytes of shared memory.
const MEMORY: u64 = 64 << 20;
/// The protocol's version.
const VERSION: i64 = 0;
/// The ID that goes with the memory.
const MEMORY_ID: i64 = -1;

/// A client of the server.
struct Client {
    stream: UnixStream,
    vectors: Vec<OwnedFd>,
}

/// Serves ivshmem clients, which get the IDs 0, 1 and so on and all the same memory, until the process ends.
fn serve(path: &Path, memory: File) -> Result<()> {
    let listener = UnixListener::bind(path).with_context(|| path.display().to_string())?;
    std::thread::Builder::new().spawn(move || {
        let mut clients: Vec<Client> = Vec::new();
        for stream in listener.incoming() {
            if let Err(error) = stream.and_then(|stream| join(&mut clients, stream, &memory)) {
                eprintln!("ivshmem server: {error}");
            }
        }
    })?;
    Ok(())
}

fn memory() -> Result<File> {
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"ivshmem".as_ptr(), libc::MFD_CLOEXEC) };
    let file = File::from(owned(fd)?);
    file.set_len(MEMORY)?;
    Ok(file)
}

fn owned(fd: i32) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn join(clients: &mut Vec<Client>, stream: UnixStream, memory: &File) -> io::Result<()> {
    let id = clients.len() as i64;
    send(&stream, VERSION, None)?;
    send(&stream, id, None)?;
    send(&stream, MEMORY_ID, Some(memory.as_fd()))?;
    let vectors = (0..VECTORS)
        // SAFETY: takes no pointers.
        .map(|_| owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) }))
        .collect::<io::Result<Vec<_>>>()?;
    for (other, client) in clients.iter().enumerate() {
        for vector in &client.vectors {
            send(&stream, other as i64, Some(vector.as_fd()))?;
        }
        for vector in &vectors {
            // One that is gone needs no news.
            let _ = send(&client.stream, id, Some(vector.as_fd()));
        }
    }
    for vector in &vectors {
        send(&stream, id, Some(vector.as_fd()))?;
    }
    clients.push(Client { stream, vectors });
    Ok(())
}

/// Room for one descriptor in a control message, aligned as the kernel wants it.
#[repr(C, align(8))]
struct Control([u8; 64]);

fn send(stream: &UnixStream, id: i64, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut bytes = id.to_le_bytes();
    let mut control = Control([0; 64]);
    let mut part = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: all zeroes is a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    // SAFETY: the control buffer has room for one header and one descriptor; `message` and what it points to
    // are alive during the calls.
    let sent = unsafe {
        if let Some(fd) = fd {
            message.msg_control = control.0.as_mut_ptr().cast();
            message.msg_controllen = libc::CMSG_SPACE(size_of::<i32>() as u32) as _;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(size_of::<i32>() as u32) as _;
            libc::CMSG_DATA(header)
                .cast::<i32>()
                .write_unaligned(fd.as_raw_fd());
        }
        libc::sendmsg(stream.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL)
    };
    if sent < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Boots two QEMU guests that share an ivshmem-doorbell device.
pub fn boot(lab: &Lab) -> Result<Pair> {
    boot_with(lab, memory()?)
}

/// The same; the device has this memory.
fn boot_with(lab: &Lab, memory: File) -> Result<Pair> {
    let socket = lab.run_folder().join("ivshmem");
    serve(&socket, memory)?;
    // Two processors: for a VM with one QEMU's emulation leaves barriers out, and then the two VMs, which are
    // two threads of this machine after all, miss each other's wake-ups now and then.
    let guest = |name: &str, host| {
        Guest::new(name, host)
            .cpus(2)
            .ivsmc(socket.display().to_string())
    };
    // One after the other: who comes first has ID 0, and the IDs' lowest bits have to differ.
    let a = guest("qemu-a", 10).start(lab)?;
    std::thread::sleep(Duration::from_millis(500));
    let b = guest("qemu-b", 11).start(lab)?;
    Pair::of(a.ready()?, b.ready()?)
}

/// ivpci carries SMC-D between two such guests, and leaves a device alone that it was not told to take.
pub fn two_guests(lab: &Lab) -> Result<()> {
    let memory = memory()?;
    let mut pair = boot_with(lab, memory.try_clone()?)?;
    traffic(&mut pair)
        .and_then(|()| not_asked_for(&mut pair, &memory))
        .map_err(|error| pair.explain(error))?;
    println!("ivpci carries SMC-D between two QEMU guests with ivshmem-doorbell");
    Ok(())
}

fn traffic(pair: &mut Pair) -> Result<()> {
    for mode in [Mode::NoCopy, Mode::Copy] {
        pair.set_mode(mode)?;
        for from in BOTH {
            pair.traffic(from, "ping-pong --count 200")?;
            pair.traffic(from, "bulk --up 4000000 --down 4000000")?;
        }
        pair.check_health()?;
    }
    Ok(())
}

/// What some other program has in an ivshmem device's memory is not ivpci's to clear.
fn not_asked_for(pair: &mut Pair, memory: &File) -> Result<()> {
    let others = vec![0xa5; MEMORY as usize];
    for guest in [&mut pair.a, &mut pair.b] {
        guest.load_driver(Mode::Off)?;
    }
    memory.write_all_at(&others, 0)?;
    for guest in [&mut pair.a, &mut pair.b] {
        guest.shell("insmod /lib/modules/ivpci.ko")?;
        let bound = guest.shell("ls /sys/bus/pci/drivers/ivpci")?;
        ensure!(
            !bound.contains(':'),
            "ivpci has taken an ivshmem device without ivshmem=1: {bound}"
        );
    }
    let mut now = vec![0; MEMORY as usize];
    memory.read_exact_at(&mut now, 0)?;
    ensure!(
        now == others,
        "ivpci has written to an ivshmem device that it does not have"
    );
    Ok(())
}
