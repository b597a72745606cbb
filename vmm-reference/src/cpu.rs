// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Virtual processors: what they tell of themselves, and the state in which they start.

use anyhow::{Context, Result};
use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2,
    kvm_dtable, kvm_msr_entry, kvm_regs, kvm_segment,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd};

use crate::layout;

const ECX1_TSC_DEADLINE: u32 = 1 << 24;
const ECX1_HYPERVISOR: u32 = 1 << 31;
const EDX1_HTT: u32 = 1 << 28;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLE_WRITE_BACK: u64 = 1 << 11 | 6;

/// What KVM and the host's processor can do.
pub fn supported_cpuid(kvm: &Kvm) -> Result<CpuId> {
    let mut cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .context("KVM_GET_SUPPORTED_CPUID")?;
    let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    for entry in cpuid.as_mut_slice() {
        if entry.function == 1 {
            entry.ecx |= ECX1_HYPERVISOR;
            // KVM reports it by the capability alone.
            entry.ecx |= if deadline { ECX1_TSC_DEADLINE } else { 0 };
        }
    }
    Ok(cpuid)
}

/// How many bits a physical address has.
pub fn physical_bits(cpuid: &CpuId) -> u32 {
    let entry = cpuid
        .as_slice()
        .iter()
        .find(|entry| entry.function == 0x8000_0008);
    entry.map_or(36, |entry| entry.eax & 0xff)
}

/// `supported` as processor `id` of `count` sees it: one socket, a core for each, one thread per core.
fn cpuid_of(supported: &CpuId, id: u8, count: u8) -> Result<CpuId> {
    let (id, count) = (u32::from(id), u32::from(count));
    let id_bits = count.next_power_of_two().trailing_zeros();
    // Leaf 0xb is made anew; without 0x1f and 0x80000026 a guest looks at it.
    let mut entries: Vec<_> = supported.as_slice().to_vec();
    let extended = entries.iter().any(|entry| entry.function == 0xb);
    entries.retain(|entry| !matches!(entry.function, 0xb | 0x1f | 0x8000_0026));
    for entry in &mut entries {
        // How many logical processors share a cache: all of them from the third level on.
        let sharing = if entry.eax >> 5 & 7 >= 3 {
            count - 1
        } else {
            0
        };
        match entry.function {
            1 => {
                entry.ebx = entry.ebx & 0xffff | (1 << id_bits) << 16 | id << 24;
                entry.edx = entry.edx & !EDX1_HTT | if count > 1 { EDX1_HTT } else { 0 };
            }
            4 if entry.eax & 0x1f != 0 => {
                entry.eax = entry.eax & 0x3fff | sharing << 14 | (count - 1) << 26;
            }
            0x8000_0008 => entry.ecx = id_bits << 12 | (count - 1),
            0x8000_001d if entry.eax & 0x1f != 0 => {
                entry.eax = entry.eax & 0x3fff | sharing << 14;
            }
            0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (id, id, 0),
            _ => {}
        }
    }
    if extended {
        // Per level: index, bits of the ID up to the next level, processors, level's type.
        for (index, shift, processors, kind) in [(0, 0, 1, 1), (1, id_bits, count, 2), (2, 0, 0, 0)]
        {
            entries.push(kvm_cpuid_entry2 {
                function: 0xb,
                index,
                flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                eax: shift,
                ebx: processors,
                ecx: kind << 8 | index,
                edx: id,
                ..Default::default()
            });
        }
    }
    CpuId::from_entries(&entries).context("too many CPUID leaves")
}

/// Readies processor `id` of `count`; the first one is to start at `entry` in 64-bit mode, the others
/// wait for it to wake them.
pub fn configure(vcpu: &VcpuFd, supported: &CpuId, id: u8, count: u8, entry: u64) -> Result<()> {
    vcpu.set_cpuid2(&cpuid_of(supported, id, count)?)
        .context("KVM_SET_CPUID2")?;
    let msrs = [
        kvm_msr_entry {
            index: MSR_MISC_ENABLE,
            data: MISC_ENABLE_FAST_STRING,
            ..Default::default()
        },
        kvm_msr_entry {
            index: MSR_MTRR_DEF_TYPE,
            data: MTRR_ENABLE_WRITE_BACK,
            ..Default::default()
        },
    ];
    let msrs = Msrs::from_entries(&msrs).context("MSRs")?;
    vcpu.set_msrs(&msrs).context("KVM_SET_MSRS")?;
    if id != 0 {
        return Ok(());
    }

    let mut sregs = vcpu.get_sregs().context("KVM_GET_SREGS")?;
    let code = kvm_segment {
        limit: u32::MAX,
        selector: 0x10,
        type_: 0xb,
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment {
        selector: 0x18,
        type_: 0x3,
        db: 1,
        l: 0,
        ..code
    };
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.gdt = kvm_dtable {
        base: layout::GDT,
        limit: 31,
        ..Default::default()
    };
    sregs.cr0 = CR0_PG | CR0_ET | CR0_PE;
    sregs.cr3 = layout::PML4;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME | EFER_LMA;
    vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;

    // The boot protocol: interrupts off, RSI at the boot parameters.
    let regs = kvm_regs {
        rflags: 2,
        rip: entry,
        rsi: layout::BOOT_PARAMS,
        ..Default::default()
    };
    vcpu.set_regs(&regs).context("KVM_SET_REGS")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_processor_has_an_id_of_its_own() {
        let leaf = |function| kvm_cpuid_entry2 {
            function,
            ebx: 0xff00_1234,
            ..Default::default()
        };
        let supported = CpuId::from_entries(&[leaf(1), leaf(0xb), leaf(0x8000_0008)]).unwrap();
        for id in 0..6 {
            let cpuid = cpuid_of(&supported, id, 6).unwrap();
            let cpuid = cpuid.as_slice();
            assert_eq!(cpuid[0].ebx, u32::from(id) << 24 | 8 << 16 | 0x1234);
            assert_eq!(cpuid[1].ecx, 3 << 12 | 5);
            let levels: Vec<_> = cpuid.iter().filter(|leaf| leaf.function == 0xb).collect();
            assert_eq!(levels.len(), 3);
            assert!(levels.iter().all(|level| level.edx == u32::from(id)));
            assert_eq!((levels[1].eax, levels[1].ebx, levels[1].ecx), (3, 6, 0x201));
        }
    }
}
