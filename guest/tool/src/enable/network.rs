// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which handshake control the network namespaces use: `net.smc.hs_ctrl` in each.

use crate::namespaces;
use std::fs;
use std::io;

/// Which control a namespace uses; a thread sees its own.
const SYSCTL: &str = "/proc/sys/net/smc/hs_ctrl";

/// The control that this network namespace uses, empty if it uses none; `None` if the kernel has no such thing.
pub fn used() -> Option<String> {
    Some(fs::read_to_string(SYSCTL).ok()?.trim().to_owned())
}

/// Has all network namespaces use the control of this name; or none, if it is empty. New ones get that of the initial one.
/// Those in which it could not be set are counted.
pub fn use_everywhere(name: &str) -> io::Result<usize> {
    // A write of nothing would be none.
    let line = format!("{name}\n");
    // Before all others, as those that are made meanwhile get it from there.
    fs::write(SYSCTL, &line)?;
    let done = namespaces::each(move || fs::write(SYSCTL, &line).is_ok())?;
    Ok(done.iter().filter(|(_, done)| *done != Some(true)).count())
}
