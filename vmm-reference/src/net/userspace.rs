// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A thread that moves the packets, for hosts without vhost-net.

use std::io::{ErrorKind, Read, Write};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, bail};
use log::{debug, error, warn};
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_queue::{Queue, QueueT, Reader, Writer};
use vm_memory::{GuestAddressSpace, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::poll::PollContext;

use super::{Backend, DATA_PATH, HEADER, QUEUES, RX, TX, Tap};
use crate::lock;
use crate::memory::DeviceMemory;
use crate::options::Seccomp;
use crate::seccomp::Thread;

/// The longest packet: what an IP packet can be, Ethernet's header with a VLAN tag, and virtio's.
const MAX_PACKET: usize = 65535 + 18 + HEADER;
/// Where the header says how many buffers a packet takes.
const NUM_BUFFERS: usize = 10;

/// The data path in a thread.
pub struct Userspace {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    /// The state has changed.
    changed: EventFd,
    kicks: Arc<[EventFd; QUEUES]>,
    tap: Arc<Tap>,
    memory: DeviceMemory,
}

enum State {
    Stopped,
    Started(Active),
    /// The thread has to end.
    Over,
}

struct Active {
    queues: [Queue; QUEUES],
    calls: [EventFd; QUEUES],
    mergeable: bool,
}

impl Userspace {
    /// Starts the thread; it sleeps until the driver is there.
    pub fn new(
        memory: DeviceMemory,
        tap: Arc<Tap>,
        kicks: Arc<[EventFd; QUEUES]>,
        seccomp: Seccomp,
    ) -> Result<Self> {
        let changed = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let state = Mutex::new(State::Stopped);
        let shared = Arc::new(Shared {
            state,
            changed,
            kicks,
            tap,
            memory,
        });
        let worker = shared.clone();
        let body = move || {
            let done = Thread::Net
                .confine(seccomp)
                .and_then(|()| Worker::new(&worker)?.run());
            if let Err(error) = done {
                error!("a network device stands still: {error:#}");
            }
        };
        let thread = thread::Builder::new().name("net".into()).spawn(body)?;
        Ok(Userspace {
            shared,
            thread: Some(thread),
        })
    }

    fn set(&self, state: State) {
        // The thread works with the lock held: once this has it, the thread is out of the queues.
        *lock(&self.shared.state) = state;
        if let Err(error) = self.shared.changed.write(1) {
            warn!("a network device's thread cannot be woken: {error}");
        }
    }
}

impl Backend for Userspace {
    fn features(&self) -> u64 {
        DATA_PATH
    }

    fn start(
        &mut self,
        features: u64,
        queues: [Queue; QUEUES],
        calls: [EventFd; QUEUES],
    ) -> Result<()> {
        self.shared
            .tap
            .set_offloads(features)
            .context("TUNSETOFFLOAD")?;
        let mergeable = features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0;
        self.set(State::Started(Active {
            queues,
            calls,
            mergeable,
        }));
        Ok(())
    }

    fn stop(&mut self) {
        self.set(State::Stopped);
    }
}

impl Drop for Userspace {
    fn drop(&mut self) {
        self.set(State::Over);
        if self
            .thread
            .take()
            .is_some_and(|thread| thread.join().is_err())
        {
            error!("a network device's thread has panicked");
        }
    }
}

const CHANGED: u32 = 0;
const RX_KICK: u32 = 1;
const TX_KICK: u32 = 2;
const TAP: u32 = 3;

struct Worker<'a> {
    shared: &'a Shared,
    poll: PollContext<u32>,
    /// Are we woken by packets? Not while the guest has no room for them.
    tap_polled: bool,
    packet: Vec<u8>,
    /// Length of the packet in `packet` that waits for the guest to have room.
    waiting: Option<usize>,
}

impl<'a> Worker<'a> {
    fn new(shared: &'a Shared) -> Result<Self> {
        let poll = PollContext::new()?;
        poll.add(&shared.changed, CHANGED)?;
        poll.add(&shared.kicks[RX], RX_KICK)?;
        poll.add(&shared.kicks[TX], TX_KICK)?;
        Ok(Worker {
            shared,
            poll,
            tap_polled: false,
            packet: vec![0; MAX_PACKET],
            waiting: None,
        })
    }

    fn run(&mut self) -> Result<()> {
        loop {
            let (mut receive, mut transmit) = (false, false);
            for event in self.poll.wait()?.iter() {
                // A signal counted twice or taken away by nobody does no harm: an eventfd is only a hint.
                match event.token() {
                    CHANGED => {
                        let _ = self.shared.changed.read();
                        self.waiting = None;
                        (receive, transmit) = (true, true);
                    }
                    RX_KICK => {
                        let _ = self.shared.kicks[RX].read();
                        receive = true;
                    }
                    TX_KICK => {
                        let _ = self.shared.kicks[TX].read();
                        transmit = true;
                    }
                    _ => receive = true,
                }
            }
            let mut state = lock(&self.shared.state);
            let wants_packets = match &mut *state {
                State::Over => return Ok(()),
                State::Stopped => false,
                State::Started(active) => match self.work(active, receive, transmit) {
                    Ok(wants_packets) => wants_packets,
                    Err(error) => {
                        warn!("a network device stands still until the guest resets it: {error:#}");
                        *state = State::Stopped;
                        false
                    }
                },
            };
            drop(state);
            if wants_packets != self.tap_polled {
                self.tap_polled = wants_packets;
                match wants_packets {
                    true => self.poll.add(self.shared.tap.as_ref(), TAP)?,
                    false => self.poll.delete(self.shared.tap.as_ref())?,
                }
            }
        }
    }

    /// Moves what can be moved. Returns whether the guest has room for more packets.
    fn work(&mut self, active: &mut Active, receive: bool, transmit: bool) -> Result<bool> {
        if transmit {
            self.transmit(&mut active.queues[TX], &active.calls[TX])?;
        }
        if receive {
            return self.receive(&mut active.queues[RX], active.mergeable, &active.calls[RX]);
        }
        Ok(self.tap_polled)
    }

    /// Guest to tap.
    fn transmit(&mut self, queue: &mut Queue, call: &EventFd) -> Result<()> {
        let memory = self.shared.memory.memory();
        let memory = memory.as_ref();
        loop {
            queue.disable_notification(memory)?;
            while let Some(chain) = queue.pop_descriptor_chain(memory) {
                let head = chain.head_index();
                let mut reader = Reader::new(memory, chain)?;
                let length = reader.available_bytes();
                match self.packet.get_mut(..length).filter(|_| length >= HEADER) {
                    Some(packet) => {
                        reader.read_exact(packet)?;
                        // As on a wire: what does not get through is lost.
                        if let Err(error) = self.shared.tap.send(packet) {
                            debug!("a packet is lost: {error}");
                        }
                    }
                    None => debug!("a packet of {length} bytes is none"),
                }
                queue.add_used(memory, head, 0)?;
            }
            if !queue.enable_notification(memory)? {
                break;
            }
        }
        signal(queue, memory, call)
    }

    /// Tap to guest.
    fn receive(&mut self, queue: &mut Queue, mergeable: bool, call: &EventFd) -> Result<bool> {
        let memory = self.shared.memory.memory();
        let memory = memory.as_ref();
        queue.disable_notification(memory)?;
        let mut has_room = true;
        loop {
            // A buffer first: a packet that was read from the tap must go somewhere.
            let position = queue.next_avail();
            let Some(chain) = queue.pop_descriptor_chain(memory) else {
                if queue.enable_notification(memory)? {
                    continue;
                }
                has_room = false;
                break;
            };
            let received = match self.waiting.take() {
                Some(length) => Ok(length),
                None => self.shared.tap.receive(&mut self.packet),
            };
            let length = match received {
                Ok(length) => length,
                Err(error) => {
                    queue.set_next_avail(position);
                    if error.kind() != ErrorKind::WouldBlock {
                        bail!("the tap: {error}");
                    }
                    break;
                }
            };
            let mut buffers = vec![(chain.head_index(), Writer::new(memory, chain)?)];
            let mut room = buffers[0].1.available_bytes();
            while mergeable && room < length {
                let Some(chain) = queue.pop_descriptor_chain(memory) else {
                    break;
                };
                let (head, writer) = (chain.head_index(), Writer::new(memory, chain)?);
                room += writer.available_bytes();
                buffers.push((head, writer));
            }
            if room < length {
                if !mergeable || buffers.len() >= usize::from(queue.size()) {
                    debug!("a packet of {length} bytes is lost: the guest has room for {room}");
                    queue.set_next_avail(position);
                    continue;
                }
                // Be told of buffers after those that are there, then leave these for the next try.
                self.waiting = Some(length);
                has_room = queue.enable_notification(memory)?;
                queue.set_next_avail(position);
                if has_room {
                    continue;
                }
                break;
            }
            let count = buffers.len() as u16;
            self.packet[NUM_BUFFERS..HEADER].copy_from_slice(&count.to_le_bytes());
            let mut rest = &self.packet[..length];
            for (head, mut writer) in buffers {
                let (now, later) = rest.split_at(rest.len().min(writer.available_bytes()));
                writer.write_all(now)?;
                queue.add_used(memory, head, now.len() as u32)?;
                rest = later;
            }
        }
        signal(queue, memory, call)?;
        Ok(has_room)
    }
}

fn signal(queue: &mut Queue, memory: &GuestMemoryMmap, call: &EventFd) -> Result<()> {
    if queue.needs_notification(memory)? {
        call.write(1)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixDatagram;

    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    const RINGS: [u64; QUEUES] = [0x1000, 0x5000];
    const AVAIL: u64 = 0x1000;
    const USED: u64 = 0x2000;
    const BUFFERS: u64 = 0x10000;
    const WRITABLE: u16 = 2;

    /// A driver with two queues of 16 descriptors, and the other end of the tap.
    struct Driver {
        shared: Shared,
        active: Active,
        wire: UnixDatagram,
        offered: u16,
    }

    impl Driver {
        fn new(mergeable: bool) -> Self {
            let (wire, tap) = UnixDatagram::pair().unwrap();
            tap.set_nonblocking(true).unwrap();
            let eventfd = || EventFd::new(EFD_NONBLOCK).unwrap();
            let ranges = [(GuestAddress(0), 1 << 20)];
            let shared = Shared {
                state: Mutex::new(State::Stopped),
                changed: eventfd(),
                kicks: Arc::new([eventfd(), eventfd()]),
                tap: Arc::new(Tap::fake(File::from(OwnedFd::from(tap)))),
                memory: DeviceMemory::new(GuestMemoryMmap::from_ranges(&ranges).unwrap()),
            };
            let queues = RINGS.map(|ring| {
                let mut queue = Queue::new(16).unwrap();
                queue.set_desc_table_address(Some(ring as u32), None);
                queue.set_avail_ring_address(Some((ring + AVAIL) as u32), None);
                queue.set_used_ring_address(Some((ring + USED) as u32), None);
                queue.set_event_idx(true);
                queue.set_ready(true);
                queue
            });
            let active = Active {
                queues,
                calls: [eventfd(), eventfd()],
                mergeable,
            };
            Driver {
                shared,
                active,
                wire,
                offered: 0,
            }
        }

        /// Offers the next buffer of `length` bytes; returns its address.
        fn offer(&mut self, queue: usize, length: u32, flags: u16) -> u64 {
            let (memory, ring) = (self.shared.memory.memory(), RINGS[queue]);
            let index = u64::from(self.offered);
            let address = BUFFERS + index * 0x4000;
            let descriptor = ring + index * 16;
            memory.write_obj(address, GuestAddress(descriptor)).unwrap();
            memory
                .write_obj(length, GuestAddress(descriptor + 8))
                .unwrap();
            memory
                .write_obj(flags, GuestAddress(descriptor + 12))
                .unwrap();
            memory
                .write_obj(self.offered, GuestAddress(ring + AVAIL + 4 + index * 2))
                .unwrap();
            self.offered += 1;
            memory
                .write_obj(self.offered, GuestAddress(ring + AVAIL + 2))
                .unwrap();
            address
        }

        /// Lengths of the buffers that came back.
        fn used(&self, queue: usize) -> Vec<u32> {
            let used = RINGS[queue] + USED;
            let count: u16 = self
                .shared
                .memory
                .memory()
                .read_obj(GuestAddress(used + 2))
                .unwrap();
            (0..u64::from(count))
                .map(|n| {
                    self.shared
                        .memory
                        .memory()
                        .read_obj(GuestAddress(used + 4 + n * 8 + 4))
                        .unwrap()
                })
                .collect()
        }

        fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
            let mut bytes = vec![0; length];
            self.shared
                .memory
                .memory()
                .read_slice(&mut bytes, GuestAddress(address))
                .unwrap();
            bytes
        }
    }

    #[test]
    fn a_large_packet_waits_for_enough_buffers() {
        let mut driver = Driver::new(true);
        let packet: Vec<u8> = (0..3000).map(|n| n as u8).collect();
        driver.wire.send(&packet).unwrap();
        let first = driver.offer(RX, 1536, WRITABLE);
        let mut worker = Worker::new(&driver.shared).unwrap();
        assert!(
            !worker.work(&mut driver.active, true, false).unwrap(),
            "one is not enough"
        );
        let waiting = worker.waiting;
        assert_eq!(waiting, Some(3000));
        let packet_so_far = std::mem::take(&mut worker.packet);
        drop(worker);
        assert!(driver.used(RX).is_empty());

        let second = driver.offer(RX, 1536, WRITABLE);
        let mut worker = Worker::new(&driver.shared).unwrap();
        (worker.waiting, worker.packet) = (waiting, packet_so_far);
        assert!(
            !worker.work(&mut driver.active, true, false).unwrap(),
            "no buffer is left"
        );
        drop(worker);
        assert_eq!(driver.used(RX), [1536, 3000 - 1536]);
        let mut expected = packet;
        expected[NUM_BUFFERS..HEADER].copy_from_slice(&[2, 0]);
        assert_eq!(driver.bytes(first, 1536), expected[..1536]);
        assert_eq!(driver.bytes(second, 3000 - 1536), expected[1536..]);
        assert_eq!(driver.active.calls[RX].read().unwrap(), 1);
    }

    #[test]
    fn without_mergeable_buffers_a_packet_that_does_not_fit_is_lost() {
        let mut driver = Driver::new(false);
        driver.wire.send(&[1; 2000]).unwrap();
        driver.wire.send(&[2; 100]).unwrap();
        driver.offer(RX, 1536, WRITABLE);
        driver.offer(RX, 1536, WRITABLE);
        let mut worker = Worker::new(&driver.shared).unwrap();
        assert!(
            worker.work(&mut driver.active, true, false).unwrap(),
            "one buffer is left"
        );
        drop(worker);
        assert_eq!(driver.used(RX), [100]);
    }

    #[test]
    fn what_the_guest_sends_is_on_the_wire() {
        let mut driver = Driver::new(true);
        let address = driver.offer(TX, 200, 0);
        driver
            .shared
            .memory
            .memory()
            .write_slice(&[7; 200], GuestAddress(address))
            .unwrap();
        driver.offer(TX, HEADER as u32 - 1, 0);
        let mut worker = Worker::new(&driver.shared).unwrap();
        worker.work(&mut driver.active, false, true).unwrap();
        drop(worker);
        let mut packet = [0; 300];
        assert_eq!(driver.wire.recv(&mut packet).unwrap(), 200);
        assert_eq!(packet[..200], [7; 200]);
        assert_eq!(driver.used(TX), [0, 0], "what is no packet comes back, too");
    }

    #[test]
    fn buffers_outside_of_memory_are_an_error() {
        let mut driver = Driver::new(true);
        driver.offer(TX, 1 << 30, 0);
        let mut worker = Worker::new(&driver.shared).unwrap();
        assert!(worker.work(&mut driver.active, false, true).is_err());
    }
}
