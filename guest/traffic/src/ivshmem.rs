// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A stock user of an ivshmem device, from userspace: it finds 1af4:1110, maps BAR0 and BAR2, reads
//! IVPosition, rings the Doorbell register and takes MSI-X interrupts. It knows nothing of ivsmc.
//!
//! It reaches the device as DPDK does in a VM, through VFIO without an IOMMU: uio_pci_generic has no MSI-X.

use crate::mapping::Mapping;
use crate::pattern::Pattern;
use crate::service::Failure;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What is at the other end, and whether it is still there, has to show within this time.
const PATIENCE: Duration = Duration::from_secs(30);

/// ivshmem's registers in BAR0.
mod register {
    pub(super) const IV_POSITION: usize = 0x08;
    pub(super) const DOORBELL: usize = 0x0c;
}

/// Where in the shared memory we work; what is before it belongs to whoever uses the memory otherwise.
pub(crate) const SHARED: u64 = 1 << 20;
/// Bytes of it that are mapped.
const SHARED_SIZE: usize = 64 << 10;
/// What says that a receiver is ready.
const READY: u32 = 0x6976_7368;
/// The vector that receivers listen to.
const VECTOR: u32 = 1;
/// Vectors that are taken.
const VECTORS: usize = 2;

/// Byte offsets in the shared memory, one writer each.
mod place {
    /// Receiver: [`super::READY`].
    pub(super) const STATE: usize = 0;
    /// Receiver: its IVPosition.
    pub(super) const POSITION: usize = 4;
    /// Receiver: number of the last message that was right.
    pub(super) const DONE: usize = 64;
    /// Sender: number of the message.
    pub(super) const NUMBER: usize = 128;
    /// Sender: the message.
    pub(super) const DATA: usize = 4096;
}
/// Bytes of a message.
const MESSAGE: usize = 1024;

/// Rings and data from the peer: each interrupt comes with a message, which is checked and acknowledged.
pub fn receive(count: u32) -> Result<(), Failure> {
    let device = Device::open()?;
    let shared = &device.shared;
    shared.write(place::DONE, 0u32);
    shared.write(place::POSITION, device.position());
    shared.write(place::STATE, READY);
    let result = (1..=count).try_for_each(|number| {
        device.wait_for_interrupt()?;
        let found: u32 = shared.read(place::NUMBER);
        if found != number {
            return Err(format!("interrupt {number} came with message {found}").into());
        }
        let mut message = [0; MESSAGE];
        for (at, word) in message.chunks_exact_mut(4).enumerate() {
            word.copy_from_slice(&shared.read::<u32>(place::DATA + 4 * at).to_le_bytes());
        }
        Pattern::new(number.into()).check(&message)?;
        shared.write(place::DONE, number);
        Ok(())
    });
    shared.write(place::STATE, 0u32);
    result
}

/// Messages to the peer, each rung for with the Doorbell register.
pub fn send(count: u32) -> Result<(), Failure> {
    let device = Device::open()?;
    let shared = &device.shared;
    let own = device.position();
    until("a receiver", || {
        shared.read::<u32>(place::STATE) == READY && shared.read::<u32>(place::POSITION) != own
    })?;
    let peer: u32 = shared.read(place::POSITION);
    for number in 1..=count {
        let mut message = [0; MESSAGE];
        Pattern::new(number.into()).fill(&mut message);
        for (at, word) in message.chunks_exact(4).enumerate() {
            let word: u32 = word.try_into().map(u32::from_le_bytes)?;
            shared.write(place::DATA + 4 * at, word);
        }
        shared.write(place::NUMBER, number);
        device.ring(peer);
        until(&format!("interrupt {number} at the receiver"), || {
            shared.read::<u32>(place::DONE) == number
        })?;
    }
    Ok(())
}

/// Gives the device back to the kernel's drivers.
pub fn release() -> Result<(), Failure> {
    let device = find()?;
    let name = name(&device)?;
    fs::write("/sys/bus/pci/drivers/vfio-pci/unbind", &name)?;
    Ok(fs::write(device.join("driver_override"), "\n")?)
}

fn until(what: &str, condition: impl Fn() -> bool) -> Result<(), Failure> {
    let start = Instant::now();
    while !condition() {
        if start.elapsed() > PATIENCE {
            return Err(format!("{what}: nothing after {PATIENCE:?}").into());
        }
        std::thread::yield_now();
    }
    Ok(())
}

/// The device's folder in sysfs.
pub(crate) fn find() -> Result<PathBuf, Failure> {
    for entry in fs::read_dir("/sys/bus/pci/devices")? {
        let folder = entry?.path();
        let has = |file: &str, value: &str| {
            fs::read_to_string(folder.join(file)).is_ok_and(|text| text.trim() == value)
        };
        if has("vendor", "0x1af4") && has("device", "0x1110") {
            return Ok(folder);
        }
    }
    Err("there is no PCI device 1af4:1110".into())
}

pub(crate) fn name(device: &Path) -> Result<String, Failure> {
    let name = device.file_name().ok_or("a device without a name")?;
    Ok(name.to_string_lossy().into_owned())
}

/// Gives the device to vfio-pci; its group's file.
fn bind() -> Result<(String, PathBuf), Failure> {
    let device = find()?;
    let name = name(&device)?;
    fs::write(
        "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode",
        "1",
    )
    .map_err(|error| format!("no VFIO without IOMMU (CONFIG_VFIO_NOIOMMU): {error}"))?;
    let driver = device.join("driver");
    if !driver
        .canonicalize()
        .is_ok_and(|path| path.ends_with("vfio-pci"))
    {
        if driver.exists() {
            fs::write(driver.join("unbind"), &name)?;
        }
        fs::write(device.join("driver_override"), "vfio-pci")?;
        fs::write("/sys/bus/pci/drivers_probe", &name)?;
    }
    let group = device.join("iommu_group").canonicalize()?;
    let group = group
        .file_name()
        .ok_or("an IOMMU group without a name")?
        .to_string_lossy();
    Ok((name, PathBuf::from(format!("/dev/vfio/noiommu-{group}"))))
}

/// VFIO's calls, of uapi linux/vfio.h.
mod vfio {
    const fn call(number: u64) -> u64 {
        (b';' as u64) << 8 | (100 + number)
    }
    pub(super) const SET_IOMMU: u64 = call(2);
    pub(super) const GROUP_SET_CONTAINER: u64 = call(4);
    pub(super) const GROUP_GET_DEVICE_FD: u64 = call(6);
    pub(super) const DEVICE_GET_REGION_INFO: u64 = call(8);
    pub(super) const DEVICE_SET_IRQS: u64 = call(10);

    pub(super) const NOIOMMU_IOMMU: u64 = 8;
    pub(super) const BAR0: u32 = 0;
    pub(super) const BAR2: u32 = 2;
    pub(super) const MSIX: u32 = 2;
    pub(super) const DATA_EVENTFD: u32 = 1 << 2;
    pub(super) const ACTION_TRIGGER: u32 = 1 << 5;

    #[repr(C)]
    #[derive(Default)]
    pub(super) struct RegionInfo {
        pub(super) argsz: u32,
        pub(super) flags: u32,
        pub(super) index: u32,
        pub(super) cap_offset: u32,
        pub(super) size: u64,
        pub(super) offset: u64,
    }

    #[repr(C)]
    pub(super) struct IrqSet {
        pub(super) argsz: u32,
        pub(super) flags: u32,
        pub(super) index: u32,
        pub(super) start: u32,
        pub(super) count: u32,
        pub(super) eventfds: [i32; super::VECTORS],
    }
}

fn opened(what: &str, fd: i32) -> Result<OwnedFd, Failure> {
    if fd < 0 {
        return Err(format!("{what}: {}", io::Error::last_os_error()).into());
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn done(what: &str, result: i32) -> Result<(), Failure> {
    if result < 0 {
        return Err(format!("{what}: {}", io::Error::last_os_error()).into());
    }
    Ok(())
}

/// The device, ours.
pub(crate) struct Device {
    registers: Mapping,
    shared: Mapping,
    interrupts: Vec<File>,
    // The device stays ours as long as these are open.
    _files: (File, File, OwnedFd),
}

impl Device {
    pub(crate) fn open() -> Result<Self, Failure> {
        let (name, group) = bind()?;
        let file = |path: &Path| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_CLOEXEC)
                .open(path)
                .map_err(|error| format!("{}: {error}", path.display()))
        };
        let container = file(Path::new("/dev/vfio/vfio"))?;
        let group = file(&group)?;
        let container_fd = container.as_raw_fd();
        let device_name = CString::new(name)?;
        // SAFETY: the calls get what they want: a descriptor's address, a number, a C string; all of it
        // is alive during the calls.
        let device = unsafe {
            let (group, set) = (group.as_raw_fd(), vfio::GROUP_SET_CONTAINER);
            done(
                "VFIO group",
                libc::ioctl(group, set as _, &raw const container_fd),
            )?;
            let (set, kind) = (vfio::SET_IOMMU, vfio::NOIOMMU_IOMMU);
            done("VFIO container", libc::ioctl(container_fd, set as _, kind))?;
            let get = vfio::GROUP_GET_DEVICE_FD;
            opened(
                "VFIO device",
                libc::ioctl(group, get as _, device_name.as_ptr()),
            )?
        };
        let interrupts = take_interrupts(&device)?;
        let registers = map_region(&device, vfio::BAR0, 0, 4096)?;
        let shared = map_region(&device, vfio::BAR2, SHARED, SHARED_SIZE)?;
        if shared.read::<u32>(place::STATE) == u32::MAX {
            return Err("there is no memory behind BAR2: no link is up".into());
        }
        Ok(Device {
            registers,
            shared,
            interrupts,
            _files: (container, group, device),
        })
    }

    /// A part of the shared memory.
    pub(crate) fn shared(&self) -> &Mapping {
        &self.shared
    }

    /// Its number among those that share the memory.
    pub(crate) fn position(&self) -> u32 {
        self.registers.read(register::IV_POSITION)
    }

    /// Interrupts the one that has the number `peer`.
    pub(crate) fn ring(&self, peer: u32) {
        self.registers
            .write(register::DOORBELL, peer << 16 | VECTOR);
    }

    /// Waits for an interrupt.
    pub(crate) fn wait_for_interrupt(&self) -> Result<(), Failure> {
        let Some(mut interrupt) = self.interrupts.get(VECTOR as usize) else {
            return Err("too few vectors".into());
        };
        let mut poll = libc::pollfd {
            fd: interrupt.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let timeout = i32::try_from(PATIENCE.as_millis())?;
        // SAFETY: one pollfd, alive during the call.
        match unsafe { libc::poll(&raw mut poll, 1, timeout) } {
            0 => Err(format!("no interrupt within {PATIENCE:?}").into()),
            1.. => {
                let mut count = [0; 8];
                interrupt.read_exact(&mut count)?;
                match u64::from_ne_bytes(count) {
                    1 => Ok(()),
                    count => Err(format!("{count} interrupts for one ring").into()),
                }
            }
            _ => Err(io::Error::last_os_error().into()),
        }
    }
}

/// Has the device's vectors signal eventfds.
fn take_interrupts(device: &OwnedFd) -> Result<Vec<File>, Failure> {
    let mut interrupts = Vec::new();
    let mut eventfds = [0; VECTORS];
    for place in &mut eventfds {
        // SAFETY: takes no pointers.
        let eventfd = opened("eventfd", unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) })?;
        *place = eventfd.as_raw_fd();
        interrupts.push(File::from(eventfd));
    }
    let set = vfio::IrqSet {
        argsz: size_of::<vfio::IrqSet>() as u32,
        flags: vfio::DATA_EVENTFD | vfio::ACTION_TRIGGER,
        index: vfio::MSIX,
        start: 0,
        count: VECTORS as u32,
        eventfds,
    };
    // SAFETY: the structure is alive during the call and of the size that it says.
    let result = unsafe {
        libc::ioctl(
            device.as_raw_fd(),
            vfio::DEVICE_SET_IRQS as _,
            &raw const set,
        )
    };
    done("VFIO MSI-X", result)?;
    Ok(interrupts)
}

/// A part of a BAR.
fn map_region(device: &OwnedFd, bar: u32, offset: u64, size: usize) -> Result<Mapping, Failure> {
    let mut info = vfio::RegionInfo {
        argsz: size_of::<vfio::RegionInfo>() as u32,
        index: bar,
        ..vfio::RegionInfo::default()
    };
    let call = vfio::DEVICE_GET_REGION_INFO;
    // SAFETY: the structure is alive during the call and of the size that it says.
    done("VFIO region", unsafe {
        libc::ioctl(device.as_raw_fd(), call as _, &raw mut info)
    })?;
    if info.size < offset + size as u64 {
        return Err(format!("BAR{bar} has only {} bytes", info.size).into());
    }
    Mapping::new(device.as_fd(), info.offset + offset, size)
        .map_err(|error| format!("mmap of BAR{bar}: {error}").into())
}
