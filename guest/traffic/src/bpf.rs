// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which BPF objects the kernel has, whoever keeps them: for tests of whoever makes some.

use serde::{Deserialize, Serialize};
use std::io;

/// How many of each there are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Objects {
    /// Programs.
    pub programs: usize,
    /// Maps.
    pub maps: usize,
    /// Links.
    pub links: usize,
}

// Of include/uapi/linux/bpf.h.
const BPF_PROG_GET_NEXT_ID: i32 = 11;
const BPF_MAP_GET_NEXT_ID: i32 = 12;
const BPF_LINK_GET_NEXT_ID: i32 = 31;

/// Those that are there now.
pub fn objects() -> io::Result<Objects> {
    Ok(Objects {
        programs: count(BPF_PROG_GET_NEXT_ID)?,
        maps: count(BPF_MAP_GET_NEXT_ID)?,
        links: count(BPF_LINK_GET_NEXT_ID)?,
    })
}

fn count(command: i32) -> io::Result<usize> {
    /// What `bpf()` takes for these commands.
    #[repr(C)]
    struct Attributes {
        start: u32,
        next: u32,
        flags: u32,
    }
    let mut attributes = Attributes {
        start: 0,
        next: 0,
        flags: 0,
    };
    let mut count = 0;
    loop {
        let size = size_of_val(&attributes);
        // SAFETY: the attributes live as long as the call, and have the size that is given.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attributes, size) };
        if result == 0 {
            attributes.start = attributes.next;
            count += 1;
            continue;
        }
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::ENOENT) => Ok(count),
            _ => Err(error),
        };
    }
}
