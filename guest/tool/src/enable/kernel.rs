// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the program must know of the running kernel: where its structures have what, from its own description (BTF).

use btfparse::{ErrorKind, Offset, Readable, TypeInformation, TypeVariant};
use std::fs;
use std::io;
use std::path::Path;

/// Where the kernel describes itself.
const BTF: &str = "/sys/kernel/btf/vmlinux";
/// The kernel's hook: which protocol a socket gets.
const HOOK: &str = "update_socket_protocol";
/// What is there only if the kernel lets BPF change the hook's result.
const MPTCP: &str = "mptcp_close";

/// What the kernel lacks.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It does not describe itself.
    #[error("the kernel has no {BTF}: it needs CONFIG_DEBUG_INFO_BTF ({0})")]
    NoBtf(io::Error),
    /// Its description cannot be understood.
    #[error("{BTF} cannot be read: {0}")]
    BadBtf(String),
    /// No BPF program may choose a socket's protocol.
    #[error(
        "the kernel lets no BPF program choose a socket's protocol: it needs Linux 6.6 or later, with CONFIG_MPTCP"
    )]
    NoHook,
    /// No BPF program may control SMC's handshakes.
    #[error(
        "the kernel lets no BPF program choose connections: [connections] in a policy needs CONFIG_SMC_HS_CTRL_BPF, \
         with SMC in the kernel and not a module (there is no {0})"
    )]
    NoHandshakeControl(String),
    /// It has no control groups.
    #[error("the kernel knows no control groups: it needs CONFIG_CGROUPS ({0})")]
    NoCgroups(String),
}

/// Where, in bytes, members are in their structures.
#[derive(Debug, Clone, Copy)]
pub struct Offsets {
    /// `task_struct.cgroups`
    pub task_cgroups: i16,
    /// `css_set.dfl_cgrp`
    pub set_cgroup: i16,
    /// `cgroup.kn`
    pub cgroup_node: i16,
    /// `kernfs_node.name`
    pub node_name: i16,
    /// `kernfs_node.__parent`
    pub node_parent: i16,
}

/// Where, in bytes, members are in `sock_common`, with which `tcp_sock` and `inet_request_sock` begin.
#[derive(Debug, Clone, Copy)]
pub struct SocketOffsets {
    /// `skc_family`
    pub family: i16,
    /// `skc_num`: the own port, in the processor's order.
    pub own_port: i16,
    /// `skc_dport`: the peer's, in the network's order.
    pub peer_port: i16,
    /// `skc_daddr`
    pub peer: i16,
    /// `skc_v6_daddr`
    pub peer_v6: i16,
}

/// Where things are in `bpf_struct_ops_smc_hs_ctrl`, and what numbers its parts have.
#[derive(Debug, Clone, Copy)]
pub struct HandshakeControl {
    /// The type of the map's value: `bpf_struct_ops_smc_hs_ctrl`.
    pub value: u32,
    /// Its bytes.
    pub size: usize,
    /// The type of what is in it: `smc_hs_ctrl`.
    pub structure: u32,
    /// Where its name is, in bytes from the value's begin.
    pub name: usize,
    /// Where its flags are.
    pub flags: usize,
    /// Where the program for SYNs is, and which member that is.
    pub syn: (usize, u32),
    /// Where the program for SYN-ACKs is, and which member that is.
    pub synack: (usize, u32),
    /// See there.
    pub socket: SocketOffsets,
}

/// What the kernel says of itself.
pub struct Kernel {
    types: TypeInformation,
    /// The number of the hook among its types.
    pub hook: u32,
    /// See there.
    pub offsets: Offsets,
}

/// A file's content, as the parser wants it.
struct Content(Vec<u8>);

impl Readable for Content {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> btfparse::Result<()> {
        let start = usize::try_from(offset).ok();
        let part = start.and_then(|start| self.0.get(start..)?.get(..buffer.len()));
        let part = part.ok_or_else(|| btfparse::Error::new(ErrorKind::EOF, "it is too short"))?;
        buffer.copy_from_slice(part);
        Ok(())
    }
}

impl Kernel {
    /// The running one.
    pub fn running() -> Result<Self, Error> {
        Self::describe(fs::read(Path::new(BTF)).map_err(Error::NoBtf)?)
    }

    fn describe(btf: Vec<u8>) -> Result<Self, Error> {
        let types = TypeInformation::new(&Content(btf))
            .map_err(|error| Error::BadBtf(error.message().to_owned()))?;
        let hook = function(&types, HOOK).ok_or(Error::NoHook)?;
        function(&types, MPTCP).ok_or(Error::NoHook)?;
        let offset = |structure, member| {
            let missing = || Error::NoCgroups(format!("{structure}.{member}"));
            offset(&types, structure, member).ok_or_else(missing)
        };
        Ok(Kernel {
            hook,
            offsets: Offsets {
                task_cgroups: offset("task_struct", "cgroups")?,
                set_cgroup: offset("css_set", "dfl_cgrp")?,
                cgroup_node: offset("cgroup", "kn")?,
                node_name: offset("kernfs_node", "name")?,
                // Linux before 6.15 calls it so.
                node_parent: offset("kernfs_node", "__parent")
                    .or_else(|_| offset("kernfs_node", "parent"))?,
            },
            types,
        })
    }

    /// What must be known to control SMC's handshakes.
    pub fn handshake_control(&self) -> Result<HandshakeControl, Error> {
        const VALUE: &str = "bpf_struct_ops_smc_hs_ctrl";
        const CONTROL: &str = "smc_hs_ctrl";
        let missing = |what: &str| Error::NoHandshakeControl(what.to_owned());
        let number = |name| structure(&self.types, name).ok_or_else(|| missing(name));
        let place = |structure: &str, member: &str| {
            offset(&self.types, structure, member)
                .ok_or_else(|| missing(&format!("{structure}.{member}")))
        };
        let (value, control) = (number(VALUE)?, number(CONTROL)?);
        let data = usize::try_from(place(VALUE, "data")?).map_err(|_| missing("data"))?;
        let within = |member| Ok(data + usize::try_from(place(CONTROL, member)?).unwrap_or(0));
        let index = |member| {
            let Some(TypeVariant::Struct(it)) = self.types.from_id(control) else {
                return Err(missing(CONTROL));
            };
            let mut members = it.member_list().iter();
            let found = members.position(|it| it.name().as_deref() == Some(member));
            let found = found.and_then(|found| u32::try_from(found).ok());
            found.ok_or_else(|| missing(member))
        };
        let common = |member| place("sock_common", member);
        Ok(HandshakeControl {
            value,
            size: self.types.size_of(value).map_err(|_| missing(VALUE))?,
            structure: control,
            name: within("name")?,
            flags: within("flags")?,
            syn: (within("syn_option")?, index("syn_option")?),
            synack: (within("synack_option")?, index("synack_option")?),
            socket: SocketOffsets {
                family: common("skc_family")?,
                own_port: common("skc_num")?,
                peer_port: common("skc_dport")?,
                peer: common("skc_daddr")?,
                peer_v6: common("skc_v6_daddr")?,
            },
        })
    }
}

/// The number of a function.
fn function(types: &TypeInformation, name: &str) -> Option<u32> {
    find(
        types,
        |kind| matches!(kind, TypeVariant::Func(function) if function.name().as_deref() == Some(name)),
    )
}

/// The number of a structure.
fn structure(types: &TypeInformation, name: &str) -> Option<u32> {
    find(
        types,
        |kind| matches!(kind, TypeVariant::Struct(it) if it.name().as_deref() == Some(name)),
    )
}

/// Where a member is, in bytes.
fn offset(types: &TypeInformation, name: &str, member: &str) -> Option<i16> {
    match types.offset_of(structure(types, name)?, member) {
        Ok((_, Offset::ByteOffset(offset))) => i16::try_from(offset).ok(),
        _ => None,
    }
}

/// The number of the first type that is wanted.
fn find(types: &TypeInformation, wanted: impl Fn(&TypeVariant) -> bool) -> Option<u32> {
    let found = types.get().iter().find(|(_, kind)| wanted(kind))?;
    Some(*found.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_description_panics(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            prop_assert!(Kernel::describe(bytes).is_err());
        }
    }
}
