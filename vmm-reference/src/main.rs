// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A small x86-64 VMM on the rust-vmm crates that hosts the ivsmc device: a reference, not a product.
//!
//! | module | what it has |
//! |---|---|
//! | [`options`] | the command line |
//! | [`vm`] | a VM's life: building it, running its processors, its end |
//! | [`layout`] | where things are in the guest's address spaces |
//! | [`boot`], [`cpu`], [`acpi`] | what Linux wants at power-on |
//! | [`bus`], [`pci`], [`serial`] | what the processors reach |
//! | [`net`], [`ivsmc`] | devices |
//! | [`interrupts`] | what reaches the processors |
//! | [`seccomp`] | what each thread may do |

mod acpi;
mod boot;
mod bus;
mod cpu;
mod interrupts;
mod ivsmc;
mod layout;
mod memory;
mod net;
mod options;
mod pci;
mod seccomp;
mod serial;
mod vm;

use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use anyhow::{Context, Result, bail};
use clap::Parser;
use kvm_ioctls::Kvm;
use log::{LevelFilter, error, info};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::bus::Exit;
use crate::net::Tap;
use crate::options::Options;
use crate::seccomp::Thread;
use crate::serial::Console;
use crate::vm::Parts;

fn main() -> ExitCode {
    let options = Options::parse();
    let level = [LevelFilter::Warn, LevelFilter::Info, LevelFilter::Debug];
    env_logger::Builder::new()
        .filter_level(level[usize::from(options.verbose).min(level.len() - 1)])
        .init();
    match run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs VMs, one after the other, until one does not end by a reset.
fn run(options: Options) -> Result<()> {
    let signals = Signals::new()?;
    let kvm = Kvm::new().context("/dev/kvm cannot be opened")?;
    let open = |net: &options::Net| Tap::open(&net.tap).map(Arc::new);
    let taps = options.net.iter().map(open).collect::<Result<_>>()?;
    let console = Console::open(&options.serial)?;
    Thread::Main.confine(options.seccomp)?;
    let parts = Parts {
        kvm,
        options,
        console,
        taps,
    };
    loop {
        match vm::run(&parts, signals)? {
            Exit::Reset => info!("the VM is built anew"),
            Exit::PowerOff | Exit::Stopped => return Ok(()),
            Exit::Failed => bail!("the VM cannot go on"),
        }
    }
}

/// What comes from outside, as events.
pub struct Signals {
    /// SIGTERM or SIGINT: the VM is to end.
    pub stop: EventFd,
    /// SIGUSR1: the guest is to get a non-maskable interrupt.
    pub nmi: EventFd,
    /// SIGUSR2: what a snapshot has of ivsmc devices is to be taken.
    pub state: EventFd,
}

static SIGNALS: OnceLock<Signals> = OnceLock::new();

impl Signals {
    /// Begins to take signals.
    fn new() -> Result<&'static Self> {
        extern "C" fn handle(signal: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
            if let Some(signals) = SIGNALS.get() {
                let event = match signal {
                    libc::SIGUSR1 => &signals.nmi,
                    libc::SIGUSR2 => &signals.state,
                    _ => &signals.stop,
                };
                let _ = event.write(1);
            }
        }
        /// A signal's only purpose is that it interrupts KVM_RUN.
        extern "C" fn interrupt(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).context("eventfd");
        let signals = Signals {
            stop: event()?,
            nmi: event()?,
            state: event()?,
        };
        let signals = SIGNALS.get_or_init(|| signals);
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGUSR1, libc::SIGUSR2] {
            register_signal_handler(signal, handle).context("a signal's handler")?;
        }
        register_signal_handler(SIGRTMIN(), interrupt).context("a signal's handler")?;
        Ok(signals)
    }
}

/// Locks `mutex`; what a thread left that panicked is taken as it is.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
