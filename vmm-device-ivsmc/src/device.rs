// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device as the VMM sees it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;

use crate::core::Core;
use crate::pci::{BarMove, BarSpec};
use crate::socket::SocketFile;
use crate::{BarMemory, Config, ConfigError, Counters, DeviceState, Fabric, Host};

/// Why a device cannot be made.
#[derive(Debug, Error)]
pub enum Error {
    /// An option is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Somebody listens on the socket already.
    #[error("ivsmc: path={0} is in use by another process; use another path, or end that process")]
    PathInUse(PathBuf),
    /// There is something else than a socket.
    #[error("ivsmc: path={0} exists and is not a socket; use another path, or remove it")]
    NotASocket(PathBuf),
    /// No permission for the socket.
    #[error(
        "ivsmc: no permission to make path={0}; use a folder that this user can write to, or change its mode"
    )]
    NoPermission(PathBuf),
    /// The socket's folder does not exist.
    #[error("ivsmc: the folder of path={0} does not exist; make it, or use another path")]
    NoFolder(PathBuf),
    /// The socket cannot be made for another reason.
    #[error("ivsmc: cannot listen on path={0}: {1}")]
    Listen(PathBuf, #[source] io::Error),
    /// The system is out of descriptors or the like.
    #[error("ivsmc: cannot make the device of path={0}: {1}")]
    System(PathBuf, #[source] io::Error),
}

/// An ivsmc device, for the VMM to call from any thread. Its links come and go by themselves, on the
/// [`Fabric`]'s thread.
pub struct Device {
    core: Arc<Core>,
}

impl Device {
    /// The system calls that vCPU threads make, for a seccomp filter of theirs: those of the guest's accesses (the
    /// methods from `config_read` to `bar_write`), of [`reset`](Self::reset), and of a guest that unplugs the device,
    /// so that the VMM calls [`shutdown`](Self::shutdown), joins the fabric's thread and drops the device. They are
    /// the device's own, the allocator's, and those of a [`Host`] that does what it must with ioctls. What else the
    /// host and the logger make has to be added.
    pub const SYSCALLS: &'static [i64] = &[
        // Interrupt lines are looked at, emptied and signalled; the fabric thread is woken.
        #[cfg(target_arch = "x86_64")]
        libc::SYS_poll,
        libc::SYS_ppoll,
        libc::SYS_preadv2,
        libc::SYS_write,
        // The host's: KVM_SET_USER_MEMORY_REGION, KVM_IOEVENTFD, KVM_IRQFD, KVM_SET_GSI_ROUTING.
        libc::SYS_ioctl,
        // A link that has no doorbells any more after a BAR moved is ended; descriptors go with the device.
        libc::SYS_close,
        libc::SYS_munmap,
        // The socket's file is looked at and removed. (Joining a thread is a futex.)
        libc::SYS_statx,
        libc::SYS_newfstatat,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_lstat,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_unlink,
        libc::SYS_unlinkat,
        // The lock, the allocator.
        libc::SYS_futex,
        libc::SYS_brk,
        libc::SYS_mmap,
        libc::SYS_mremap,
        libc::SYS_mprotect,
        libc::SYS_madvise,
    ];

    /// The system calls that [`new`](Self::new) makes on top of [`Fabric::SYSCALLS`], for a seccomp filter of the
    /// thread that makes devices. (One that also calls the methods for the guest needs [`SYSCALLS`](Self::SYSCALLS),
    /// too.)
    pub const NEW_SYSCALLS: &'static [i64] = &[
        // Windows' content in a snapshot.
        libc::SYS_pwrite64,
        // The fabric's epoll; a GID; the folder that a relative path starts from.
        libc::SYS_epoll_create1,
        libc::SYS_getrandom,
        libc::SYS_getcwd,
    ];

    /// The system calls that [`state`](Self::state) makes, for a seccomp filter of the thread that takes snapshots:
    /// those that read windows, of the lock and of the allocator. What the logger makes has to be added.
    pub const STATE_SYSCALLS: &'static [i64] = &[
        libc::SYS_lseek,
        libc::SYS_pread64,
        libc::SYS_futex,
        libc::SYS_brk,
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_mprotect,
        libc::SYS_madvise,
    ];

    /// Makes a device that listens on the configuration's path, and its fabric, for which the VMM starts
    /// a thread that calls [`Fabric::run`]. `name` is what to call the device in the log.
    ///
    /// With `state` it is a device as it was when that was taken, but that it has a new GID (unless the configuration
    /// has one) and that its links come up anew; the VMM then finds the BARs' addresses with
    /// [`bar_address`](Self::bar_address) and places them there. Such a device is *held*: it neither accepts nor
    /// joins peers until [`resume`](Self::resume). Its path may be in use as long as the VM that it is the
    /// continuation of has not ended: it then listens when the path is free.
    ///
    /// # Errors
    /// When an option is wrong or the socket cannot be made; the error says what would do.
    pub fn new(
        name: &str,
        config: Config,
        host: Arc<dyn Host>,
        state: Option<&DeviceState>,
    ) -> Result<(Arc<Device>, Fabric), Error> {
        config.validate()?;
        let path = config.path.clone();
        let (socket, file) = match SocketFile::listen(&path, config.is_for_all()) {
            Ok((socket, file)) => (Some(socket), Some(file)),
            Err(error) if state.is_some() && error.kind() == io::ErrorKind::AddrInUse => {
                (None, None)
            }
            Err(error) => return Err(listen_error(path, error)),
        };
        let made = Core::new(name, config, host, state, file).and_then(|core| {
            let core = Arc::new(core);
            Ok((Fabric::new(core.clone(), socket)?, core))
        });
        match made {
            Ok((fabric, core)) => Ok((Arc::new(Device { core }), fabric)),
            Err(error) => Err(Error::System(path, error)),
        }
    }

    /// Lets a device that was made of a snapshot accept and join peers, now that its VM runs. A device that is
    /// not held goes on as it is.
    pub fn resume(&self) {
        self.core.resume();
    }

    /// The device's BARs: registers (0), MSI-X (1), windows (2).
    pub fn bars(&self) -> [BarSpec; 3] {
        self.core.bars()
    }

    /// All of BAR2 in this process. Windows come and go in it, at the addresses that the guest has for them plus a constant,
    /// and everything in between can be read and written, too. So it is what other devices of the VM can be told to
    /// reach, where they look guest memory up in a table: from when the VMM has placed BAR2, and again when it moves.
    /// (Without that they find nothing at an address that the guest may well give them: what a Linux guest
    /// receives over SMC-D and splices to a socket or a disk stays where it is, in a window.) It is no memory slot: what
    /// the guest's processors do in BAR2 where no window is has to trap.
    ///
    /// The memory stays where it is until the last `Arc` is gone.
    pub fn bar_memory(&self) -> Arc<BarMemory> {
        self.core.bar_memory().clone()
    }

    /// How many interrupt lines the device has (see [`Host::set_line`]).
    pub fn lines(&self) -> usize {
        self.core.lines()
    }

    /// The guest reads the 32-bit register number `register` of the configuration space.
    pub fn config_read(&self, register: usize) -> u32 {
        self.core.config_read(register)
    }

    /// The guest writes `data` at byte `offset` of the configuration space's register number `register`. For each
    /// BAR that it thereby wants elsewhere, the VMM moves the range for which it calls
    /// [`bar_read`](Self::bar_read) and [`bar_write`](Self::bar_write) and calls [`move_bar`](Self::move_bar); or, if it
    /// cannot, [`keep_bar`](Self::keep_bar).
    pub fn config_write(&self, register: usize, offset: usize, data: &[u8]) -> Vec<BarMove> {
        self.core.config_write(register, offset, data)
    }

    /// Where the BAR is: what the VMM said last, or after a restore what the snapshot says.
    pub fn bar_address(&self, bar: usize) -> u64 {
        self.core.bar_address(bar)
    }

    /// Places a BAR: at first (as a firmware would), or when the guest moved it. Windows and doorbells in it
    /// move along. A BAR at address 0 is nowhere.
    ///
    /// # Errors
    /// When there is no such BAR, it cannot have this address (too high, or no multiple of its size), or the VMM
    /// cannot map windows there; the BAR then stays where it was.
    pub fn move_bar(&self, bar: usize, address: u64) -> io::Result<()> {
        self.core.move_bar(bar, address)
    }

    /// The BAR stays where it is, although the guest wants it elsewhere.
    pub fn keep_bar(&self, bar: usize) {
        self.core.keep_bar(bar);
    }

    /// The guest reads `data.len()` bytes at `offset` in a BAR. (In BAR2, only where no window is.)
    pub fn bar_read(&self, bar: usize, offset: u64, data: &mut [u8]) {
        self.core.bar_read(bar, offset, data);
    }

    /// The guest writes `data` at `offset` in a BAR. (In BAR2, only where no window is.)
    pub fn bar_write(&self, bar: usize, offset: u64, data: &[u8]) {
        self.core.bar_write(bar, offset, data);
    }

    /// Resets the device, as on a reset of the VM: all links end, and are made anew. BARs stay in place.
    pub fn reset(&self) {
        self.core.reset();
    }

    /// What a snapshot needs. The VM has to be paused.
    ///
    /// # Errors
    /// When the content of a window cannot be read.
    pub fn state(&self) -> io::Result<DeviceState> {
        self.core.snapshot()
    }

    /// What has been counted so far.
    pub fn counters(&self) -> Counters {
        self.core.counters()
    }

    /// Removes the socket, and makes [`Fabric::run`] end all links and return. Dropping the device does it, too.
    pub fn shutdown(&self) {
        self.core.stop();
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.shutdown();
    }
}

fn listen_error(path: PathBuf, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::AddrInUse => Error::PathInUse(path),
        io::ErrorKind::AlreadyExists => Error::NotASocket(path),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            Error::NoPermission(path)
        }
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Error::NoFolder(path),
        _ => Error::Listen(path, error),
    }
}
