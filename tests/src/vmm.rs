// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A VMM's process.

use crate::api::{Api, Error};
use crate::guest::Guest;
use crate::lab::{self, Lab, Platform, VmmKind};
use crate::network;
use crate::pair;
use crate::process::Process;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Lines of each log that a failure shows.
const TAIL: usize = 40;

/// How long a VMM may take until its API answers.
const API_TIME: Duration = Duration::from_secs(30);

/// What vmm-reference says of the state of a device, and when it has none.
const STATE: &str = "state of an ivsmc device: ";
const NO_STATE: &str = "no state of an ivsmc device: ";

/// A running VMM; dropping it kills it.
#[derive(Debug)]
pub struct Vmm {
    kind: VmmKind,
    child: Child,
    folder: PathBuf,
    /// What the guest writes to its serial port: in the folder of the VMM that booted it.
    serial: PathBuf,
    api: Option<Api>,
}

impl Vmm {
    /// Starts a VMM for `guest`.
    pub fn start(lab: &Lab, guest: &Guest) -> Result<Self> {
        let folder = lab.log_folder(guest.name())?;
        let mut command = Command::new(lab.program());
        // A tap that the VMM makes itself is one for each VMM, also while two have the same guest.
        let tap = (!guest.can_move()).then(|| make_tap(lab, guest));
        let tap = tap.transpose()?;
        match (lab.vmm, &tap) {
            (VmmKind::Qemu, Some(tap)) => qemu(&mut command, lab, guest, tap, &folder),
            (VmmKind::Qemu, None) => bail!("QEMU's guests stay where they are"),
            (VmmKind::Reference | VmmKind::CloudHypervisor, _) => {
                rust_vmm(&mut command, lab, guest, tap.as_deref(), &folder);
            }
        }
        let serial = folder.join("serial.log");
        let vmm = Vmm::spawn(lab, command, folder, serial)?;
        if tap.is_none() {
            lab.network.adopt_tap(API_TIME)?;
        }
        Ok(vmm)
    }

    /// Starts a Cloud Hypervisor that is told all by its API: the VM is made, gets its network card, and boots. What Kata
    /// Containers' runtimes do in full is in [`kata`](crate::kata).
    pub fn start_by_api(lab: &Lab, guest: &Guest) -> Result<Self> {
        let folder = lab.log_folder(guest.name())?;
        let tap = make_tap(lab, guest)?;
        let serial = folder.join("serial.log");
        let vmm = Vmm::spawn(lab, Command::new(lab.program()), folder, serial.clone())?;
        vmm.wait_for_api(Api::is_up)?;
        let api = vmm.api()?;
        let config = json!({
            "cpus": {"boot_vcpus": guest.processors(), "max_vcpus": guest.processors()},
            "memory": {"size": u64::from(guest.megabytes()) << 20},
            "payload": {
                "kernel": lab.stage.join("bzImage"),
                "initramfs": lab.stage.join("guest.cpio"),
                "cmdline": command_line(lab, guest),
            },
            "console": {"mode": "Off"},
            "serial": {"mode": "File", "file": serial},
        });
        api.put_with("vm.create", &config)?;
        api.put_with("vm.add-net", &json!({"tap": tap, "mac": guest.mac()}))?;
        api.put("vm.boot")?;
        Ok(vmm)
    }

    /// Starts a Cloud Hypervisor for the guest of `other`, which it gets from a snapshot. The guest is paused.
    pub fn restore(lab: &Lab, guest: &Guest, snapshot: &Path, other: &Vmm) -> Result<Self> {
        let mut command = Command::new(lab.program());
        command
            .arg("--restore")
            .arg(prefixed("source_url=file://", snapshot));
        let vmm = Vmm::successor(lab, guest, command, other)?;
        vmm.wait_for_api(|api| {
            api.get("vm.info")
                .is_ok_and(|info| info["state"] == "Paused")
        })?;
        Ok(vmm)
    }

    /// Starts a Cloud Hypervisor without a guest, to which that of `other` can be moved.
    pub fn receiver(lab: &Lab, guest: &Guest, other: &Vmm) -> Result<Self> {
        let vmm = Vmm::successor(lab, guest, Command::new(lab.program()), other)?;
        vmm.wait_for_api(Api::is_up)?;
        Ok(vmm)
    }

    /// Moves its guest to another one, which has none.
    pub fn migrate(&self, lab: &Lab, receiver: &Vmm, local: bool) -> Result<()> {
        let (source, receiver) = (self.api()?, receiver.api()?);
        let socket = lab.run_folder().join("migration");
        let url = format!("unix:{}", socket.display());
        // The receiver of an earlier migration has left it.
        let _ = std::fs::remove_file(&socket);
        std::thread::scope(|scope| {
            let received = scope
                .spawn(|| receiver.put_with("vm.receive-migration", &json!({"receiver_url": url})));
            let start = Instant::now();
            while !socket.exists() {
                ensure!(
                    !received.is_finished() && start.elapsed() < API_TIME,
                    "the receiver does not listen after {:?}",
                    start.elapsed()
                );
                std::thread::sleep(Duration::from_millis(20));
            }
            // A guest that works may change its memory faster than it can be copied: then it is stopped.
            let body = json!({
                "destination_url": url,
                "local": local,
                "downtime_ms": 5000,
                "timeout_s": 20,
                "timeout_strategy": "Ignore",
            });
            source.put_with("vm.send-migration", &body)?;
            // It makes its tap when it has the guest's state; or it fails before.
            let moment = Duration::from_millis(100);
            let mut adopted = lab.network.adopt_tap(moment);
            while adopted.is_err() && !received.is_finished() {
                adopted = lab.network.adopt_tap(moment);
            }
            match received.join() {
                Ok(result) => {
                    result?;
                    Ok(adopted?)
                }
                Err(_) => bail!("the thread that receives has panicked"),
            }
        })
    }

    fn successor(lab: &Lab, guest: &Guest, command: Command, other: &Vmm) -> Result<Self> {
        let folder = lab.log_folder(guest.name())?;
        // The guest's configuration, which moves with it, names the file; it is begun anew.
        let _ = std::fs::rename(&other.serial, other.serial.with_extension("before.log"));
        Vmm::spawn(lab, command, folder, other.serial.clone())
    }

    /// Starts a Cloud Hypervisor that has its API socket at this path, and no VM.
    pub(crate) fn without_vm(lab: &Lab, guest: &Guest, socket: &Path) -> Result<Self> {
        let folder = lab.log_folder(guest.name())?;
        let serial = folder.join("serial.log");
        Vmm::spawn_at(
            lab,
            Command::new(lab.program()),
            folder,
            serial,
            socket.into(),
        )
    }

    fn spawn(lab: &Lab, command: Command, folder: PathBuf, serial: PathBuf) -> Result<Self> {
        // Sockets need a short path, and a file system that has them.
        let name = folder.file_name().context("a folder without a name")?;
        let socket = lab.run_folder().join(name).with_extension("api");
        Vmm::spawn_at(lab, command, folder, serial, socket)
    }

    fn spawn_at(
        lab: &Lab,
        mut command: Command,
        folder: PathBuf,
        serial: PathBuf,
        socket: PathBuf,
    ) -> Result<Self> {
        if lab.vmm != VmmKind::Qemu {
            // Links that come and go are in the log.
            command.arg("-v");
        }
        let api = if lab.vmm == VmmKind::CloudHypervisor {
            command
                .arg("--api-socket")
                .arg(prefixed("path=", &socket))
                .arg("--event-monitor")
                .arg(prefixed("path=", &folder.join("events.json")));
            Some(Api::new(socket))
        } else {
            None
        };
        let log = File::create(folder.join("vmm.log"))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        Ok(Vmm {
            kind: lab.vmm,
            child,
            folder,
            serial,
            api,
        })
    }

    fn wait_for_api(&self, ready: impl Fn(&Api) -> bool) -> Result<()> {
        let api = self.api()?;
        let start = Instant::now();
        while !ready(api) {
            ensure!(
                start.elapsed() < API_TIME,
                "the VMM is not ready after {API_TIME:?}\n{}",
                self.tails()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Its API.
    pub fn api(&self) -> Result<&Api> {
        self.api.as_ref().context("this VMM has no API")
    }

    /// Its process.
    pub fn process(&self) -> Process {
        Process(self.child.id())
    }

    /// What its event monitor has told of ivsmc devices.
    pub fn events(&self) -> Result<Vec<Value>> {
        let text = lab::read(&self.folder.join("events.json"))?;
        Ok(ivsmc_events(&text))
    }

    /// The counters of its ivsmc device.
    pub fn counters(&self) -> Result<BTreeMap<String, u64>> {
        let counters = self.api()?.get("vm.counters")?;
        serde_json::from_value(counters[pair::DEVICE].clone())
            .with_context(|| format!("counters of {}: {counters}", pair::DEVICE))
    }

    /// One of them.
    pub fn counter(&self, name: &str) -> Result<u64> {
        let counters = self.counters()?;
        let counter = counters.get(name).copied();
        counter.with_context(|| format!("there is no counter {name}: {counters:?}"))
    }

    /// What it has logged.
    pub fn log(&self) -> Result<String> {
        let log = lab::read(&self.folder.join("vmm.log"))?;
        Ok(String::from_utf8_lossy(&log).into_owned())
    }

    /// Takes a snapshot, of which nothing is kept; gives the reason if the VMM cannot take one. The guest goes on. What
    /// vmm-reference has of that is the state of its ivsmc devices.
    pub fn snapshot(&self, lab: &Lab) -> Result<Result<(), String>> {
        let Some(api) = &self.api else {
            return self.device_state();
        };
        let folder = lab.run_folder().join("no-snapshot");
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir(&folder)?;
        let url = format!("file://{}", folder.display());
        api.put("vm.pause")?;
        let taken = api.put_with("vm.snapshot", &json!({"destination_url": url}));
        api.put("vm.resume")?;
        std::fs::remove_dir_all(&folder)?;
        match taken {
            Ok(_) => Ok(Ok(())),
            Err(Error::Refused { text, .. }) => Ok(Err(text)),
            Err(error) => Err(error.into()),
        }
    }

    fn device_state(&self) -> Result<Result<(), String>> {
        let lines = || -> Result<Vec<String>> {
            let log = self.log()?;
            let ours = log.lines().filter(|line| line.contains(STATE));
            Ok(ours.map(str::to_owned).collect())
        };
        let before = lines()?.len();
        self.process().signal(libc::SIGUSR2)?;
        let start = Instant::now();
        loop {
            if let Some(line) = lines()?.get(before) {
                let failed = line.split_once(NO_STATE).map(|(_, why)| why.to_owned());
                return Ok(failed.map_or(Ok(()), Err));
            }
            ensure!(
                start.elapsed() < API_TIME,
                "the VMM does not take its devices' state"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Says what is wrong with the VMM, if anything is.
    pub fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("the VMM has ended: {status}");
        }
        // Cloud Hypervisor resets a guest that did this, and goes on as if nothing had been.
        if self.log()?.contains("triple-faulted") {
            bail!("the guest has triple-faulted");
        }
        Ok(())
    }

    /// Has a guest that does not answer any more write to its console where it hangs, where the VMM can do that.
    pub fn ask_where_it_hangs(&self) {
        // More than once, to see whether it moves.
        for _ in 0..3 {
            let asked = match &self.api {
                Some(api) => api.put("vm.nmi").is_ok(),
                // vmm-reference; QEMU would end.
                None if self.kind == VmmKind::Reference => {
                    self.process().signal(libc::SIGUSR1).is_ok()
                }
                None => false,
            };
            if asked {
                // It writes for a while, on a machine that may be slow.
                std::thread::sleep(Duration::from_secs(1));
            }
        }
    }

    /// Kills the VMM as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Stops the VMM, guest and all, or has it go on: a machine that is too busy to run it.
    pub fn stall(&self, stalled: bool) -> Result<()> {
        let process = i32::try_from(self.child.id())?;
        let signal = if stalled {
            libc::SIGSTOP
        } else {
            libc::SIGCONT
        };
        // SAFETY: takes no pointers. The child has not been waited for, or the VMM has ended, so the id is its own.
        if unsafe { libc::kill(process, signal) } < 0 {
            return Err(io::Error::last_os_error()).context("cannot stall the VMM");
        }
        Ok(())
    }

    /// Keeps the guest's processors on one of the machine's, as one does to measure: two that take turns on one
    /// wait for each other.
    pub fn pin(&self, processor: usize) -> Result<()> {
        for thread in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let thread = thread?;
            if std::fs::read_to_string(thread.path().join("comm"))?.starts_with("vcpu") {
                let done = Command::new("taskset")
                    .args(["-p", &format!("{:x}", 1u64 << processor)])
                    .arg(thread.file_name())
                    .stdout(Stdio::null())
                    .status()?;
                ensure!(done.success(), "taskset: {done}");
            }
        }
        Ok(())
    }

    /// Waits for the VMM to end by itself.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let start = Instant::now();
        while start.elapsed() < timeout {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("the VMM still runs after {timeout:?}")
    }

    /// The ends of the logs.
    pub fn tails(&self) -> String {
        let mut text = String::new();
        for path in [&self.serial, &self.folder.join("vmm.log")] {
            text += &format!(
                "{}the end of {}\n{}\n",
                lab::LOGS,
                path.display(),
                lab::tail(path, TAIL)
            );
        }
        text
    }

    /// What the guest writes to its serial port.
    pub(crate) fn serial(&self) -> &Path {
        &self.serial
    }

    /// The folder with the logs.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // If it has ended already there is nothing to do.
        let _ = self.kill();
    }
}

/// The guest's kernel command line.
pub(crate) fn command_line(lab: &Lab, guest: &Guest) -> String {
    // An uninterrupted boot writes little; what the kernel's checks report is to be seen.
    // One that hangs says where when it is asked to with an NMI.
    let mut line = String::from("console=ttyS0 panic=10 loglevel=5 unknown_nmi_panic");
    if lab.platform == Platform::Lab && lab.vmm != VmmKind::Qemu {
        // Guests in the lab lose the interrupts of the deadline timer.
        line += " lapic=notscdeadline";
    }
    line += &format!(
        " ivsmc.hostname={} ivsmc.ip={}/{} ivsmc.mode={}",
        guest.name(),
        guest.address(),
        network::PREFIX,
        guest.mode_at_boot()
    );
    if lab.vmm == VmmKind::Qemu && guest.device().is_some() {
        // ivpci takes no ivshmem device unless it is told to.
        line += " ivpci.ivshmem=1";
    }
    if !guest.kept_peers().is_empty() {
        let peers: Vec<String> = guest.kept_peers().iter().map(ToString::to_string).collect();
        line += &format!(" ivsmc.peers={}", peers.join(","));
    }
    line
}

/// Makes a guest's tap; gives its name.
pub(crate) fn make_tap(lab: &Lab, guest: &Guest) -> Result<String> {
    let tap = format!("iv-{}", guest.name());
    let made = lab.network.tap(&tap);
    made.with_context(|| format!("tap {tap}"))?;
    Ok(tap)
}

fn prefixed(prefix: &str, path: &Path) -> OsString {
    let mut text = OsString::from(prefix);
    text.push(path);
    text
}

fn rust_vmm(command: &mut Command, lab: &Lab, guest: &Guest, tap: Option<&str>, folder: &Path) {
    let shared = if guest.can_move() { ",shared=on" } else { "" };
    let tap = tap.map_or_else(String::new, |tap| format!("tap={tap},"));
    // Cloud Hypervisor has no vhost-net, and so no option for it.
    let vhost = if guest.has_vhost() { "" } else { ",vhost=off" };
    command
        .arg("--kernel")
        .arg(lab.stage.join("bzImage"))
        .arg("--initramfs")
        .arg(lab.stage.join("guest.cpio"))
        .args(["--cmdline", &command_line(lab, guest)])
        .args(["--cpus", &format!("boot={}", guest.processors())])
        .args(["--memory", &format!("size={}M{shared}", guest.megabytes())])
        .args(["--net", &format!("{tap}mac={}{vhost}", guest.mac())])
        .args(["--console", "off", "--serial"])
        .arg(prefixed("file=", &folder.join("serial.log")));
    if let Some(ivsmc) = guest.device() {
        command.args(["--ivsmc", ivsmc]);
    }
    if let Some(disk) = guest.disk_image() {
        let disk = format!("path={},image_type=raw", disk.display());
        command.args(["--disk", &disk]);
    }
    if guest.is_landlocked() {
        command.arg("--landlock");
    }
}

/// The objects of ivsmc devices in what an event monitor wrote; the last may not be whole yet.
fn ivsmc_events(text: &[u8]) -> Vec<Value> {
    serde_json::Deserializer::from_slice(text)
        .into_iter::<Value>()
        .map_while(Result::ok)
        .filter(|event| event["source"] == "ivsmc")
        .collect()
}

fn qemu(command: &mut Command, lab: &Lab, guest: &Guest, tap: &str, folder: &Path) {
    command
        .args([
            "-cpu",
            "max",
            "-accel",
            "tcg,thread=multi",
            "-display",
            "none",
            "-nodefaults",
        ])
        .args(["-smp", &guest.processors().to_string()])
        .args(["-m", &format!("{}M", guest.megabytes())])
        .arg("-kernel")
        .arg(lab.stage.join("bzImage"))
        .arg("-initrd")
        .arg(lab.stage.join("guest.cpio"))
        .args(["-append", &command_line(lab, guest)])
        .args([
            "-netdev",
            &format!("tap,id=net,ifname={tap},script=no,downscript=no"),
        ])
        .args([
            "-device",
            &format!("virtio-net-pci,netdev=net,mac={}", guest.mac()),
        ])
        .arg("-serial")
        .arg(prefixed("file:", &folder.join("serial.log")));
    if let Some(server) = guest.device() {
        command
            .args(["-chardev", &format!("socket,id=ivshmem,path={server}")])
            .args(["-device", "ivshmem-doorbell,chardev=ivshmem,vectors=2"]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_as_far_as_they_are_written() {
        let text = br#"{"source": "vmm", "event": "starting"}

            {"source": "ivsmc", "event": "link-up", "properties": {"id": "ivsmc0"}}

            {"source": "ivsmc", "ev"#;
        let events = ivsmc_events(text);
        assert_eq!(events.len(), 1);
        assert_eq!(events[0]["event"], "link-up");
    }
}
