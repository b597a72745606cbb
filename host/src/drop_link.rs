// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `ivsmc-host drop` and `ivsmc-host allow`: end the link of a VM to a peer, and let the peer have one again.

use crate::api::{ApiError, DropLink};
use crate::attach::why_not;
use crate::list::{LinkLine, SkippedLine, VmLine, find, line_of};
use crate::policy::{Fabric, Policy};
use crate::scan::{Found, Verdict};
use crate::vm::{DEVICE_ID, Look, Standing, VmError, look};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use vmm_device_ivsmc::{Gid, LinkState};

/// Which link is meant, as the command line has it.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The VM's name.
    pub vm: String,
    /// The peer: its VM's name, or its GID.
    pub peer: String,
    /// The VM's fabric, if there are VMs of that name in several.
    pub fabric: Option<String>,
}

/// What is to become of the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Its link is to end, and it is to get no other one.
    Drop,
    /// It may have a link again.
    Allow,
}

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum DropError {
    /// No such fabric.
    #[error("--fabric {0:?}: the policy has no such fabric; it has {1}")]
    NoFabric(String, String),
    /// No such VM.
    #[error("{0}: there is no such VM{1}; ivsmc-host list has those that there are{2}")]
    NoVm(String, String, String),
    /// More than one.
    #[error("{0}: there are VMs of this name in several fabrics; say which one with --fabric: {1}")]
    ManyVms(String, String),
    /// It has no device.
    #[error("{0}: it has no device of ivsmc-host's: {1}")]
    NoDevice(String, String),
    /// The VMM says nothing useful.
    #[error("{0}: {1}")]
    Vmm(String, #[source] VmError),
    /// Nothing like that is there.
    #[error("{vm}: {peer} is none of {what}; name one of these, by its VM or its GID: {all}")]
    NoPeer {
        /// The VM.
        vm: String,
        /// The peer.
        peer: String,
        /// What it has.
        what: &'static str,
        /// All of these.
        all: String,
    },
    /// More than one.
    #[error("{vm}: more than one peer says that it is {peer}; name one by its GID: {all}")]
    ManyPeers {
        /// The VM.
        vm: String,
        /// The peer.
        peer: String,
        /// All of these.
        all: String,
    },
    /// The call failed.
    #[error("{0}: vm.drop-ivsmc-link: {1}")]
    Call(String, #[source] ApiError),
    /// The call may have failed.
    #[error("{0}: vm.drop-ivsmc-link: {1}; it may be done later: ivsmc-host list tells")]
    Late(String, #[source] ApiError),
}

/// Does it. What is done is told. No call takes longer than `limit`.
///
/// # Errors
/// Nothing is done, but for [`DropError::Late`].
pub async fn drop_link(
    policy: Policy,
    wanted: &Wanted,
    wish: Wish,
    limit: Duration,
) -> Result<String, DropError> {
    let policy = Arc::new(policy);
    let (found, skipped) = find(&policy, limit).await;
    let (found, fabric) = choose_vm(&policy, &found, &skipped, wanted)?;
    let vm = || wanted.vm.clone();
    let Look {
        api,
        standing,
        links,
    } = look(found, fabric, limit)
        .await
        .map_err(|error| DropError::Vmm(vm(), error))?;
    let links = match links {
        Some(links) => links.map_err(|error| DropError::Vmm(vm(), error))?,
        None => {
            let why = standing.why().unwrap_or_default();
            return Err(DropError::NoDevice(vm(), why));
        }
    };
    let mut line = line_of(found, Some(fabric));
    line.attached = standing == Standing::Attached;
    line.take(fabric, links);
    let (gid, name) = choose_peer(&line, wanted, wish)?;
    let refuse = wish == Wish::Drop;
    let has_link = line
        .links
        .iter()
        .flatten()
        .any(|each| each.link.peer == gid);
    if refuse && !has_link {
        return Ok(format!("{}: {name} is refused already", wanted.vm));
    }
    let call = DropLink {
        id: DEVICE_ID,
        peer: gid,
        refuse,
    };
    match api.drop_link(&call).await {
        Ok(()) if refuse => {
            let fabric = wanted.fabric.as_ref();
            let option = fabric.map_or_else(String::new, |name| format!("--fabric {name} "));
            Ok(format!(
                "{}: the link to {name} ends, and its peer is refused until ivsmc-host allow {option}{} {gid}, or until one of \
                 the two VMs is started anew",
                wanted.vm, wanted.vm
            ))
        }
        Ok(()) => Ok(format!("{}: {name} may have a link again", wanted.vm)),
        Err(error @ ApiError::Slow(_)) => Err(DropError::Late(vm(), error)),
        Err(error) => Err(DropError::Call(vm(), error)),
    }
}

/// The one VM that is meant.
fn choose_vm<'a>(
    policy: &'a Policy,
    found: &'a [Found],
    skipped: &[SkippedLine],
    wanted: &Wanted,
) -> Result<(&'a Found, &'a Fabric), DropError> {
    let names = |fabrics: &[&Fabric]| {
        let names: Vec<_> = fabrics.iter().map(|fabric| fabric.name.as_str()).collect();
        names.join(", ")
    };
    let is_wanted = |fabric: &Fabric| {
        let name = wanted.fabric.as_deref();
        name.is_none_or(|name| name == fabric.name.as_str())
    };
    if let Some(name) = &wanted.fabric
        && !policy.fabrics.iter().any(is_wanted)
    {
        let all: Vec<_> = policy.fabrics.iter().collect();
        return Err(DropError::NoFabric(name.clone(), names(&all)));
    }
    let namesakes = || found.iter().filter(|each| each.name.as_str() == wanted.vm);
    let of_fabric = |each: &'a Found| match each.verdict {
        Verdict::Fabric(fabric) => Some((each, policy.fabrics.get(fabric)?)),
        _ => None,
    };
    let all: Vec<_> = namesakes()
        .filter_map(of_fabric)
        .filter(|(_, fabric)| is_wanted(fabric))
        .collect();
    match all.as_slice() {
        [one] => Ok(*one),
        [] => {
            let mut others = namesakes().filter(|each| !matches!(each.verdict, Verdict::Fabric(_)));
            if let Some(other) = others.next() {
                return Err(DropError::NoDevice(
                    wanted.vm.clone(),
                    why_not(&other.verdict),
                ));
            }
            let fabric = wanted.fabric.as_ref();
            let of = fabric.map_or_else(String::new, |name| format!(" in the fabric {name}"));
            let more = if skipped.is_empty() {
                ""
            } else {
                ", and what it has skipped"
            };
            Err(DropError::NoVm(wanted.vm.clone(), of, more.into()))
        }
        many => {
            let fabrics: Vec<_> = many.iter().map(|(_, fabric)| *fabric).collect();
            Err(DropError::ManyVms(wanted.vm.clone(), names(&fabrics)))
        }
    }
}

/// The one peer that is meant, and what to call it.
///
/// # Errors
/// It has none that could be meant, or several.
pub fn choose_peer(line: &VmLine, wanted: &Wanted, wish: Wish) -> Result<(Gid, String), DropError> {
    let links = line.links.iter().flatten();
    let (up, lost): (Vec<_>, Vec<_>) = links.partition(|each| each.link.state == LinkState::Up);
    let of = |links: Vec<&LinkLine>| -> Vec<_> {
        let all = links.into_iter();
        all.map(|each| (each.link.peer, each.vm.clone(), each.peer()))
            .collect()
    };
    let refused: Vec<_> = line
        .refused
        .iter()
        .map(|each| (each.peer.peer, each.vm.clone(), each.peer()))
        .collect();
    // What is up is meant first: a link that is lost may be one of the same VM's before it was started anew.
    let (what, kinds) = match wish {
        Wish::Drop => ("its peers", vec![of(up), of(lost), refused]),
        Wish::Allow => ("the peers that it refuses", vec![refused]),
    };
    let gid = wanted.peer.parse::<Gid>().ok();
    for kind in &kinds {
        let is_named = |vm: &Option<String>| vm.as_ref() == Some(&wanted.peer);
        let its: BTreeMap<Gid, &String> = kind
            .iter()
            .filter(|(peer, vm, _)| is_named(vm) || gid == Some(*peer))
            .map(|(peer, _, name)| (*peer, name))
            .collect();
        let mut all = its.iter();
        match (all.next(), all.next()) {
            (None, _) => {}
            (Some((gid, name)), None) => return Ok((*gid, (*name).clone())),
            _ => {
                let all: Vec<_> = its.keys().map(Gid::to_string).collect();
                return Err(DropError::ManyPeers {
                    vm: wanted.vm.clone(),
                    peer: wanted.peer.clone(),
                    all: all.join(", "),
                });
            }
        }
    }
    let mut all: Vec<_> = kinds.into_iter().flatten().map(|(.., name)| name).collect();
    all.dedup();
    if all.is_empty() {
        all.push("there are none".into());
    }
    Err(DropError::NoPeer {
        vm: wanted.vm.clone(),
        peer: wanted.peer.clone(),
        what,
        all: all.join(", "),
    })
}
