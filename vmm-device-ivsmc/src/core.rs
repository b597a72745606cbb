// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What vCPU threads and the fabric thread share: the device's state behind one lock, and everything that
//! changes it.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::handshake::Terms;
use crate::lines::Line;
use crate::link::{Action, Event as LinkEvent, Link, LinkTable, State as LinkState};
use crate::memory::bar::BarMemory;
use crate::pci::{BarMove, BarSpec, ConfigSpace, Identity, Msix};
use crate::registers::{self, Registers};
use crate::socket::{Socket, SocketFile};
use crate::window::Piece;
use crate::wire::{Bye, Hello};
use crate::wiring::Wiring;
use crate::{Config, Counters, DeviceState, Event, EventKind, Gid, Host, Window};

/// BAR0: registers, link table, doorbells.
const REGISTERS: usize = 0;
/// BAR1: MSI-X.
const MSIX: usize = 1;
const MSIX_SIZE: u64 = 0x1000;
const PENDING: u64 = 0x800;
/// BAR2: windows.
const WINDOWS: usize = 2;

const MSIX_CAPABILITY: u8 = 0x40;
const MSIX_CONTROL: usize = MSIX_CAPABILITY as usize + Msix::CONTROL;
const VENDOR_CAPABILITY: u8 = 0x50;
const VENDOR_CAPABILITY_ID: u8 = 0x09;

/// Bytes of windows that go into a snapshot: a guest cannot make it larger.
const MAX_CONTENT: usize = 256 << 20;

/// How many failures of the VMM are logged.
const MAX_LOGGED: u64 = 100;

const IDENTITY: Identity = Identity {
    vendor: 0x1af4,
    device: 0x1110,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
    revision: 1,
    class: [0x05, 0x00, 0x00],
};

/// The device, as vCPU threads and the fabric thread share it.
pub struct Core {
    /// What to call the device in the log.
    pub name: String,
    pub config: Config,
    pub gid: Gid,
    /// Wakes the fabric thread: to stop, or because links have changed under it.
    pub wake: EventFd,
    host: Arc<dyn Host>,
    memory: Arc<BarMemory>,
    stopping: AtomicBool,
    /// The VM does not run yet: there are no links.
    held: AtomicBool,
    place: Mutex<Place>,
    state: Mutex<State>,
}

/// Where the device listens.
struct Place {
    /// There is none while the path is in use, and when the device stops.
    file: Option<SocketFile>,
    /// The device stops: it must not listen any more.
    closed: bool,
}

struct State {
    config_space: ConfigSpace,
    msix: Msix,
    registers: Registers,
    /// BAR2 in this process.
    memory: Arc<BarMemory>,
    /// What each link has in the guest; there is something while it is up or lost.
    wirings: Vec<Option<Wiring>>,
    /// The device's own line, for vector 0.
    control: Line,
    counters: Counters,
    /// The fabric is gone: no link comes up any more.
    closed: bool,
}

/// The size of BAR2.
fn windows_size(config: &Config) -> u64 {
    (u64::from(config.max_peers) * config.window_size).next_power_of_two()
}

/// The BARs of a device with this configuration.
fn bars(config: &Config) -> [BarSpec; 3] {
    let windows = windows_size(config);
    let bar = |index, size, wide| BarSpec {
        index,
        size,
        is_64bit: wide,
        prefetchable: wide,
    };
    [
        bar(REGISTERS, registers::SIZE, false),
        bar(MSIX, MSIX_SIZE, false),
        bar(WINDOWS, windows, true),
    ]
}

/// Addresses of this process for all windows that a device can have.
fn reserve(config: &Config) -> io::Result<BarMemory> {
    let size = windows_size(config);
    BarMemory::reserve(size, config.window_size).map_err(|error| {
        let text = format!(
            "{} MiB of addresses for its windows: {error}; smaller size= or max_peers= would do with less",
            size >> 20
        );
        io::Error::new(error.kind(), text)
    })
}

fn config_space(config: &Config, msix: &Msix) -> ConfigSpace {
    let mut space = ConfigSpace::new(IDENTITY, &bars(config));
    let msix_body = msix.capability(MSIX as u8, 0, PENDING as u32);
    space.add_capability(
        MSIX_CAPABILITY,
        Msix::CAPABILITY,
        &msix_body,
        &Msix::WRITABLE,
    );
    // The capability's length and the version of its layout, then three words.
    let mut vendor = vec![16, 1];
    for word in [registers::SIGNATURE, registers::EXTENSION, 0] {
        vendor.extend(word.to_le_bytes());
    }
    space.add_capability(VENDOR_CAPABILITY, VENDOR_CAPABILITY_ID, &vendor, &[]);
    space
}

impl Core {
    /// A device in the state after a reset, or in that of a snapshot, which is held. The configuration has been
    /// validated. `file` is that of its socket, if it has one yet.
    pub fn new(
        name: &str,
        config: Config,
        host: Arc<dyn Host>,
        saved: Option<&DeviceState>,
        file: Option<SocketFile>,
    ) -> io::Result<Self> {
        let gid = config.gid.unwrap_or_else(Gid::random);
        let msix = Msix::new(config.vectors);
        let memory = Arc::new(reserve(&config)?);
        let mut state = State {
            config_space: config_space(&config, &msix),
            msix,
            registers: Registers {
                gid,
                fabric_id: config.fabric_id,
                vectors: config.vectors,
                window_shift: config.window_shift(),
                max_peers: config.max_peers,
                intr_mask: 0,
                links: LinkTable::new(config.max_peers),
            },
            memory: memory.clone(),
            wirings: (0..config.max_peers).map(|_| None).collect(),
            control: Line::new(usize::from(config.max_peers) * usize::from(config.vectors))?,
            counters: Counters::default(),
            closed: false,
        };
        if let Some(saved) = saved {
            state.restore(saved, host.as_ref())?;
        }
        Ok(Core {
            name: format!("ivsmc {name}"),
            gid,
            wake: EventFd::new(EFD_NONBLOCK)?,
            host,
            memory,
            stopping: AtomicBool::new(false),
            held: AtomicBool::new(saved.is_some()),
            place: Mutex::new(Place {
                file,
                closed: false,
            }),
            state: Mutex::new(state),
            config,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn host(&self) -> &dyn Host {
        self.host.as_ref()
    }

    fn wake(&self) {
        if let Err(error) = self.wake.write(1) {
            log::error!("{}: cannot wake the fabric thread: {error}", self.name);
        }
    }
}

/// No code panics while it holds a lock; if some did all the same, what it left is still the best there is.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the VMM calls.
impl Core {
    pub fn bars(&self) -> [BarSpec; 3] {
        bars(&self.config)
    }

    pub fn bar_memory(&self) -> &Arc<BarMemory> {
        &self.memory
    }

    pub fn lines(&self) -> usize {
        usize::from(self.config.max_peers) * usize::from(self.config.vectors) + 1
    }

    pub fn config_read(&self, register: usize) -> u32 {
        self.lock().config_space.read(register)
    }

    pub fn config_write(&self, register: usize, offset: usize, data: &[u8]) -> Vec<BarMove> {
        let state = &mut *self.lock();
        let moves = state.config_space.write(register, offset, data);
        if register == MSIX_CONTROL / 4 {
            state
                .msix
                .set_control(state.config_space.read_u16(MSIX_CONTROL));
            for vector in 0..state.msix.vectors() {
                state.set_lines(self.host(), vector, &self.name);
            }
        }
        moves
    }

    pub fn bar_address(&self, bar: usize) -> u64 {
        self.lock().config_space.placed(bar).unwrap_or(0)
    }

    pub fn keep_bar(&self, bar: usize) {
        self.lock().config_space.keep(bar);
    }

    pub fn move_bar(&self, bar: usize, address: u64) -> io::Result<()> {
        let state = &mut *self.lock();
        let old = state
            .config_space
            .placed(bar)
            .ok_or(io::ErrorKind::InvalidInput)?;
        state.config_space.place(bar, address);
        if state.config_space.placed(bar) != Some(address) {
            state.config_space.place(bar, old);
            return Err(io::ErrorKind::InvalidInput.into());
        }
        match bar {
            REGISTERS => {
                for link in 0..state.wirings.len() {
                    if let Err(error) = state.place_bells(self.host(), link) {
                        // That is this one peer's fault, or nobody's: the others keep their links.
                        log::error!("{}: link {link} ends, no doorbells: {error}", self.name);
                        state.counters.host_errors += 1;
                        let why = format!("it has no doorbells: {error}");
                        state.lose(self.host(), link, &self.name, &why);
                        self.wake();
                    }
                }
            }
            WINDOWS => {
                if let Err(error) = state.place_windows(self.host()) {
                    state.counters.host_errors += 1;
                    state.config_space.place(bar, old);
                    let back = state.place_windows(self.host());
                    state.check(back, &self.name, "put the windows back");
                    return Err(error);
                }
            }
            _ => {}
        }
        Ok(())
    }

    pub fn bar_read(&self, bar: usize, offset: u64, data: &mut [u8]) {
        let state = &*self.lock();
        match (bar, offset) {
            (REGISTERS, _) => state.registers.read(offset, data),
            (MSIX, ..PENDING) => state.msix.read_table(offset, data),
            (MSIX, _) => {
                let pending = |vector| state.is_pending(vector);
                state.msix.read_pending(offset - PENDING, data, pending);
            }
            // No memory stands behind what the guest reads of BAR2 here.
            _ => data.fill(0xff),
        }
    }

    pub fn bar_write(&self, bar: usize, offset: u64, data: &[u8]) {
        let state = &mut *self.lock();
        match (bar, offset) {
            (REGISTERS, _) => {
                let is_doorbell = state.registers.is_doorbell(offset);
                state.counters.doorbells_trapped += u64::from(is_doorbell);
                let has_let_go = state.registers.write(offset, data);
                if has_let_go {
                    self.wake();
                }
            }
            (MSIX, ..PENDING) => {
                if let Some(vector) = state.msix.write_table(offset, data) {
                    state.set_lines(self.host(), vector, &self.name);
                }
            }
            _ => {}
        }
    }

    pub fn reset(&self) {
        let state = &mut *self.lock();
        state.counters.resets += 1;
        state.end_all(self.host(), &self.name, "the device is reset");
        state.config_space.reset();
        state.msix.reset();
        state.registers.intr_mask = 0;
        state.set_lines(self.host(), 0, &self.name);
        state.control.clear();
        self.wake();
    }

    pub fn snapshot(&self) -> io::Result<DeviceState> {
        let state = &*self.lock();
        let mut windows = BTreeMap::new();
        let mut left = MAX_CONTENT;
        for (index, link) in state.registers.links.iter().enumerate() {
            let Some(wiring) = state.wirings[index].as_ref().filter(|_| link.claim() != 0) else {
                continue;
            };
            let (pieces, is_all) = wiring.content(left)?;
            if !is_all {
                let name = &self.name;
                log::warn!("{name}: link {index}'s window is too full to be all in the snapshot");
            }
            left -= pieces.iter().map(Piece::len).sum::<usize>();
            windows.insert(index, pieces);
        }
        Ok(DeviceState {
            config_space: state.config_space.state(),
            msix: state.msix.state(),
            links: state.registers.links.snapshot(),
            windows,
        })
    }

    pub fn counters(&self) -> Counters {
        let state = &*self.lock();
        let is_up = |link: &&Link| link.state() == LinkState::Up;
        let links = state.registers.links.iter().filter(is_up).count() as u64;
        let is_mapped = |wiring: &&Wiring| wiring.is_mapped();
        let windows = state.wirings.iter().flatten().filter(is_mapped).count() as u64;
        Counters {
            links,
            windows,
            ..state.counters
        }
    }

    pub fn resume(&self) {
        if self.held.swap(false, Ordering::AcqRel) {
            // Not earlier: what is raised before the VMM has restored the vCPUs may get lost.
            self.lock().raise(&self.name);
            self.wake();
        }
    }

    pub fn stop(&self) {
        let mut place = lock(&self.place);
        if !place.closed {
            place.closed = true;
            // While the fabric thread still listens, so that nobody replaces the file in between.
            place.file = None;
            self.stopping.store(true, Ordering::Release);
            self.wake();
        }
    }
}

/// What the fabric thread calls.
impl Core {
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub fn is_held(&self) -> bool {
        self.held.load(Ordering::Acquire)
    }

    /// Listens on a path that was in use when the device was made. `None`: the device stops.
    pub fn listen(&self) -> io::Result<Option<Socket>> {
        let mut place = lock(&self.place);
        if place.closed {
            return Ok(None);
        }
        let for_all = self.config.is_for_all();
        let (socket, file) = SocketFile::listen(&self.config.path, for_all)?;
        place.file = Some(file);
        Ok(Some(socket))
    }

    /// Listens anew if somebody has removed the socket's file; `None`: it is there. Another file is left alone.
    pub fn listen_anew(&self) -> io::Result<Option<Socket>> {
        let mut place = lock(&self.place);
        let Some(file) = &place.file else {
            return Ok(None);
        };
        match file.is_there() {
            Ok(true) => Ok(None),
            Ok(false) => Err(io::Error::other("another file is there")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let for_all = self.config.is_for_all();
                let (socket, file) = SocketFile::listen_anew(&self.config.path, for_all)?;
                place.file = Some(file);
                Ok(Some(socket))
            }
            Err(error) => Err(error),
        }
    }

    /// How this device introduces itself.
    pub fn hello(&self) -> Hello {
        Hello {
            gid: self.gid,
            position: u32::from(self.gid.position()),
            vectors: u32::from(self.config.vectors),
            fabric_id: u32::from(self.config.fabric_id),
            window_shift: self.config.window_shift(),
        }
    }

    /// Changes the counters.
    pub fn count(&self, change: impl FnOnce(&mut Counters)) {
        change(&mut self.lock().counters);
    }

    /// Tells the VMM of something that happened to no link.
    pub fn tell(&self, event: &Event) {
        self.host.event(event);
    }

    /// Whether there is a link to this GID, or about to be.
    pub fn is_joined(&self, gid: Gid) -> bool {
        self.lock().registers.links.is_joined(gid)
    }

    /// Reserves a place for a link to this GID, or says what to tell the peer.
    pub fn reserve(&self, gid: Gid) -> Result<usize, Bye> {
        self.lock().registers.links.reserve(gid)
    }

    /// Gives a reserved place back.
    pub fn cancel(&self, link: usize) {
        self.lock().registers.links.on(link, LinkEvent::Cancel);
    }

    /// Fresh lines for a link, so that the peer of an earlier one has nothing to do with them.
    pub fn new_lines(&self, link: usize) -> io::Result<Vec<Line>> {
        let vectors = usize::from(self.config.vectors);
        (0..vectors)
            .map(|vector| Line::new(link * vectors + vector))
            .collect()
    }

    /// Brings a link up at its reserved place. Returns its generation.
    pub fn bring_up(
        &self,
        link: usize,
        peer: Terms,
        mut window: Window,
        bells: Vec<EventFd>,
        lines: Vec<Line>,
    ) -> io::Result<u32> {
        let state = &mut *self.lock();
        if state.closed {
            return Err(io::Error::other("the device is closing"));
        }
        // Two peers can have the same IVPosition: the first one has the Doorbell register.
        let is_rival =
            |wiring: &Wiring| wiring.is_classic() && wiring.position() == Some(peer.position);
        let classic = !state.wirings.iter().flatten().any(is_rival);
        let place = state
            .wirings
            .get_mut(link)
            .ok_or(io::ErrorKind::InvalidInput)?;
        if place.is_some() {
            return Err(io::Error::other("the place is taken"));
        }
        state.memory.put(link, &mut window)?;
        let wiring = Wiring::new(link, peer.position, classic, window, bells, lines);
        *place = Some(wiring);
        if let Err(error) = state.wire_up(self.host(), link) {
            state.counters.host_errors += 1;
            state.remove(self.host(), link, &self.name);
            return Err(error);
        }
        let links = &mut state.registers.links;
        if links.on(link, LinkEvent::Join(peer)) != Action::Announce {
            state.remove(self.host(), link, &self.name);
            return Err(io::Error::other("the place is another's"));
        }
        let generation = links.get(link).map_or(0, Link::generation);
        state.counters.links_up += 1;
        state.raise(&self.name);
        let size = (1u64 << peer.window_shift) >> 20;
        self.host.event(&Event {
            kind: EventKind::LinkUp,
            link: Some(link),
            peer: Some(peer.gid),
            reason: format!("a window of {size} MiB, side {}", peer.side),
        });
        Ok(generation)
    }

    /// Whether this generation of a link is up.
    pub fn is_up(&self, link: usize, generation: u32) -> bool {
        self.lock().is_up(link, generation)
    }

    /// The peer of this generation of a link is gone, for the reason given.
    pub fn lose(&self, link: usize, generation: u32, why: &str) {
        let state = &mut *self.lock();
        if state.is_up(link, generation) {
            state.lose(self.host(), link, &self.name, why);
        }
    }

    /// Takes out of the guest the windows that it has let go of. Returns whether there were any.
    pub fn tend(&self) -> bool {
        let state = &mut *self.lock();
        let mut has_let_go = false;
        for link in 0..state.wirings.len() {
            let why = "the guest has let go";
            if state.down(self.host(), link, LinkEvent::Tend, &self.name, why) {
                state.raise(&self.name);
                has_let_go = true;
            }
        }
        has_let_go
    }

    /// Ends all links, for good.
    pub fn close(&self) {
        let state = &mut *self.lock();
        state.closed = true;
        state.end_all(self.host(), &self.name, "the device closes");
        let masked = state.control.set(self.host(), None);
        state.check(masked, &self.name, "take off the control line");
    }
}

impl State {
    /// Takes over a snapshot. Its links are down, but for windows that the guest had claimed: these are lost, and
    /// their content is behind them until the guest, which is told of the change when it runs, lets go.
    fn restore(&mut self, saved: &DeviceState, host: &dyn Host) -> io::Result<()> {
        self.config_space.restore(&saved.config_space);
        self.msix.restore(&saved.msix);
        self.registers
            .links
            .restore(&saved.links, self.registers.window_shift);
        for (index, link) in self.registers.links.iter().enumerate() {
            if let Some(peer) = link.peer() {
                let mut window = Window::create(1 << peer.window_shift, false)?;
                if let Some(pieces) = saved.windows.get(&index) {
                    window.fill(pieces)?;
                }
                self.memory.put(index, &mut window)?;
                let (bells, lines) = (Vec::new(), Vec::new());
                let wiring = Wiring::new(index, peer.position, false, window, bells, lines);
                self.wirings[index] = Some(wiring);
            }
        }
        self.control.set(host, self.msix.message(0))
    }

    /// Where a BAR is; `None` before the VMM has placed it.
    fn placed(&self, bar: usize) -> Option<u64> {
        self.config_space
            .placed(bar)
            .filter(|&address| address != 0)
    }

    /// A call of the VMM that must not fail: if it does, that is counted, and logged unless it was often,
    /// because a guest may be able to provoke it.
    fn check(&mut self, result: io::Result<()>, name: &str, what: &str) {
        if let Err(error) = result {
            if self.counters.host_errors < MAX_LOGGED {
                log::error!("{name}: cannot {what}: {error}");
            }
            self.counters.host_errors += 1;
        }
    }

    fn is_up(&self, link: usize, generation: u32) -> bool {
        let link = self.registers.links.get(link);
        link.is_some_and(|link| link.state() == LinkState::Up && link.generation() == generation)
    }

    /// Tells the guest that a link changed.
    fn raise(&mut self, name: &str) {
        let raised = self.control.raise();
        self.check(raised, name, "raise vector 0");
    }

    /// Makes the lines of a vector what the MSI-X table says.
    fn set_lines(&mut self, host: &dyn Host, vector: usize, name: &str) {
        let message = self.msix.message(vector);
        let mut result = Ok(());
        if vector == 0 {
            result = self.control.set(host, message);
        }
        for wiring in self.wirings.iter_mut().flatten() {
            if let Some(line) = wiring.lines.get_mut(vector) {
                result = result.and(line.set(host, message));
            }
        }
        self.check(result, name, "set an interrupt line");
    }

    fn is_pending(&self, vector: usize) -> bool {
        let lines = self
            .wirings
            .iter()
            .flatten()
            .filter_map(|wiring| wiring.lines.get(vector));
        lines.into_iter().any(Line::is_pending) || vector == 0 && self.control.is_pending()
    }

    /// Puts a link's window, doorbells and lines into the guest.
    fn wire_up(&mut self, host: &dyn Host, link: usize) -> io::Result<()> {
        self.place_window(host, link)?;
        self.place_bells(host, link)?;
        if let Some(wiring) = &mut self.wirings[link] {
            for (vector, line) in wiring.lines.iter_mut().enumerate() {
                line.set(host, self.msix.message(vector))?;
            }
        }
        Ok(())
    }

    fn place_window(&mut self, host: &dyn Host, link: usize) -> io::Result<()> {
        let offset = (link as u64) << self.registers.window_shift;
        let address = self.placed(WINDOWS).map(|bar| bar + offset);
        match &mut self.wirings[link] {
            Some(wiring) => wiring.map(host, address),
            None => Ok(()),
        }
    }

    fn place_windows(&mut self, host: &dyn Host) -> io::Result<()> {
        (0..self.wirings.len()).try_for_each(|link| self.place_window(host, link))
    }

    fn place_bells(&mut self, host: &dyn Host, link: usize) -> io::Result<()> {
        let address = self.placed(REGISTERS);
        match &mut self.wirings[link] {
            Some(wiring) => wiring.place_bells(host, address),
            None => Ok(()),
        }
    }

    /// The peer of a link that is up is gone.
    fn lose(&mut self, host: &dyn Host, link: usize, name: &str, why: &str) {
        let peer = self.peer(link);
        let kind = match self.registers.links.on(link, LinkEvent::Lose) {
            Action::Remove => {
                self.remove(host, link, name);
                EventKind::LinkDown
            }
            Action::Disconnect => {
                if let Some(wiring) = &mut self.wirings[link] {
                    let disconnected = wiring.disconnect(host);
                    self.check(disconnected, name, "disconnect a link");
                }
                self.counters.links_reset += 1;
                EventKind::LinkReset
            }
            _ => return,
        };
        self.counters.links_lost += 1;
        self.hand_on_classic(host, name);
        self.raise(name);
        host.event(&Event {
            kind,
            link: Some(link),
            peer,
            reason: why.into(),
        });
    }

    /// Gives the Doorbell register to links whose IVPosition no link that has it shares any more.
    fn hand_on_classic(&mut self, host: &dyn Host, name: &str) {
        let address = self.placed(REGISTERS);
        for link in 0..self.wirings.len() {
            let (earlier, rest) = self.wirings.split_at_mut(link);
            let Some((Some(wiring), later)) = rest.split_first_mut() else {
                continue;
            };
            let Some(position) = wiring.position() else {
                continue;
            };
            let others = earlier.iter().chain(later.iter()).flatten();
            let mut holders = others.filter(|other| other.is_classic());
            if wiring.is_classic() || holders.any(|other| other.position() == Some(position)) {
                continue;
            }
            let placed = wiring.place_classic(host, address);
            self.check(placed, name, "place a doorbell");
        }
    }

    /// Takes everything of a link out of the guest.
    fn remove(&mut self, host: &dyn Host, link: usize, name: &str) {
        if let Some(wiring) = self.wirings.get_mut(link).and_then(Option::take) {
            let removed = wiring.remove(host);
            self.check(removed, name, "take a link out of the guest");
            // Also if it could not be taken out: the guest then has a gap.
            let cleared = self.memory.clear(link);
            self.check(cleared, name, "take a window out of this process");
        }
    }

    /// The peer of a link, while there is one or the guest still has its window.
    fn peer(&self, link: usize) -> Option<Gid> {
        let link = self.registers.links.get(link)?;
        link.peer().map(|peer| peer.gid)
    }

    /// Makes a link down if the event says so. Returns whether it did.
    fn down(
        &mut self,
        host: &dyn Host,
        link: usize,
        event: LinkEvent,
        name: &str,
        why: &str,
    ) -> bool {
        let peer = self.peer(link);
        let goes_down = self.registers.links.on(link, event) == Action::Remove;
        if goes_down {
            self.remove(host, link, name);
            host.event(&Event {
                kind: EventKind::LinkDown,
                link: Some(link),
                peer,
                reason: why.into(),
            });
        }
        goes_down
    }

    /// Makes all links down.
    fn end_all(&mut self, host: &dyn Host, name: &str, why: &str) {
        for link in 0..self.wirings.len() {
            self.down(host, link, LinkEvent::End, name, why);
        }
    }
}
