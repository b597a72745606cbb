// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `ivsmc-host attach` beside VMs that know nothing of it. What it makes of VMMs that are no good is tested in host/tests.

mod kata;

use super::Suite;
use super::cloud_hypervisor::wait_for_device;
use super::life::{ends_soon, falls_back_to_peer, start_endless, works};
use crate::guest::{Guest, Mode, Running};
use crate::lab::Lab;
use crate::pair::{From, LINK_TIME, Pair};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How often a VM is killed and started again.
const ROUNDS: usize = 20;
/// How long a VM may be without its device.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn add(suite: &mut Suite) {
    suite.add_for_cloud_hypervisor("host::devices_by_policy", |fixture| {
        fixture.without_pair(devices_by_policy)
    });
    suite.add_for_cloud_hypervisor("host::links_are_listed_and_dropped", |fixture| {
        fixture.without_pair(links_are_listed_and_dropped)
    });
    kata::add(suite);
}

/// A running `ivsmc-host attach`; dropping it kills it.
struct Host<'a> {
    lab: &'a Lab,
    policy: PathBuf,
    run_folder: PathBuf,
    child: Option<Child>,
}

impl<'a> Host<'a> {
    fn start(lab: &'a Lab) -> Result<Self> {
        let policy = format!(
            "sockets = ['{}/*.api']\n\
             [[fabric]]\nname = 'blue'\nvms = ['*-a', '*-b']\n\
             [[fabric]]\nname = 'red'\nvms = ['*-c']\n",
            lab.run_folder().display()
        );
        Host::with_policy(lab, &policy)
    }

    /// Starts it with this policy.
    fn with_policy(lab: &'a Lab, text: &str) -> Result<Self> {
        let sockets = lab.run_folder();
        let policy = sockets.join("host.toml");
        std::fs::write(&policy, text)?;
        let mut host = Host {
            lab,
            policy,
            run_folder: sockets.join("fabrics"),
            child: None,
        };
        host.begin()?;
        Ok(host)
    }

    fn begin(&mut self) -> Result<()> {
        let log = self.lab.out.join("ivsmc-host.log");
        let log = File::options().create(true).append(true).open(log)?;
        let child = Command::new(self.lab.host_tool())
            .arg("attach")
            .arg("--policy")
            .arg(&self.policy)
            .arg("--run-dir")
            .arg(&self.run_folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn();
        self.child = Some(child.context("cannot start ivsmc-host")?);
        Ok(())
    }

    /// What another command of the program's says.
    fn run(&self, words: &[&str]) -> Result<String> {
        let output = Command::new(self.lab.host_tool())
            .args(words)
            .arg("--policy")
            .arg(&self.policy)
            .arg("--run-dir")
            .arg(&self.run_folder)
            .stdin(Stdio::null())
            .output()?;
        ensure!(output.status.success(), "{words:?}: {output:?}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// What `list` says of the VM of a guest. (Guests of earlier tests have left sockets.)
    fn vm(&self, guest: &str) -> Result<Value> {
        let listing: Value = serde_json::from_str(&self.run(&["list", "--json"])?)?;
        let mut vms = listing["vms"].as_array().into_iter().flatten();
        let end = format!("-{guest}");
        let is_its = |vm: &&Value| {
            let name = vm["name"].as_str().unwrap_or_default();
            vm["attached"] == true && name.ends_with(&end)
        };
        vms.find(is_its).cloned().context(format!("{listing}"))
    }

    /// The folder of a fabric.
    fn fabric(&self, name: &str) -> PathBuf {
        self.run_folder.join(name)
    }

    fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }
}

impl Drop for Host<'_> {
    fn drop(&mut self) {
        // If it has ended already there is nothing to do.
        let _ = self.kill();
    }
}

/// Two VMs of one fabric get devices and have a link, also when one of them and `ivsmc-host` are killed again and again; the
/// VM of another fabric gets a device, and no link.
fn devices_by_policy(lab: &Lab) -> Result<()> {
    let guest = |name, host| Guest::new(name, host).mode(Mode::Off);
    let (a, b, c) = (guest("a", 2), guest("b", 3), guest("c", 4));
    let mut host = Host::start(lab)?;
    let booting = [&a, &b, &c].map(|guest| guest.start_by_api(lab));
    let [a, other, c] = booting.map(|booting| booting?.ready());
    let mut pair = Pair::unlinked(a?, other?);
    let mut c = c?;
    for (guest, fabric) in [
        (&mut pair.a, "blue"),
        (&mut pair.b, "blue"),
        (&mut c, "red"),
    ] {
        has_its_device(guest, &host, fabric)?;
    }
    works(&mut pair).map_err(|error| pair.explain(error))?;
    for round in 0..ROUNDS {
        // Before the VM is, while it is gone, while it boots, or not at all.
        let when = round % 4;
        if when == 0 {
            host.kill()?;
        }
        pair.b.vmm().kill()?;
        if when == 1 {
            host.kill()?;
        }
        let booting = b.start_by_api(lab)?;
        if when == 2 {
            host.kill()?;
        }
        if when < 3 {
            host.begin()?;
        }
        pair.b = booting.ready()?;
        has_its_device(&mut pair.b, &host, "blue")
            .and_then(|()| works(&mut pair))
            .map_err(|error| pair.explain(error))
            .with_context(|| format!("round {} of {ROUNDS}", round + 1))?;
        c.wait_for_links(0, PATIENCE)?;
    }
    pair.check_health()?;
    c.check_health()
}

/// How long to look whether a link comes up that must not: tries are a second apart at most.
const TRIES: Duration = Duration::from_secs(5);

/// The link of two VMs is listed by both, and ends when it is dropped, with the connection over it. New connections are TCP
/// until the peer is allowed again.
fn links_are_listed_and_dropped(lab: &Lab) -> Result<()> {
    let guest = |name, host| Guest::new(name, host).mode(Mode::Off);
    let (a, b) = (guest("a", 2), guest("b", 3));
    let host = Host::start(lab)?;
    let booting = [&a, &b].map(|guest| guest.start_by_api(lab));
    let [a, b] = booting.map(|booting| booting?.ready());
    let mut pair = Pair::unlinked(a?, b?);
    for guest in [&mut pair.a, &mut pair.b] {
        has_its_device(guest, &host, "blue")?;
    }
    let result = list_and_drop(&mut pair, &host).and_then(|()| pair.check_health());
    result.map_err(|error| pair.explain(error))
}

fn list_and_drop(pair: &mut Pair, host: &Host) -> Result<()> {
    works(pair)?;
    let (a, b) = (host.vm("a")?, host.vm("b")?);
    let names = [&a, &b].map(|vm| vm["name"].as_str().unwrap_or_default());
    for (vm, peer) in [(&a, names[1]), (&b, names[0])] {
        let links = vm["links"].as_array().map(Vec::as_slice);
        let [link] = links.unwrap_or_default() else {
            anyhow::bail!("not one link: {vm}");
        };
        ensure!(
            link["state"] == "up" && link["claimed"] == true && link["vm"] == peer,
            "{vm}"
        );
    }
    println!("{}", host.run(&["list"])?);
    let id = start_endless(pair, From::B)?;
    println!("{}", host.run(&["drop", names[0], names[1]])?);
    ends_soon(pair, From::B, id)?;
    for guest in [&mut pair.a, &mut pair.b] {
        guest.wait_for_links(0, LINK_TIME)?;
        guest.wait_for_no_buffers(LINK_TIME)?;
    }
    std::thread::sleep(TRIES);
    for guest in [&mut pair.a, &mut pair.b] {
        guest.wait_for_links(0, Duration::ZERO)?;
    }
    falls_back_to_peer(pair, "")?;
    println!("{}", host.run(&["list"])?);
    let (a, b) = (host.vm("a")?, host.vm("b")?);
    ensure!(
        a["links"] == serde_json::json!([]) && a["refused"][0]["vm"] == names[1],
        "{a}"
    );
    ensure!(b["links"] == serde_json::json!([]), "{b}");
    println!("{}", host.run(&["allow", names[0], names[1]])?);
    works(pair)?;
    let a = host.vm("a")?;
    ensure!(a["refused"] == serde_json::json!([]), "{a}");
    ensure!(a["links"][0]["state"] == "up", "{a}");
    Ok(())
}

/// Waits until a guest has one device, that of this fabric, and loads its driver.
fn has_its_device(guest: &mut Running, host: &Host, fabric: &str) -> Result<()> {
    let folder = host.fabric(fabric);
    let start = Instant::now();
    loop {
        let info = guest.vmm().api()?.get("vm.info")?;
        let devices = info["config"]["ivsmc"].as_array();
        let paths: Vec<_> = devices
            .into_iter()
            .flatten()
            .map(|device| PathBuf::from(device["path"].as_str().unwrap_or_default()))
            .collect();
        if let [path] = paths.as_slice()
            && path.starts_with(&folder)
        {
            break;
        }
        ensure!(
            paths.is_empty() && start.elapsed() < PATIENCE,
            "{paths:?}, and not one in {}",
            folder.display()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    wait_for_device(guest, true)?;
    guest.load_driver(Mode::NoCopy)
}
