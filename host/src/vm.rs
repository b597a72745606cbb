// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One VM: what its VMM says, and what is to be done about it.

use crate::api::{Api, ApiError, NewDevice, VmInfo, told};
use crate::folder::{self, FolderError};
use crate::policy::Fabric;
use crate::scan::Found;
use std::io;
use std::path::Path;
use std::time::Duration;
use vmm_device_ivsmc::Links;

/// The id of a device that this program has given. It is the same in each fabric, so that a VMM refuses a second one
/// whatever else goes wrong. Which fabric it is of, its path tells.
pub const DEVICE_ID: &str = "ivsmc-host";

const NO_VM: &str = "there is no VM yet";

/// How it is with a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It has its device.
    Attached,
    /// It has none, and could get one now.
    Free,
    /// It can get none yet.
    Waits(String),
    /// It has a device that is to be left alone.
    Other(String),
}

/// Why a VM has no device.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The VMM says nothing useful.
    #[error("vm.info: {0}")]
    Info(#[source] ApiError),
    /// The VMM does not know the call.
    #[error(
        "vm.add-ivsmc: status 404; this Cloud Hypervisor has no such call: build it with ivsmc's patches and \
         --features ivsmc"
    )]
    NoSuchCall,
    /// The VMM does not want to, or has not answered.
    #[error("vm.add-ivsmc: {0}")]
    Add(#[source] ApiError),
    /// The VMM does not tell of links.
    #[error(
        "vm.ivsmc-links: status 404; this Cloud Hypervisor has no such call: build it with the present version of \
         ivsmc's patches"
    )]
    NoLinksCall,
    /// The VMM says nothing useful of links.
    #[error("vm.ivsmc-links: {0}")]
    Links(#[source] ApiError),
    /// The device has gone in between.
    #[error("vm.ivsmc-links: there is no device {DEVICE_ID}; is it being removed?")]
    NoDevice,
    /// The fabric's folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
}

impl VmError {
    /// Whether the socket is not there any more, which is found out anyway.
    pub fn is_gone(&self) -> bool {
        match self {
            VmError::Info(ApiError::Connect(error)) => error.kind() == io::ErrorKind::NotFound,
            _ => false,
        }
    }
}

impl Standing {
    /// Why the VM does not have its device, if so.
    pub fn why(&self) -> Option<String> {
        match self {
            Standing::Attached => None,
            Standing::Free => Some("it has none yet; is ivsmc-host attach running?".into()),
            Standing::Waits(why) | Standing::Other(why) => Some(why.clone()),
        }
    }

    /// What follows from a VMM's words, for a VM whose device is to listen on `path`.
    pub fn of(info: &VmInfo, path: &Path) -> Self {
        let devices = info.config.ivsmc.as_deref().unwrap_or_default();
        let is_ours = |id: &Option<String>| id.as_deref() == Some(DEVICE_ID);
        if let Some(device) = devices.iter().find(|device| is_ours(&device.id)) {
            return if Path::new(&device.path) == path {
                Standing::Attached
            } else {
                let there = told(&device.path);
                Standing::Other(format!(
                    "it has a device of ivsmc-host's that listens on {there}, as another policy wanted it; \
                     ch-remote remove-device {DEVICE_ID} makes way"
                ))
            };
        }
        if let Some(device) = devices.first() {
            let id = told(device.id.as_deref().unwrap_or("without an id"));
            return Standing::Other(format!("it has an ivsmc device already, {id}"));
        }
        // What vm.add-ivsmc does to a VM that stands still, or is on its way to another process, is not worth finding out.
        match info.state.as_str() {
            "Running" | "Created" => Standing::Free,
            other => Standing::Waits(format!("the VM is {}", told(other))),
        }
    }
}

/// What a VMM says of a VM and its device.
pub struct Look {
    /// Its API.
    pub api: Api,
    /// How it is with the VM.
    pub standing: Standing,
    /// The links of its device, if it has one; a VM that is not booted has none.
    pub links: Option<Result<Option<Links>, VmError>>,
}

/// How it is with a VM of this fabric, and with its links.
///
/// # Errors
/// Its VMM says nothing useful.
pub async fn look(found: &Found, fabric: &Fabric, limit: Duration) -> Result<Look, VmError> {
    let (api, standing) = ask(found, fabric, limit).await?;
    let links = match standing {
        Standing::Attached => Some(links(&api).await),
        _ => None,
    };
    Ok(Look {
        api,
        standing,
        links,
    })
}

async fn links(api: &Api) -> Result<Option<Links>, VmError> {
    let devices = match api.links().await {
        Ok(devices) => devices,
        Err(error) if error.says_no_vm() || error.says_not_booted() => return Ok(None),
        Err(ApiError::Status { status: 404, .. }) => return Err(VmError::NoLinksCall),
        Err(error) => return Err(VmError::Links(error)),
    };
    let mut devices = devices.into_iter();
    match devices.find(|device| device.id == DEVICE_ID) {
        Some(device) => Ok(Some(device.links)),
        None => Err(VmError::NoDevice),
    }
}

/// Gives a VM its device if it has none, and can get one.
///
/// # Errors
/// It could get one, and has none.
pub async fn attach(
    found: &Found,
    fabric: &Fabric,
    limit: Duration,
) -> Result<(Standing, bool), VmError> {
    let (api, standing) = ask(found, fabric, limit).await?;
    if standing != Standing::Free {
        return Ok((standing, false));
    }
    folder::prepare(fabric)?;
    let (device, pci_segment) = fabric.device_of(&found.name);
    let device = NewDevice {
        id: DEVICE_ID,
        pci_segment,
        device: &device,
    };
    match api.add(&device).await {
        Ok(()) => Ok((Standing::Attached, true)),
        // It has been deleted in between.
        Err(error) if error.says_no_vm() => Ok((Standing::Waits(NO_VM.into()), false)),
        Err(ApiError::Status { status: 404, .. }) => Err(VmError::NoSuchCall),
        Err(error) => Err(VmError::Add(error)),
    }
}

async fn ask(found: &Found, fabric: &Fabric, limit: Duration) -> Result<(Api, Standing), VmError> {
    let connect = |error| VmError::Info(ApiError::Connect(error));
    let socket = found.open().map_err(connect)?;
    let api = Api { socket, limit };
    let standing = match api.info().await {
        Ok(info) => Standing::of(&info, &fabric.path_of(&found.name)),
        Err(error) if error.is_no_vm() => Standing::Waits(NO_VM.into()),
        Err(error) => return Err(VmError::Info(error)),
    };
    Ok((api, standing))
}
