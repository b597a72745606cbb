// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `ivsmc-host attach` beside the calls that Kata Containers' runtimes make.

use super::{Host, has_its_device};
use crate::guest::{Guest, Mode, Running};
use crate::kata::{Runtime, Sandbox};
use crate::lab::Lab;
use crate::pair::{BOTH, Pair};
use crate::suite::Suite;
use crate::suite::enable::{is_smc, is_smcd_after};
use crate::suite::life::works;
use anyhow::{Result, ensure};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// The file with a sandbox's labels.
const LABELS: &str = "ivsmc.labels";
/// How long what has happened may take to be noticed.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn add(suite: &mut Suite) {
    suite.add_for_cloud_hypervisor("host::kata_replay", |fixture| {
        fixture.without_pair(kata_replay)
    });
}

/// Where the agent has containers' processes: by the kubelet's names of systemd, in a guest with systemd and in one without;
/// by the kubelet's other names; by those of crictl and ctr.
const CONTAINERS: [&str; 5] = [
    "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-1.scope",
    "kubepods-burstable-pod2.slice/cri-containerd/2",
    "kubepods/besteffort/pod3/3",
    "k8s.io/4",
    "default/5",
];
/// Where the agent is.
const AGENT: &str = "system.slice/kata-agent.service";

/// The name of a sandbox.
fn id(letter: char) -> String {
    letter.to_string().repeat(64)
}

/// Pods of both runtimes have a link if their labels are a tenant's; a pod that has no labels gets nothing until it has;
/// one that the policy knows by its name has a fabric of its own. Devices are plugged, processors and memory added beside
/// that; pods end as Kata has them end, and others take their places.
fn kata_replay(lab: &Lab) -> Result<()> {
    let policy = format!(
        "sockets = [{:?}, {:?}]\nlabel_file = {LABELS:?}\n\
         [[fabric]]\nname = 'red'\nvms = ['c*']\n\
         [[fabric]]\nname = 'blue'\nlabels = {{ tenant = 'blue' }}\n",
        Runtime::Go.sockets(lab.run_folder()),
        Runtime::Rust.sockets(lab.run_folder()),
    );
    let guest = |name, host| Guest::new(name, host).mode(Mode::Off);
    let (a, b, c) = (guest("a", 2), guest("b", 3), guest("c", 4));
    let host = Host::with_policy(lab, &policy)?;

    let mut pod_a = Sandbox::new(lab, Runtime::Go, &id('a'))?;
    let mut pod_b = Sandbox::new(lab, Runtime::Rust, &id('b'))?;
    let mut pod_c = Sandbox::new(lab, Runtime::Rust, &id('c'))?;
    pod_a.write(LABELS, "tenant=blue\n")?;
    let booting = [pod_a.start(&a)?, pod_b.start(&b)?, pod_c.start(&c)?];
    let [a_runs, b_runs, c_runs] = booting.map(|booting| booting.ready());
    let mut pair = Pair::unlinked(a_runs?, b_runs?);
    let mut c_runs = c_runs?;
    ensure!(
        pod_b.info()?["config"]["ivsmc"].is_null(),
        "a pod without labels has a device"
    );

    // It gets its device while Kata plugs others.
    pod_b.write(LABELS, "tenant=blue\n")?;
    plug(lab, &mut pod_b, &mut pair.b)?;
    has_its_device(&mut pair.a, &host, "blue")?;
    has_its_device(&mut pair.b, &host, "blue")?;
    has_its_device(&mut c_runs, &host, "red")?;
    works(&mut pair).map_err(|error| pair.explain(error))?;
    containers_have_smc(&mut pair).map_err(|error| pair.explain(error))?;
    plug(lab, &mut pod_a, &mut pair.a)?;
    works(&mut pair).map_err(|error| pair.explain(error))?;
    c_runs.wait_for_links(0, PATIENCE)?;

    pod_a.stop(pair.a.vmm())?;
    pair.b.wait_for_links(0, PATIENCE)?;
    let mut pod_d = Sandbox::new(lab, Runtime::Go, &id('d'))?;
    pod_d.write(LABELS, "tenant=blue\n")?;
    pair.a = pod_d.start(&a)?.ready()?;
    has_its_device(&mut pair.a, &host, "blue")?;
    works(&mut pair).map_err(|error| pair.explain(error))?;

    pod_b.stop(pair.b.vmm())?;
    pair.a.wait_for_links(0, PATIENCE)?;
    let mut pod_e = Sandbox::new(lab, Runtime::Rust, &id('e'))?;
    pod_e.write(LABELS, "tenant=blue\n")?;
    pair.b = pod_e.start(&b)?.ready()?;
    has_its_device(&mut pair.b, &host, "blue")?;
    works(&mut pair).map_err(|error| pair.explain(error))?;

    only_these_are_left(&host, &[id('d'), id('e')])?;
    c_runs.wait_for_links(0, PATIENCE)?;
    pair.check_health()?;
    c_runs.check_health()?;
    pod_c.stop(c_runs.vmm())?;
    pod_d.stop(pair.a.vmm())?;
    pod_e.stop(pair.b.vmm())
}

/// Sets both guests up as Kata's image does; then programs in containers' cgroups, and no others, have SMC sockets and
/// talk SMC-D.
fn containers_have_smc(pair: &mut Pair) -> Result<()> {
    let policy = include_str!("../../../../host/kata/guest/enable.toml");
    let setup = include_str!("../../../../host/kata/guest/setup");
    let within = |cgroup: &str| {
        format!("mkdir -p /sys/fs/cgroup/{cgroup}; echo $$ >/sys/fs/cgroup/{cgroup}/cgroup.procs;")
    };
    for guest in [&mut pair.a, &mut pair.b] {
        guest.shell("mkdir -p /etc/ivsmc")?;
        for (file, text) in [("/etc/ivsmc/enable.toml", policy), ("/tmp/setup", setup)] {
            guest.shell(&format!("cat >{file} <<'END'\n{text}\nEND"))?;
        }
        // As a hook it runs for each container.
        guest.shell("sh /tmp/setup && sh /tmp/setup")?;
        for cgroup in CONTAINERS.into_iter().chain([AGENT]) {
            let started = format!("busybox sh -c '{} exec \"$@\"' -", within(cgroup));
            let wanted = cgroup != AGENT;
            ensure!(is_smc(guest, &started)? == wanted, "{cgroup}");
        }
    }
    for (cgroup, from) in CONTAINERS.iter().zip(BOTH) {
        ensure!(
            is_smcd_after(pair, from, &within(cgroup))?,
            "{cgroup}, from {from:?}"
        );
    }
    Ok(())
}

/// Gives a pod processors, memory, a disk and a network card, as Kata does for its containers, and takes the disk away.
fn plug(lab: &Lab, pod: &mut Sandbox, guest: &mut Running) -> Result<()> {
    let image = lab.run_folder().join("disk.img");
    std::fs::write(&image, vec![0; 1 << 20])?;
    pod.resize_vcpus(2)?;
    pod.add_memory(256 << 20)?;
    let disk = pod.add_disk(&image)?;
    guest.wait_until(PATIENCE, |guest| {
        let disks = guest.shell("ls /sys/block")?;
        Ok((!disks.contains("vda")).then(|| format!("there is no disk: {disks}")))
    })?;
    pod.add_another_net()?;
    guest.wait_until(PATIENCE, |guest| {
        let cards = guest.shell("ls /sys/class/net")?;
        Ok((!cards.contains("eth1")).then(|| format!("there is no second card: {cards}")))
    })?;
    pod.remove(&disk)?;
    guest.wait_until(PATIENCE, |guest| {
        let disks = guest.shell("ls /sys/block")?;
        Ok(disks
            .contains("vda")
            .then(|| "there still is the disk".into()))
    })?;
    pod.ping()
}

/// Waits until nothing but the sockets of these pods is in the folder of the fabric.
fn only_these_are_left(host: &Host, pods: &[String]) -> Result<()> {
    let wanted: BTreeSet<_> = pods.iter().map(Into::into).collect();
    let start = Instant::now();
    loop {
        let files = std::fs::read_dir(host.fabric("blue"))?;
        let names: BTreeSet<_> = files
            .map(|file| Ok(file?.file_name()))
            .collect::<Result<_>>()?;
        if names == wanted {
            return Ok(());
        }
        ensure!(start.elapsed() < PATIENCE, "{names:?}, not {wanted:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
