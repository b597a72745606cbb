// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Descriptors whose close() blocks, in every place that there is for them.

use super::place::{Packets, Place};
use super::{PATIENCE, Target, eventfd, say, wait, wait_until};
use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;
use vmm_device_ivsmc::peer::{self, Client, Fuse, Lingering};

/// For how long a lingering socket's close() blocks, in seconds: until this process ends, which is earlier.
const LINGER: u16 = 600;
/// Of the GIDs of these connections: none that has a link at the VMM's end, else the device may end them before all is
/// sent.
const NUMBER: u64 = 2;
/// How often to try to be the first to close.
const TRIES: u32 = 20;
/// Who still closes after this time has the last copy.
const MOMENT: Duration = Duration::from_millis(300);

/// Sends them; gives the connection, which stays, or `None` if the device has ended it before all was sent.
fn send(target: &Target, packets: &Packets) -> Result<Option<Client>> {
    let client = Client::connect(&target.socket, PATIENCE)?;
    for (index, (bytes, descriptors)) in packets.iter().enumerate() {
        if client.send_soon(bytes, descriptors, PATIENCE).is_err() {
            return Ok(None);
        }
        // Who has an answer to HELLO may send descriptors. To try until one may would give the device time to end the
        // connection at the packet before.
        if index == 0 && packets.len() > 1 {
            client.next(PATIENCE).context("the answer to HELLO")?;
        }
    }
    Ok(Some(client))
}

/// What a message needs besides.
fn good(target: &Target) -> Result<(File, OwnedFd)> {
    Ok((peer::window(1 << target.window_shift)?, eventfd()?))
}

/// Sockets that linger. The device has the last copy of each.
pub fn lingering(target: &Target) -> Result<()> {
    target.become_user()?;
    let _lingering = linger_everywhere(target)?;
    say("ready")?;
    wait()
}

/// One in each place, for as long as what is returned is there.
pub fn linger_everywhere(target: &Target) -> Result<Vec<(Lingering, Client)>> {
    let good = good(target)?;
    let linger = |place| linger(target, place, &good);
    Place::ALL.into_iter().map(linger).collect()
}

/// One of them. The receiver is in what is returned.
fn linger(
    target: &Target,
    place: Place,
    (window, bell): &(File, OwnedFd),
) -> Result<(Lingering, Client)> {
    let good = (window.as_raw_fd(), bell.as_raw_fd());
    for _ in 0..TRIES {
        let mut lingering = Lingering::new(LINGER)?;
        let packets = place.packets(lingering.as_raw_fd(), good, NUMBER, target.window_shift);
        let Some(client) = send(target, &packets)? else {
            continue;
        };
        let closing = lingering.let_go();
        std::thread::sleep(MOMENT);
        if closing.is_finished() {
            return Ok((lingering, client));
        }
    }
    bail!("{place:?}: the device is always the first to close")
}

/// Files of a FUSE file system. That they are closed while others have them makes no difference.
pub fn fuse(target: &Target) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut fuse = Fuse::mount(folder.path()).context("FUSE")?;
    let files = Place::ALL.map(|place| fuse.open(&format!("{place:?}")));
    fuse.silence();
    target.become_user()?;
    let (window, bell) = good(target)?;
    let good = (window.as_raw_fd(), bell.as_raw_fd());
    let mut clients = Vec::new();
    for (place, file) in Place::ALL.into_iter().zip(files) {
        let packets = place.packets(file?, good, NUMBER, target.window_shift);
        let client = send(target, &packets)?;
        // The device may have ended the connection before the last packet. All that it does in order.
        ensure!(
            client.is_some() || matches!(place, Place::NeverRead),
            "{place:?}: the connection has ended"
        );
        clients.push(client);
    }
    wait_until("a close() waits", || Ok(fuse.held() > 0))?;
    say("ready")?;
    wait()
}
