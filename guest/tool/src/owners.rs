// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The processes that have a socket, as far as `/proc` lets one see, and what the socket itself says to them.

use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::fs::{self, DirEntry};
use std::io;
use std::net::{IpAddr, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;

/// A process that has a socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Process ID.
    pub pid: u32,
    /// The program's name, as the kernel has it.
    pub comm: String,
    /// The descriptor that it has for the socket.
    pub fd: RawFd,
    /// The container that it is in, as its cgroup is called: `libpod-` and the container's ID.
    #[serde(default)]
    pub container: Option<String>,
}

/// The owners of the sockets with these inodes, each process once for each socket, in order of their IDs.
pub fn find(inodes: &HashSet<u64>) -> HashMap<u64, Vec<Owner>> {
    let mut owners: HashMap<u64, Vec<Owner>> = HashMap::new();
    let Ok(processes) = fs::read_dir("/proc") else {
        return owners;
    };
    let mut processes: Vec<u32> = processes
        .flatten()
        .filter_map(|entry| number(&entry))
        .collect();
    processes.sort_unstable();
    for pid in processes {
        let mut seen = HashSet::new();
        for (fd, inode) in sockets(pid) {
            if inodes.contains(&inode) && seen.insert(inode) {
                let read =
                    |name| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
                owners.entry(inode).or_default().push(Owner {
                    pid,
                    comm: read("comm").trim_end().to_owned(),
                    fd,
                    container: container(&read("cgroup")),
                });
            }
        }
    }
    owners
}

/// The sockets of a process: descriptor and inode. None of somebody else's process, or of one that has ended.
pub(crate) fn sockets(pid: u32) -> impl Iterator<Item = (RawFd, u64)> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd"));
    descriptors
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?;
            Some((number(&entry)?, inode(target.to_str()?)?))
        })
}

/// Digits of a container's ID, which is a SHA-256's length.
const ID: usize = 64;

/// The innermost container in a process's `/proc/PID/cgroup`. Runtimes call its cgroup `libpod-ID.scope`, `docker-ID.scope`,
/// `cri-containerd-ID.scope`, `crio-ID.scope`; or, without systemd, ID or `libpod-ID`; Kata's agent `...:cri-containerd:ID`.
fn container(cgroups: &str) -> Option<String> {
    let of_line = |line: &str| {
        // "0::/path", "4:memory:/path"
        let path = line.splitn(3, ':').nth(2)?;
        path.rsplit('/').find_map(|name| {
            let name = name.strip_suffix(".scope").unwrap_or(name);
            let (before, id) = name.split_at_checked(name.len().checked_sub(ID)?)?;
            let is_id = id.bytes().all(|byte| byte.is_ascii_hexdigit());
            // What watches over a container is not in it.
            let is_in =
                !before.ends_with("conmon-") && (before.is_empty() || before.ends_with(['-', ':']));
            (is_id && is_in).then(|| name.to_owned())
        })
    };
    cgroups.lines().find_map(of_line)
}

impl Owner {
    /// Process, program and container, the latter's ID shortened as runtimes do: `72/nginx (libpod-0123456789ab)`.
    pub fn words(&self) -> String {
        let Owner { pid, comm, .. } = self;
        match &self.container {
            None => format!("{pid}/{comm}"),
            Some(container) => {
                let shown = container.len().saturating_sub(ID - 12);
                let shown = container.get(..shown).unwrap_or(container);
                format!("{pid}/{comm} ({shown})")
            }
        }
    }
}

fn number<T: std::str::FromStr>(entry: &DirEntry) -> Option<T> {
    entry.file_name().to_str()?.parse().ok()
}

/// The inode in the name that `/proc` has for a socket.
fn inode(name: &str) -> Option<u64> {
    name.strip_prefix("socket:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

impl Owner {
    /// The local and the peer's address of its socket `inode`, for who may look into the process.
    pub fn addresses(&self, inode: u64) -> io::Result<(IpAddr, IpAddr)> {
        let process = descriptor(libc::SYS_pidfd_open, self.pid as libc::c_long, 0)?;
        let number = process.as_raw_fd().into();
        let socket = descriptor(libc::SYS_pidfd_getfd, number, self.fd.into())?;
        let socket = fs::File::from(socket);
        // Something else may have the number by now.
        if socket.metadata()?.ino() != inode {
            return Err(io::ErrorKind::NotFound.into());
        }
        let socket = TcpStream::from(OwnedFd::from(socket));
        let [local, peer] = [socket.local_addr()?, socket.peer_addr()?];
        Ok((local.ip().to_canonical(), peer.ip().to_canonical()))
    }
}

/// The descriptor that a system call gives whose third argument is 0.
fn descriptor(
    call: libc::c_long,
    first: libc::c_long,
    second: libc::c_long,
) -> io::Result<OwnedFd> {
    // SAFETY: neither of the two calls takes pointers.
    let fd = unsafe { libc::syscall(call, first, second, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just opened and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn containers_by_their_cgroups() {
        let id = "0123456789ab".repeat(6)[..ID].to_owned();
        let found = |path: &str| container(&format!("0::{path}\n"));
        for (path, name) in [
            ("/machine.slice/libpod-ID.scope/container", "libpod-ID"),
            ("/libpod_parent/libpod-ID", "libpod-ID"),
            ("/system.slice/docker-ID.scope", "docker-ID"),
            ("/docker/ID/init.scope", "ID"),
            ("/kubepods/burstable/pod1-2-3/ID", "ID"),
            (
                "/kubepods.slice/kubepods-pod1.slice/cri-containerd-ID.scope",
                "cri-containerd-ID",
            ),
            (
                "/kubepods/pod1/kubepods:cri-containerd:ID",
                "kubepods:cri-containerd:ID",
            ),
        ] {
            let found = found(&path.replace("ID", &id));
            assert_eq!(found, Some(name.replace("ID", &id)), "{path}");
        }
        for path in [
            "/",
            "/system.slice/nginx.service",
            "/machine.slice/libpod-conmon-ID.scope",
            "/x0123ID",
            "/öID",
        ] {
            assert_eq!(found(&path.replace("ID", &id)), None, "{path}");
        }
        assert_eq!(container(""), None);
        let cgroups = format!("4:memory:/docker/{id}\n0::/\n");
        assert_eq!(container(&cgroups), Some(id.clone()), "version 1");
        let owner = Owner {
            pid: 72,
            comm: "nginx".to_owned(),
            fd: 3,
            container: Some(format!("libpod-{id}")),
        };
        assert_eq!(owner.words(), "72/nginx (libpod-0123456789ab)");
    }

    #[test]
    fn a_sockets_owner_and_addresses() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let inode_of = |fd: RawFd| {
            let link = fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
            inode(link.to_str().unwrap()).unwrap()
        };
        let inodes = [inode_of(listener.as_raw_fd()), inode_of(stream.as_raw_fd())];
        let copy = stream.try_clone().unwrap();
        let owners = find(&inodes.into_iter().collect());
        drop(copy);
        let [owner] = &owners[&inodes[1]][..] else {
            panic!("{owners:?}");
        };
        assert_eq!((owner.pid, owners.len()), (std::process::id(), 2));
        assert_eq!(
            owner.comm,
            fs::read_to_string("/proc/self/comm").unwrap().trim_end()
        );
        let address: IpAddr = "127.0.0.1".parse().unwrap();
        assert_eq!(owner.addresses(inodes[1]).unwrap(), (address, address));
        assert!(owner.addresses(inodes[0]).is_err());
        assert!(find(&HashSet::from([u64::MAX])).is_empty());
    }
}
