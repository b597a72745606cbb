// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where things are: the environment that the runner is started with.

use crate::network::Network;
use anyhow::{Context, Result, bail};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tempfile::TempDir;

/// Where the guests run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Platform {
    /// On this machine's KVM.
    Kvm,
    /// In the lab VM: slow, and with clocks that want help.
    Lab,
}

/// What runs the guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmmKind {
    /// vmm-reference.
    Reference,
    /// A patched Cloud Hypervisor.
    CloudHypervisor,
    /// QEMU with its own ivshmem-doorbell, emulating the processor.
    Qemu,
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Platform::Kvm => "kvm",
            Platform::Lab => "lab",
        })
    }
}

impl fmt::Display for VmmKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            VmmKind::Reference => "reference",
            VmmKind::CloudHypervisor => "cloud-hypervisor",
            VmmKind::Qemu => "qemu",
        })
    }
}

/// The lab: what guests are made of, and where they are connected.
#[derive(Debug)]
pub struct Lab {
    /// Kernel, image and VMM.
    pub stage: PathBuf,
    /// Logs and results.
    pub out: PathBuf,
    /// Programs of Debian's that guests are to run, each in a folder of its own; it need not be there.
    pub programs: PathBuf,
    /// Where the guests run.
    pub platform: Platform,
    /// What runs them.
    pub vmm: VmmKind,
    /// The flavour of their kernel, as `cargo xtask` calls it.
    pub kernel: String,
    /// What connects them.
    pub network: Network,
    sockets: TempDir,
    boots: AtomicU32,
}

impl Lab {
    /// The lab that the environment describes: `IVSMC_STAGE`, `IVSMC_OUT`, `IVSMC_PROGRAMS`, `IVSMC_PLATFORM`,
    /// `IVSMC_VMM`, `IVSMC_KERNEL`.
    pub fn from_environment() -> Result<Self> {
        let platform = match variable("IVSMC_PLATFORM")?.as_str() {
            "kvm" => Platform::Kvm,
            "lab" => Platform::Lab,
            other => bail!("IVSMC_PLATFORM={other}: kvm or lab would do"),
        };
        let vmm = match variable("IVSMC_VMM")?.as_str() {
            "reference" => VmmKind::Reference,
            "cloud-hypervisor" => VmmKind::CloudHypervisor,
            other => bail!("IVSMC_VMM={other}: reference or cloud-hypervisor would do"),
        };
        Lab::new(platform, vmm)
    }

    /// The same for a given platform and VMM.
    pub fn new(platform: Platform, vmm: VmmKind) -> Result<Self> {
        let stage = PathBuf::from(variable("IVSMC_STAGE")?);
        let out = PathBuf::from(variable("IVSMC_OUT")?);
        for file in ["bzImage", "guest.cpio"] {
            if !stage.join(file).exists() {
                bail!("IVSMC_STAGE={}: there is no {file} in it", stage.display());
            }
        }
        std::fs::create_dir_all(&out)
            .with_context(|| format!("IVSMC_OUT={}: cannot be made", out.display()))?;
        let network = Network::new().context("cannot set up the guests' network")?;
        Ok(Lab {
            stage,
            out,
            programs: PathBuf::from(variable("IVSMC_PROGRAMS")?),
            platform,
            vmm,
            kernel: variable("IVSMC_KERNEL")?,
            network,
            // Not by the process's ID: where nothing is to stay behind, in a PID namespace, it is always 1.
            sockets: TempDir::with_prefix_in("ivsmc-lab.", "/tmp")?,
            boots: AtomicU32::new(0),
        })
    }

    /// A new folder for the logs of one boot of the guest `name`.
    pub(crate) fn log_folder(&self, name: &str) -> Result<PathBuf> {
        let number = self.boots.fetch_add(1, Ordering::Relaxed);
        let folder = self.out.join(format!("guest-{number:02}-{name}"));
        std::fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// The folder for the sockets of VMMs. It is short, as socket paths have to be, and not on 9p, which has none.
    pub fn run_folder(&self) -> &Path {
        self.sockets.path()
    }

    /// How long a guest may take to boot. A debug kernel in the lab takes its time.
    pub fn boot_time(&self) -> Duration {
        match (self.platform, self.vmm) {
            (Platform::Kvm, VmmKind::Reference | VmmKind::CloudHypervisor) => {
                Duration::from_secs(60)
            }
            _ => Duration::from_secs(180),
        }
    }

    /// Whether the guests' kernel has the defects mended that guest/linux-patches/smc is about.
    pub fn is_mended(&self) -> bool {
        !self.kernel.starts_with("mainline")
    }

    /// Whether the guests' kernel looks for mistakes as it runs, and so is several times as slow.
    pub fn is_debug(&self) -> bool {
        self.kernel.ends_with("-debug")
    }

    /// `ivsmc-host`.
    pub fn host_tool(&self) -> PathBuf {
        self.stage.join("ivsmc-host")
    }

    /// The VMM's program.
    pub fn program(&self) -> PathBuf {
        match self.vmm {
            VmmKind::Reference => self.stage.join("vmm-reference"),
            VmmKind::CloudHypervisor => self.stage.join("cloud-hypervisor"),
            VmmKind::Qemu => PathBuf::from("qemu-system-x86_64"),
        }
    }
}

fn variable(name: &str) -> Result<String> {
    std::env::var(name).with_context(|| {
        format!("{name} is not set; `cargo xtask demo` and `cargo xtask test` set it")
    })
}

/// Reads a file that others write to.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    for _ in 0..100 {
        match std::fs::read(path) {
            // In the lab VM it is on 9p, where what is being written cannot be read for a moment.
            Err(error) if error.raw_os_error() == Some(libc::ENODATA) => {
                std::thread::sleep(Duration::from_millis(10));
            }
            done => return done,
        }
    }
    std::fs::read(path)
}

/// How text begins that is added to an error, and is logs rather than a cause.
pub const LOGS: &str = "--- ";

/// The last lines of a log.
pub fn tail(path: &Path, lines: usize) -> String {
    let bytes = read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
