// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! All that can be in a device's way when its VMM ends.

use super::{PATIENCE, Target, closing, say, writing};
use anyhow::Result;
use std::collections::VecDeque;
use std::time::Duration;
use vmm_device_ivsmc::peer::Client;

/// Connections that say nothing.
const SILENT: usize = 10;

/// Writers that stand still, sockets that linger, and connections without end that say nothing.
pub fn be_in_the_way(target: &Target) -> Result<()> {
    let faults = writing::faults()?;
    target.become_user()?;
    let links = writing::two_links(target)?;
    writing::held(&faults, &links)?;
    let _lingering = closing::linger_everywhere(target)?;
    say("ready")?;
    let mut silent = VecDeque::new();
    // Until the device is gone.
    while let Ok(client) = Client::connect(&target.socket, PATIENCE) {
        silent.push_front(client);
        silent.truncate(SILENT);
        std::thread::sleep(Duration::from_millis(100));
    }
    say("gone")
}
