// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What of the device goes into a snapshot.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::Device;
use crate::Window;
use crate::config::Size;
use crate::guest::link::LinkSnapshot;
use crate::guest::registers::Registers;
use crate::guest::wiring::{Remains, Wiring};
use crate::guest::wirings::Wirings;
use crate::memory::content::{ContentError, Piece};

/// The state of a device, for a snapshot.
///
/// After a restore the links come up anew. Until the guest has let go of a window that it had claimed, it finds in it what
/// was there when the snapshot was taken: data that it has received and not read yet.
///
/// The GID is not part of it: the VM may still run elsewhere, and two devices of one GID could not both have links to a
/// third. Nor are the configuration space and MSI-X, which are the VMM's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState {
    links: Vec<LinkSnapshot>,
    /// The content of claimed windows, by link.
    windows: BTreeMap<usize, Vec<Piece>>,
}

/// Why a device has no state for a snapshot. The VM and its links can go on as they are.
#[derive(Debug, Error)]
pub enum StateError {
    /// A window holds more than it may.
    #[error(
        "ivsmc: path={path}: link {link}'s window of {size} holds more than the {budget} that each of \
         max_peers={max_peers} may have in a snapshot; end that link's connections or unplug the device first, or run the VM \
         with size={budget} or fewer max_peers",
        size = Size(*.size), budget = Size(*.budget)
    )]
    TooFull {
        /// The device's socket.
        path: String,
        /// The link's number.
        link: usize,
        /// The window's size in bytes.
        size: u64,
        /// What of it a snapshot may have, in bytes.
        budget: u64,
        /// Links of the device.
        max_peers: u16,
    },
    /// A window cannot be read.
    #[error("ivsmc: path={path}: link {link}'s window cannot be read")]
    Read {
        /// The device's socket.
        path: String,
        /// The link's number.
        link: usize,
        /// Why.
        source: io::Error,
    },
}

impl Device {
    /// What a snapshot needs. The VM has to be paused; its links stay as they are, and peers may go on to write to the
    /// windows, or do whatever they like: nobody waits for them, and no lock is held while windows are read.
    ///
    /// # Errors
    /// When a window holds more than [`Config::snapshot_budget`](crate::Config::snapshot_budget), or cannot be read.
    pub fn state(&self) -> Result<DeviceState, StateError> {
        let (links, claimed) = self.wired(|wirings| {
            let registers = self.registers();
            let links = &registers.links;
            let is_claimed = |&link: &usize| links.claim(link) != 0;
            let claimed = (0..wirings.len()).filter(is_claimed);
            let claimed = claimed.filter_map(|link| Some((link, wirings.window(link)?)));
            (links.snapshot(), claimed.collect::<Vec<_>>())
        });
        let content = |(link, window): &(usize, Arc<Window>)| {
            self.content(*link, window).map(|pieces| (*link, pieces))
        };
        let windows: Result<_, _> = claimed.iter().map(content).collect();
        // A link may have ended meanwhile, so that these are the last ones.
        let remains = |(_, window)| Remains::new(Vec::new(), Some(window));
        self.discard(claimed.into_iter().map(remains).collect());
        Ok(DeviceState {
            links,
            windows: windows?,
        })
    }

    fn content(&self, link: usize, window: &Window) -> Result<Vec<Piece>, StateError> {
        let budget = self.config.snapshot_budget();
        let path = || self.config.path.display().to_string();
        window.content(budget).map_err(|error| match error {
            ContentError::TooMuch => StateError::TooFull {
                path: path(),
                link,
                size: window.len(),
                budget,
                max_peers: self.config.max_peers,
            },
            ContentError::Read(source) => StateError::Read {
                path: path(),
                link,
                source,
            },
        })
    }
}

impl DeviceState {
    /// Takes it over. Its links are down, but for windows that the guest had claimed: these are lost, and
    /// their content is behind them until the guest, which is told of the change when it runs, lets go.
    pub(super) fn restore(
        &self,
        mut registers: Registers,
        wirings: &mut Wirings,
    ) -> io::Result<Registers> {
        registers.links.restore(&self.links, registers.window_shift);
        for (index, link) in registers.links.iter().enumerate() {
            if let Some(peer) = link.peer() {
                let window = Window::create(1 << peer.window_shift, false)?;
                if let Some(pieces) = self.windows.get(&index) {
                    window.fill(pieces)?;
                }
                let (doorbells, vectors) = (Vec::new(), Vec::new());
                wirings.restore(Wiring::new(
                    index,
                    peer.position,
                    window,
                    doorbells,
                    vectors,
                ));
            }
        }
        Ok(registers)
    }
}
