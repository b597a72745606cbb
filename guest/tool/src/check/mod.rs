// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `ivsmc-guest check`: all that has to be so for SMC-D, and what mends what is not.
//!
//! - `kernel`: version, options, modules.
//! - `device`: the PCI device, its driver, its links.
//! - `settings`: UEIDs, sizes of buffers, what `enable` needs.
//! - [`trial`]: a connection to a peer.

mod device;
mod kernel;
mod settings;
pub mod trial;

use ivsmc_toolkit::check::{Report, System};

/// Looks at this system.
pub fn guest() -> Report {
    let system = System::here();
    let mut report = Report::default();
    kernel::check(&system, &mut report);
    device::check(&system, &mut report);
    settings::check(&system, &mut report);
    report
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A system of these files.
    pub(super) fn system(files: &[(&str, &str)]) -> (tempfile::TempDir, System) {
        let folder = tempfile::tempdir().unwrap();
        let system = System::at(folder.path());
        for (file, text) in files {
            let path = system.path(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        (folder, system)
    }
}
