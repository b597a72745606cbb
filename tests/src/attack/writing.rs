// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a peer can do with the descriptor of a window.

use super::link::{Link, high, name};
use super::{Target, say, wait, wait_until};
use anyhow::{Context, Result};
use std::os::unix::fs::FileExt;
use vmm_device_ivsmc::peer::Fault;

/// Bytes that are written at a time.
const PIECE: usize = 1 << 20;
/// Where what is written begins: behind the control areas.
const DATA: u64 = 128 << 10;

/// Two links, in one of which the window is this end's and in the other one the device's, whose guest has taken
/// both.
pub fn two_links(target: &Target) -> Result<[Link; 2]> {
    let link = |gid| Link::new(&target.socket, gid, target.window_shift);
    let links = [link(name(1))?, link(high(1))?];
    for link in &links {
        wait_until("the guest has taken the window", || link.is_in_use())?;
    }
    Ok(links)
}

/// Writers that stand still, each in a write() to one of these windows, as long as the faults are there.
pub fn held(faults: &[Fault; 2], links: &[Link; 2]) -> Result<()> {
    for (fault, link) in faults.iter().zip(links) {
        fault.write_to(link.window.try_clone()?);
        wait_until("a writer is held", || Ok(fault.is_hit()))?;
    }
    Ok(())
}

/// Memory that it takes for that; only root can have it.
pub fn faults() -> Result<[Fault; 2]> {
    let fault = || Fault::new().context("userfaultfd");
    Ok([fault()?, fault()?])
}

/// Stands still in the middle of a write().
pub fn write(target: &Target) -> Result<()> {
    let faults = faults()?;
    target.become_user()?;
    let links = two_links(target)?;
    held(&faults, &links)?;
    say("ready")?;
    wait()?;
    drop(faults);
    links.into_iter().for_each(Link::end);
    Ok(())
}

/// Fills the window of a link.
pub fn fill(target: &Target, bytes: u64) -> Result<()> {
    target.become_user()?;
    let link = Link::new(&target.socket, name(1), target.window_shift)?;
    wait_until("the guest has taken the window", || link.is_in_use())?;
    let piece = vec![7; PIECE];
    for at in (0..bytes).step_by(PIECE) {
        let length = (bytes - at).min(PIECE as u64) as usize;
        link.window.write_all_at(&piece[..length], DATA + at)?;
    }
    say("ready")?;
    wait()?;
    link.end();
    say("over")?;
    wait()
}
