// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What of the device goes into a snapshot.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::link::LinkSnapshot;
use crate::pci::{ConfigSpaceState, MsixState};
use crate::window::Piece;

/// The state of a device, for a snapshot.
///
/// After a restore the links come up anew. Until the guest has let go of a window that it had claimed, it finds in it what
/// was there when the snapshot was taken: data that it has received and not read yet, up to 256 MiB a device.
///
/// The GID is not part of it: the VM may still run elsewhere, and two devices of one GID could not both have links to a
/// third.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState {
    pub(crate) config_space: ConfigSpaceState,
    pub(crate) msix: MsixState,
    pub(crate) links: Vec<LinkSnapshot>,
    /// The content of claimed windows, by link.
    pub(crate) windows: BTreeMap<usize, Vec<Piece>>,
}
