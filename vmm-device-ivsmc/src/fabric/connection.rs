// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One connection to a peer: what it makes of the messages that come, and what it holds.

use std::mem;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Instant;

use vmm_sys_util::eventfd::EventFd;

use super::backoff::Backoff;
use super::ending::{Ending, internal};
use super::handshake::{Handshake, Step, Terms};
use super::reaper::{Closer, Foreign};
use super::socket::{Packet, Socket, into_eventfd, may_be_eventfd};
use super::wire::{Bye, Message};
use crate::guest::wiring::{WiringError, share};
use crate::{Device, Gid, Window};

/// A connection, of which there may come a link.
pub struct Connection {
    pub socket: Foreign<Socket>,
    /// At whose expense is closed what comes.
    pub closer: Closer,
    /// The user at the other end, once it is admitted.
    pub user: Option<u32>,
    /// The connector that made it; `None` if the other end did.
    pub connector: Option<u64>,
    pub handshake: Handshake,
    /// When it ends if it is no link by then.
    pub deadline: Instant,
    pub stage: Stage,
    /// Descriptors of this end's are on their way, or were.
    pub has_sent: bool,
}

/// What a connection holds.
pub enum Stage {
    Talking,
    /// Side 0 has made and offered a window.
    Offered {
        link: usize,
        window: Window,
        vectors: Vec<Foreign<EventFd>>,
    },
    Up {
        link: usize,
        generation: u32,
        since: Instant,
    },
}

/// What a connection needs of the fabric.
pub struct Context<'a> {
    pub device: &'a Device,
    pub backoff: &'a mut Backoff,
    pub now: Instant,
}

/// A packet whose descriptors are closed elsewhere.
type ForeignPacket = Packet<Foreign<OwnedFd>>;

impl Connection {
    /// Whether it is not a link yet.
    pub fn is_waiting(&self) -> bool {
        !matches!(self.stage, Stage::Up { .. })
    }

    /// There is something to read, or the other end has closed the connection.
    pub fn readable(&mut self, context: &mut Context<'_>) -> Result<(), Ending> {
        if self.closer.is_full() {
            return Err(Ending::NoPlace(Bye::Busy));
        }
        let room = self.handshake.descriptors();
        match self.socket.receive(room, |fd| self.closer.guard(fd)) {
            Ok(None) => Ok(()),
            Ok(Some(packet)) => self.receive(packet, context),
            Err(_) => Err(Ending::Left(None)),
        }
    }

    fn receive(&mut self, packet: ForeignPacket, context: &mut Context<'_>) -> Result<(), Ending> {
        if packet.is_cut {
            return Err(Ending::Protocol(
                "a message that has more bytes or descriptors than it can have".into(),
            ));
        }
        if packet.is_short {
            let why = "this process has too many descriptors open to take those that came; raise RLIMIT_NOFILE \
                       (ulimit -n)";
            return Err(Ending::Internal(why.into()));
        }
        if packet.bytes().is_empty() {
            return Err(Ending::Left(None));
        }
        let message =
            Message::decode(packet.bytes()).map_err(|error| Ending::Protocol(error.to_string()))?;
        if packet.descriptors.len() as u64 != message.descriptors() {
            return Err(Ending::Protocol(format!(
                "{} descriptors with a message that has {}",
                packet.descriptors.len(),
                message.descriptors()
            )));
        }
        match self.handshake.receive(&message)? {
            Step::Wait => Ok(()),
            Step::Offer(terms) => self.offer(terms, context),
            Step::Accept(terms) => self.accept(terms, packet, context),
            Step::Accepted(terms) => self.accepted(terms, packet, context),
        }
    }

    /// Reserves a place for a link, unless this peer has had too many of late.
    fn reserve(&self, gid: Gid, context: &mut Context<'_>) -> Result<usize, Ending> {
        let is_allowed = |user| context.backoff.allows(user, gid, context.now);
        if !self.user.is_some_and(is_allowed) {
            return Err(Ending::NoPlace(Bye::Busy));
        }
        context.device.reserve(gid).map_err(Ending::NoPlace)
    }

    /// This end's eventfds, which the peer gets.
    fn new_vectors(&self, device: &Device) -> Result<Vec<Foreign<EventFd>>, Ending> {
        let vectors = device
            .new_vectors()
            .map_err(internal("make eventfds for vectors"))?;
        Ok(vectors
            .into_iter()
            .map(|fd| self.closer.guard(fd))
            .collect())
    }

    /// Side 0 makes the window and offers it.
    fn offer(&mut self, terms: Terms, context: &mut Context<'_>) -> Result<(), Ending> {
        let link = self.reserve(terms.gid, context)?;
        let device = context.device;
        let offer = || {
            let size = 1 << terms.window_shift;
            let window = Window::create(size, device.config.hugepages).map_err(internal(
                if device.config.hugepages {
                    "make a window of huge pages (are there enough?)"
                } else {
                    "make a window"
                },
            ))?;
            let vectors = self.new_vectors(device)?;
            let mut descriptors = vec![window.file().as_raw_fd()];
            descriptors.extend(vectors.iter().map(|fd| fd.as_raw_fd()));
            let message = Message::Offer {
                window_shift: terms.window_shift,
                vectors: vectors.len() as u32,
            };
            self.socket
                .send(&message.encode(), &descriptors)
                .map_err(internal("send OFFER"))?;
            Ok((window, vectors))
        };
        match offer() {
            Ok((window, vectors)) => {
                self.has_sent = true;
                self.stage = Stage::Offered {
                    link,
                    window,
                    vectors,
                };
                Ok(())
            }
            Err(ending) => {
                device.cancel(link);
                Err(ending)
            }
        }
    }

    /// Side 1 takes the window, and says so.
    fn accept(
        &mut self,
        terms: Terms,
        packet: ForeignPacket,
        context: &mut Context<'_>,
    ) -> Result<(), Ending> {
        let device = context.device;
        let mut descriptors = packet.descriptors.into_iter();
        let file = descriptors
            .next()
            .ok_or_else(|| Ending::Protocol("no window".into()))?;
        let doorbells = into_doorbells(descriptors)?;
        let size = 1 << terms.window_shift;
        Window::check(&file, size, device.config.hugepages)
            .map_err(|error| Ending::Protocol(error.to_string()))?;
        let link = self.reserve(terms.gid, context)?;
        let accept = || {
            // It is memory of the kernel's, so that closing it does not block.
            let window = Window::accept(file.into_inner(), size, device.config.hugepages)
                .map_err(internal("map the window"))?;
            let vectors = self.new_vectors(device)?;
            // They move into the guest before the peer gets to know them.
            let shared: Result<Vec<_>, _> = vectors.iter().map(|fd| share(fd)).collect();
            let shared = shared.map_err(internal("share eventfds for vectors"))?;
            // These are copies of what the peer gets.
            let shared: Vec<_> = shared.into_iter().map(|fd| self.closer.guard(fd)).collect();
            let generation = device.bring_up(link, terms, window, doorbells, vectors)?;
            Ok((generation, shared))
        };
        let (generation, shared) = accept().inspect_err(|_: &Ending| device.cancel(link))?;
        self.came_up(link, generation, terms, context);
        let message = Message::Accept {
            vectors: shared.len() as u32,
        };
        let descriptors: Vec<RawFd> = shared.iter().map(|fd| fd.as_raw_fd()).collect();
        self.has_sent = true;
        self.socket
            .send(&message.encode(), &descriptors)
            .map_err(internal("send ACCEPT"))
    }

    /// Side 0's window has been taken.
    fn accepted(
        &mut self,
        terms: Terms,
        packet: ForeignPacket,
        context: &mut Context<'_>,
    ) -> Result<(), Ending> {
        let doorbells = into_doorbells(packet.descriptors.into_iter())?;
        let stage = mem::replace(&mut self.stage, Stage::Talking);
        let Stage::Offered {
            link,
            window,
            vectors,
        } = stage
        else {
            return Err(Ending::Internal("nothing was offered".into()));
        };
        let generation = context
            .device
            .bring_up(link, terms, window, doorbells, vectors)
            .inspect_err(|_| context.device.cancel(link))?;
        self.came_up(link, generation, terms, context);
        Ok(())
    }

    fn came_up(&mut self, link: usize, generation: u32, terms: Terms, context: &Context<'_>) {
        self.stage = Stage::Up {
            link,
            generation,
            since: context.now,
        };
        let Terms {
            gid,
            side,
            window_shift,
            ..
        } = terms;
        let size = (1u64 << window_shift) >> 20;
        log::info!(
            "{}: link {link} to {gid} is up: side {side}, {size} MiB",
            context.device.name
        );
    }
}

impl From<WiringError> for Ending {
    fn from(error: WiringError) -> Self {
        match error {
            WiringError::NotAnEventfd => Ending::Protocol(error.to_string()),
            WiringError::Host(error) => internal("place the link in the guest")(error),
        }
    }
}

/// The other end's eventfds.
fn into_doorbells(
    descriptors: impl Iterator<Item = Foreign<OwnedFd>>,
) -> Result<Vec<Foreign<EventFd>>, Ending> {
    descriptors
        .map(|descriptor| {
            if may_be_eventfd(&*descriptor) {
                Ok(descriptor.map(into_eventfd))
            } else {
                Err(WiringError::NotAnEventfd.into())
            }
        })
        .collect()
}
