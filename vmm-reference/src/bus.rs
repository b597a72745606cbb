// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a processor reaches through ports and memory-mapped I/O that KVM does not handle by itself.

use std::sync::Mutex;

use log::{debug, info};

use crate::layout;
use crate::lock;
use crate::pci::Pci;
use crate::serial::Serial;

/// How a VM's life ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Exit {
    /// The guest has switched the machine off.
    PowerOff,
    /// The guest has reset the machine, or has crashed such that a processor would.
    Reset,
    /// The VMM was told to end.
    Stopped,
    /// The VMM cannot go on; why has been logged.
    Failed,
}

/// All that is behind ports and addresses.
pub struct Bus {
    /// The serial port, if there is one.
    pub serial: Option<Mutex<Serial>>,
    /// All that PCI has.
    pub pci: Pci,
}

/// ACPI's sleep control register: the bit that makes it so, and where the sleep type is.
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;

impl Bus {
    /// A read from `port`.
    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        // What nobody answers reads as ones.
        data.fill(0xff);
        if let (Some(serial), Some(register)) = (&self.serial, serial_register(port)) {
            let mut serial = lock(serial);
            data.fill_with(|| serial.read(register));
        } else if matches!(
            port,
            layout::SLEEP_CONTROL_PORT | layout::SLEEP_STATUS_PORT | layout::NMI_STATUS_PORT
        ) {
            data.fill(0);
        }
    }

    /// A write to `port`; some end the VM's life.
    pub fn port_write(&self, port: u16, data: &[u8]) -> Option<Exit> {
        if let (Some(serial), Some(register)) = (&self.serial, serial_register(port)) {
            let mut serial = lock(serial);
            for byte in data {
                if let Err(error) = serial.write(register, *byte) {
                    debug!("serial port: {error:?}");
                }
            }
            return None;
        }
        match (port, data) {
            (layout::RESET_PORT, [layout::RESET_VALUE]) => {
                info!("the guest resets the machine");
                Some(Exit::Reset)
            }
            (layout::SLEEP_CONTROL_PORT, [value])
                if value & SLEEP_ENABLE != 0
                    && value >> SLEEP_TYPE_SHIFT & 7 == layout::SLEEP_TYPE_S5 =>
            {
                info!("the guest switches the machine off");
                Some(Exit::PowerOff)
            }
            _ => None,
        }
    }

    /// A read from `address`.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        self.pci.read(address, data);
    }

    /// A write to `address`.
    pub fn write(&self, address: u64, data: &[u8]) {
        self.pci.write(address, data);
    }
}

fn serial_register(port: u16) -> Option<u8> {
    let register = u8::try_from(port.checked_sub(layout::SERIAL_PORT)?).ok()?;
    (register < layout::SERIAL_PORT_SIZE).then_some(register)
}
