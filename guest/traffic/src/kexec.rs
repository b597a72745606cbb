// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Another kernel in place of the one that runs, without the machine being reset in between.

use crate::service::Failure;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

// Of uapi linux/reboot.h; libc does not have it.
const LINUX_REBOOT_CMD_KEXEC: libc::c_int = 0x4558_4543;

/// Loads a kernel and executes it at once: no program is ended before, no file system is synced. Returns if that fails.
pub fn execute(kernel: &Path, initramfs: &Path, command_line: &str) -> Result<(), Failure> {
    let open = |path: &Path| File::open(path).map_err(|e| format!("{}: {e}", path.display()));
    let (kernel, initramfs) = (open(kernel)?, open(initramfs)?);
    let command_line = CString::new(command_line)?;
    let length = command_line.as_bytes_with_nul().len();
    // SAFETY: both descriptors are open, and the command line is alive during the call, of the length that is given with
    // its NUL.
    let loaded = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            kernel.as_raw_fd(),
            initramfs.as_raw_fd(),
            length,
            command_line.as_ptr(),
            0,
        )
    };
    if loaded < 0 {
        let error = io::Error::last_os_error();
        return Err(format!("kexec_file_load: {error}").into());
    }
    // SAFETY: takes no pointers. Nothing of this system is used after it.
    unsafe { libc::reboot(LINUX_REBOOT_CMD_KEXEC) };
    let error = io::Error::last_os_error();
    Err(format!("the kernel that was loaded is not executed: {error}").into())
}
