// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The kernel's `bpf()`: maps, programs, links and their pins. What it takes: `include/uapi/linux/bpf.h`.

use aya_obj::btf::{Btf, BtfType, Int, IntEncoding};
use aya_obj::generated::{
    BPF_ANY, BPF_OBJ_NAME_LEN, bpf_attach_type, bpf_attr, bpf_cmd, bpf_insn, bpf_map_type,
    bpf_prog_info, bpf_prog_type,
};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Bytes that the verifier may say.
const LOG: usize = 1 << 16;

/// Makes a map.
pub fn create_map(
    name: &str,
    kind: bpf_map_type,
    key: usize,
    value: usize,
    entries: usize,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut attributes = zeroed();
    // SAFETY: all members are integers, of which any value is valid.
    let map = unsafe { &mut attributes.__bindgen_anon_1 };
    map.map_type = kind as u32;
    map.key_size = key as u32;
    map.value_size = value as u32;
    map.max_entries = entries as u32;
    map.map_flags = flags;
    set_name(&mut map.map_name, name);
    // SAFETY: the name is within the attributes.
    owned(unsafe { bpf(bpf_cmd::BPF_MAP_CREATE, &mut attributes) })
}

/// Sets an entry of a map. Key and value must have the map's sizes.
pub fn update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    let mut attributes = zeroed();
    // SAFETY: as above.
    let entry = unsafe { &mut attributes.__bindgen_anon_2 };
    entry.map_fd = map.as_raw_fd() as u32;
    entry.key = key.as_ptr() as u64;
    entry.__bindgen_anon_1.value = value.as_ptr() as u64;
    entry.flags = BPF_ANY.into();
    // SAFETY: the caller's key and value have the sizes that the kernel reads, and live as long as the call.
    unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attributes) }.map(drop)
}

/// Reads an entry of a map into `value`, which must have the map's size.
pub fn look_up(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<()> {
    let mut attributes = zeroed();
    // SAFETY: as above.
    let entry = unsafe { &mut attributes.__bindgen_anon_2 };
    entry.map_fd = map.as_raw_fd() as u32;
    entry.key = key.as_ptr() as u64;
    entry.__bindgen_anon_1.value = value.as_mut_ptr() as u64;
    // SAFETY: as above; nothing else has `value`.
    unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attributes) }.map(drop)
}

/// Makes the map whose entry 0, of `size` bytes, is a structure of the kernel's with programs in it; `value` is its type.
pub fn create_structure(name: &str, value: u32, size: usize) -> io::Result<OwnedFd> {
    let own_types = load_types()?;
    let mut attributes = zeroed();
    // SAFETY: as above.
    let map = unsafe { &mut attributes.__bindgen_anon_1 };
    map.map_type = bpf_map_type::BPF_MAP_TYPE_STRUCT_OPS as u32;
    map.key_size = size_of::<u32>() as u32;
    map.value_size = size as u32;
    map.max_entries = 1;
    map.btf_vmlinux_value_type_id = value;
    map.btf_fd = own_types.as_raw_fd() as u32;
    set_name(&mut map.map_name, name);
    // SAFETY: the name is within the attributes.
    owned(unsafe { bpf(bpf_cmd::BPF_MAP_CREATE, &mut attributes) })
}

/// Types of our own: the kernel wants some, but does not look at them, where a map's value is of a type of its own.
fn load_types() -> io::Result<OwnedFd> {
    let mut types = Btf::new();
    let name = types.add_string("int");
    types.add_type(BtfType::Int(Int::new(name, 4, IntEncoding::Signed, 0)));
    let bytes = types.to_bytes();
    let mut attributes = zeroed();
    // SAFETY: as above.
    let load = unsafe { &mut attributes.__bindgen_anon_7 };
    load.btf = bytes.as_ptr() as u64;
    load.btf_size = bytes.len() as u32;
    // SAFETY: the bytes live as long as the call, and have the length that is given.
    owned(unsafe { bpf(bpf_cmd::BPF_BTF_LOAD, &mut attributes) })
}

/// Removes an entry of a map.
pub fn delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<()> {
    let mut attributes = zeroed();
    // SAFETY: as above.
    let entry = unsafe { &mut attributes.__bindgen_anon_2 };
    entry.map_fd = map.as_raw_fd() as u32;
    entry.key = key.as_ptr() as u64;
    // SAFETY: as for `update`.
    unsafe { bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attributes) }.map(drop)
}

/// What a program is for.
#[derive(Debug, Clone, Copy)]
pub enum Purpose {
    /// It changes the result of the function that has this number among the kernel's types.
    Result(u32),
    /// It is a member of a structure, which has this number among the kernel's types.
    Member {
        /// The structure's number.
        structure: u32,
        /// The member's, from 0.
        member: u32,
    },
}

/// Loads a program. The error has what the verifier said last.
pub fn load(
    name: &str,
    code: &[bpf_insn],
    purpose: Purpose,
) -> Result<OwnedFd, (io::Error, String)> {
    // What the kernel makes of the licence: the program may call what only free ones may.
    let licence = c"Dual BSD/GPL";
    let mut attributes = zeroed();
    // SAFETY: as above.
    let program = unsafe { &mut attributes.__bindgen_anon_3 };
    match purpose {
        Purpose::Result(function) => {
            program.prog_type = bpf_prog_type::BPF_PROG_TYPE_TRACING as u32;
            program.expected_attach_type = bpf_attach_type::BPF_MODIFY_RETURN as u32;
            program.attach_btf_id = function;
        }
        Purpose::Member { structure, member } => {
            program.prog_type = bpf_prog_type::BPF_PROG_TYPE_STRUCT_OPS as u32;
            program.expected_attach_type = member;
            program.attach_btf_id = structure;
        }
    }
    program.insns = code.as_ptr() as u64;
    program.insn_cnt = code.len() as u32;
    program.license = licence.as_ptr() as u64;
    set_name(&mut program.prog_name, name);
    // SAFETY: code and licence live as long as the call, and have the sizes that are given.
    let loaded = owned(unsafe { bpf(bpf_cmd::BPF_PROG_LOAD, &mut attributes) });
    loaded.map_err(|error| {
        // Again, to hear why: where all is well the log could be too long for any buffer.
        let mut log = vec![0u8; LOG];
        // SAFETY: as above.
        let program = unsafe { &mut attributes.__bindgen_anon_3 };
        program.log_level = 1;
        program.log_buf = log.as_mut_ptr() as u64;
        program.log_size = log.len() as u32;
        // SAFETY: as above; the log lives as long as the call, and has the size that is given.
        let _ = owned(unsafe { bpf(bpf_cmd::BPF_PROG_LOAD, &mut attributes) });
        let said = String::from_utf8_lossy(&log);
        let said = said.trim_end_matches('\0').trim_end();
        let mut last = said.lines().rev();
        let last = last.find(|line| !line.starts_with("processed "));
        (error, last.unwrap_or_default().to_owned())
    })
}

/// Attaches a program to the function that it was loaded for, as long as there is the link.
pub fn attach(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attributes = zeroed();
    // SAFETY: as above.
    let point = unsafe { &mut attributes.raw_tracepoint };
    point.prog_fd = program.as_raw_fd() as u32;
    // SAFETY: no pointers are in it.
    owned(unsafe { bpf(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, &mut attributes) })
}

/// Gives an object a name in BPF's file system, which keeps it.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = zeroed();
    // SAFETY: as above.
    let place = unsafe { &mut attributes.__bindgen_anon_4 };
    place.pathname = path.as_ptr() as u64;
    place.bpf_fd = object.as_raw_fd() as u32;
    // SAFETY: the path lives as long as the call.
    unsafe { bpf(bpf_cmd::BPF_OBJ_PIN, &mut attributes) }.map(drop)
}

/// The object that has this name.
pub fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = zeroed();
    // SAFETY: as above.
    unsafe { &mut attributes.__bindgen_anon_4 }.pathname = path.as_ptr() as u64;
    // SAFETY: the path lives as long as the call.
    owned(unsafe { bpf(bpf_cmd::BPF_OBJ_GET, &mut attributes) })
}

/// What the kernel knows of a program.
pub fn program_info(program: BorrowedFd<'_>) -> io::Result<bpf_prog_info> {
    // SAFETY: it has integers and addresses as integers, which may all be 0: the kernel is asked for no list.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    let mut attributes = zeroed();
    // SAFETY: as above.
    let asked = unsafe { &mut attributes.info };
    asked.bpf_fd = program.as_raw_fd() as u32;
    asked.info = (&raw mut info) as u64;
    asked.info_len = size_of_val(&info) as u32;
    // SAFETY: `info` lives as long as the call, and has the size that is given.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attributes) }?;
    Ok(info)
}

fn set_name(to: &mut [libc::c_char; BPF_OBJ_NAME_LEN as usize], name: &str) {
    // The last byte stays 0.
    for (to, from) in to
        .iter_mut()
        .zip(name.bytes())
        .take(BPF_OBJ_NAME_LEN as usize - 1)
    {
        *to = from as libc::c_char;
    }
}

fn zeroed() -> bpf_attr {
    // SAFETY: it has integers, and addresses as integers.
    unsafe { std::mem::zeroed() }
}

/// # Safety
/// What the attributes point to must be alive, and as large as they or the map that they name say.
unsafe fn bpf(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<RawFd> {
    let size = size_of_val(attributes);
    // SAFETY: the caller's.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as i32, attributes, size) };
    match RawFd::try_from(result) {
        Ok(descriptor) if descriptor >= 0 => Ok(descriptor),
        _ => Err(io::Error::last_os_error()),
    }
}

fn owned(result: io::Result<RawFd>) -> io::Result<OwnedFd> {
    // SAFETY: the kernel has just opened it for us.
    result.map(|descriptor| unsafe { OwnedFd::from_raw_fd(descriptor) })
}
