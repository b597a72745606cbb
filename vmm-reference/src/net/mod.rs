// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! virtio-net on a tap. The host's kernel moves the packets (vhost) where it can, else a thread.

mod device;
mod tap;
mod userspace;
mod vhost;

use anyhow::Result;
use virtio_bindings::{virtio_config, virtio_net, virtio_ring};
use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

pub use device::Net;
pub use tap::Tap;

/// Receive queue and transmit queue, in this order.
const QUEUES: usize = 2;
const RX: usize = 0;
const TX: usize = 1;
/// The most descriptors that a queue can have.
const QUEUE_SIZE: u16 = 256;
/// Bytes before each packet: virtio_net_hdr_v1.
const HEADER: usize = 12;

/// Features by which packets need neither be cut nor summed until they leave the host.
const OFFLOADS: u64 = 1 << virtio_net::VIRTIO_NET_F_CSUM
    | 1 << virtio_net::VIRTIO_NET_F_GUEST_CSUM
    | 1 << virtio_net::VIRTIO_NET_F_GUEST_TSO4
    | 1 << virtio_net::VIRTIO_NET_F_GUEST_TSO6
    | 1 << virtio_net::VIRTIO_NET_F_HOST_TSO4
    | 1 << virtio_net::VIRTIO_NET_F_HOST_TSO6;
/// Features of whoever moves the packets.
const DATA_PATH: u64 = 1 << virtio_net::VIRTIO_NET_F_MRG_RXBUF
    | 1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC
    | 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX
    | 1 << virtio_config::VIRTIO_F_VERSION_1;

/// Moves packets between tap and queues.
trait Backend: Send {
    /// Which of [`DATA_PATH`] it can.
    fn features(&self) -> u64;
    /// Begins, with what the driver accepted. `calls` are signalled when a queue has news for the driver.
    fn start(
        &mut self,
        features: u64,
        queues: [Queue; QUEUES],
        calls: [EventFd; QUEUES],
    ) -> Result<()>;
    /// The memory that it was made with is another now.
    fn memory_changed(&self) -> Result<()> {
        Ok(())
    }
    /// Ends; when it returns, nothing touches the queues any more.
    fn stop(&mut self);
}
