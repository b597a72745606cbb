// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What of the device goes into a snapshot.

use serde::{Deserialize, Serialize};

use crate::link::LinkSnapshot;
use crate::pci::{ConfigSpaceState, MsixState};

/// The state of a device, for a snapshot. The windows' content is not part of it: after a restore the links come
/// up anew, and until the guest has let go of a window that it had claimed, zeros are behind it. Nor is the GID: the
/// VM may still run elsewhere, and two devices of one GID could not both have links to a third.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState {
    pub(crate) config_space: ConfigSpaceState,
    pub(crate) msix: MsixState,
    pub(crate) links: Vec<LinkSnapshot>,
}
