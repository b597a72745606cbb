// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A process that keeps what it has of a connection, whatever becomes of the connection.

use crate::service::{self, Failure, Order};
use crate::splice::splice;
use crate::traffic::Target;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

/// How much is to be received, in bytes: more than is.
const ENDLESS: u64 = 1 << 40;
/// What a pipe has room for, in bytes.
const PIPE: u64 = 64 << 10;
/// How often to look for the file that ends it.
const LOOK: Duration = Duration::from_millis(50);

/// What is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum What {
    /// The socket's descriptor.
    Descriptor,
    /// A pipe into which data of the socket's was spliced; the socket is closed.
    Pipe,
}

/// What was kept.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Held {
    /// Bytes in the pipe.
    pub piped: u64,
}

impl Target {
    /// Keeps something of a connection on which data flows, until the file `until` appears. `ready` is created as soon as it
    /// is kept. What was in a pipe has to be as it was sent.
    pub fn hold(&self, seed: u64, what: What, ready: &Path, until: &Path) -> Result<Held, Failure> {
        let (pipe_out, pipe_in) = io::pipe()?;
        let order = Order::Exchange {
            seed,
            up: 0,
            down: ENDLESS,
        };
        let stream = self.open(order)?;
        let mut piped = 0;
        let stream = match what {
            What::Descriptor => Some(stream),
            What::Pipe => {
                piped = splice(stream.as_fd(), pipe_in.as_fd(), PIPE)?;
                None
            }
        };
        File::create(ready)?;
        while !until.exists() {
            std::thread::sleep(LOOK);
        }
        drop(stream);
        service::check_pattern(&pipe_out, !seed, piped)
            .map_err(|error| format!("what was in the pipe: {error}"))?;
        Ok(Held { piped })
    }
}
