// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The options of an ivsmc device.

use std::collections::BTreeMap;
use std::num::ParseIntError;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::{io, result};

use landlock::AccessFs;
use option_parser::{ByteSized, OptionParser, StringList, Toggle};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vmm_device_ivsmc::{Allowed, Config, ConfigError};

use crate::config::{Error, Result, ValidationError};
use crate::landlock::{Landlock, LandlockError};
use crate::vm_config::{ApplyLandlock, LandlockResult, PciDeviceCommonConfig, VmConfig};

/// The options of an ivsmc device.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct IvsmcConfig {
    #[serde(flatten)]
    pub pci_common: PciDeviceCommonConfig,
    #[serde(flatten)]
    pub device: Config,
    /// What else was given, which is an error.
    #[serde(flatten)]
    unknown: BTreeMap<String, Value>,
}

/// A number that is mostly written in hexadecimal, with 0x before it.
struct MaybeHex(u16);

impl FromStr for MaybeHex {
    type Err = ParseIntError;

    fn from_str(text: &str) -> result::Result<Self, Self::Err> {
        let number = match text.strip_prefix("0x") {
            Some(digits) => u16::from_str_radix(digits, 16),
            None => text.parse(),
        };
        number.map(MaybeHex)
    }
}

/// Users and groups, one or a list.
struct AllowedList(Vec<Allowed>);

impl FromStr for AllowedList {
    type Err = ConfigError;

    fn from_str(text: &str) -> result::Result<Self, Self::Err> {
        let mut device = Config::default();
        device.set("allow", text)?;
        Ok(AllowedList(device.allow))
    }
}

impl IvsmcConfig {
    pub const SYNTAX: &'static str = "ivsmc device, memory and doorbells shared with other VMs \
        \"path=<socket_to_listen_on>,peer=<socket_to_join|folder_of_sockets|[list,of,them]>,\
        size=<window_size>,max_peers=<1..64>,vectors=<1..16>,gid=<uuid>,\
        fabric_id=<0xff00..0xfffe>,hugepages=on|off,allow=<user_id|first-last|group:group_id|[list,of,them]>,\
        id=<device_id>,pci_segment=<segment_id>,pci_device_id=<pci_slot>\" \
        \nThe <window_size> is that of the memory shared with each peer, a power of two from 2M. \
        Default size is 64M, default max_peers is 8.";

    pub fn parse(ivsmc: &str) -> Result<Self> {
        let mut parser = OptionParser::new();
        parser
            .add_all(Config::OPTIONS)
            .add_all(&["id", "pci_segment", "pci_device_id"]);
        parser.parse(ivsmc).map_err(Error::ParseIvsmc)?;

        let path = parser.get("path").ok_or(Error::ParseIvsmcPathMissing)?;
        let mut device = Config::new(path);
        let parse = |parser: &OptionParser, device: &mut Config| {
            if let Some(StringList(peers)) = parser.convert("peer")? {
                device.peers = peers.into_iter().map(PathBuf::from).collect();
            }
            if let Some(ByteSized(size)) = parser.convert("size")? {
                device.window_size = size;
            }
            if let Some(max_peers) = parser.convert("max_peers")? {
                device.max_peers = max_peers;
            }
            if let Some(vectors) = parser.convert("vectors")? {
                device.vectors = vectors;
            }
            device.gid = parser.convert("gid")?;
            if let Some(MaybeHex(fabric_id)) = parser.convert("fabric_id")? {
                device.fabric_id = fabric_id;
            }
            if let Some(Toggle(hugepages)) = parser.convert("hugepages")? {
                device.hugepages = hugepages;
            }
            if let Some(AllowedList(allow)) = parser.convert("allow")? {
                device.allow = allow;
            }
            Ok(())
        };
        parse(&parser, &mut device).map_err(Error::ParseIvsmc)?;
        let pci_common = PciDeviceCommonConfig::parse(ivsmc)?;
        Ok(IvsmcConfig {
            pci_common,
            device,
            unknown: BTreeMap::new(),
        })
    }

    pub fn validate(&self, vm_config: &VmConfig) -> result::Result<(), ValidationError> {
        if self.pci_common.iommu {
            return Err(ValidationError::IommuNotSupported);
        }
        self.pci_common.validate(vm_config)?;
        if let Some(option) = self.unknown.keys().next() {
            let error = ConfigError::UnknownOption(option.clone());
            return Err(ValidationError::Ivsmc(error));
        }
        self.device.validate().map_err(ValidationError::Ivsmc)?;
        let path = &self.device.path;
        let devices = vm_config.ivsmc.iter().flatten();
        if devices.filter(|other| other.device.path == *path).count() > 1 {
            return Err(ValidationError::DuplicateDevicePath(
                path.display().to_string(),
            ));
        }
        Ok(())
    }
}

impl ApplyLandlock for IvsmcConfig {
    fn apply_landlock(&self, landlock: &mut Landlock) -> LandlockResult<()> {
        // The socket is made and removed; nothing else in its folder is touched.
        let folder = match self.device.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        if let Err(error) = folder.metadata() {
            // A rule for what does not exist would be left out without a word.
            let path = self.device.path.display();
            return Err(LandlockError::OpenPath(io::Error::new(
                error.kind(),
                format!(
                    "ivsmc: the folder of path={path} cannot be opened ({error}); make it before the VM"
                ),
            )));
        }
        landlock.add_rule(folder, AccessFs::MakeSock | AccessFs::RemoveFile)?;
        // To join a socket takes no rule; a folder of sockets is read.
        for peer in self.device.peers.iter().filter(|peer| peer.is_dir()) {
            landlock.add_rule(peer, AccessFs::ReadDir.into())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn test_parse_ivsmc() {
        let config = IvsmcConfig::parse(
            "path=/run/a,peer=[/run/b,/run/c],size=16M,max_peers=3,vectors=2,fabric_id=0xff01,\
             gid=11111111-2222-4333-8444-555555555555,hugepages=on,allow=[1000,2000-2999,group:990],\
             id=ivsmc0,pci_segment=1,pci_device_id=7",
        )
        .unwrap();
        let mut device = Config::new("/run/a");
        device.peers = ["/run/b", "/run/c"].map(PathBuf::from).into();
        device.window_size = 16 << 20;
        (device.max_peers, device.vectors) = (3, 2);
        device.gid = Some("11111111-2222-4333-8444-555555555555".parse().unwrap());
        device.fabric_id = 0xff01;
        device.hugepages = true;
        device.allow = vec![
            Allowed::Users(1000..=1000),
            Allowed::Users(2000..=2999),
            Allowed::Groups(990..=990),
        ];
        assert_eq!(config.device, device);
        assert_eq!(config.pci_common.id.as_deref(), Some("ivsmc0"));
        assert_eq!(config.pci_common.pci_segment, 1);
        assert_eq!(config.pci_common.pci_device_id, Some(7));

        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<IvsmcConfig>(&json).unwrap(), config);
        assert!(config.unknown.is_empty());
        let json = r#"{"path": "/run/a"}"#;
        let default = IvsmcConfig::parse("path=/run/a").unwrap();
        assert_eq!(default.device, Config::new("/run/a"));
        assert_eq!(serde_json::from_str::<IvsmcConfig>(json).unwrap(), default);
        let decimal =
            IvsmcConfig::parse("path=/run/a,fabric_id=65281,peer=/run/b,allow=7").unwrap();
        assert_eq!(decimal.device.fabric_id, 0xff01);
        assert_eq!(decimal.device.peers, [PathBuf::from("/run/b")]);
        assert_eq!(decimal.device.allow, [Allowed::from(7)]);
    }

    #[test]
    fn test_parse_ivsmc_errors() {
        for (text, said) in [
            ("path=/run/a,colour=red", "colour"),
            ("path=/run/a,size=big", "size"),
            ("path=/run/a,max_peers=many", "max_peers"),
            ("path=/run/a,gid=me", "gid"),
            ("path=/run/a,fabric_id=0xg", "fabric_id"),
            ("path=/run/a,hugepages=perhaps", "hugepages"),
            ("path=/run/a,allow=root", "allow"),
        ] {
            let error = IvsmcConfig::parse(text).unwrap_err();
            let source = error.source().unwrap().to_string();
            assert!(source.contains(said), "{text}: {source}");
        }
        let error = IvsmcConfig::parse("peer=/run/b").unwrap_err();
        assert!(matches!(error, Error::ParseIvsmcPathMissing), "{error}");
        let json = r#"{"path": "/run/a", "id": "x", "pci_segment": 0, "colour": "red"}"#;
        let config: IvsmcConfig = serde_json::from_str(json).unwrap();
        assert_eq!(config.unknown.keys().collect::<Vec<_>>(), ["colour"]);
    }

    #[test]
    fn test_landlock_ivsmc_needs_the_folder() {
        let config = IvsmcConfig::parse("path=/nowhere/at/all").unwrap();
        // Where the kernel has no landlock there is nothing to test.
        let Ok(mut landlock) = Landlock::new() else {
            return;
        };
        let error = config.apply_landlock(&mut landlock).unwrap_err();
        let source = error.source().unwrap().to_string();
        assert!(source.contains("path=/nowhere/at/all"), "{source}");
    }
}
