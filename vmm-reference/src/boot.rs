// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Loads Linux by its 64-bit boot protocol.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, bail};
use linux_loader::cmdline::Cmdline;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::{self, BzImage, Elf, KernelLoader, load_cmdline};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion};

use crate::acpi;
use crate::layout;
use crate::options::Options;

/// The 64-bit entry point of a bzImage, from where its protected-mode part is loaded.
const BZIMAGE_ENTRY: u64 = 0x200;
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
const LOADER_UNDEFINED: u8 = 0xff;
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
/// initrds must end below this unless the kernel says otherwise.
const INITRD_MAX: u64 = 0x3800_0000;

#[derive(Clone, Copy, Default)]
#[repr(transparent)]
struct ZeroPage(boot_params);

// SAFETY: boot_params is plain data of integers, without padding (it is packed).
unsafe impl ByteValued for ZeroPage {}

/// Puts kernel, initramfs, command line, ACPI tables, boot parameters, page tables and GDT into
/// `memory`. Returns the address of the kernel's entry point.
pub fn load(memory: &GuestMemoryMmap, options: &Options, machine: &acpi::Machine) -> Result<u64> {
    let kernel = load_kernel(memory, &options.kernel)
        .with_context(|| format!("--kernel {}", options.kernel.display()))?;

    let mut header = kernel.header;
    header.type_of_loader = LOADER_UNDEFINED;
    header.cmd_line_ptr = layout::CMDLINE as u32;
    header.cmdline_size = options.cmdline.len() as u32;
    let cmdline = Cmdline::try_from(&options.cmdline, layout::CMDLINE_SIZE)
        .with_context(|| format!("--cmdline {:?}", options.cmdline))?;
    load_cmdline(memory, GuestAddress(layout::CMDLINE), &cmdline)?;

    if let Some(path) = &options.initramfs {
        let (address, size) = load_initramfs(memory, path, &kernel)
            .with_context(|| format!("--initramfs {}", path.display()))?;
        header.ramdisk_image = address;
        header.ramdisk_size = size;
    }

    memory.write_slice(&acpi::tables(machine), GuestAddress(layout::ACPI))?;
    write_zero_page(memory, header)?;
    write_page_tables(memory)?;
    memory.write_slice(gdt().as_slice(), GuestAddress(layout::GDT))?;
    Ok(kernel.entry)
}

struct Kernel {
    entry: u64,
    /// End of what it needs to unpack itself.
    end: u64,
    header: setup_header,
}

fn load_kernel(memory: &GuestMemoryMmap, path: &Path) -> Result<Kernel> {
    let mut file = File::open(path)?;
    let at = Some(GuestAddress(layout::KERNEL));
    let high = Some(GuestAddress(layout::HIGH_MEMORY));
    match BzImage::load(memory, at, &mut file, high) {
        Ok(loaded) => {
            let header = loaded.setup_header.unwrap_or_default();
            let load = loaded.kernel_load.0;
            let end = load
                .saturating_add(header.init_size.into())
                .max(loaded.kernel_end);
            Ok(Kernel {
                entry: load + BZIMAGE_ENTRY,
                end,
                header,
            })
        }
        Err(loader::Error::Bzimage(loader::bzimage::Error::InvalidBzImage)) => {
            let loaded = Elf::load(memory, None, &mut file, high)
                .context("neither a bzImage nor a vmlinux that can be loaded")?;
            let header = setup_header {
                boot_flag: BOOT_FLAG,
                header: HEADER_MAGIC,
                kernel_alignment: layout::KERNEL as u32,
                initrd_addr_max: INITRD_MAX as u32,
                ..Default::default()
            };
            Ok(Kernel {
                entry: loaded.kernel_load.0,
                end: loaded.kernel_end,
                header,
            })
        }
        Err(error) => Err(error).context("cannot be loaded; is --memory large enough for it?"),
    }
}

/// Puts the initramfs as high as the kernel permits. Returns address and size.
fn load_initramfs(memory: &GuestMemoryMmap, path: &Path, kernel: &Kernel) -> Result<(u32, u32)> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    let low_ram = memory.iter().next().map_or(0, |region| region.len());
    let max = u64::from(kernel.header.initrd_addr_max) + 1;
    match low_ram
        .min(max)
        .checked_sub(size)
        .map(|address| address & !0xfff)
    {
        Some(address) if address >= kernel.end => {
            memory.read_exact_volatile_from(GuestAddress(address), &mut file, size as usize)?;
            Ok((address as u32, size as u32))
        }
        _ => bail!(
            "its {size} bytes do not fit into memory beside the kernel: --memory size={}M would do",
            (kernel.end + size).div_ceil(1 << 20) + 32
        ),
    }
}

fn write_zero_page(memory: &GuestMemoryMmap, header: setup_header) -> Result<()> {
    let mut map = vec![
        (0, layout::LOW_MEMORY_END, E820_RAM),
        (
            layout::ACPI,
            layout::HIGH_MEMORY - layout::ACPI,
            E820_RESERVED,
        ),
        (layout::ECAM, layout::ECAM_SIZE, E820_RESERVED),
    ];
    for region in memory.iter() {
        // The first region's first MiB is above.
        let start = region.start_addr().0.max(layout::HIGH_MEMORY);
        map.push((
            start,
            region.start_addr().0 + region.len() - start,
            E820_RAM,
        ));
    }
    let mut params = boot_params {
        hdr: header,
        acpi_rsdp_addr: layout::ACPI,
        e820_entries: map.len() as u8,
        ..Default::default()
    };
    for (entry, (addr, size, type_)) in params.e820_table.iter_mut().zip(map) {
        *entry = boot_e820_entry { addr, size, type_ };
    }
    Ok(memory.write_obj(ZeroPage(params), GuestAddress(layout::BOOT_PARAMS))?)
}

/// Maps the first GiB one to one with pages of 2 MiB; Linux maps what else it needs by itself.
fn write_page_tables(memory: &GuestMemoryMmap) -> Result<()> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    let (pdpt, pd) = (layout::PML4 + 0x1000, layout::PML4 + 0x2000);
    memory.write_obj(pdpt | PRESENT_WRITABLE, GuestAddress(layout::PML4))?;
    memory.write_obj(pd | PRESENT_WRITABLE, GuestAddress(pdpt))?;
    for page in 0..512u64 {
        let entry = page << 21 | LARGE | PRESENT_WRITABLE;
        memory.write_obj(entry, GuestAddress(pd + page * 8))?;
    }
    Ok(())
}

/// The boot protocol wants a flat code segment at 0x10 and a flat data segment at 0x18.
fn gdt() -> [u8; 32] {
    let mut gdt = [0; 32];
    gdt[16..24].copy_from_slice(&0x00af_9b00_0000_ffff_u64.to_le_bytes());
    gdt[24..32].copy_from_slice(&0x00cf_9300_0000_ffff_u64.to_le_bytes());
    gdt
}
