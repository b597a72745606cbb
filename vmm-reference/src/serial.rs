// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The serial port's other end: a file or the terminal.

use std::fs::File;
use std::io::{self, Write, stdin, stdout};
use std::sync::Arc;

use anyhow::{Context, Result};
use vm_superio::Trigger;
use vm_superio::serial::NoEvents;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::terminal::Terminal;

use crate::options;

/// The serial port of a guest.
pub type Serial = vm_superio::Serial<Interrupt, NoEvents, Output>;

/// The serial port's interrupt.
pub struct Interrupt(pub EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Where the serial port leads, for all of the VMM's life.
pub struct Console {
    output: Output,
    raw: bool,
}

/// What the guest says.
#[derive(Clone)]
pub enum Output {
    /// Goes to a file.
    File(Arc<File>),
    /// Goes to the terminal.
    Stdout,
}

impl Write for Output {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Output::File(file) => file.as_ref().write(data),
            Output::Stdout => stdout().write(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Output::File(_) => Ok(()),
            Output::Stdout => stdout().flush(),
        }
    }
}

impl Console {
    /// Opens what `--serial` says, if anything. The terminal, if it is one, passes keys on unprocessed
    /// until the console is dropped.
    pub fn open(serial: &options::Serial) -> Result<Option<Self>> {
        Ok(match serial {
            options::Serial::Off => None,
            options::Serial::Tty => Some(Console {
                output: Output::Stdout,
                raw: stdin().lock().set_raw_mode().is_ok(),
            }),
            options::Serial::File(path) => {
                let file = File::create(path)
                    .with_context(|| format!("--serial file={}", path.display()))?;
                Some(Console {
                    output: Output::File(Arc::new(file)),
                    raw: false,
                })
            }
        })
    }

    /// A new serial port that leads here and interrupts by `interrupt`.
    pub fn port(&self, interrupt: EventFd) -> Serial {
        Serial::new(Interrupt(interrupt), self.output.clone())
    }

    /// Does the guest get what is typed?
    pub fn reads_stdin(&self) -> bool {
        matches!(self.output, Output::Stdout)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if self.raw && stdin().lock().set_canon_mode().is_err() {
            log::warn!("the terminal stays raw; type 'stty sane'");
        }
    }
}
