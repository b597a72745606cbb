// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A bridge and taps, in a network namespace of our own, so that nothing of them is left behind.
//!
//! By ioctl, because the lab VM has no tool for it.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// The guests' network: the bridge is host 1, guests follow.
const NETWORK: [u8; 3] = [10, 77, 0];
/// Length of its prefix, in bits.
pub const PREFIX: u8 = 24;
const BRIDGE: &str = "ivsmc";
/// How the names of taps begin that Cloud Hypervisor makes.
const VMMS_TAP: &str = "vmtap";
// Of uapi linux/sockios.h; libc does not have them.
const SIOCBRADDBR: libc::c_ulong = 0x89a0;
const SIOCBRADDIF: libc::c_ulong = 0x89a2;

/// The bridge that connects the guests with each other and with the runner.
#[derive(Debug)]
pub struct Network {
    socket: UdpSocket,
}

/// The address of host `host` in the guests' network.
pub fn address(host: u8) -> Ipv4Addr {
    let [a, b, c] = NETWORK;
    Ipv4Addr::new(a, b, c, host)
}

impl Network {
    /// Makes the namespace and the bridge. The namespace is that of the calling thread and of those that it starts.
    pub fn new() -> io::Result<Self> {
        // SAFETY: takes no pointers.
        checked(unsafe { libc::unshare(libc::CLONE_NEWNET) })
            .map_err(named("a network namespace (root is needed)"))?;
        let network = Network {
            socket: UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?,
        };
        network.up("lo")?;
        network
            .bridge_call(SIOCBRADDBR, BRIDGE)
            .map_err(named("a bridge"))?;
        network.set_address(libc::SIOCSIFADDR, address(1))?;
        let mask = Ipv4Addr::from(u32::MAX << (32 - PREFIX));
        network.set_address(libc::SIOCSIFNETMASK, mask)?;
        network.up(BRIDGE)?;
        Ok(network)
    }

    /// Makes the tap `name` if it is not there, as a port of the bridge.
    pub fn tap(&self, name: &str) -> io::Result<()> {
        if interface_index(name).is_ok() {
            return Ok(());
        }
        let tun = self.open_tap(name)?;
        // SAFETY: TUNSETPERSIST takes a number.
        checked(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETPERSIST as _, 1) })?;
        self.add_port(name)
    }

    /// Opens the tap `name`, for a VMM that is handed it.
    pub fn open_tap(&self, name: &str) -> io::Result<File> {
        let tun = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/net/tun")
            .map_err(named("/dev/net/tun"))?;
        let mut request = request(name)?;
        request.ifr_ifru.ifru_flags =
            (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
        // SAFETY: the request is alive during the call, and of the kind that TUNSETIFF wants.
        checked(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) })
            .map_err(named("a tap"))?;
        Ok(tun)
    }

    fn add_port(&self, name: &str) -> io::Result<()> {
        let mut port = request(BRIDGE)?;
        port.ifr_ifru.ifru_ifindex = interface_index(name)?;
        self.call(SIOCBRADDIF, &mut port)?;
        self.up(name)
    }

    /// Waits for a tap that a VMM makes itself, and makes it a port of the bridge.
    pub fn adopt_tap(&self, timeout: Duration) -> io::Result<()> {
        let start = Instant::now();
        loop {
            for name in interfaces()? {
                if !name.starts_with(VMMS_TAP) {
                    continue;
                }
                match self.add_port(&name) {
                    Ok(()) => return Ok(()),
                    // It is a port already.
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                    Err(error) => return Err(error),
                }
            }
            if start.elapsed() > timeout {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the VMM makes no tap",
                ));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn up(&self, name: &str) -> io::Result<()> {
        let mut request = request(name)?;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        self.call(libc::SIOCSIFFLAGS, &mut request)
    }

    fn set_address(&self, call: libc::c_ulong, address: Ipv4Addr) -> io::Result<()> {
        let mut request = request(BRIDGE)?;
        let mut data = [0; 14];
        data[2..6].copy_from_slice(&address.octets().map(|byte| byte as libc::c_char));
        request.ifr_ifru.ifru_addr = libc::sockaddr {
            sa_family: libc::AF_INET as libc::sa_family_t,
            sa_data: data,
        };
        self.call(call, &mut request)
    }

    fn call(&self, call: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
        // SAFETY: the request is alive during the call, and of the kind that interface calls want.
        checked(unsafe {
            libc::ioctl(
                self.socket.as_raw_fd(),
                call as _,
                std::ptr::from_mut(request),
            )
        })
    }

    fn bridge_call(&self, call: libc::c_ulong, name: &str) -> io::Result<()> {
        let request = request(name)?;
        // SAFETY: the call reads a name, which is alive during the call and ends with a NUL.
        checked(unsafe {
            libc::ioctl(
                self.socket.as_raw_fd(),
                call as _,
                request.ifr_name.as_ptr(),
            )
        })
    }
}

fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{name}: too long for an interface"),
        ));
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = byte as libc::c_char;
    }
    Ok(request)
}

fn interface_index(name: &str) -> io::Result<i32> {
    let name = std::ffi::CString::new(name)?;
    // SAFETY: the name is alive during the call and ends with a NUL.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => i32::try_from(index).map_err(io::Error::other),
    }
}

/// The names of all interfaces.
fn interfaces() -> io::Result<Vec<String>> {
    // SAFETY: takes no pointers; gives a list that ends with an empty entry, or null.
    let list = unsafe { libc::if_nameindex() };
    if list.is_null() {
        return Err(io::Error::last_os_error());
    }
    let mut names = Vec::new();
    let mut entry = list;
    // SAFETY: entries up to the empty one, whose name is null, are there, and their names are strings, until the
    // list is freed, once, below.
    unsafe {
        while !(*entry).if_name.is_null() {
            let name = std::ffi::CStr::from_ptr((*entry).if_name);
            names.push(name.to_string_lossy().into_owned());
            entry = entry.add(1);
        }
        libc::if_freenameindex(list);
    }
    Ok(names)
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn named(what: &'static str) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{what}: {error}"))
}
