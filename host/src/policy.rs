// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The policy: which sockets are VMs', and which VMs form a fabric. docs/host.md has its grammar.

mod file;

use crate::labels::Labels;
use crate::name::{MAX_NAME, Name};
use crate::pattern::Pattern;
use glob::MatchOptions;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use vmm_device_ivsmc::Config;

/// The most bytes of a policy file.
const MAX_POLICY: u64 = 1 << 20;
/// The most fabrics.
const MAX_FABRICS: usize = 256;
/// The most patterns.
const MAX_PATTERNS: usize = 64;
/// The most bytes of a socket's path.
const MAX_PATH: usize = 107;

/// A policy, checked.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Where API sockets are.
    pub patterns: Vec<Pattern>,
    /// The name of the file beside a socket that has its VM's labels; a `*` in it stands for the VM's name.
    pub label_file: Option<String>,
    /// The fabrics; the first one whose rules match a VM has it.
    pub fabrics: Vec<Fabric>,
}

/// A fabric, and the rules of what belongs to it: all kinds that there are have to match.
#[derive(Clone, Debug)]
pub struct Fabric {
    /// Its name.
    pub name: Name,
    /// The folder in which the devices of its VMs listen, and nothing else.
    pub folder: PathBuf,
    /// The group that may use its folder, besides its owner.
    pub group: Option<u32>,
    /// The devices' options; its path is the folder's and has to be completed with the VM's name.
    device: Config,
    /// The PCI segment of the devices.
    pci_segment: Option<u16>,
    vms: Vec<glob::Pattern>,
    sockets: Vec<glob::Pattern>,
    labels: BTreeMap<String, glob::Pattern>,
}

/// What is wrong with a policy.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// It cannot be read.
    #[error("{path}: cannot be read: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something in it is wrong.
    #[error("{path}: {source}")]
    Bad {
        /// The file.
        path: PathBuf,
        /// What.
        source: BadPolicy,
    },
}

/// What is wrong in the text of a policy, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {reason}")]
pub struct BadPolicy {
    /// The line, from 1 on.
    pub line: usize,
    /// The column in characters, from 1 on.
    pub column: usize,
    /// What is wrong, and what would do.
    pub reason: String,
}

impl Policy {
    /// Reads a policy for fabrics that have their folders in `run_dir`.
    ///
    /// # Errors
    /// It cannot be read, or something in it is wrong: then none of it counts.
    pub fn read(path: &Path, run_dir: &Path) -> Result<Self, PolicyError> {
        let read = || {
            let mut text = String::new();
            let mut file = File::open(path)?.take(MAX_POLICY + 1);
            file.read_to_string(&mut text)?;
            if text.len() as u64 > MAX_POLICY {
                return Err(io::Error::other("it has more than 1 MiB"));
            }
            Ok(text)
        };
        let text = read().map_err(|source| PolicyError::Read {
            path: path.into(),
            source,
        })?;
        Policy::parse(&text, run_dir).map_err(|source| PolicyError::Bad {
            path: path.into(),
            source,
        })
    }

    /// The policy of this text.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place.
    pub fn parse(text: &str, run_dir: &Path) -> Result<Self, BadPolicy> {
        file::parse(text, run_dir)
    }

    /// The fabric of a VM, by its place in the list.
    pub fn fabric_of(&self, name: &Name, socket: &Path, labels: &Labels) -> Option<usize> {
        let has = |fabric: &Fabric| fabric.has(name, socket, labels);
        self.fabrics.iter().position(has)
    }

    /// The name of the file with a VM's labels.
    pub fn label_file(&self, name: &Name) -> Option<String> {
        let file = self.label_file.as_ref()?;
        Some(file.replace('*', name.as_str()))
    }
}

impl Fabric {
    fn has(&self, name: &Name, socket: &Path, labels: &Labels) -> bool {
        // A '*' does not stand for a '/', as in a pattern of sockets.
        let options = MatchOptions {
            require_literal_separator: true,
            ..MatchOptions::new()
        };
        let is_name = |glob: &glob::Pattern| glob.matches(name.as_str());
        let is_socket = |glob: &glob::Pattern| glob.matches_path_with(socket, options);
        let mut wanted = self.labels.iter();
        (self.vms.is_empty() || self.vms.iter().any(is_name))
            && (self.sockets.is_empty() || self.sockets.iter().any(is_socket))
            && wanted.all(|(key, glob)| labels.get(key).is_some_and(|value| glob.matches(value)))
    }

    /// Where a VM's device listens.
    pub fn path_of(&self, vm: &Name) -> PathBuf {
        self.folder.join(vm.as_str())
    }

    /// The VM whose device listens at a path, if that is one of this fabric's.
    pub fn vm_at(&self, path: &str) -> Option<Name> {
        let file = Path::new(path).strip_prefix(&self.folder).ok()?;
        Name::new(file.as_os_str().as_bytes()).ok()
    }

    /// The options of a VM's device.
    pub fn device_of(&self, vm: &Name) -> (Config, Option<u16>) {
        let mut device = self.device.clone();
        device.path = self.path_of(vm);
        (device, self.pci_segment)
    }
}

/// Whether every VM's device has a path that fits into a socket's address.
fn leaves_room(folder: &Path) -> Option<usize> {
    let length = folder.as_os_str().len() + 1 + MAX_NAME;
    length.checked_sub(MAX_PATH).filter(|excess| *excess > 0)
}
