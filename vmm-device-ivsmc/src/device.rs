// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device as the VMM sees it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;

use crate::pci::{BarMove, BarSpec};
use crate::{Config, ConfigError, Counters, DeviceState, Fabric, Host};

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
    #[error("ivsmc: cannot make {0}: {1}")]
    System(&'static str, #[source] io::Error),
}

/// An ivsmc device.
#[derive(Debug)]
pub struct Device {}

impl Device {
    /// Makes a device that listens on the configuration's path, and its fabric, for which the VMM starts
    /// a thread that calls [`Fabric::run`].
    ///
    /// # Errors
    /// When an option is wrong or the socket cannot be made; the error says what would do.
    pub fn new(
        config: Config,
        _host: Arc<dyn Host>,
        _state: Option<&DeviceState>,
    ) -> Result<(Arc<Device>, Fabric), Error> {
        config.validate()?;
        Err(Error::Listen(
            config.path,
            io::ErrorKind::Unsupported.into(),
        ))
    }

    /// The device's BARs: registers (0), MSI-X (1), windows (2).
    pub fn bars(&self) -> [BarSpec; 3] {
        [BarSpec {
            index: 0,
            size: 0x4000,
            is_64bit: false,
            prefetchable: false,
        }; 3]
    }

    /// How many interrupt lines the device has (see [`Host::set_line`]).
    pub fn lines(&self) -> usize {
        0
    }

    /// The guest reads the 32-bit register number `register` of the configuration space.
    pub fn config_read(&self, _register: usize) -> u32 {
        u32::MAX
    }

    /// The guest writes `data` at byte `offset` of the configuration space's register number `register`. For each
    /// BAR that it thereby moves, the VMM moves its MMIO range (BAR0 and BAR1; and of BAR2, what has no window
    /// mapped) and calls [`move_bar`](Self::move_bar), or calls [`keep_bar`](Self::keep_bar) if it cannot.
    pub fn config_write(&self, _register: usize, _offset: usize, _data: &[u8]) -> Vec<BarMove> {
        Vec::new()
    }

    /// Where the BAR is: what the VMM said last, or after a restore what the snapshot says.
    pub fn bar_address(&self, _bar: usize) -> u64 {
        0
    }

    /// Places a BAR: at first (as a firmware would), or when the guest moved it. Windows and doorbells in it
    /// move along.
    ///
    /// # Errors
    /// When the VMM's part of that fails.
    pub fn move_bar(&self, _bar: usize, _address: u64) -> io::Result<()> {
        Ok(())
    }

    /// The BAR stays where it is, although the guest wants it elsewhere.
    pub fn keep_bar(&self, _bar: usize) {}

    /// The guest reads `data.len()` bytes at `offset` in a BAR.
    pub fn bar_read(&self, _bar: usize, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    /// The guest writes `data` at `offset` in a BAR.
    pub fn bar_write(&self, _bar: usize, _offset: u64, _data: &[u8]) {}

    /// Resets the device, as on a reset of the VM: all links end, and are made anew. BARs stay in place.
    pub fn reset(&self) {}

    /// What a snapshot needs.
    pub fn state(&self) -> DeviceState {
        DeviceState {
            gid: crate::Gid::random(),
            config_space: Default::default(),
            msix: Default::default(),
        }
    }

    /// What has been counted so far.
    pub fn counters(&self) -> Counters {
        Counters::default()
    }

    /// Ends all links, makes [`Fabric::run`] return and removes the socket. Dropping the device does it, too.
    pub fn shutdown(&self) {}
}
