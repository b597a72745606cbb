// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What `ivsmc-host list` shows: what the policy and the API sockets say now. It changes nothing.

use crate::api::told;
use crate::attach::why_not;
use crate::policy::{Fabric, Policy};
use crate::scan::{Found, Verdict, merge, scan};
use crate::vm::{Look, Standing, look};
use serde::{Deserialize, Serialize};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;
use vmm_device_ivsmc::{Gid, LinkInfo, LinkState, Links, RefusedPeer};

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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Its device's links; not those of a VM that has no device, or whose VMM does not tell.
    #[serde(default)]
    pub links: Option<Vec<LinkLine>>,
    /// Why its device's links are not known.
    #[serde(default)]
    pub no_links_why: Option<String>,
    /// The peers that its device refuses, because their links were dropped.
    #[serde(default)]
    pub refused: Vec<RefusedLine>,
}

/// A link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkLine {
    /// The VM at its other end, if the peer's path is one of the fabric's.
    pub vm: Option<String>,
    /// What the VMM tells.
    #[serde(flatten)]
    pub link: LinkInfo,
}

/// A peer that a device refuses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedLine {
    /// Its VM, if its path is one of the fabric's.
    pub vm: Option<String>,
    /// What the VMM tells.
    #[serde(flatten)]
    pub peer: RefusedPeer,
}

/// Something that is no VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedLine {
    /// Its path, quoted.
    pub path: String,
    /// Why.
    pub why: String,
}

/// The sockets that there are now, and what could not be looked into within `limit` or is not taken.
pub async fn find(policy: &Arc<Policy>, limit: Duration) -> (Vec<Found>, Vec<SkippedLine>) {
    let mut skipped = Vec::new();
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
            _ => skipped.push(SkippedLine {
                path: format!("{:?}", pattern.folder),
                why: format!("it could not be looked into within {limit:?}"),
            }),
        }
    }
    let not_taken = scans.iter().flat_map(|scan| &scan.skipped);
    skipped.extend(not_taken.map(|(path, why)| SkippedLine {
        path: format!("{path:?}"),
        why: why.clone(),
    }));
    (merge(scans.iter()), skipped)
}

/// How it is now. VMs that do not answer within `limit` are said not to.
pub async fn list(policy: Policy, limit: Duration) -> Listing {
    let policy = Arc::new(policy);
    let (all, skipped) = find(&policy, limit).await;
    let mut listing = Listing {
        skipped,
        ..Listing::default()
    };
    let mut asked = JoinSet::new();
    for found in all {
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
    let fabric = match found.verdict {
        Verdict::Fabric(fabric) => policy.fabrics.get(fabric),
        _ => None,
    };
    let mut line = line_of(&found, fabric);
    let Some(fabric) = fabric else {
        line.why = Some(why_not(&found.verdict));
        return line;
    };
    match look(&found, fabric, limit).await {
        Ok(Look {
            standing, links, ..
        }) => {
            line.attached = standing == Standing::Attached;
            line.why = standing.why();
            match links {
                Some(Ok(links)) => line.take(fabric, links),
                Some(Err(error)) => line.no_links_why = Some(error.to_string()),
                None => {}
            }
        }
        Err(error) => line.why = Some(error.to_string()),
    }
    line
}

/// A VM of which no more is known yet.
pub fn line_of(found: &Found, fabric: Option<&Fabric>) -> VmLine {
    VmLine {
        name: found.name.to_string(),
        socket: found.socket.clone(),
        fabric: fabric.map(|fabric| fabric.name.to_string()),
        attached: false,
        why: None,
        links: None,
        no_links_why: None,
        refused: Vec::new(),
    }
}

impl VmLine {
    /// Takes its device's links; there is nothing of a VM that is not booted.
    pub fn take(&mut self, fabric: &Fabric, links: Option<Links>) {
        let (links, refused) = links.map_or_else(Default::default, |all| (all.links, all.refused));
        let vm = |path: &Option<String>| Some(fabric.vm_at(path.as_ref()?)?.to_string());
        let links = links.into_iter().map(|link| LinkLine {
            vm: vm(&link.path),
            link,
        });
        self.links = Some(links.collect());
        let refused = refused.into_iter().map(|peer| RefusedLine {
            vm: vm(&peer.path),
            peer,
        });
        self.refused = refused.collect();
    }
}

/// What to call a peer: its VM's name, or where it listens, or its GID.
fn peer(vm: Option<&str>, path: Option<&str>, gid: Gid) -> String {
    match (vm, path) {
        (Some(vm), _) => format!("{vm} ({gid})"),
        (None, Some(path)) => format!("{} ({gid})", told(path)),
        (None, None) => gid.to_string(),
    }
}

impl LinkLine {
    /// The peer.
    pub fn peer(&self) -> String {
        peer(
            self.vm.as_deref(),
            self.link.path.as_deref(),
            self.link.peer,
        )
    }

    /// One line.
    fn text(&self) -> String {
        let link = &self.link;
        let state = match (link.state, link.up_seconds) {
            (LinkState::Up, Some(seconds)) => format!("up for {seconds} s"),
            (LinkState::Up, None) => "up".into(),
            (LinkState::Lost, _) => "lost, and the guest still has the window".into(),
            (LinkState::Down, _) => "down".into(),
        };
        let claimed = if link.claimed { "" } else { "not " };
        format!(
            "link {} to {}: {state}, {claimed}in use, {} MiB, side {}",
            link.link,
            self.peer(),
            link.size >> 20,
            link.side
        )
    }
}

impl RefusedLine {
    /// The peer.
    pub fn peer(&self) -> String {
        peer(
            self.vm.as_deref(),
            self.peer.path.as_deref(),
            self.peer.peer,
        )
    }
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
            for link in vm.links.iter().flatten() {
                writeln!(out, "    {}", link.text())?;
            }
            if let Some(why) = &vm.no_links_why {
                writeln!(out, "    links are not known: {why}")?;
            }
            for refused in &vm.refused {
                writeln!(out, "    refuses {}", refused.peer())?;
            }
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
