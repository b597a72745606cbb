// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What Kata Containers' runtimes do with Cloud Hypervisor: where a sandbox's API socket is, which calls they make in which
//! order, over which connections, and how long they wait. docs/kata.md says which release that is, and where it is said.

use crate::api::{self, Error};
use crate::guest::{Booting, Guest};
use crate::lab::{Lab, Platform};
use crate::vmm::{Vmm, command_line, make_tap};
use anyhow::{Context, Result, bail, ensure};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The most processors of a sandbox.
const MAX_VCPUS: u8 = 2;
/// How much memory a sandbox may get more.
const HOTPLUG_MEMORY: u64 = 1 << 30;
/// How long a VMM may take until it answers.
const START: Duration = Duration::from_secs(10);
/// How long it may take to end.
const END: Duration = Duration::from_secs(3);

/// Which runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// The one in Go, `src/runtime`.
    Go,
    /// The one in Rust, `src/runtime-rs`.
    Rust,
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Runtime::Go => "Go",
            Runtime::Rust => "Rust",
        })
    }
}

impl Runtime {
    /// Where the sockets of all sandboxes are, below `run`: `/run` for Kata itself.
    pub fn sockets(self, run: &Path) -> PathBuf {
        match self {
            Runtime::Go => run.join("vc/vm/*/clh-api.sock"),
            Runtime::Rust => run.join("kata/*/ch-api.sock"),
        }
    }

    fn vsock(self) -> &'static str {
        match self {
            Runtime::Go => "clh.sock",
            Runtime::Rust => "ch-vm.sock",
        }
    }

    /// Between two attempts to reach a VMM that has just been started.
    fn pause(self) -> Duration {
        Duration::from_millis(match self {
            Runtime::Go => 10,
            Runtime::Rust => 50,
        })
    }

    /// How long the answer to a call may take. The one in Rust waits for as long as it takes.
    fn limit(self, endpoint: &str) -> Duration {
        Duration::from_secs(match (self, endpoint) {
            (Runtime::Rust, _) => 60,
            (_, "vmm.ping" | "vm.info" | "vm.resize") => 1,
            (_, "vmm.shutdown") => 3,
            (_, "vm.create" | "vm.boot") => 10,
            _ => 5,
        })
    }
}

/// A pod's VM, as its runtime has it.
pub struct Sandbox<'a> {
    lab: &'a Lab,
    runtime: Runtime,
    id: String,
    folder: PathBuf,
    socket: PathBuf,
    /// The connection that is kept from the first call to the last.
    connection: Option<UnixStream>,
    nets: u8,
}

impl<'a> Sandbox<'a> {
    /// Makes its folder.
    pub fn new(lab: &'a Lab, runtime: Runtime, id: &str) -> Result<Self> {
        let pattern = runtime.sockets(lab.run_folder());
        let socket = PathBuf::from(pattern.to_string_lossy().replace('*', id));
        let folder = socket.parent().context("a socket without a folder")?;
        std::fs::create_dir_all(folder)?;
        Ok(Sandbox {
            lab,
            runtime,
            id: id.into(),
            folder: folder.into(),
            connection: None,
            socket,
            nets: 0,
        })
    }

    /// Writes a file into its folder, whole at once.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        let part = self.folder.join(format!(".{name}"));
        std::fs::write(&part, text)?;
        Ok(std::fs::rename(part, self.folder.join(name))?)
    }

    /// Starts the VMM and boots the guest.
    pub fn start(&mut self, guest: &Guest) -> Result<Booting<'a>> {
        let lab = self.lab;
        let vmm = Vmm::without_vm(lab, guest, &self.socket)?;
        let start = Instant::now();
        while let Err(error) = self.ping() {
            ensure!(start.elapsed() < self.patience(START), error);
            self.connection = None;
            std::thread::sleep(self.runtime.pause());
        }
        self.call("PUT", "vm.create", Some(&self.config(guest, &vmm)))?;
        if self.runtime == Runtime::Go {
            self.is_in_state("Created")?;
        }
        let tap = make_tap(lab, guest)?;
        self.add_net(&tap, &guest.mac())?;
        self.call("PUT", "vm.boot", None)?;
        if self.runtime == Runtime::Go {
            self.is_in_state("Running")?;
        }
        Ok(guest.booting(lab, vmm))
    }

    fn is_in_state(&mut self, state: &str) -> Result<()> {
        let info = self.info()?;
        ensure!(info["state"] == state, "{}, not {state}", info["state"]);
        Ok(())
    }

    /// What the runtime's monitor does now and then: it asks whether the VMM is there.
    pub fn ping(&mut self) -> Result<()> {
        self.call("GET", "vmm.ping", None)?;
        Ok(())
    }

    /// What the VM is.
    pub fn info(&mut self) -> Result<Value> {
        self.call("GET", "vm.info", None)
    }

    /// Has it so many processors.
    pub fn resize_vcpus(&mut self, count: u8) -> Result<()> {
        let resize = match self.runtime {
            Runtime::Go => {
                self.info()?;
                json!({"desired_vcpus": count})
            }
            Runtime::Rust => {
                json!({"desired_vcpus": count, "desired_ram": null, "desired_balloon": null})
            }
        };
        self.call("PUT", "vm.resize", Some(&resize))?;
        let config = &self.info()?["config"];
        ensure!(config["cpus"]["boot_vcpus"] == count, "{config}");
        Ok(())
    }

    /// Gives it so much memory more.
    pub fn add_memory(&mut self, bytes: u64) -> Result<()> {
        let info = self.info()?;
        let size = info["config"]["memory"]["size"].as_u64();
        let size = size.with_context(|| format!("no size of memory: {info}"))? + bytes;
        let resize = match self.runtime {
            Runtime::Go => json!({"desired_ram": size}),
            Runtime::Rust => {
                json!({"desired_vcpus": null, "desired_ram": size, "desired_balloon": null})
            }
        };
        self.call("PUT", "vm.resize", Some(&resize))?;
        let actual = &self.info()?["memory_actual_size"];
        ensure!(*actual == size, "{actual} bytes, not {size}");
        Ok(())
    }

    /// Gives it a disk; returns its name.
    pub fn add_disk(&mut self, image: &Path) -> Result<String> {
        let disk = match self.runtime {
            Runtime::Go => json!({
                "path": image, "readonly": false, "vhost_user": false, "num_queues": 1,
                "queue_size": 1024, "iommu": false, "image_type": "Raw",
            }),
            Runtime::Rust => json!({
                "path": image, "readonly": false, "direct": false, "iommu": false, "num_queues": 1,
                "queue_size": 128, "vhost_user": false, "vhost_socket": null,
                "rate_limiter_config": null, "id": null, "disable_io_uring": false,
                "pci_segment": 0, "sparse": true, "image_type": "Raw",
            }),
        };
        let made = self.call("PUT", "vm.add-disk", Some(&disk))?;
        is_address(&made)?;
        let name = made["id"].as_str();
        Ok(name.with_context(|| format!("no name: {made}"))?.into())
    }

    /// Takes a device away.
    pub fn remove(&mut self, name: &str) -> Result<()> {
        self.call("PUT", "vm.remove-device", Some(&json!({"id": name})))?;
        Ok(())
    }

    /// Gives it another network card.
    pub fn add_another_net(&mut self) -> Result<()> {
        self.nets += 1;
        let tap = format!("iv-{}-{}", &self.id[..4], self.nets);
        self.lab.network.tap(&tap)?;
        let mac = format!(
            "02:69:76:ff:{:02x}:{:02x}",
            self.id.as_bytes()[0],
            self.nets
        );
        let made = self.add_net(&tap, &mac)?;
        is_address(&made)
    }

    /// A network card is a tap's descriptor, which goes along with the call.
    fn add_net(&mut self, tap: &str, mac: &str) -> Result<Value> {
        let tap = self.lab.network.open_tap(tap)?;
        match self.runtime {
            Runtime::Go => {
                let net = json!({"mac": mac, "iommu": false});
                let mut stream = self.connect("vm.add-net")?;
                self.call_over(&mut stream, "PUT", "vm.add-net", Some(&net), Some(&tap))
            }
            Runtime::Rust => {
                let net = json!({
                    "ip": "192.168.249.1", "mask": "255.255.255.0", "mac": mac, "iommu": false,
                    "num_queues": 2, "queue_size": 256, "vhost_user": false, "vhost_mode": "Client",
                });
                self.kept("PUT", "vm.add-net", Some(&net), Some(&tap))
            }
        }
    }

    /// Ends the guest and the VMM, and removes what it had.
    pub fn stop(mut self, vmm: &mut Vmm) -> Result<()> {
        if self.runtime == Runtime::Go {
            self.ping()?;
        }
        self.call("PUT", "vmm.shutdown", None)?;
        let status = vmm.wait(self.patience(END))?;
        ensure!(status.success(), "the VMM ends with {status}");
        Ok(std::fs::remove_dir_all(&self.folder)?)
    }

    fn call(&mut self, method: &str, endpoint: &str, body: Option<&Value>) -> Result<Value> {
        self.kept(method, endpoint, body, None)
    }

    fn kept(
        &mut self,
        method: &str,
        endpoint: &str,
        body: Option<&Value>,
        tap: Option<&File>,
    ) -> Result<Value> {
        let mut stream = match self.connection.take() {
            Some(stream) => stream,
            None => self.connect(endpoint)?,
        };
        let done = self.call_over(&mut stream, method, endpoint, body, tap);
        self.connection = Some(stream);
        done
    }

    fn connect(&self, endpoint: &str) -> Result<UnixStream> {
        UnixStream::connect(&self.socket)
            .with_context(|| format!("{endpoint}: {}", self.socket.display()))
    }

    /// A call that has to be answered in time, and well.
    fn call_over(
        &self,
        stream: &mut UnixStream,
        method: &str,
        endpoint: &str,
        body: Option<&Value>,
        tap: Option<&File>,
    ) -> Result<Value> {
        let request = format!("{method} /api/v1/{endpoint}");
        let limit = self.patience(self.runtime.limit(endpoint));
        stream.set_read_timeout(Some(limit))?;
        let start = Instant::now();
        let answered = send(stream, self.runtime, &request, body, tap)
            .and_then(|()| api::answer(BufReader::new(&*stream)));
        let took = start.elapsed();
        self.note(&format!("{endpoint} {} ms\n", took.as_millis()))?;
        match api::outcome(request, answered) {
            Ok(answer) => Ok(answer),
            Err(error @ Error::Io { .. }) if took >= limit => {
                bail!(
                    "{error}: the runtime in {} waits {limit:?} only",
                    self.runtime
                )
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Keeps how long calls took.
    fn note(&self, line: &str) -> Result<()> {
        let name = format!("kata-{}-{}.log", self.runtime, &self.id[..4]);
        let log = self.lab.out.join(name);
        let mut log = File::options().create(true).append(true).open(log)?;
        Ok(log.write_all(line.as_bytes())?)
    }

    /// Everything takes longer on an emulated processor.
    fn patience(&self, limit: Duration) -> Duration {
        match self.lab.platform {
            Platform::Kvm => limit,
            Platform::Lab => 10 * limit,
        }
    }

    /// The VM, with the lab's kernel, image and serial port.
    fn config(&self, guest: &Guest, vmm: &Vmm) -> Value {
        let kernel = self.lab.stage.join("bzImage");
        let initramfs = self.lab.stage.join("guest.cpio");
        let cmdline = command_line(self.lab, guest);
        let size = u64::from(guest.megabytes()) << 20;
        let topology = json!({
            "threads_per_core": 1, "cores_per_die": MAX_VCPUS, "dies_per_package": 1, "packages": 1,
        });
        let vsock = self.folder.join(self.runtime.vsock());
        match self.runtime {
            Runtime::Go => json!({
                "cpus": {"boot_vcpus": guest.processors(), "max_vcpus": MAX_VCPUS, "topology": topology},
                "memory": {
                    "size": size, "shared": true, "hugepages": false, "hotplug_size": HOTPLUG_MEMORY,
                },
                "payload": {"kernel": kernel, "initramfs": initramfs, "cmdline": cmdline},
                "platform": {"num_pci_segments": 2},
                "rng": {"src": "/dev/urandom", "iommu": false},
                "console": {"mode": "Off", "iommu": false},
                "serial": {"mode": "File", "file": vmm.serial()},
                "vsock": {"cid": 3, "socket": vsock, "iommu": false},
            }),
            Runtime::Rust => json!({
                "cpus": {
                    "boot_vcpus": guest.processors(), "max_vcpus": MAX_VCPUS, "topology": topology,
                    "kvm_hyperv": false, "max_phys_bits": 46, "features": {"amx": false},
                },
                "memory": {
                    "size": size, "mergeable": false, "hotplug_method": "Acpi",
                    "hotplug_size": HOTPLUG_MEMORY, "shared": true, "hugepages": false,
                    "prefault": false,
                },
                "payload": {
                    "firmware": null, "kernel": kernel, "cmdline": cmdline, "initramfs": initramfs,
                    "mrconfigid": null, "host_data": null,
                },
                "rng": {"src": "/dev/urandom", "iommu": false},
                "fs": [],
                "devices": [],
                "serial": {"file": vmm.serial(), "mode": "File", "iommu": false},
                "console": {"file": null, "mode": "Off", "iommu": false},
                "vsock": {"cid": 3, "socket": vsock, "iommu": false, "id": null, "pci_segment": 0},
                "iommu": false,
                "watchdog": false,
            }),
        }
    }
}

/// Both runtimes take devices on the first bus of the first segment only.
fn is_address(made: &Value) -> Result<()> {
    let address = made["bdf"].as_str().unwrap_or_default();
    let slot = address
        .strip_prefix("0000:00:")
        .and_then(|rest| rest.strip_suffix(".0"));
    ensure!(
        slot.is_some_and(|slot| slot.len() == 2),
        "Kata takes no such address: {made}"
    );
    Ok(())
}

/// Sends a request, with a descriptor perhaps: the runtime in Go in one piece, that in Rust the head first.
fn send(
    stream: &mut UnixStream,
    runtime: Runtime,
    request: &str,
    body: Option<&Value>,
    descriptor: Option<&File>,
) -> io::Result<()> {
    let (head, body) = api::written(request, body);
    let (first, rest) = match runtime {
        Runtime::Go => (head + &body, String::new()),
        Runtime::Rust => (head, body),
    };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<_> = descriptor.iter().map(|file| file.as_fd()).collect();
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    let slice = [IoSlice::new(first.as_bytes())];
    let sent = sendmsg(&*stream, &slice, &mut control, SendFlags::NOSIGNAL)?;
    stream.write_all(&first.as_bytes()[sent..])?;
    stream.write_all(rest.as_bytes())
}
