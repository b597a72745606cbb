// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Another guest's GID, and its halves: in the header of a window, and in HELLO.

use super::link::{Answer, Link, attempt, name};
use super::{Target, say, wait, wait_until};
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};
use vmm_device_ivsmc::Gid;
use vmm_device_ivsmc::peer::Bye;

/// How long a guest may take to be deceived.
const TIME: Duration = Duration::from_millis(1500);

/// A GID that a guest can have whose device has this one (docs/window.md).
fn of_device(device: Gid, random: [u8; 4]) -> [u8; 16] {
    let device = device.bytes();
    let mut gid = device;
    if gid[..8] == [0; 8] {
        gid[0] = 1;
    }
    for at in 0..4 {
        gid[8 + at] = device
            .iter()
            .skip(at)
            .step_by(4)
            .fold(0, |sum, byte| sum ^ byte);
    }
    gid[12..].copy_from_slice(&random);
    gid
}

/// Says to be `victim`, whose VM does not run at first.
pub fn impersonate(target: &Target, victim: Gid) -> Result<()> {
    target.become_user()?;
    let own = name(1);
    let link = Link::new(&target.socket, own, target.window_shift)?;
    wait_until("the guest has taken the window", || link.is_in_use())?;
    let (right, theirs) = (of_device(own, [1; 4]), of_device(victim, [2; 4]));
    let is_accepted = |gid, epoch| -> Result<bool> {
        link.attach(gid, epoch)?;
        let start = Instant::now();
        while start.elapsed() < TIME {
            if link.accepted()? == epoch {
                return Ok(true);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(false)
    };
    let halves = |one: &[u8; 16], other: &[u8; 16]| {
        let mut gid = *one;
        gid[8..].copy_from_slice(&other[8..]);
        gid
    };
    ensure!(is_accepted(right, 1)?, "the own GID is not accepted");
    for (epoch, (name, gid)) in (2..).zip([
        ("the GID", theirs),
        ("the first half", halves(&theirs, &right)),
        ("the second half", halves(&right, &theirs)),
    ]) {
        ensure!(!is_accepted(gid, epoch)?, "{name} of another is accepted");
    }
    ensure!(is_accepted(right, 5)?, "the own GID is not accepted again");
    // They stay: a whole GID in the header of one link, and that of the device in another link's HELLO.
    ensure!(!is_accepted(theirs, 6)?, "the GID of another is accepted");
    let claim = Link::new(&target.socket, victim, target.window_shift)?;
    say("ready")?;
    wait()?;
    claim.end();
    say("let go")?;
    wait()?;
    // Now it has a link.
    match attempt(&target.socket, victim, target.window_shift)? {
        Answer::No(Some(Bye::Duplicate)) => {}
        other => anyhow::bail!("a GID that has a link: {other:?}"),
    }
    ensure!(!is_accepted(theirs, 7)?, "the GID of another is accepted");
    say("over")?;
    wait()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_s_gid_is_its_device_s() {
        let device = Gid::from_bytes([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
        let gid = of_device(device, [7; 4]);
        assert_eq!(gid[..8], device.bytes()[..8]);
        assert_eq!(gid[8..], [0, 0, 0, 16, 7, 7, 7, 7]);
        assert_eq!(of_device(Gid::from_bytes([0; 16]), [7; 4])[0], 1);
    }
}
