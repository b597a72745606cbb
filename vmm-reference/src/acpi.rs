// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The ACPI tables: hardware-reduced, with the processors, one PCI host bridge and the serial port.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name,
    Package, ResourceTemplate, ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{self, AccessSize, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};

use crate::layout;

const OEM: [u8; 6] = *b"IVSMC ";
const OEM_TABLE: [u8; 8] = *b"VMMREF  ";
const OEM_REVISION: u32 = 1;

/// FADT, IAPC_BOOT_ARCH: there is no VGA and no CMOS clock.
const NO_VGA_NO_CMOS: u16 = 1 << 2 | 1 << 5;

/// What a guest is told of its machine.
pub struct Machine {
    /// Number of processors; their local APICs' IDs count from 0.
    pub cpus: u8,
    /// Start and end of the addresses for 64-bit BARs.
    pub mmio64: (u64, u64),
    /// Is there a serial port?
    pub serial: bool,
}

/// The tables as they are to lie at [`layout::ACPI`]; the RSDP comes first.
pub fn tables(machine: &Machine) -> Vec<u8> {
    let mut image = Image(vec![0; Rsdp::len()]);
    let dsdt = image.add(&dsdt(machine));
    let fadt = image.add(&fadt(dsdt));
    let madt = image.add(&madt(machine.cpus));
    let mut mcfg = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    mcfg.add_ecam(layout::ECAM, 0, 0, 0);
    let mcfg = image.add(&mcfg);
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    for table in [fadt, madt, mcfg] {
        xsdt.add_entry(table);
    }
    let xsdt = image.add(&xsdt);

    let mut rsdp = Image(Vec::new());
    rsdp.add(&Rsdp::new(OEM, xsdt));
    image.0[..Rsdp::len()].copy_from_slice(&rsdp.0[..Rsdp::len()]);
    image.0
}

/// Tables one behind the other.
struct Image(Vec<u8>);

impl Image {
    /// Appends a table and returns its address.
    fn add(&mut self, table: &dyn Aml) -> u64 {
        self.0.resize(self.0.len().next_multiple_of(16), 0);
        let address = layout::ACPI + self.0.len() as u64;
        table.to_aml_bytes(self);
        address
    }
}

impl AmlSink for Image {
    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }
}

fn port(address: u16) -> GAS {
    GAS::new(
        gas::AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        address.into(),
    )
}

fn fadt(dsdt: u64) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = NO_VGA_NO_CMOS.into();
    fadt.reset_reg = port(layout::RESET_PORT);
    fadt.reset_value = layout::RESET_VALUE;
    fadt.sleep_control_reg = port(layout::SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(layout::SLEEP_STATUS_PORT);
    fadt.finalize()
}

fn madt(cpus: u8) -> impl Aml {
    let lapic = LocalInterruptController::Address(layout::LAPIC as u32);
    let mut madt = MADT::new(OEM, OEM_TABLE, OEM_REVISION, lapic);
    for id in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IOAPIC as u32, 0));
    madt
}

fn dsdt(machine: &Machine) -> Sdt {
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, OEM_REVISION);

    let s5: [&dyn Aml; 2] = [&layout::SLEEP_TYPE_S5, &ZERO];
    Name::new("_S5_".into(), &Package::new(s5.to_vec())).to_aml_bytes(&mut dsdt);

    // Linux uses the ECAM only if a motherboard resource claims it.
    let ecam = Memory32Fixed::new(true, layout::ECAM as u32, layout::ECAM_SIZE as u32);
    Device::new(
        "_SB_.MBRD".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ecam])),
        ],
    )
    .to_aml_bytes(&mut dsdt);

    let (start, end) = machine.mmio64;
    let bus = AddressSpace::new_bus_number(0u16, 0u16);
    let mmio32 = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        layout::MMIO32 as u32,
        layout::MMIO32_END as u32 - 1,
        None,
    );
    let mmio64 =
        AddressSpace::new_memory(AddressSpaceCacheable::Cacheable, true, start, end - 1, None);
    let mut resources: Vec<&dyn Aml> = vec![&bus, &mmio32];
    if end > start {
        resources.push(&mmio64);
    }
    Device::new(
        "_SB_.PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_SEG".into(), &ZERO),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CCA".into(), &acpi_tables::aml::ONE),
            &Name::new("_CRS".into(), &ResourceTemplate::new(resources)),
        ],
    )
    .to_aml_bytes(&mut dsdt);

    if machine.serial {
        let port = layout::SERIAL_PORT;
        let registers = IO::new(port, port, 0, layout::SERIAL_PORT_SIZE);
        let interrupt = Interrupt::new(true, true, false, false, layout::SERIAL_IRQ);
        Device::new(
            "_SB_.COM1".into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0501")),
                &Name::new("_UID".into(), &ZERO),
                &Name::new(
                    "_CRS".into(),
                    &ResourceTemplate::new(vec![&registers, &interrupt]),
                ),
            ],
        )
        .to_aml_bytes(&mut dsdt);
    }
    dsdt
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn u32_at(image: &[u8], at: usize) -> usize {
        u32::from_le_bytes(image[at..at + 4].try_into().unwrap()) as usize
    }

    fn table_at(image: &[u8], field: usize) -> &[u8] {
        let address = u64::from_le_bytes(image[field..field + 8].try_into().unwrap());
        let at = (address - layout::ACPI) as usize;
        &image[at..at + u32_at(image, at + 4)]
    }

    #[test]
    fn tables_are_found_from_the_rsdp_and_sum_to_zero() {
        let machine = Machine {
            cpus: 8,
            mmio64: (8 << 30, 16 << 30),
            serial: true,
        };
        let image = tables(&machine);
        assert!(image.len() < 0x2_0000, "must fit below 1 MiB");
        assert_eq!(&image[..8], b"RSD PTR ");
        assert_eq!(sum(&image[..20]), 0);
        assert_eq!(sum(&image[..Rsdp::len()]), 0);

        let xsdt = table_at(&image, 24);
        assert_eq!(&xsdt[..4], b"XSDT");
        assert_eq!(sum(xsdt), 0);
        let names: Vec<_> = xsdt[36..]
            .chunks(8)
            .map(|entry| {
                let table = table_at(&image, entry.as_ptr() as usize - image.as_ptr() as usize);
                assert_eq!(sum(table), 0);
                table[..4].to_vec()
            })
            .collect();
        assert_eq!(names, [b"FACP", b"APIC", b"MCFG"]);

        let fadt = table_at(
            &image,
            xsdt.as_ptr() as usize - image.as_ptr() as usize + 36,
        );
        let dsdt = table_at(
            &image,
            fadt.as_ptr() as usize - image.as_ptr() as usize + 140,
        );
        assert_eq!(&dsdt[..4], b"DSDT");
        assert_eq!(sum(dsdt), 0);
    }
}
