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

use ivsmc_toolkit::check::Report;
use std::fs;
use std::path::{Path, PathBuf};

/// The files of the system that is looked at.
struct System {
    root: PathBuf,
}

impl System {
    fn path(&self, file: &str) -> PathBuf {
        self.root.join(file.trim_start_matches('/'))
    }

    fn exists(&self, file: &str) -> bool {
        self.path(file).exists()
    }

    /// What a file has in it, without the space around that.
    fn read(&self, file: &str) -> Option<String> {
        let text = fs::read_to_string(self.path(file)).ok()?;
        Some(text.trim().to_owned())
    }
}

/// Looks at this system.
pub fn guest() -> Report {
    let system = System {
        root: Path::new("/").into(),
    };
    let mut report = Report::default();
    kernel::check(&system, &mut report);
    device::check(&system, &mut report);
    settings::check(&system, &mut report);
    report
}

#[cfg(test)]
mod tests {
    use super::*;
    use ivsmc_toolkit::check::State;

    /// A system of these files.
    pub(super) fn system(files: &[(&str, &str)]) -> (tempfile::TempDir, System) {
        let folder = tempfile::tempdir().unwrap();
        let system = System {
            root: folder.path().into(),
        };
        for (file, text) in files {
            let path = system.path(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        (folder, system)
    }

    /// Whether the report has this about `what`, with a remedy that has `remedy` in it.
    pub(super) fn says(report: &Report, state: State, what: &str, remedy: &str) -> bool {
        report.findings.iter().any(|finding| {
            finding.state == state
                && finding.what == what
                && finding.remedy.as_deref().unwrap_or("").contains(remedy)
        })
    }
}
