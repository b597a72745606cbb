// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The SMC-D devices that SMC knows. It does not list loopback, which joins programs of one system.

use crate::generic::Smc;
use crate::netlink::{self, Error};
use serde::{Deserialize, Serialize};

const GET_DEV_SMCD: u8 = 5;
const DEVICE: u16 = 5;
const USE_COUNT: u16 = 1;
const PCI_ID: u16 = 7;
const PORT: u16 = 8;
const PORT_PNETID: u16 = 2;

/// One SMC-D device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// PCI address, or what the kernel gives in its place.
    pub pci_id: String,
    /// Connections that use it.
    pub connections: u32,
    /// Physical network ID, if one is set.
    pub pnetid: String,
}

/// Lists the SMC-D devices.
pub fn list() -> Result<Vec<Device>, Error> {
    let mut devices = Vec::new();
    Smc::open()?.dump(GET_DEV_SMCD, |attributes| {
        if let Some(nest) = netlink::attribute(attributes, DEVICE)? {
            devices.push(parse(nest)?);
        }
        Ok(())
    })?;
    Ok(devices)
}

fn parse(nest: &[u8]) -> Result<Device, Error> {
    let mut device = Device {
        pci_id: String::new(),
        connections: 0,
        pnetid: String::new(),
    };
    for attribute in netlink::attributes(nest) {
        match attribute? {
            (USE_COUNT, value) => device.connections = netlink::u32_at(value, 0).unwrap_or(0),
            (PCI_ID, value) => device.pci_id = netlink::text(value),
            (PORT, value) => {
                if let Some(pnetid) = netlink::attribute(value, PORT_PNETID)? {
                    device.pnetid = netlink::text(pnetid);
                }
            }
            _ => {}
        }
    }
    Ok(device)
}
