// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where things are in the guest's address spaces.

/// The GDT that the boot processor starts with.
pub const GDT: u64 = 0x500;
/// `struct boot_params`, the "zero page".
pub const BOOT_PARAMS: u64 = 0x7000;
/// Page tables that map the first GiB one to one: PML4, PDPT and PD, a page each.
pub const PML4: u64 = 0x9000;
/// The kernel's command line.
pub const CMDLINE: u64 = 0x2_0000;
/// The longest command line that Linux takes on x86, terminating zero included.
pub const CMDLINE_SIZE: usize = 2048;
/// End of conventional memory.
pub const LOW_MEMORY_END: u64 = 0xa_0000;
/// ACPI tables, RSDP first.
pub const ACPI: u64 = 0xe_0000;
/// Memory above the legacy megabyte.
pub const HIGH_MEMORY: u64 = 0x10_0000;
/// Where kernels are loaded: what Linux prefers, so that it need not move itself.
pub const KERNEL: u64 = 0x100_0000;

/// Memory ends here and goes on at 4 GiB.
pub const RAM_GAP: u64 = 0xc000_0000;
/// 32-bit PCI BARs.
pub const MMIO32: u64 = RAM_GAP;
/// End of 32-bit PCI BARs.
pub const MMIO32_END: u64 = 0xe000_0000;
/// Configuration space of PCI bus 0.
pub const ECAM: u64 = MMIO32_END;
/// Size of one bus's configuration space.
pub const ECAM_SIZE: u64 = 1 << 20;
/// KVM's I/O APIC.
pub const IOAPIC: u64 = 0xfec0_0000;
/// KVM's local APICs.
pub const LAPIC: u64 = 0xfee0_0000;
/// Three pages that KVM wants on Intel, and one before them.
pub const KVM_TSS: u64 = 0xfffb_d000;
/// See [`KVM_TSS`].
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Memory after the gap.
pub const HIGH_RAM: u64 = 1 << 32;

/// The serial port COM1, its size and its interrupt.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Number of the serial port's registers.
pub const SERIAL_PORT_SIZE: u8 = 8;
/// The serial port's I/O APIC pin.
pub const SERIAL_IRQ: u32 = 4;
/// Where a PC says why there was an NMI: a zero, for no fault of memory or bus.
pub const NMI_STATUS_PORT: u16 = 0x61;
/// ACPI's sleep control, sleep status and reset registers: a port each.
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// See [`SLEEP_CONTROL_PORT`].
pub const SLEEP_STATUS_PORT: u16 = 0x601;
/// See [`SLEEP_CONTROL_PORT`].
pub const RESET_PORT: u16 = 0x602;
/// What the guest writes to the reset register.
pub const RESET_VALUE: u8 = 1;
/// ACPI's sleep type for S5, soft off.
pub const SLEEP_TYPE_S5: u8 = 5;

/// Guest memory as (address, length): one region, or two around the gap.
pub fn ram(size: u64) -> Vec<(u64, u64)> {
    if size <= RAM_GAP {
        vec![(0, size)]
    } else {
        vec![(0, RAM_GAP), (HIGH_RAM, size - RAM_GAP)]
    }
}

/// Where 64-bit BARs may be: from the first power of two after memory to half of what the
/// processor can address (the upper half has holes on some). (start, end)
pub fn mmio64(ram_size: u64, physical_bits: u32) -> (u64, u64) {
    let ram_end = if ram_size <= RAM_GAP {
        HIGH_RAM
    } else {
        HIGH_RAM + ram_size - RAM_GAP
    };
    let start = (ram_end + 1).next_power_of_two();
    let end = 1 << (physical_bits.clamp(36, 52) - 1);
    (start, end.max(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_goes_around_the_gap() {
        assert_eq!(ram(1 << 30), [(0, 1 << 30)]);
        assert_eq!(ram(RAM_GAP), [(0, RAM_GAP)]);
        assert_eq!(ram(4 << 30), [(0, RAM_GAP), (HIGH_RAM, 1 << 30)]);
    }

    #[test]
    fn wide_bars_come_after_memory() {
        assert_eq!(mmio64(1 << 30, 40), (8 << 30, 512 << 30));
        assert_eq!(mmio64(8 << 30, 48), (16 << 30, 1 << 47));
        let (start, end) = mmio64(64 << 30, 36);
        assert!(start > 64 << 30 && end >= start);
    }
}
