// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Descriptors whose close() blocks, in every place that there is for them.

use super::link::{hello, high, name};
use super::{PATIENCE, Target, eventfd, say, wait, wait_until};
use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::Duration;
use vmm_device_ivsmc::peer::{self, Bye, Client, Fuse, Lingering, Message};

/// For how long a lingering socket's close() blocks, in seconds: until this process ends, which is earlier.
const LINGER: u16 = 600;
/// How often to try to be the first to close.
const TRIES: u32 = 20;
/// Who still closes after this time has the last copy.
const MOMENT: Duration = Duration::from_millis(300);

/// Where a descriptor can be.
#[derive(Debug, Clone, Copy)]
enum Place {
    Hello,
    OffersWindow,
    OffersDoorbell,
    AcceptsDoorbell,
    Bye,
    /// Behind as many as a message can have.
    InExcess,
    /// In a packet that is longer than any message.
    CutOff,
    /// In a packet that is no message.
    NoMessage,
    /// Behind what ends the connection.
    NeverRead,
}

const PLACES: [Place; 9] = [
    Place::Hello,
    Place::OffersWindow,
    Place::OffersDoorbell,
    Place::AcceptsDoorbell,
    Place::Bye,
    Place::InExcess,
    Place::CutOff,
    Place::NoMessage,
    Place::NeverRead,
];

/// What is sent, in order: bytes and descriptors. All but `fd` is as it has to be.
fn packets(
    place: Place,
    fd: RawFd,
    (window, bell): (RawFd, RawFd),
    window_shift: u32,
) -> Vec<(Vec<u8>, Vec<RawFd>)> {
    let introduction = |gid| (hello(gid, window_shift).encode(), vec![]);
    let offer = Message::Offer {
        window_shift,
        vectors: 1,
    };
    let (offer, accept) = (offer.encode(), Message::Accept { vectors: 1 }.encode());
    match place {
        Place::Hello => vec![(introduction(name(1)).0, vec![fd])],
        Place::OffersWindow => vec![introduction(name(1)), (offer, vec![fd, bell])],
        Place::OffersDoorbell => vec![introduction(name(1)), (offer, vec![window, fd])],
        Place::AcceptsDoorbell => vec![introduction(high(1)), (accept, vec![fd])],
        Place::Bye => vec![(Message::Bye(Bye::Closing).encode(), vec![fd])],
        Place::InExcess => {
            let all = [bell; 16].into_iter().chain([fd]).collect();
            vec![introduction(high(1)), (accept, all)]
        }
        Place::CutOff => {
            let long = [&offer[..], &[0; 4000]].concat();
            vec![introduction(name(1)), (long, vec![fd, bell])]
        }
        Place::NoMessage => vec![(vec![0x5a; 56], vec![fd])],
        Place::NeverRead => vec![(b"nonsense".to_vec(), vec![]), (vec![0], vec![fd])],
    }
}

/// Sends them; gives the connection, which stays, or `None` if the device has ended it before all was sent.
fn send(target: &Target, packets: &[(Vec<u8>, Vec<RawFd>)]) -> Result<Option<Client>> {
    let client = Client::connect(&target.socket, PATIENCE)?;
    for (bytes, descriptors) in packets {
        if client.send_soon(bytes, descriptors, PATIENCE).is_err() {
            return Ok(None);
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
    PLACES.into_iter().map(linger).collect()
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
        let packets = packets(place, lingering.as_raw_fd(), good, target.window_shift);
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
    let folder = PathBuf::from(format!("/tmp/fuse.{}", std::process::id()));
    std::fs::create_dir(&folder)?;
    let mut fuse = Fuse::mount(&folder).context("FUSE")?;
    let files = PLACES.map(|place| fuse.open(&format!("{place:?}")));
    fuse.silence();
    target.become_user()?;
    let (window, bell) = good(target)?;
    let good = (window.as_raw_fd(), bell.as_raw_fd());
    let mut clients = Vec::new();
    for (place, file) in PLACES.into_iter().zip(files) {
        let packets = packets(place, file?, good, target.window_shift);
        let client = send(target, &packets)?;
        // The device may be quicker than the second packet. All that it does in order.
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
