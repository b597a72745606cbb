// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Makes the TCP sockets of whole cgroups SMC sockets, whoever starts the programs: a BPF program at the kernel's hook for it.
//!
//! No process stays. What the kernel keeps is pinned in `/sys/fs/bpf/ivsmc`: `link`, which is the program's being attached,
//! `program`, `policy` (in words), `counts`, and `control` if connections are chosen. A policy that replaces another is
//! attached before that goes.
//!
//! - [`policy`]: whose sockets; [`connections`]: which of their connections.
//! - `kernel`: what must be known of the kernel.
//! - `program`: what the kernel runs at each socket, written by the `assembler`; `handshakes`: and at each handshake, if a
//!   `network` namespace uses it.
//! - `bpf`: how the kernel is given it.

mod assembler;
mod bpf;
pub mod connections;
mod handshakes;
mod kernel;
mod network;
pub mod policy;
mod program;

use crate::socket;
use aya_obj::generated::{BPF_F_NO_PREALLOC, bpf_map_type};
use bpf::Purpose;
use handshakes::Control;
use kernel::Kernel;
use policy::Policy;
use program::Count;
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// BPF's file system.
const BPF_FS: &str = "/sys/fs/bpf";
/// Where the pins are.
const PINS: &str = "/sys/fs/bpf/ivsmc";
/// What the kernel calls program and maps, beside what they are.
const NAME: &str = "ivsmc";
/// Bytes of a policy in words that are kept.
const WORDS: usize = 4096;
/// How often to make the folder that others remove.
const ATTEMPTS: u32 = 100;
/// The kernel's ENOTSUPP, which programs are not meant to see: there is no BPF_JIT, or none for this.
const ENOTSUPP: i32 = 524;

/// Why it cannot be enabled, disabled, or looked at.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no policy.
    #[error(transparent)]
    Policy(#[from] policy::Error),
    /// The kernel lacks something.
    #[error("{0}")]
    Kernel(#[from] kernel::Error),
    /// There is no SMC.
    #[error("the kernel has no SMC: try `modprobe smc`; it needs CONFIG_SMC ({0})")]
    NoSmc(io::Error),
    /// BPF's file system is not where it belongs.
    #[error("there is no BPF file system at {BPF_FS}: mount -t bpf bpf {BPF_FS}")]
    NoBpfFs,
    /// The caller may not, or the kernel cannot.
    #[error("{doing}: {source}{}", hint(source, said))]
    Bpf {
        /// What was being done.
        doing: &'static str,
        /// What the kernel said.
        source: io::Error,
        /// What its verifier said.
        said: String,
    },
    /// The pins cannot be changed.
    #[error("{}: {source}", path.display())]
    Pin {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Our own mistake.
    #[error("the program cannot be written; please report it")]
    Program,
}

/// What to do about it.
fn hint(error: &io::Error, said: &str) -> String {
    let said = if said.is_empty() {
        String::new()
    } else {
        format!(" ({said})")
    };
    let remedy = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) if said.is_empty() => {
            "; it needs root, or CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN in the initial user namespace"
        }
        Some(libc::ENOSYS) => "; the kernel needs CONFIG_BPF_SYSCALL",
        Some(ENOTSUPP | libc::EOPNOTSUPP) => {
            "; the kernel needs CONFIG_BPF_JIT and CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS"
        }
        Some(libc::EINVAL) if said.contains("is not modifiable") => {
            "; the kernel needs CONFIG_MPTCP"
        }
        Some(libc::EINVAL) if said.is_empty() => {
            "; the kernel needs CONFIG_BPF_EVENTS (with CONFIG_KPROBE_EVENTS), CONFIG_BPF_JIT and CONFIG_MPTCP"
        }
        _ => "",
    };
    said + remedy
}

/// What is enabled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enabled {
    /// The policy: `nginx.service, libpod-*; except backup.service`, or `everything`.
    pub policy: String,
    /// The user who has enabled it.
    pub uid: u32,
    /// TCP sockets that it has made SMC sockets.
    pub made: u64,
    /// TCP sockets that the policy left alone.
    pub left: u64,
}

/// What is pinned.
#[derive(Debug, Clone, Copy)]
enum Pin {
    Policy,
    Counts,
    Program,
    Control,
    Link,
}

impl Pin {
    /// In the order in which they are made. The link is the first to go.
    const ALL: [Pin; 5] = [
        Pin::Policy,
        Pin::Counts,
        Pin::Program,
        Pin::Control,
        Pin::Link,
    ];

    fn name(self) -> &'static str {
        match self {
            Pin::Policy => "policy",
            Pin::Counts => "counts",
            Pin::Program => "program",
            Pin::Control => "control",
            Pin::Link => "link",
        }
    }

    fn path(self) -> PathBuf {
        Path::new(PINS).join(self.name())
    }

    /// Where it is until it takes the place of the one before.
    fn new_path(self) -> PathBuf {
        Path::new(PINS).join(format!("new-{}", self.name()))
    }
}

/// Has the kernel make TCP sockets sockets of `protocol`, which is SMC's but for tests, as the policy says; from now on, until
/// [`disable`]. What was enabled before is replaced, without a moment in which neither is. Gives the number of network
/// namespaces whose connections could not be chosen, because they, or SMC in them, do not allow it.
pub fn enable(policy: &Policy, protocol: i32) -> Result<usize, Error> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    socket::open_kind(libc::AF_INET, kind, protocol).map_err(Error::NoSmc)?;
    let kernel = Kernel::running()?;
    let names = create_names(policy)?;
    let counts = create_array(size_of::<u64>(), Count::ALL)?;
    let code = program::write(&kernel.offsets, protocol, names.as_fd(), counts.as_fd())
        .ok_or(Error::Program)?;
    let program =
        bpf::load(NAME, &code, Purpose::Result(kernel.hook)).map_err(|(source, said)| {
            Error::Bpf {
                doing: "loading the program",
                source,
                said,
            }
        })?;
    let control = match policy.connections() {
        Some(connections) => Some(Control::load(&kernel.handshake_control()?, connections)?),
        None => None,
    };
    let in_words = create_array(WORDS, 1)?;
    let mut words = policy.to_string().into_bytes();
    words.resize(WORDS, 0);
    bpf::update(in_words.as_fd(), &0u32.to_ne_bytes(), &words).map_err(doing("filling a map"))?;

    if !is_bpf_fs() {
        return Err(Error::NoBpfFs);
    }
    let _alone = make_folder()?;
    // Who was killed at this has left them.
    remove(Pin::new_path)?;
    let new = New {
        policy: in_words,
        counts,
        program,
        control,
    };
    let used = network::used();
    let result = replace(&new);
    if result.is_err() {
        // As before, as far as that can be had.
        if let Some(used) = used {
            let _ = network::use_everywhere(&used);
        }
        let _ = remove(Pin::new_path);
    }
    result
}

/// What takes the place of what is enabled.
struct New {
    policy: OwnedFd,
    counts: OwnedFd,
    program: OwnedFd,
    control: Option<Control>,
}

/// Puts it in use, gives it the names that the one before has, and ends that.
fn replace(new: &New) -> Result<usize, Error> {
    let pin = |pin: Pin, object: BorrowedFd<'_>| {
        bpf::pin(object, &pin.new_path()).map_err(pin_error(&pin.new_path()))
    };
    pin(Pin::Policy, new.policy.as_fd())?;
    pin(Pin::Counts, new.counts.as_fd())?;
    pin(Pin::Program, new.program.as_fd())?;
    let before = bpf::pinned(&Pin::Control.path()).ok();
    let mut skipped = 0;
    if let Some(control) = &new.control {
        // Its name comes before what it names, so that who is killed here leaves nothing that has none.
        pin(Pin::Control, control.map.as_fd())?;
        let name = control_name();
        control.register(&name)?;
        skipped = network::use_everywhere(&name).map_err(doing("choosing connections"))?;
    } else if before.is_some() {
        network::use_everywhere("").map_err(doing("choosing connections"))?;
    }
    let link = bpf::attach(new.program.as_fd()).map_err(doing("attaching the program"))?;
    pin(Pin::Link, link.as_fd())?;
    for pin in Pin::ALL {
        let path = pin.path();
        match fs::rename(pin.new_path(), &path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let _ = fs::remove_file(&path);
            }
            renamed => renamed.map_err(pin_error(&path))?,
        }
    }
    if let Some(before) = before {
        handshakes::unregister(before.as_fd());
    }
    Ok(skipped)
}

/// A name for a control that no other has.
fn control_name() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    // The kernel has room for 15 bytes.
    let number = now.unwrap_or_default().as_nanos() as u32;
    format!("{NAME}_{number:08x}")
}

/// The folder of the pins, made if it is not there, and kept from others.
fn make_folder() -> Result<File, Error> {
    let pins = Path::new(PINS);
    let mut error = io::Error::from(io::ErrorKind::NotFound);
    for _ in 0..ATTEMPTS {
        match DirBuilder::new().mode(0o700).create(pins) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(pin_error(pins)(error));
            }
            _ => {}
        }
        let locked = match lock() {
            Err(Error::Pin { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                error = source;
                continue;
            }
            locked => locked?,
        };
        // Who had it before us may have removed it.
        let is_there =
            fs::metadata(pins).and_then(|there| Ok(there.ino() == locked.metadata()?.ino()));
        if is_there.is_ok_and(|it| it) {
            return Ok(locked);
        }
    }
    Err(pin_error(pins)(error))
}

/// A map of `entries` entries of `size` bytes.
fn create_array(size: usize, entries: usize) -> Result<OwnedFd, Error> {
    let kind = bpf_map_type::BPF_MAP_TYPE_ARRAY;
    let key = size_of::<u32>();
    bpf::create_map(NAME, kind, key, size, entries, 0).map_err(doing("making a map"))
}

/// The map that has what the policy says of names.
fn create_names(policy: &Policy) -> Result<OwnedFd, Error> {
    let names = bpf::create_map(
        NAME,
        bpf_map_type::BPF_MAP_TYPE_LPM_TRIE,
        program::KEY,
        1,
        policy::NAMES + 1,
        BPF_F_NO_PREALLOC,
    )
    .map_err(doing("making a map"))?;
    for (name, decision) in policy.names() {
        let key = program::key(&name.bytes());
        bpf::update(names.as_fd(), &key, &[decision.into()]).map_err(doing("filling a map"))?;
    }
    Ok(names)
}

/// Has sockets be what programs ask for. Whether anything was enabled.
pub fn disable() -> Result<bool, Error> {
    let pins = Path::new(PINS);
    let _alone = match lock() {
        Err(Error::Pin { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(false);
        }
        locked => locked?,
    };
    if Pin::Control.path().exists() || Pin::Control.new_path().exists() {
        network::use_everywhere("").map_err(doing("choosing connections"))?;
    }
    remove(Pin::path)?;
    remove(Pin::new_path)?;
    fs::remove_dir(pins).map_err(pin_error(pins))?;
    Ok(true)
}

/// What is enabled, if anything is.
pub fn enabled() -> Result<Option<Enabled>, Error> {
    let open = |pin: Pin| bpf::pinned(&pin.path()).map_err(pin_error(&pin.path()));
    // Who may not look at it is not told that nothing is there.
    match fs::symlink_metadata(Pin::Link.path()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        found => found.map_err(pin_error(&Pin::Link.path()))?,
    };
    let (words, counts, program) = (open(Pin::Policy)?, open(Pin::Counts)?, open(Pin::Program)?);
    let info = bpf::program_info(program.as_fd()).map_err(doing("asking for the program"))?;
    let mut policy = vec![0; WORDS];
    bpf::look_up(words.as_fd(), &0u32.to_ne_bytes(), &mut policy)
        .map_err(doing("reading a map"))?;
    let policy = String::from_utf8_lossy(&policy);
    Ok(Some(Enabled {
        policy: policy.trim_end_matches('\0').to_owned(),
        uid: info.created_by_uid,
        made: count(counts.as_fd(), Count::Made)?,
        left: count(counts.as_fd(), Count::Left)?,
    }))
}

fn count(counts: BorrowedFd<'_>, which: Count) -> Result<u64, Error> {
    let mut value = [0; size_of::<u64>()];
    bpf::look_up(counts, &(which as u32).to_ne_bytes(), &mut value)
        .map_err(doing("reading a map"))?;
    Ok(u64::from_ne_bytes(value))
}

/// Removes the pins of these names, the link's first.
fn remove(path: fn(Pin) -> PathBuf) -> Result<(), Error> {
    for pin in Pin::ALL.into_iter().rev() {
        if let Pin::Control = pin
            && let Ok(control) = bpf::pinned(&path(pin))
        {
            handshakes::unregister(control.as_fd());
        }
        match fs::remove_file(path(pin)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(pin_error(&path(pin))(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Keeps others from changing the pins until it is closed.
fn lock() -> Result<File, Error> {
    let pins = Path::new(PINS);
    let folder = File::open(pins).map_err(pin_error(pins))?;
    folder.lock().map_err(pin_error(pins))?;
    Ok(folder)
}

fn is_bpf_fs() -> bool {
    let Ok(folder) = File::open(BPF_FS) else {
        return false;
    };
    let mut found = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the kernel fills `found`.
    if unsafe { libc::fstatfs(folder.as_raw_fd(), found.as_mut_ptr()) } != 0 {
        return false;
    }
    // SAFETY: it has been filled.
    unsafe { found.assume_init() }.f_type == libc::BPF_FS_MAGIC
}

fn doing(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Bpf {
        doing: what,
        source,
        said: String::new(),
    }
}

fn pin_error(path: &Path) -> impl Fn(io::Error) -> Error {
    move |source| Error::Pin {
        path: path.into(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_remedy() {
        for (error, said, remedy) in [
            (libc::EPERM, "", "root"),
            (libc::ENOSYS, "", "CONFIG_BPF_SYSCALL"),
            (ENOTSUPP, "", "CONFIG_BPF_JIT"),
            (
                libc::EINVAL,
                "update_socket_protocol() is not modifiable",
                "CONFIG_MPTCP",
            ),
            (libc::EINVAL, "", "CONFIG_BPF_EVENTS"),
            (libc::EACCES, "R1 is bad", "(R1 is bad)"),
        ] {
            let error = Error::Bpf {
                doing: "loading the program",
                source: io::Error::from_raw_os_error(error),
                said: said.into(),
            };
            let text = error.to_string();
            assert!(text.contains(remedy), "{text}");
        }
        assert!(
            Error::NoBpfFs
                .to_string()
                .contains("mount -t bpf bpf /sys/fs/bpf")
        );
    }
}
