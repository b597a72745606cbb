// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What `ivsmc-host list` shows: what the policy and the API sockets say now. It changes nothing.

use crate::attach::why_not;
use crate::policy::Policy;
use crate::scan::{Found, Verdict, merge, scan};
use crate::vm::{Standing, look};
use serde::{Deserialize, Serialize};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;

/// Fabrics and VMs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// The policy's fabrics.
    pub fabrics: Vec<FabricLine>,
    /// The VMs, by their sockets.
    pub vms: Vec<VmLine>,
    /// What could have been meant, and why it is not taken.
    pub skipped: Vec<SkippedLine>,
}

/// A fabric.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FabricLine {
    /// Its name.
    pub name: String,
    /// Its folder.
    pub folder: PathBuf,
    /// How many VMs have a device of it.
    pub attached: usize,
}

/// A VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmLine {
    /// Its name.
    pub name: String,
    /// Its API socket.
    pub socket: PathBuf,
    /// The fabric that the policy has for it.
    pub fabric: Option<String>,
    /// Whether it has its device.
    pub attached: bool,
    /// Why it has not.
    pub why: Option<String>,
}

/// Something that is no VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedLine {
    /// Its path, quoted.
    pub path: String,
    /// Why.
    pub why: String,
}

/// How it is now. VMs that do not answer within `limit` are said not to.
pub async fn list(policy: Policy, limit: Duration) -> Listing {
    let policy = Arc::new(policy);
    let mut listing = Listing::default();
    let mut scans = Vec::new();
    let running: Vec<_> = (0..policy.patterns.len())
        .map(|n| {
            let policy = policy.clone();
            spawn_blocking(move || scan(&policy, &policy.patterns[n]))
        })
        .collect();
    for (pattern, running) in policy.patterns.iter().zip(running) {
        match timeout(limit, running).await {
            Ok(Ok(scan)) => scans.push(scan),
            _ => listing.skipped.push(SkippedLine {
                path: format!("{:?}", pattern.folder),
                why: format!("it could not be looked into within {limit:?}"),
            }),
        }
    }
    let skipped = scans.iter().flat_map(|scan| &scan.skipped);
    listing
        .skipped
        .extend(skipped.map(|(path, why)| SkippedLine {
            path: format!("{path:?}"),
            why: why.clone(),
        }));
    let mut asked = JoinSet::new();
    for found in merge(scans.iter()) {
        asked.spawn(line(policy.clone(), found, limit));
    }
    listing.vms = asked.join_all().await;
    listing
        .vms
        .sort_by(|one, other| one.socket.cmp(&other.socket));
    for fabric in &policy.fabrics {
        let name = fabric.name.to_string();
        let is_of = |vm: &&VmLine| vm.attached && vm.fabric.as_ref() == Some(&name);
        let attached = listing.vms.iter().filter(is_of).count();
        listing.fabrics.push(FabricLine {
            folder: fabric.folder.clone(),
            attached,
            name,
        });
    }
    listing
}

async fn line(policy: Arc<Policy>, found: Found, limit: Duration) -> VmLine {
    let mut line = VmLine {
        name: found.name.to_string(),
        socket: found.socket.clone(),
        fabric: None,
        attached: false,
        why: None,
    };
    let fabric = match found.verdict {
        Verdict::Fabric(fabric) => policy.fabrics.get(fabric),
        _ => None,
    };
    let Some(fabric) = fabric else {
        line.why = Some(why_not(&found.verdict));
        return line;
    };
    line.fabric = Some(fabric.name.to_string());
    match look(&found, fabric, limit).await {
        Ok(Standing::Attached) => line.attached = true,
        Ok(Standing::Free) => {
            line.why = Some("it has none yet; is ivsmc-host attach running?".into())
        }
        Ok(Standing::Waits(why) | Standing::Other(why)) => line.why = Some(why),
        Err(error) => line.why = Some(error.to_string()),
    }
    line
}

impl Listing {
    /// Writes it for people.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn print(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "Fabrics:")?;
        for fabric in &self.fabrics {
            let FabricLine {
                name,
                folder,
                attached,
            } = fabric;
            writeln!(out, "  {name}: {attached} VMs, in {}", folder.display())?;
        }
        writeln!(out, "VMs:")?;
        writeln!(
            out,
            "  {:<24} {:<16} {:<8} detail",
            "name", "fabric", "device"
        )?;
        for vm in &self.vms {
            let fabric = vm.fabric.as_deref().unwrap_or("-");
            let device = if vm.attached { "yes" } else { "no" };
            let socket = vm.socket.display();
            let why = vm
                .why
                .as_deref()
                .map_or(String::new(), |why| format!(": {why}"));
            writeln!(
                out,
                "  {:<24} {fabric:<16} {device:<8} {socket}{why}",
                vm.name
            )?;
        }
        if self.vms.is_empty() {
            writeln!(out, "  none: no socket matches the policy's patterns")?;
        }
        for skipped in &self.skipped {
            writeln!(out, "Skipped: {}: {}", skipped.path, skipped.why)?;
        }
        Ok(())
    }
}
