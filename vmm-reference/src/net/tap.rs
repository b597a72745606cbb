// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A tap: the host's end of a guest's network device.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result};
use virtio_bindings::virtio_net;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};

use super::HEADER;

/// An open tap.
pub struct Tap {
    file: File,
}

impl Tap {
    /// Opens the tap `name`, which is made if there is none, and sets it up.
    pub fn open(name: &str) -> Result<Self> {
        Self::try_open(name).with_context(|| {
            format!(
                "--net tap={name} cannot be used; a tap that this user owns ('ip tuntap add {name} \
                 mode tap user NAME') and that nobody else uses would do"
            )
        })
    }

    /// What is no tap, but passes packets as well.
    #[cfg(test)]
    pub fn fake(file: File) -> Self {
        Tap { file }
    }

    fn try_open(name: &str) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")?;
        let mut request = request(name);
        request.ifr_ifru.ifru_flags =
            (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes an ifreq.
        check(unsafe { ioctl_with_mut_ref(&file, libc::TUNSETIFF, &mut request) })?;
        let header = HEADER as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads an int.
        check(unsafe { ioctl_with_ref(&file, libc::TUNSETVNETHDRSZ, &header) })?;
        set_up(name)?;
        Ok(Tap { file })
    }

    /// Says which packets the guest takes unfinished, by the features that its driver accepted.
    pub fn set_offloads(&self, features: u64) -> io::Result<()> {
        let offloads = [
            (virtio_net::VIRTIO_NET_F_GUEST_CSUM, libc::TUN_F_CSUM),
            (virtio_net::VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4),
            (virtio_net::VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6),
        ];
        let accepted = offloads
            .into_iter()
            .filter(|(feature, _)| features & 1 << feature != 0);
        let flags = accepted.fold(0, |flags, (_, flag)| flags | flag);
        // SAFETY: TUNSETOFFLOAD takes a number.
        check(unsafe { ioctl_with_val(&self.file, libc::TUNSETOFFLOAD, flags.into()) })
    }

    /// The tap's file, for vhost.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Receives one packet with its header. It never blocks.
    pub fn receive(&self, packet: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(packet)
    }

    /// Sends one packet with its header. It never blocks.
    pub fn send(&self, packet: &[u8]) -> io::Result<()> {
        (&self.file).write(packet).map(drop)
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Sets the interface up unless it is (its owner may use it, but not do that).
fn set_up(name: &str) -> io::Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0").or_else(|_| UdpSocket::bind("[::]:0"))?;
    let mut request = request(name);
    // SAFETY: SIOCGIFFLAGS reads and writes an ifreq.
    check(unsafe { ioctl_with_mut_ref(&socket, libc::SIOCGIFFLAGS, &mut request) })?;
    // SAFETY: SIOCGIFFLAGS has filled this member.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    let up = libc::IFF_UP as libc::c_short;
    if flags & up == 0 {
        request.ifr_ifru.ifru_flags = flags | up;
        // SAFETY: SIOCSIFFLAGS reads an ifreq.
        check(unsafe { ioctl_with_ref(&socket, libc::SIOCSIFFLAGS, &request) })?;
    }
    Ok(())
}

/// A request about interface `name`, which the options have checked to be short enough.
fn request(name: &str) -> libc::ifreq {
    // SAFETY: zeros are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let end = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..end].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
