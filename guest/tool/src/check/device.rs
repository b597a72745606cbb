// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device: on the PCI bus, with its driver, known to SMC, with links.

use crate::devices;
use crate::pci::{self, PciDevice};
use ivsmc_toolkit::check::{Report, System};

pub(super) fn check(system: &System, report: &mut Report) {
    let found = pci::list_in(&system.path("/sys/bus/pci/devices"));
    let found = found.unwrap_or_default();
    look(&found, report);
    if !found.iter().any(is_ours) {
        return;
    }
    match devices::list() {
        Ok(known) if known.is_empty() => report.wrong(
            "SMC-D device",
            "SMC knows none, though ivpci has one",
            "dmesg | grep ivpci says why",
        ),
        Ok(known) => {
            let ids: Vec<_> = known.into_iter().map(|device| device.pci_id).collect();
            report.ok("SMC-D device", ids.join(", "));
        }
        Err(error) => report.missing(
            "SMC-D device",
            format!("SMC does not say: {error}"),
            "modprobe smc",
        ),
    }
}

fn is_ours(device: &PciDevice) -> bool {
    device.driver.as_deref() == Some("ivpci")
}

/// Looks at the devices of the PCI bus.
fn look(found: &[PciDevice], report: &mut Report) {
    if found.is_empty() {
        report.missing(
            "PCI device",
            "the VM has none",
            "start the VM with --ivsmc path=...,peer=..., or have ivsmc-host attach give it one",
        );
    }
    for device in found {
        let address = &device.address;
        match device.driver.as_deref() {
            Some("ivpci") => report.ok("PCI device", format!("{address}, ivpci has it")),
            Some(other) => report.wrong(
                "PCI device",
                format!("{address}: the driver {other} has it"),
                format!(
                    "echo {address} >/sys/bus/pci/drivers/{other}/unbind; modprobe ivpci; \
                     echo {address} >/sys/bus/pci/drivers/ivpci/bind"
                ),
            ),
            None => report.wrong(
                "PCI device",
                format!("{address}: no driver has taken it"),
                format!(
                    "modprobe ivpci; if it refuses the device, dmesg | grep {address} says why (plain \
                     ivshmem needs ivpci.ivshmem=1)"
                ),
            ),
        }
        if is_ours(device) {
            links(device, report);
        }
    }
}

/// Looks at what ivpci says of its links.
fn links(device: &PciDevice, report: &mut Report) {
    let what = format!("links of {}", device.address);
    let up = |line: &&String| line.split([' ', ',', ':']).nth(1) == Some("up");
    let count = device.links.iter().filter(up).count();
    if count == 0 {
        report.missing(
            &what,
            "none is up",
            "the peer's VM has to run, its driver to be loaded, and the two VMs' --ivsmc to name each other; \
             the VMM's log says what is refused (allow=, max_peers=)",
        );
    } else {
        report.ok(&what, format!("{count} up"));
    }
    for line in &device.links {
        let remedy = if line.contains("uncached") {
            "have the firmware's MTRRs call BAR2 write-back"
        } else if line.contains("too high") {
            "place BAR2 lower, boot with nokaslr, or a kernel with CONFIG_PCI_P2PDMA"
        } else if line.contains("programs still use") {
            "ss --smc -p names programs that keep sockets of an earlier link; end them"
        } else if line.contains("not attached") {
            "load ivpci in the peer's guest"
        } else if line.contains(':') {
            "the line says why; docs: guest/ivpci/README.md"
        } else {
            continue;
        };
        report.wrong(&what, format!("link {line}"), remedy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ivsmc_toolkit::check::State;

    fn looked(driver: Option<&str>, links: &[&str]) -> Report {
        let mut report = Report::default();
        let device = PciDevice {
            address: "0000:00:05.0".into(),
            driver: driver.map(str::to_owned),
            links: links.iter().map(ToString::to_string).collect(),
        };
        look(&[device], &mut report);
        report
    }

    #[test]
    fn each_state_of_a_device_has_its_remedy() {
        let mut none = Report::default();
        look(&[], &mut none);
        assert!(none.says(State::Missing, "PCI device", "--ivsmc"), "{none}");
        let links = "links of 0000:00:05.0";
        for (driver, lines, state, what, remedy) in [
            (None, &[][..], State::Wrong, "PCI device", "modprobe ivpci"),
            (Some("uio"), &[], State::Wrong, "PCI device", "uio/unbind"),
            (Some("ivpci"), &["0 up"], State::Ok, "PCI device", ""),
            (Some("ivpci"), &["0 up"], State::Ok, links, ""),
            (Some("ivpci"), &[], State::Missing, links, "name each other"),
            (
                Some("ivpci"),
                &["0 up, uncached and so slow"],
                State::Wrong,
                links,
                "MTRRs",
            ),
            (
                Some("ivpci"),
                &["0 down: BAR2 is too high to be mapped"],
                State::Wrong,
                links,
                "nokaslr",
            ),
            (
                Some("ivpci"),
                &["0 down: programs still use the last window"],
                State::Wrong,
                links,
                "ss --smc",
            ),
            (
                Some("ivpci"),
                &["0 claimed: not attached"],
                State::Wrong,
                links,
                "in the peer's guest",
            ),
        ] {
            let report = looked(driver, lines);
            assert!(report.says(state, what, remedy), "{lines:?}: {report}");
        }
    }
}
