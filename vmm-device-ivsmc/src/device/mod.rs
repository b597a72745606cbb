// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device: what the VMM calls, and what its threads and the fabric's share.
//!
//! What is shared is behind four locks, each held for what it protects and no longer:
//!
//! | lock | protects | held over |
//! |---|---|---|
//! | `wirings` | what is in the guest, where BARs are | calls of the host |
//! | `registers` | BAR0, link table | nothing that can wait |
//! | `counters` | counters | nothing that can wait |
//! | `listening` | the socket's file | its making and removal |
//!
//! Whoever needs two takes `wirings` first; the others are never held together. A guest's accesses take `registers` and
//! `counters` only. Nothing that a peer supplied is dropped under any of them: see [`Device::wired`].

mod error;
mod links;
mod listening;
mod state;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

pub use error::Error;
pub use state::{DeviceState, StateError};

use crate::event::Limiter;
use crate::fabric::socket_file::SocketFile;
use crate::fabric::wire::Hello;
use crate::guest::link::LinkTable;
use crate::guest::registers::{self, Registers};
use crate::guest::wiring::{Remains, WiringError};
use crate::guest::wirings::Wirings;
use crate::{BarMemory, Config, Counters, Event, Fabric, Gid, Host, Links, NoSuchPeer};
use listening::Listening;

/// An ivsmc device, for the VMM to call from any thread. Its links come and go by themselves, on the
/// [`Fabric`]'s thread.
pub struct Device {
    /// What to call the device in the log.
    pub(crate) name: String,
    pub(crate) config: Config,
    pub(crate) gid: Gid,
    /// Wakes the fabric thread: to stop, or because links have changed under it.
    pub(crate) wake: EventFd,
    host: Arc<dyn Host>,
    stopping: AtomicBool,
    /// The VM does not run yet: there are no links.
    held: AtomicBool,
    /// It is the continuation of another device, whose guest has to be told.
    is_restored: bool,
    listening: Mutex<Listening>,
    memory: Arc<BarMemory>,
    wirings: Mutex<Wirings>,
    registers: Mutex<Registers>,
    counters: Mutex<Counters>,
    /// How often failures of the VMM were logged.
    failures: Mutex<Limiter>,
}

/// What the configuration space says of the device. See docs/device.md.
impl Device {
    /// Vendor ID.
    pub const VENDOR: u16 = 0x1af4;
    /// Device ID.
    pub const DEVICE: u16 = 0x1110;
    /// Subsystem vendor ID.
    pub const SUBSYSTEM_VENDOR: u16 = 0x1af4;
    /// Subsystem ID.
    pub const SUBSYSTEM: u16 = 0x1100;
    /// Revision ID.
    pub const REVISION: u8 = 1;
    /// Base class, subclass, programming interface: a memory controller, RAM.
    pub const CLASS: [u8; 3] = [0x05, 0x00, 0x00];
    /// The BAR of registers, link table and doorbells: 32-bit memory, not prefetchable.
    pub const REGISTERS_BAR: usize = 0;
    /// Its size in bytes.
    pub const REGISTERS_SIZE: u64 = registers::SIZE;
    /// The BAR of MSI-X table and pending bits, which are the VMM's: 32-bit memory, not prefetchable.
    pub const MSIX_BAR: usize = 1;
    /// The BAR of windows: 64-bit memory, prefetchable. Its size is [`windows_size`](Self::windows_size).
    pub const WINDOWS_BAR: usize = 2;
    /// The ID of the vendor-specific capability.
    pub const VENDOR_CAPABILITY_ID: u8 = 0x09;
    /// That capability's bytes behind its ID and its next pointer.
    pub const VENDOR_CAPABILITY: [u8; 14] = vendor_capability();

    /// Size of BAR2 in bytes, a power of two.
    pub fn windows_size(&self) -> u64 {
        self.memory.len()
    }

    /// All of BAR2 in this process. Windows come and go in it, at the offsets that they have in the BAR, and everything
    /// in between can be read and written, too. So it is what other devices of the VM can be told to reach, where they
    /// look guest memory up in a table: from when the VMM has placed BAR2, and anew when it moves. (Without that they
    /// find nothing at an address that the guest may well give them: what a Linux guest receives over SMC-D and
    /// splices to a socket or a disk stays where it is, in a window.) It is no memory slot: what the guest's processors
    /// do in BAR2 where no window is has to trap.
    ///
    /// The memory stays where it is until the last `Arc` is gone.
    pub fn bar_memory(&self) -> &Arc<BarMemory> {
        &self.memory
    }

    /// How many MSI-X vectors the device has.
    pub fn vectors(&self) -> u16 {
        self.config.vectors
    }
}

/// Addresses of this process for all windows that a device can have.
fn reserve(config: &Config) -> io::Result<BarMemory> {
    let size = (u64::from(config.max_peers) * config.window_size).next_power_of_two();
    BarMemory::reserve(size, config.window_size).map_err(|error| {
        let text = format!(
            "{} MiB of addresses for its windows: {error}; a smaller size= or max_peers= would do with less",
            size >> 20
        );
        io::Error::new(error.kind(), text)
    })
}

/// The capability's length and the version of its layout, then three words.
const fn vendor_capability() -> [u8; 14] {
    let signature = registers::SIGNATURE.to_le_bytes();
    let extension = registers::EXTENSION.to_le_bytes();
    let mut bytes = [0; 14];
    (bytes[0], bytes[1]) = (16, 1);
    let mut n = 0;
    while n < 4 {
        bytes[2 + n] = signature[n];
        bytes[6 + n] = extension[n];
        n += 1;
    }
    bytes
}

impl Device {
    /// Makes a device that listens on the configuration's path, and its fabric, for which the VMM starts
    /// a thread that calls [`Fabric::run`]. `name` is what to call the device in the log. Its BARs are nowhere.
    ///
    /// The device is *held*: it neither accepts nor joins peers until [`resume`](Self::resume). The VMM calls
    /// [`shutdown`](Self::shutdown) when it has no more use for it.
    ///
    /// With `state` it is a device as it was when that was taken, but that it has a new GID (unless the configuration
    /// has one) and that its links come up anew. Its path may be in use as long as the VM that it is the
    /// continuation of has not ended: it then listens when the path is free.
    ///
    /// # Errors
    /// When an option is wrong or the socket cannot be made; the error says what would do. Nothing is left behind then.
    pub fn new(
        name: &str,
        config: Config,
        host: Arc<dyn Host>,
        state: Option<&DeviceState>,
    ) -> Result<(Arc<Device>, Fabric), Error> {
        config.validate()?;
        let path = config.path.clone();
        let (socket, file) = match SocketFile::listen_at_first(&path, config.is_for_all()) {
            Ok((socket, file)) => (Some(socket), Some(file)),
            Err(error) if state.is_some() && error.kind() == io::ErrorKind::AddrInUse => {
                (None, None)
            }
            Err(error) => return Err(Error::listen(path, error)),
        };
        let made = Self::make(name, config, host, state, file).and_then(|device| {
            let device = Arc::new(device);
            Ok((Fabric::new(device.clone(), socket)?, device))
        });
        match made {
            Ok((fabric, device)) => Ok((device, fabric)),
            Err(error) => Err(Error::System(path, error)),
        }
    }

    /// The device alone, without a socket that it listens on and without a fabric.
    pub(crate) fn make(
        name: &str,
        config: Config,
        host: Arc<dyn Host>,
        state: Option<&DeviceState>,
        file: Option<SocketFile>,
    ) -> io::Result<Self> {
        let gid = config.gid.unwrap_or_else(Gid::random);
        let registers = Registers {
            gid,
            fabric_id: config.fabric_id,
            vectors: config.vectors,
            window_shift: config.window_shift(),
            max_peers: config.max_peers,
            intr_mask: 0,
            links: LinkTable::new(config.max_peers),
        };
        let memory = Arc::new(reserve(&config)?);
        let (links, shift) = (config.max_peers, config.window_shift());
        let mut wirings = Wirings::new(host.clone(), memory.clone(), links, shift);
        let registers = match state {
            Some(state) => state.restore(registers, &mut wirings)?,
            None => registers,
        };
        Ok(Device {
            name: format!("ivsmc {name}"),
            gid,
            wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            host,
            stopping: AtomicBool::new(false),
            held: AtomicBool::new(true),
            is_restored: state.is_some(),
            listening: Mutex::new(Listening::new(file)),
            memory,
            wirings: Mutex::new(wirings),
            registers: Mutex::new(registers),
            counters: Mutex::default(),
            failures: Mutex::default(),
            config,
        })
    }

    /// The VM runs, for the first time or after a restore: lets the device accept and join peers. A device that is
    /// not held goes on as it is.
    pub fn resume(&self) {
        if self.held.swap(false, Ordering::AcqRel) {
            if self.is_restored {
                // Not earlier: what is raised before the VMM has restored the vCPUs may get lost.
                self.wired(|_| self.raise());
            }
            self.wake_fabric();
        }
    }

    /// BAR0 is at `gpa` from now on, or nowhere: at first (as a firmware would place it), or because the guest
    /// moves it. Doorbells in it move along.
    ///
    /// # Errors
    /// Those of an address that no BAR0 can have (zero, or no multiple of its size). A link whose doorbells cannot be
    /// there ends.
    pub fn place_registers(&self, gpa: Option<u64>) -> io::Result<()> {
        check_address(gpa, Self::REGISTERS_SIZE)?;
        self.wired(|wirings| {
            for (link, error) in wirings.place_doorbells(gpa) {
                // That is this one peer's fault, or nobody's: the others keep their links.
                let why = format!("it has no doorbells: {error}");
                match error {
                    WiringError::NotAnEventfd => {
                        self.count(|counters| counters.protocol_errors += 1);
                    }
                    WiringError::Host(error) => self.check(Err(error), "place doorbells"),
                }
                self.lose_wired(wirings, link, &why);
                self.wake_fabric();
            }
        });
        Ok(())
    }

    /// BAR2 is at `gpa` from now on, or nowhere. Windows in it move along.
    ///
    /// # Errors
    /// When no BAR2 can have this address (zero, or no multiple of its size), or the VMM cannot map windows there; the
    /// BAR then stays where it was.
    pub fn place_windows(&self, gpa: Option<u64>) -> io::Result<()> {
        check_address(gpa, self.windows_size())?;
        self.wired(|wirings| {
            let (placed, back) = wirings.place_windows(gpa);
            if placed.is_err() {
                self.count(|counters| counters.host_errors += 1);
            }
            self.check(back, "put the windows back");
            placed
        })
    }

    /// The guest reads `data.len()` bytes at `offset` in BAR0.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        self.registers().read(offset, data);
    }

    /// The guest writes `data` at `offset` in BAR0.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let mut registers = self.registers();
        let is_doorbell = registers.is_doorbell(offset);
        let has_let_go = registers.write(offset, data);
        drop(registers);
        if is_doorbell {
            self.count(|counters| counters.doorbells_trapped += 1);
        }
        if has_let_go {
            self.wake_fabric();
        }
    }

    /// What has been counted so far.
    pub fn counters(&self) -> Counters {
        let links = self.registers().links.up();
        Counters {
            links,
            ..*lock(&self.counters)
        }
    }

    /// The device's links, and the peers that get none. It waits for nothing but other calls that look at registers: not
    /// for the fabric's thread, the [`Host`] or a peer.
    pub fn links(&self) -> Links {
        let doorbells_trapped = lock(&self.counters).doorbells_trapped;
        let registers = self.registers();
        Links {
            gid: self.gid,
            path: self.config.path.to_string_lossy().into(),
            doorbells_trapped,
            links: registers.links.info(),
            refused: registers.links.refused(),
        }
    }

    /// Ends the link to `peer`, as if the peer had ended it: if the guest has claimed the window, the connections on it
    /// are reset. If `refuse`, the peer (the device with this GID) gets no other link from now on. Otherwise it may have one
    /// at once, also if it was refused before: so this is also how a peer is allowed again.
    ///
    /// It returns before the link has ended, which is a matter of the fabric's thread, and waits for no more than
    /// [`links`](Self::links) does. That a peer is refused lasts as long as the device; it is not in its
    /// [state](Self::state), as a restored device is another one.
    ///
    /// # Errors
    /// There is no link to this peer, nor is it refused.
    pub fn drop_link(&self, peer: Gid, refuse: bool) -> Result<(), NoSuchPeer> {
        self.registers().links.drop_peer(peer, refuse)?;
        self.wake_fabric();
        Ok(())
    }

    /// Makes [`Fabric::run`] remove the socket's file, end all links and return. The VMM has to call it: the fabric keeps
    /// the device until then.
    pub fn shutdown(&self) {
        if !self.stopping.swap(true, Ordering::AcqRel) {
            self.wake_fabric();
        }
    }
}

/// What only the crate calls.
impl Device {
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub(crate) fn is_held(&self) -> bool {
        self.held.load(Ordering::Acquire)
    }

    /// How this device introduces itself.
    pub(crate) fn hello(&self) -> Hello {
        Hello {
            gid: self.gid,
            position: u32::from(self.gid.position()),
            vectors: u32::from(self.config.vectors),
            fabric_id: u32::from(self.config.fabric_id),
            window_shift: self.config.window_shift(),
        }
    }

    /// Changes the counters.
    pub(crate) fn count(&self, change: impl FnOnce(&mut Counters)) {
        change(&mut lock(&self.counters));
    }

    /// Tells the VMM of something that happened.
    pub(crate) fn tell(&self, event: &Event) {
        self.host.event(event);
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        lock(&self.registers)
    }

    /// Changes what is in the guest. What is thereby taken out of it, and may be a peer's, is dropped after the lock has
    /// been given back.
    fn wired<R>(&self, change: impl FnOnce(&mut Wirings) -> R) -> R {
        let mut wirings = lock(&self.wirings);
        let result = change(&mut wirings);
        let (remains, windows) = (wirings.take_remains(), wirings.mapped());
        self.count(|counters| counters.windows = windows);
        drop(wirings);
        self.discard(remains);
        result
    }

    /// Drops what a peer may hold, too. No lock is held here.
    fn discard(&self, remains: Vec<Remains>) {
        drop(remains);
    }

    /// A call of the VMM that must not fail: if it does, that is counted and logged, but not as often as a guest may
    /// be able to provoke it.
    fn check(&self, result: io::Result<()>, what: &str) {
        if let Err(error) = result {
            self.count(|counters| counters.host_errors += 1);
            match lock(&self.failures).pass(Instant::now()) {
                Some(0) => log::error!("{}: cannot {what}: {error}", self.name),
                Some(more) => log::error!(
                    "{}: cannot {what}: {error} (and {more} more failures that were not logged)",
                    self.name
                ),
                None => {}
            }
        }
    }

    /// Tells the guest that a link changed.
    fn raise(&self) {
        self.check(self.host.raise(), "raise vector 0");
    }

    fn wake_fabric(&self) {
        if let Err(error) = self.wake.write(1) {
            log::error!("{}: cannot wake the fabric thread: {error}", self.name);
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// A BAR that is somewhere is at a multiple of its size, and not at zero.
fn check_address(gpa: Option<u64>, size: u64) -> io::Result<()> {
    match gpa {
        Some(gpa) if gpa == 0 || !gpa.is_multiple_of(size) || gpa.checked_add(size).is_none() => {
            Err(io::ErrorKind::InvalidInput.into())
        }
        _ => Ok(()),
    }
}

/// No code panics while it holds a lock; if some did all the same, what it left is still the best there is.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
