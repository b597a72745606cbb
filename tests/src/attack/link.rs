// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A link to a device, and the two control areas in its window (docs/window.md).

use super::{PATIENCE, eventfd};
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};
use vmm_device_ivsmc::Gid;
use vmm_device_ivsmc::peer::{self, Bye, Client, Hello, Message};

/// The fabric of all devices of the tests.
pub const FABRIC: u32 = 0xff00;
/// What is in the GIDs of these links, as text.
pub const NAMES: &str = "-bad0-";
/// Bytes of a control area.
const AREA: u64 = 64 << 10;
const MAGIC: &[u8; 8] = b"ivsmcwin";
/// Words of a control area.
const EPOCH: u64 = 0x0c;
const PEER_EPOCH: u64 = 0x10;
const VECTOR: u64 = 0x18;
const WINDOW_SHIFT: u64 = 0x1c;
const GID: u64 = 0x20;
const SLOTS: u64 = 0x30;

/// How long to wait when the device is busy.
const AGAIN: Duration = Duration::from_millis(200);

/// A GID of ours with this first byte.
fn numbered(first: u8, number: u64) -> Gid {
    let [_, low @ ..] = number.to_be_bytes();
    let mut bytes = [first; 16];
    bytes[4..9].copy_from_slice(&[0xba, 0xd0, 0x40, 0, 0x80]);
    bytes[9..].copy_from_slice(&low);
    Gid::from_bytes(bytes)
}

/// One that is smaller than any that is random: this end is side 0.
pub fn name(number: u64) -> Gid {
    numbered(0, number)
}

/// One that is larger: the device is side 0.
pub fn high(number: u64) -> Gid {
    numbered(0xff, number)
}

/// How a device of this GID introduces itself.
pub fn hello(gid: Gid, window_shift: u32) -> Message {
    Message::Hello(Hello {
        gid,
        position: gid.position().into(),
        vectors: 1,
        fabric_id: FABRIC,
        window_shift,
    })
}

/// A link.
#[derive(Debug)]
pub struct Link {
    /// What its end ends.
    pub client: Client,
    /// The window's memory.
    pub window: File,
    /// Its size.
    pub size: u64,
    /// The device's doorbells.
    bells: Vec<File>,
    /// Which side this end is.
    side: u64,
}

/// What a device answers to who wants a link.
#[derive(Debug)]
pub enum Answer {
    /// There is one.
    Link(Link),
    /// It gives this reason, or closes without one.
    No(Option<Bye>),
}

/// Wants a link, and does everything right.
pub fn attempt(socket: &Path, gid: Gid, window_shift: u32) -> Result<Answer> {
    let client = Client::connect(socket, PATIENCE)?;
    let mut reason = None;
    // It may have been refused.
    let _ = client.send(&hello(gid, window_shift).encode(), &[]);
    let Some((Message::Hello(theirs), _)) = next(&client, &mut reason)? else {
        return Ok(Answer::No(reason));
    };
    let shift = window_shift.min(theirs.window_shift);
    let size = 1 << shift;
    let bell = eventfd()?;
    let (window, bells, side) = if gid < theirs.gid {
        let window = peer::window(size)?;
        let offer = Message::Offer {
            window_shift: shift,
            vectors: 1,
        };
        let descriptors = [window.as_raw_fd(), bell.as_raw_fd()];
        let _ = client.send_soon(&offer.encode(), &descriptors, PATIENCE);
        match next(&client, &mut reason)? {
            Some((Message::Accept { .. }, packet)) => (window, packet.descriptors, 0),
            _ => return Ok(Answer::No(reason)),
        }
    } else {
        let Some((Message::Offer { .. }, mut packet)) = next(&client, &mut reason)? else {
            return Ok(Answer::No(reason));
        };
        let window = File::from(packet.descriptors.remove(0));
        let accept = Message::Accept { vectors: 1 };
        client.send_soon(&accept.encode(), &[bell.as_raw_fd()], PATIENCE)?;
        (window, packet.descriptors, 1)
    };
    Ok(Answer::Link(Link {
        client,
        window,
        size,
        bells: bells.into_iter().map(File::from).collect(),
        side,
    }))
}

/// The next message but BYE, whose reason is kept.
fn next(client: &Client, reason: &mut Option<Bye>) -> Result<Option<(Message, peer::Packet)>> {
    let next = client.next(PATIENCE)?;
    if let Some((Message::Bye(bye), _)) = next {
        *reason = Some(bye);
        return Ok(None);
    }
    Ok(next)
}

impl Link {
    /// Makes one. The link before it, of this GID, may not have stood for long: then the device is busy for up to 10 s.
    pub fn new(socket: &Path, gid: Gid, window_shift: u32) -> Result<Self> {
        let start = Instant::now();
        loop {
            match attempt(socket, gid, window_shift)? {
                Answer::Link(link) => return Ok(link),
                Answer::No(Some(Bye::Busy)) if start.elapsed() < PATIENCE => {
                    thread::sleep(AGAIN);
                }
                Answer::No(reason) => bail!("no link as {gid}: {reason:?}"),
            }
        }
    }

    /// Ends it as one should.
    pub fn end(self) {
        let _ = self.client.send(&Message::Bye(Bye::Closing).encode(), &[]);
    }

    fn read(&self, side: u64, at: u64) -> Result<u32> {
        let mut bytes = [0; 4];
        self.window.read_exact_at(&mut bytes, side * AREA + at)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn write(&self, at: u64, word: u32) -> Result<()> {
        let at = self.side * AREA + at;
        Ok(self.window.write_all_at(&word.to_le_bytes(), at)?)
    }

    /// Whether the device's guest has taken the window, and begun in it.
    pub fn is_in_use(&self) -> Result<bool> {
        Ok(self.read(1 - self.side, EPOCH)? != 0)
    }

    /// The epoch of this side that the guest has accepted; 0: none.
    pub fn accepted(&self) -> Result<u32> {
        self.read(1 - self.side, PEER_EPOCH)
    }

    /// Introduces a guest of this GID, all else being right.
    pub fn attach(&self, gid: [u8; 16], epoch: u32) -> Result<()> {
        self.write(EPOCH, 0)?;
        self.write(PEER_EPOCH, 0)?;
        let mut header = [0; 0x38];
        let mut put = |at: u64, bytes: &[u8]| {
            header[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        };
        put(0, MAGIC);
        put(8, &1u32.to_le_bytes());
        put(VECTOR, &0u32.to_le_bytes());
        put(WINDOW_SHIFT, &self.size.ilog2().to_le_bytes());
        put(GID, &gid);
        put(SLOTS, &1024u32.to_le_bytes());
        self.window.write_all_at(&header, self.side * AREA)?;
        self.write(EPOCH, epoch)?;
        self.ring()
    }

    /// Rings all doorbells.
    fn ring(&self) -> Result<()> {
        for mut bell in &self.bells {
            bell.write_all(&1u64.to_ne_bytes()).context("a doorbell")?;
        }
        Ok(())
    }
}
