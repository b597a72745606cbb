// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The PCI devices that ivpci could take, and what it says of their links.

use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

/// ivshmem's, and so ivsmc's, vendor and device.
const ID: (&str, &str) = ("0x1af4", "0x1110");

/// How often a file that says "try again" is read, and what is between.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(10);

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciDevice {
    /// PCI address.
    pub address: String,
    /// The driver that has it, if one does.
    pub driver: Option<String>,
    /// What ivpci says of its links that are not down: the number, the state, and what is amiss.
    pub links: Vec<String>,
}

/// Lists them.
pub fn list() -> io::Result<Vec<PciDevice>> {
    list_in(Path::new("/sys/bus/pci/devices"))
}

pub(crate) fn list_in(folder: &Path) -> io::Result<Vec<PciDevice>> {
    let mut devices = Vec::new();
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(devices),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let read = |file| fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        if (read("vendor").trim(), read("device").trim()) != ID {
            continue;
        }
        let driver = fs::read_link(entry.path().join("driver")).ok();
        devices.push(PciDevice {
            address: entry.file_name().to_string_lossy().into_owned(),
            driver: driver
                .as_deref()
                .and_then(Path::file_name)
                .map(|name| name.to_string_lossy().into_owned()),
            links: patiently(&entry.path().join("ivpci_links"))
                .lines()
                .map(str::to_owned)
                .collect(),
        });
    }
    devices.sort_by(|one, other| one.address.cmp(&other.address));
    Ok(devices)
}

/// What a file has in it that says "try again" while its device is being changed; nothing if it goes on saying so.
fn patiently(file: &Path) -> String {
    for _ in 0..TRIES {
        match fs::read_to_string(file) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(PAUSE),
            other => return other.unwrap_or_default(),
        }
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn devices_with_and_without_a_driver() {
        let folder = std::env::temp_dir().join(format!("ivsmc-guest-pci-{}", std::process::id()));
        for (address, vendor) in [
            ("0000:00:06.0", ID.0),
            ("0000:00:05.0", ID.0),
            ("1", "0x8086"),
        ] {
            let device = folder.join(address);
            fs::create_dir_all(&device).unwrap();
            fs::write(device.join("vendor"), format!("{vendor}\n")).unwrap();
            fs::write(device.join("device"), format!("{}\n", ID.1)).unwrap();
        }
        let taken = folder.join("0000:00:06.0");
        symlink("../../drivers/ivpci", taken.join("driver")).unwrap();
        fs::write(taken.join("ivpci_links"), "0 up\n1 down: no memory\n").unwrap();
        let found = list_in(&folder);
        fs::remove_dir_all(&folder).unwrap();

        let [free, taken] = &found.unwrap()[..] else {
            panic!("not two");
        };
        assert_eq!(
            (free.address.as_str(), &free.driver),
            ("0000:00:05.0", &None)
        );
        assert!(free.links.is_empty());
        assert_eq!(taken.driver.as_deref(), Some("ivpci"));
        assert_eq!(taken.links, ["0 up", "1 down: no memory"]);
        assert_eq!(list_in(&folder).unwrap(), [], "no PCI");
    }
}
