// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device as the guest sees it: virtio-net over PCI, as virtio 1.x has it, with MSI-X.

use std::io;
use std::sync::{Arc, Mutex};

use anyhow::{Result, bail};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use log::{info, warn};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_net::VIRTIO_NET_F_MAC;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::userspace::Userspace;
use super::vhost::Vhost;
use super::{Backend, DATA_PATH, OFFLOADS, QUEUE_SIZE, QUEUES, Tap};
use crate::interrupts::{Interrupts, eventfd, share};
use crate::lock;
use crate::options::{self, Seccomp};
use crate::pci::{BarMove, BarSpec, ConfigSpace, Function, Identity, MSIX_BAR_SIZE, Msix};

/// BAR0 holds virtio's structures, BAR1 MSI-X.
const BARS: [BarSpec; 2] = [
    BarSpec {
        index: 0,
        size: 0x4000,
        is_64bit: false,
        prefetchable: false,
    },
    BarSpec {
        index: 1,
        size: MSIX_BAR_SIZE,
        is_64bit: false,
        prefetchable: false,
    },
];

/// virtio's structures in BAR0: offset and length.
const COMMON: (u64, u64) = (0, 0x38);
const ISR: (u64, u64) = (0x1000, 1);
const DEVICE: (u64, u64) = (0x2000, 6);
const NOTIFY: (u64, u64) = (0x3000, 4 * QUEUES as u64);
/// Bytes from one queue's doorbell to the next.
const NOTIFY_STRIDE: u32 = 4;

const MSIX_CAPABILITY: u8 = 0x40;
const VENDOR_CAPABILITY: u8 = 0x09;

/// One vector for changes of the configuration (there are none) and one for each queue.
const VECTORS: u16 = 1 + QUEUES as u16;
const NO_VECTOR: u16 = 0xffff;

/// The capabilities: offset, type of the structure, where it is. The second has the stride behind it.
const CAPABILITIES: [(u8, u8, (u64, u64)); 4] = [
    (0x50, 1, COMMON),
    (0x60, 2, NOTIFY),
    (0x74, 3, ISR),
    (0x84, 4, DEVICE),
];

/// A virtio-net device.
pub struct Net {
    name: String,
    mac: [u8; 6],
    vm: Arc<VmFd>,
    memory: Arc<GuestMemoryMmap>,
    kicks: Arc<[EventFd; QUEUES]>,
    state: Mutex<State>,
}

struct State {
    space: ConfigSpace,
    msix: Msix,
    /// What raises each vector.
    calls: Vec<EventFd>,
    backend: Box<dyn Backend>,
    transport: Transport,
}

/// What the guest sets in the common configuration structure.
struct Transport {
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    config_vector: u16,
    status: u8,
    queue_select: u16,
    queues: [Queue; QUEUES],
    queue_vectors: [u16; QUEUES],
}

impl Transport {
    fn new() -> Result<Self> {
        Ok(Transport {
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            config_vector: NO_VECTOR,
            status: 0,
            queue_select: 0,
            queues: [Queue::new(QUEUE_SIZE)?, Queue::new(QUEUE_SIZE)?],
            queue_vectors: [NO_VECTOR; QUEUES],
        })
    }

    fn reset(&mut self) {
        self.queues.iter_mut().for_each(Queue::reset);
        self.queue_vectors = [NO_VECTOR; QUEUES];
        self.config_vector = NO_VECTOR;
        (self.device_feature_select, self.driver_feature_select) = (0, 0);
        (self.driver_features, self.status, self.queue_select) = (0, 0, 0);
    }

    /// The common configuration structure.
    fn read(&self, features: u64) -> [u8; COMMON.1 as usize] {
        let mut bytes = [0; COMMON.1 as usize];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0x00, &self.device_feature_select.to_le_bytes());
        put(
            0x04,
            &half(features, self.device_feature_select).to_le_bytes(),
        );
        put(0x08, &self.driver_feature_select.to_le_bytes());
        put(
            0x0c,
            &half(self.driver_features, self.driver_feature_select).to_le_bytes(),
        );
        put(0x10, &self.config_vector.to_le_bytes());
        put(0x12, &(QUEUES as u16).to_le_bytes());
        put(0x14, &[self.status, 0]);
        put(0x16, &self.queue_select.to_le_bytes());
        let index = usize::from(self.queue_select);
        if let (Some(queue), Some(vector)) = (self.queues.get(index), self.queue_vectors.get(index))
        {
            put(0x18, &queue.size().to_le_bytes());
            put(0x1a, &vector.to_le_bytes());
            put(0x1c, &u16::from(queue.ready()).to_le_bytes());
            put(0x1e, &self.queue_select.to_le_bytes());
            put(0x20, &queue.desc_table().to_le_bytes());
            put(0x28, &queue.avail_ring().to_le_bytes());
            put(0x30, &queue.used_ring().to_le_bytes());
        }
        bytes
    }

    /// A write of `data` at `offset` in the structure, except to the status.
    fn write(&mut self, offset: u64, data: &[u8]) {
        let index = usize::from(self.queue_select);
        let queue = self.queues.get_mut(index);
        match (offset, data) {
            (_, &[a, b, c, d]) => {
                let value = u32::from_le_bytes([a, b, c, d]);
                match (offset, queue) {
                    (0x00, _) => self.device_feature_select = value,
                    (0x08, _) => self.driver_feature_select = value,
                    (0x0c, _) if self.driver_feature_select < 2 => {
                        let shift = 32 * self.driver_feature_select;
                        self.driver_features &= !(u64::from(u32::MAX) << shift);
                        self.driver_features |= u64::from(value) << shift;
                    }
                    (0x20, Some(queue)) => queue.set_desc_table_address(Some(value), None),
                    (0x24, Some(queue)) => queue.set_desc_table_address(None, Some(value)),
                    (0x28, Some(queue)) => queue.set_avail_ring_address(Some(value), None),
                    (0x2c, Some(queue)) => queue.set_avail_ring_address(None, Some(value)),
                    (0x30, Some(queue)) => queue.set_used_ring_address(Some(value), None),
                    (0x34, Some(queue)) => queue.set_used_ring_address(None, Some(value)),
                    _ => {}
                }
            }
            (_, &[a, b]) => {
                let value = u16::from_le_bytes([a, b]);
                let vector = if value < VECTORS { value } else { NO_VECTOR };
                match (offset, queue) {
                    (0x10, _) => self.config_vector = vector,
                    (0x16, _) => self.queue_select = value,
                    (0x18, Some(queue)) => queue.set_size(value),
                    (0x1a, Some(_)) => self.queue_vectors[index] = vector,
                    (0x1c, Some(queue)) => queue.set_ready(value == 1),
                    _ => {}
                }
            }
            _ => {}
        }
    }
}

/// The `select`ed 32 bits of `features`.
fn half(features: u64, select: u32) -> u32 {
    features.checked_shr(select.saturating_mul(32)).unwrap_or(0) as u32
}

impl Net {
    /// A device on `tap`.
    pub fn new(
        vm: Arc<VmFd>,
        interrupts: &Arc<Interrupts>,
        memory: Arc<GuestMemoryMmap>,
        tap: Arc<Tap>,
        options: &options::Net,
        seccomp: Seccomp,
    ) -> Result<Self> {
        let kicks = Arc::new([eventfd()?, eventfd()?]);
        let vhost = match options.vhost {
            true => Vhost::new(memory.clone(), tap.clone(), kicks.clone())
                .inspect_err(|error| info!("--net tap={}: no vhost-net: {error:#}", options.tap))
                .ok(),
            false => None,
        };
        let backend: Box<dyn Backend> = match vhost {
            Some(vhost) => Box::new(vhost),
            None => Box::new(Userspace::new(memory.clone(), tap, kicks.clone(), seccomp)?),
        };

        let identity = Identity {
            vendor: 0x1af4,
            device: 0x1041,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1041,
            revision: 1,
            class: [2, 0, 0],
        };
        let name = format!("--net tap={}", options.tap);
        let (mut calls, mut vectors) = (Vec::new(), Vec::new());
        for _ in 0..VECTORS {
            let (call, vector) = (eventfd()?, interrupts.vector());
            vector.connect(&call)?;
            calls.push(call);
            vectors.push(Arc::new(vector));
        }
        let msix = Msix::new(name.clone(), vectors);
        let mut space = ConfigSpace::new(identity, &BARS);
        let body = msix.capability(1);
        space.add_capability(MSIX_CAPABILITY, Msix::CAPABILITY, &body, &Msix::WRITABLE);
        for (at, kind, (offset, length)) in CAPABILITIES {
            // Length of the capability, type, BAR, and padding.
            let mut body = vec![16, kind, 0, 0, 0, 0];
            body.extend((offset as u32).to_le_bytes());
            body.extend((length as u32).to_le_bytes());
            if (offset, length) == NOTIFY {
                body[0] = 20;
                body.extend(NOTIFY_STRIDE.to_le_bytes());
            }
            space.add_capability(at, VENDOR_CAPABILITY, &body, &[]);
        }
        let transport = Transport::new()?;
        Ok(Net {
            name,
            mac: options.mac,
            vm,
            memory,
            kicks,
            state: Mutex::new(State {
                space,
                msix,
                calls,
                backend,
                transport,
            }),
        })
    }

    /// Makes the doorbells at `bar` the queues' kicks, or no more.
    fn wire_doorbells(&self, bar: u64, on: bool) -> io::Result<()> {
        for (kick, queue) in self.kicks.iter().zip(0..) {
            let at = bar.wrapping_add(NOTIFY.0 + queue * u64::from(NOTIFY_STRIDE));
            let at = IoEventAddress::Mmio(at);
            match on {
                true => self.vm.register_ioevent(kick, &at, NoDatamatch)?,
                false => self.vm.unregister_ioevent(kick, &at, NoDatamatch)?,
            }
        }
        Ok(())
    }

    fn set_status(&self, state: &mut State, status: u8) {
        const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK as u8;
        const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;
        let set = status & !state.transport.status;
        if status == 0 {
            state.backend.stop();
            state.transport.reset();
            return;
        }
        state.transport.status = status;
        if set & FEATURES_OK != 0 {
            let accepted = state.transport.driver_features;
            let known = accepted & !state.features() == 0;
            if !known || accepted & 1 << VIRTIO_F_VERSION_1 == 0 {
                info!(
                    "{}: the driver's features {accepted:#x} will not do",
                    self.name
                );
                state.transport.status &= !FEATURES_OK;
            }
        }
        if set & DRIVER_OK != 0
            && state.transport.status & FEATURES_OK != 0
            && let Err(error) = self.start(state)
        {
            warn!(
                "{}: stands still until the guest resets it: {error:#}",
                self.name
            );
            state.backend.stop();
            state.transport.status |= VIRTIO_CONFIG_S_NEEDS_RESET as u8;
        }
    }

    fn start(&self, state: &mut State) -> Result<()> {
        let features = state.transport.driver_features;
        let ready = |queue: &Queue| -> Result<Queue> {
            if !queue.is_valid(self.memory.as_ref()) {
                bail!("a queue is not set up as it should be");
            }
            let mut queue = Queue::try_from(queue.state())?;
            queue.set_event_idx(features & 1 << VIRTIO_RING_F_EVENT_IDX != 0);
            Ok(queue)
        };
        let call = |vector: u16| match state.calls.get(usize::from(vector)) {
            Some(call) => share(call),
            // Nobody wants to hear of this queue.
            None => eventfd(),
        };
        let [rx, tx] = &state.transport.queues;
        let [rx_vector, tx_vector] = state.transport.queue_vectors;
        let queues = [ready(rx)?, ready(tx)?];
        let calls = [call(rx_vector)?, call(tx_vector)?];
        state.backend.start(features, queues, calls)
    }
}

impl State {
    fn features(&self) -> u64 {
        1 << VIRTIO_NET_F_MAC | OFFLOADS | self.backend.features() & DATA_PATH
    }
}

impl Function for Net {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn bars(&self) -> Vec<BarSpec> {
        BARS.to_vec()
    }

    fn config_read(&self, register: usize) -> u32 {
        lock(&self.state).space.read(register)
    }

    fn config_write(&self, register: usize, offset: usize, data: &[u8]) -> Vec<BarMove> {
        let mut state = lock(&self.state);
        let moves = state.space.write(register, offset, data);
        if register == usize::from(MSIX_CAPABILITY) / 4 {
            let control = state
                .space
                .read_u16(usize::from(MSIX_CAPABILITY) + Msix::CONTROL);
            state.msix.set_control(control);
        }
        moves
    }

    fn move_bar(&self, bar: usize, address: u64) -> io::Result<()> {
        let mut state = lock(&self.state);
        if bar == BARS[0].index {
            let old = state.space.placed(bar).filter(|old| *old != 0);
            self.wire_doorbells(address, true)?;
            if let Some(old) = old {
                self.wire_doorbells(old, false)?;
            }
        }
        state.space.place(bar, address);
        Ok(())
    }

    fn keep_bar(&self, bar: usize) {
        lock(&self.state).space.keep(bar);
    }

    fn bar_read(&self, bar: usize, offset: u64, data: &mut [u8]) {
        let state = lock(&self.state);
        if bar == BARS[1].index {
            state.msix.read(offset, data);
            return;
        }
        let common = state.transport.read(state.features());
        let structures: [((u64, u64), &[u8]); 3] =
            [(COMMON, &common), (ISR, &[0]), (DEVICE, &self.mac)];
        for ((start, _), bytes) in structures {
            let at = offset
                .checked_sub(start)
                .and_then(|at| usize::try_from(at).ok());
            let found = at.and_then(|at| bytes.get(at..at.checked_add(data.len())?));
            if let Some(found) = found {
                data.copy_from_slice(found);
            }
        }
    }

    fn bar_write(&self, bar: usize, offset: u64, data: &[u8]) {
        const STATUS: u64 = 0x14;
        let mut state = lock(&self.state);
        if bar == BARS[1].index {
            state.msix.write(offset, data);
        } else if let (STATUS, [status]) = (offset, data) {
            self.set_status(&mut state, *status);
        } else if offset < COMMON.1 {
            state.transport.write(offset, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_common_structure_reads_back_what_was_written() {
        let mut transport = Transport::new().unwrap();
        let features = 1 << 32 | 0x8000_0021;
        transport.write(0x00, &1u32.to_le_bytes());
        assert_eq!(transport.read(features)[0x04..0x08], 1u32.to_le_bytes());
        transport.write(0x00, &0u32.to_le_bytes());
        assert_eq!(
            transport.read(features)[0x04..0x08],
            0x8000_0021u32.to_le_bytes()
        );
        transport.write(0x00, &u32::MAX.to_le_bytes());
        assert_eq!(transport.read(features)[0x04..0x08], [0; 4]);

        for (select, value) in [(0u32, 0x21u32), (1, 1), (2, 7)] {
            transport.write(0x08, &select.to_le_bytes());
            transport.write(0x0c, &value.to_le_bytes());
        }
        assert_eq!(transport.driver_features, 1 << 32 | 0x21);

        transport.write(0x16, &1u16.to_le_bytes());
        transport.write(0x18, &128u16.to_le_bytes());
        transport.write(0x1a, &2u16.to_le_bytes());
        transport.write(0x20, &0x5000u32.to_le_bytes());
        transport.write(0x24, &1u32.to_le_bytes());
        transport.write(0x1c, &1u16.to_le_bytes());
        let bytes = transport.read(features);
        assert_eq!(bytes[0x18..0x20], [128, 0, 2, 0, 1, 0, 1, 0]);
        assert_eq!(bytes[0x20..0x28], 0x1_0000_5000u64.to_le_bytes());
        transport.write(0x1a, &VECTORS.to_le_bytes());
        assert_eq!(transport.queue_vectors[1], NO_VECTOR);

        transport.write(0x16, &2u16.to_le_bytes());
        transport.write(0x18, &64u16.to_le_bytes());
        assert_eq!(transport.read(features)[0x18..0x38], [0; 32]);
        transport.reset();
        assert!(!transport.queues[1].ready());
        assert_eq!(transport.queues[1].size(), QUEUE_SIZE);
    }

    #[test]
    fn the_common_structure_takes_anything() {
        let mut transport = Transport::new().unwrap();
        for offset in 0..0x40 {
            for length in 0..9 {
                transport.write(offset, &[0xff; 8][..length]);
            }
        }
        transport.read(u64::MAX);
    }
}
