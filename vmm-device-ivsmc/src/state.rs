// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What of the device goes into a snapshot.

use serde::{Deserialize, Serialize};

use crate::Gid;
use crate::pci::{ConfigSpaceState, MsixState};

/// The state of a device, for a snapshot. The windows' content is not part of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState {
    /// The device's GID.
    pub gid: Gid,
    pub(crate) config_space: ConfigSpaceState,
    pub(crate) msix: MsixState,
}
