// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bad options get an error that names the option, the value and what would do.

use super::Suite;
use crate::guest::{Guest, Mode};
use crate::lab::Lab;
use crate::vmm::Vmm;
use anyhow::{Context, Result, ensure};
use std::time::Duration;

pub(super) fn add(suite: &mut Suite) {
    suite.add("options::bad_ones_are_named", |fixture| {
        bad_ones_are_named(&fixture.lab)
    });
    suite.add("options::path_in_use", |fixture| path_in_use(&fixture.lab));
}

/// How long a VMM may take to refuse its options.
const PROMPT: Duration = Duration::from_secs(20);

/// The VMM has to refuse `option` with an error in which all of `words` are.
fn refused(lab: &Lab, option: &str, words: &[&str]) -> Result<()> {
    let guest = Guest::new("bad", 9).mode(Mode::Off).ivsmc(option);
    let mut vmm = Vmm::start(lab, &guest)?;
    let status = vmm
        .wait(PROMPT)
        .with_context(|| format!("--ivsmc {option}: {}", vmm.tails()))?;
    let said = std::fs::read_to_string(vmm.folder().join("vmm.log"))?;
    ensure!(!status.success(), "--ivsmc {option} is accepted");
    for word in words {
        ensure!(
            said.contains(word),
            "--ivsmc {option}: there is no {word:?} in the error: {said}"
        );
    }
    Ok(())
}

fn bad_ones_are_named(lab: &Lab) -> Result<()> {
    let folder = lab.run_folder()?;
    let path = folder.join("bad").display().to_string();
    let peer = folder.join("peer").display().to_string();
    let long = format!("/tmp/{}", "x".repeat(120));
    refused(
        lab,
        &format!("path={path},peer={peer},size=3M"),
        &["size", "3M", "power of two"],
    )?;
    refused(
        lab,
        &format!("path={path},peer={peer},size=1M"),
        &["size", "1M", "2M"],
    )?;
    refused(lab, &format!("path={long},peer={peer}"), &["path", &long])?;
    refused(lab, &format!("path={path},peer={path}"), &["peer", &path])?;
    refused(
        lab,
        &format!("path={path},peer={peer},max_peers=0"),
        &["max_peers", "0"],
    )?;
    refused(
        lab,
        &format!("path={path},peer={peer},colour=red"),
        &["colour"],
    )?;
    refused(lab, &format!("peer={peer}"), &["path"])?;
    // Root may write almost anywhere, but not here.
    let forbidden = "/proc/ivsmc";
    refused(
        lab,
        &format!("path={forbidden},peer={peer}"),
        &["path", forbidden],
    )
}

fn path_in_use(lab: &Lab) -> Result<()> {
    let folder = lab.run_folder()?;
    let path = folder.join("used").display().to_string();
    let option = format!("path={path},peer={}", folder.join("nobody").display());
    let guest = Guest::new("user", 8)
        .mode(Mode::Off)
        .ivsmc(&option)
        .boot(lab)?;
    let refused = refused(lab, &option, &["path", &path, "in use"]);
    refused.map_err(|error| error.context(guest.tails()))
}
