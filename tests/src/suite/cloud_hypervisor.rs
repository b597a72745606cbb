// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What only Cloud Hypervisor can do: devices that come and go, snapshots, migration; what its counters, its events
//! and its threads say; what it makes of requests and peers that are no good.

use super::Suite;
use super::life::{ends_soon, start_endless, works};
use super::options;
use crate::api::{Api, Error};
use crate::guest::{Guest, Mode, Running, SMC_PORT};
use crate::intruder;
use crate::lab::Lab;
use crate::pair::{BOTH, DEVICE as ID, From, LINK_TIME, Pair, traffic_command};
use crate::process::{Footprint, Thread};
use crate::vmm::Vmm;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};
use vmm_device_ivsmc::peer::Client;

pub(super) fn add(suite: &mut Suite) {
    suite.add_for_cloud_hypervisor("cloud_hypervisor::hotplug", |fixture| {
        fixture.without_pair(hotplug)
    });
    suite.add_for_cloud_hypervisor("cloud_hypervisor::pause_and_resume", |fixture| {
        fixture.with_pair(Mode::NoCopy, pause_and_resume)
    });
    suite.add_for_cloud_hypervisor("cloud_hypervisor::landlock", |fixture| {
        fixture.without_pair(landlock)
    });
    suite.add_for_cloud_hypervisor("cloud_hypervisor::snapshot_under_load", |fixture| {
        fixture.without_pair(snapshot_under_load)
    });
    for (name, local) in [("local", true), ("by_copying", false)] {
        let name = format!("cloud_hypervisor::migration_{name}");
        suite.add_for_cloud_hypervisor(&name, move |fixture| {
            fixture.without_pair(|lab| migration(lab, local))
        });
    }
    suite.add_for_cloud_hypervisor("cloud_hypervisor::quiet_threads", |fixture| {
        fixture.with_pair(Mode::NoCopy, quiet_threads)
    });
    suite.add_for_cloud_hypervisor("cloud_hypervisor::bad_requests_are_named", |fixture| {
        let bad = options::bad_ones(&fixture.lab)?;
        fixture.with_pair(Mode::NoCopy, |pair| bad_requests_are_named(pair, bad))
    });
    suite.add_for_cloud_hypervisor("cloud_hypervisor::hostile_peers", |fixture| {
        let path = fixture.lab.run_folder().join("a");
        fixture.with_pair(Mode::NoCopy, |pair| hostile_peers(pair, &path))
    });
    suite.add_for_cloud_hypervisor("cloud_hypervisor::bars_are_moved", |fixture| {
        fixture.with_pair(Mode::NoCopy, bars_are_moved)
    });
}

/// How long a guest may take to notice that a device comes or goes.
const PLUG_TIME: Duration = Duration::from_secs(30);
/// How long a VMM may take to tell of something in its events, or to give something back.
const NOTICE: Duration = Duration::from_secs(20);
/// How often a device goes and comes.
const ROUNDS: usize = 20;

/// Tries until it is so.
fn wait_until(
    what: &str,
    timeout: Duration,
    mut is_so: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let start = Instant::now();
    while !is_so()? {
        ensure!(start.elapsed() < timeout, "not after {timeout:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

// --- hotplug

/// Plugs a device into a guest; its peer is the other guest's.
fn plug(guest: &mut Running, folder: &Path) -> Result<()> {
    let name = guest.guest().name().to_owned();
    let peer = if name == "a" { "b" } else { "a" };
    let body = json!({"id": ID, "path": folder.join(&name), "peer": [folder.join(peer)]});
    let answer = guest.vmm().api()?.put_with("vm.add-ivsmc", &body)?;
    ensure!(
        answer["id"] == ID && answer["bdf"].is_string(),
        "vm.add-ivsmc: {answer}"
    );
    wait_for_device(guest, true)?;
    let info = guest.vmm().api()?.get("vm.info")?;
    ensure!(
        info["config"]["ivsmc"][0]["id"] == ID && info["device_tree"].get(ID).is_some(),
        "vm.info does not show the device: {info}"
    );
    Ok(())
}

fn unplug(guest: &mut Running) -> Result<()> {
    let api = guest.vmm().api()?;
    api.put_with("vm.remove-device", &json!({"id": ID}))?;
    Ok(())
}

/// Waits until the guest has, or no longer has, a device.
pub(super) fn wait_for_device(guest: &mut Running, there: bool) -> Result<()> {
    let what = if there {
        "the guest has a device"
    } else {
        "the guest has no device"
    };
    wait_until(what, PLUG_TIME, || {
        Ok(guest.shell(FIND_DEVICE)?.trim().is_empty() != there)
    })
}

/// Prints the folders in sysfs of all devices of ours.
const FIND_DEVICE: &str = "for d in /sys/bus/pci/devices/*; do \
    [ \"$(cat $d/vendor $d/device)\" = \"$(printf '0x1af4\\n0x1110')\" ] && echo $d; done; true";

/// What each VMM of a pair holds, and how many windows are memory slots.
fn footprints(pair: &mut Pair) -> Result<[(Footprint, u64); 2]> {
    let [a, b] = [&mut pair.a, &mut pair.b].map(|guest| -> Result<_> {
        let slots = guest.vmm().counter("windows")?;
        Ok((guest.vmm().process().footprint()?, slots))
    });
    Ok([a?, b?])
}

/// Waits until both VMMs hold what they held before.
fn wait_for_footprints(pair: &mut Pair, wanted: &[(Footprint, u64); 2]) -> Result<()> {
    let mut now = footprints(pair)?;
    let same = wait_until("both VMMs hold what they held before", NOTICE, || {
        now = footprints(pair)?;
        Ok(now == *wanted)
    });
    same.with_context(|| {
        let mut text = String::new();
        for ((guest, wanted), now) in [&mut pair.a, &mut pair.b].into_iter().zip(wanted).zip(&now) {
            let descriptors = guest.vmm().process().descriptors();
            text += &format!(
                "VMM of {}: before {} and {} slots, now {} and {} slots; descriptors: {descriptors:?}\n",
                guest.guest().name(),
                wanted.0,
                wanted.1,
                now.0,
                now.1,
            );
        }
        text
    })
}

fn hotplug(lab: &Lab) -> Result<()> {
    let guest = |name, host| Guest::new(name, host).mode(Mode::Off);
    let (a, b) = (guest("a", 2), guest("b", 3));
    let (a, b) = (a.start(lab)?, b.start(lab)?);
    let mut pair = Pair::unlinked(a.ready()?, b.ready()?);
    let result = hotplug_rounds(&mut pair, lab.run_folder()).and_then(|()| pair.check_health());
    result.map_err(|error| pair.explain(error))
}

fn hotplug_rounds(pair: &mut Pair, folder: &Path) -> Result<()> {
    for guest in [&mut pair.a, &mut pair.b] {
        plug(guest, folder)?;
        guest.load_driver(Mode::NoCopy)?;
    }
    works(pair)?;
    let wanted = footprints(pair)?;
    println!("after the first plug: a {}, b {}", wanted[0].0, wanted[1].0);
    for round in 0..ROUNDS {
        let from = BOTH[round % 2];
        unplug_under_load(pair, from, folder)
            .and_then(|()| wait_for_footprints(pair, &wanted))
            .with_context(|| format!("round {} of {ROUNDS}", round + 1))?;
    }
    println!("after {ROUNDS} rounds more: the same");
    Ok(())
}

fn unplug_under_load(pair: &mut Pair, from: From, folder: &Path) -> Result<()> {
    let ids = start_both(pair)?;
    unplug(pair.ends(from).0)?;
    end_both(pair, ids)?;
    let (guest, other) = pair.ends(from);
    wait_for_device(guest, false)?;
    other.wait_for_link(false, LINK_TIME)?;
    let api = guest.vmm().api()?;
    wait_until("vm.info shows no device", PLUG_TIME, || {
        let info = api.get("vm.info")?;
        let left = info["config"]["ivsmc"].as_array().map_or(0, Vec::len);
        Ok(left == 0 && info["device_tree"].get(ID).is_none())
    })?;
    plug(guest, folder)?;
    works(pair)
}

/// Endless traffic from each to the other.
fn start_both(pair: &mut Pair) -> Result<[u64; 2]> {
    Ok([start_endless(pair, From::A)?, start_endless(pair, From::B)?])
}

/// Both have to end with an error.
fn end_both(pair: &mut Pair, ids: [u64; 2]) -> Result<()> {
    for (from, id) in BOTH.into_iter().zip(ids) {
        ends_soon(pair, from, id)?;
    }
    Ok(())
}

// --- pauses and confinement

/// How long guests are paused, one after the other.
const PAUSES: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_secs(1),
    Duration::from_secs(30),
];
/// How long traffic may stand still.
const STILL: Duration = Duration::from_secs(60);
/// How many signals more show that traffic goes on.
const SOME: u64 = 20;

/// Traffic between guests goes on, however slowly. With one message under way at a time, one wake-up that is lost stops
/// it for good.
fn goes_on(pair: &mut Pair) -> Result<()> {
    let mut sent = || -> Result<u64> { Ok(pair.b.counters()?["signals_sent"]) };
    let before = sent()?;
    wait_until("traffic goes on", STILL, || Ok(sent()? >= before + SOME))
}

/// A guest that is paused goes on where it was, and so do its connections. No guest polls, which would make up for an
/// interrupt that is lost.
fn pause_and_resume(pair: &mut Pair) -> Result<()> {
    let polls = [pair.a.poll_for(0)?, pair.b.poll_for(0)?];
    let links_up = pair.a.vmm().counter("links_up")?;
    let address = format!("{}:{SMC_PORT}", pair.a.address());
    let traffic = traffic_command("ping-pong --count 100000000", &address, "--smc");
    let id = pair.b.agent().spawn(&traffic)?;
    for pause in PAUSES {
        for from in BOTH {
            goes_on(pair)?;
            let (guest, _) = pair.ends(from);
            let (name, api) = (guest.guest().name().to_owned(), guest.vmm().api()?.clone());
            api.put("vm.pause")?;
            std::thread::sleep(pause);
            api.put("vm.resume")?;
            goes_on(pair).with_context(|| format!("after {name} was paused for {pause:?}"))?;
        }
    }
    let ended = pair.b.agent().wait(id, Duration::ZERO)?;
    ensure!(ended.is_none(), "the traffic has ended: {ended:?}");
    pair.b.agent().kill(id, libc::SIGKILL)?;
    pair.b.agent().wait(id, NOTICE)?;
    ensure!(
        pair.a.vmm().counter("links_up")? == links_up,
        "the link has come up anew"
    );
    pair.a.poll_for(polls[0])?;
    pair.b.poll_for(polls[1])?;
    works(pair)
}

/// Landlock lets a device do what it has to: make and remove its socket, look into its folder of peers, join.
fn landlock(lab: &Lab) -> Result<()> {
    let folder = lab.run_folder().join("landlock");
    std::fs::create_dir(&folder)?;
    let option = |name: &str| format!("path={0}/{name},peer={0},id={ID}", folder.display());
    let guest = |name, host| Guest::new(name, host).ivsmc(option(name)).landlocked();
    let (a, b) = (guest("a", 2), guest("b", 3));
    let (booting_a, booting_b) = (a.start(lab)?, b.start(lab)?);
    let mut pair = Pair::of(booting_a.ready()?, booting_b.ready()?)?;
    let result = (|| {
        works(&mut pair)?;
        // A killed one leaves its socket, which the next one replaces; one that ends removes it.
        pair.b.vmm().kill()?;
        pair.a.wait_for_link(false, LINK_TIME)?;
        pair.b = b.boot(lab)?;
        works(&mut pair)?;
        pair.b.vmm().api()?.put("vmm.shutdown")?;
        pair.b.vmm().wait(NOTICE)?;
        ensure!(
            !folder.join("b").exists(),
            "the socket of a VMM that has ended is still there"
        );
        pair.a.wait_for_link(false, LINK_TIME)?;
        pair.a.check_health()
    })();
    let result = result.map_err(|error| pair.explain(error));
    // The folder's name is for this test's next run.
    drop(pair);
    std::fs::remove_dir_all(&folder)?;
    result
}

// --- snapshot and migration

/// How many events of a kind a VMM has told of.
fn count_events(vmm: &Vmm, kind: &str) -> Result<usize> {
    let events = vmm.events()?;
    Ok(events.iter().filter(|event| event["event"] == kind).count())
}

/// Waits until a VMM has told of more events of a kind than `before`; gives the last one.
fn wait_for_event(vmm: &Vmm, kind: &str, before: usize) -> Result<Value> {
    wait_until(&format!("there is an event {kind}"), NOTICE, || {
        Ok(count_events(vmm, kind)? > before)
    })
    .with_context(|| format!("events: {:?}", vmm.events().unwrap_or_default()))?;
    let event = vmm
        .events()?
        .into_iter()
        .rfind(|event| event["event"] == kind);
    let event = event.context("an event is gone")?;
    ensure!(
        event["properties"]["id"] == ID && event["properties"]["peer"].is_string(),
        "an event does not say which device or peer it is about: {event}"
    );
    Ok(event)
}

fn snapshot_under_load(lab: &Lab) -> Result<()> {
    let folder = lab.run_folder().join("snapshot");
    let [guest, _] = Pair::guests(lab)?;
    let mut pair = Pair::boot(lab)?;
    let result = (|| {
        works(&mut pair)?;
        let ids = start_both(&mut pair)?;
        let resets = count_events(pair.b.vmm(), "link-reset")?;
        std::fs::create_dir(&folder)?;
        let api = pair.a.vmm().api()?.clone();
        api.put("vm.pause")?;
        let url = format!("file://{}", folder.display());
        api.put_with("vm.snapshot", &json!({"destination_url": url}))?;

        let killed = Instant::now();
        pair.a.vmm().kill()?;
        let event = wait_for_event(pair.b.vmm(), "link-reset", resets)?;
        let told = killed.elapsed();
        ends_soon(&mut pair, From::B, ids[1])?;
        println!(
            "the peer told of the reset {told:?} after the VMM was killed, and its connection had ended after \
             {:?}: {}",
            killed.elapsed(),
            event["properties"]
        );
        pair.b.wait_for_link(false, LINK_TIME)?;

        let vmm = Vmm::restore(lab, &guest, &folder, pair.a.vmm())?;
        vmm.api()?.put("vm.resume")?;
        pair.a.continue_in(vmm)?;
        ends_soon(&mut pair, From::A, ids[0])?;
        works(&mut pair)?;
        pair.check_health()
    })();
    // What is left of a test that failed is in memory that others need.
    let removed = std::fs::remove_dir_all(&folder);
    result.map_err(|error| pair.explain(error))?;
    Ok(removed?)
}

fn migration(lab: &Lab, local: bool) -> Result<()> {
    let [a, b] = Pair::guests(lab)?;
    let a = a.movable();
    let (booting_a, booting_b) = (a.start(lab)?, b.start(lab)?);
    let mut pair = Pair::of(booting_a.ready()?, booting_b.ready()?)?;
    let result = (|| {
        works(&mut pair)?;
        let ids = start_both(&mut pair)?;
        let resets = count_events(pair.b.vmm(), "link-reset")?;
        let receiver = Vmm::receiver(lab, &a, pair.a.vmm())?;
        let started = Instant::now();
        pair.a.vmm().migrate(lab, &receiver, local)?;
        let event = wait_for_event(pair.b.vmm(), "link-reset", resets)?;
        println!(
            "the peer told of the reset {:?} after the migration had begun: {}",
            started.elapsed(),
            event["properties"]
        );
        let mut source = pair.a.continue_in(receiver)?;
        let status = source.wait(NOTICE).context("the VMM that had the guest")?;
        ensure!(status.success(), "the VMM that had the guest: {status}");
        end_both(&mut pair, ids)?;
        works(&mut pair)?;
        pair.check_health()
    })();
    result.map_err(|error| pair.explain(error))
}

// --- threads

/// How long threads are watched.
const WATCH: Duration = Duration::from_secs(5);

/// Whether a thread may work while data flows over SMC-D: guests' processors, and their virtio-net.
fn may_work(thread: &Thread) -> bool {
    thread.name.starts_with("vcpu") || thread.name.contains("net")
}

/// What the threads of both VMMs work in a while, in ticks, by guest, name and id.
fn work(pair: &mut Pair) -> Result<BTreeMap<(String, String, u32), u64>> {
    let mut threads = |what: &mut dyn FnMut((String, String, u32), u64)| -> Result<()> {
        for guest in [&mut pair.a, &mut pair.b] {
            let name = guest.guest().name().to_owned();
            for thread in guest.vmm().process().threads()? {
                let mark = if may_work(&thread) { "*" } else { "" };
                what((name.clone(), thread.name + mark, thread.id), thread.ticks);
            }
        }
        Ok(())
    };
    let mut before = BTreeMap::new();
    threads(&mut |thread, ticks| {
        before.insert(thread, ticks);
    })?;
    std::thread::sleep(WATCH);
    let mut done = BTreeMap::new();
    threads(&mut |thread, ticks| {
        let before = before.get(&thread).copied().unwrap_or(0);
        done.insert(thread, ticks - before);
    })?;
    Ok(done)
}

fn quiet_threads(pair: &mut Pair) -> Result<()> {
    works(pair)?;
    let idle = work(pair)?;
    let stream = start_endless(pair, From::B)?;
    let address = format!("{}:{SMC_PORT}", pair.b.address());
    let ping_pong = traffic_command("ping-pong --count 100000000", &address, "--smc");
    let ping_pong = pair.a.agent().spawn(&ping_pong)?;
    // Until its connection is made, and the network is quiet again.
    std::thread::sleep(Duration::from_secs(2));

    let trapped = |pair: &mut Pair| -> Result<[u64; 2]> {
        let [a, b] =
            [&mut pair.a, &mut pair.b].map(|guest| guest.vmm().counter("doorbells_trapped"));
        Ok([a?, b?])
    };
    let moved = |pair: &mut Pair| -> Result<[u64; 2]> {
        let [a, b] = [&mut pair.a, &mut pair.b].map(Running::counters);
        Ok([a?["signals_sent"], b?["signals_sent"]])
    };
    let before = (trapped(pair)?, moved(pair)?);
    let busy = work(pair)?;
    let after = (trapped(pair)?, moved(pair)?);

    println!("ticks of 10 ms in {WATCH:?}, idle and with a stream and a ping-pong (*: may work)");
    let mut loud = Vec::new();
    for (thread, ticks) in &busy {
        let (guest, name, id) = thread;
        let idle = idle.get(thread).copied().unwrap_or(0);
        println!("  {guest} {name:<20} {id:>6} {idle:>5} {ticks:>5}");
        if !name.ends_with('*') && *ticks > idle + 1 {
            loud.push(name);
        }
    }
    println!("doorbells trapped: {:?}, then {:?}", before.0, after.0);
    for (guest, id) in [(&mut pair.b, stream), (&mut pair.a, ping_pong)] {
        let ended = guest.agent().wait(id, Duration::ZERO)?;
        ensure!(ended.is_none(), "the traffic has ended: {ended:?}");
        guest.agent().kill(id, libc::SIGKILL)?;
        guest.agent().wait(id, NOTICE)?;
    }
    ensure!(
        after
            .1
            .iter()
            .zip(&before.1)
            .all(|(after, before)| after > before),
        "nothing was sent meanwhile: {before:?}, {after:?}"
    );
    ensure!(
        loud.is_empty(),
        "these threads worked while data flowed: {loud:?}"
    );
    ensure!(
        before.0 == after.0,
        "doorbells went through the VMM: {:?} before, {:?} after",
        before.0,
        after.0
    );
    Ok(())
}

// --- what is no good

fn bad_requests_are_named(pair: &mut Pair, bad: Vec<options::Bad>) -> Result<()> {
    let api = pair.a.vmm().api()?.clone();
    let before = api.get("vm.info")?["config"]["ivsmc"].clone();
    for bad in &bad {
        let Some(body) = &bad.body else {
            continue;
        };
        bad.check(&refusal(&api, body)?)
            .with_context(|| format!("vm.add-ivsmc {body}"))?;
    }
    let folder = pair.a.guest().device().and_then(|option| {
        let path = option
            .split(',')
            .find_map(|part| part.strip_prefix("path="))?;
        Path::new(path).parent()
    });
    let folder = folder.context("the guest has no device")?.to_owned();
    let path = folder.join("second");
    let (own, other) = (folder.join("a"), folder.join("b"));
    for (body, words) in [
        (json!({"path": own}), &["Duplicated device path", "/a"][..]),
        (json!({"path": path, "id": ID}), &[ID]),
        (json!({"path": path, "id": "__x"}), &["__x"]),
        (json!({"path": path, "pci_segment": 99}), &["segment", "99"]),
        (json!({"path": path, "pci_device_id": 77}), &["77"]),
        (json!({"path": 7}), &["path"]),
    ] {
        let said = refusal(&api, &body)?;
        for word in words {
            ensure!(
                said.contains(word),
                "vm.add-ivsmc {body}: no {word:?} in: {said}"
            );
        }
    }
    // More often than the bus has slots.
    for _ in 0..40 {
        let said = refusal(&api, &json!({"path": other}))?;
        ensure!(said.contains("in use"), "a socket of another VMM's: {said}");
    }
    // What is answered to such requests differs between releases, but not between kinds of devices.
    for (ours, theirs) in [
        (json!({"path": own}), json!({"id": ID})),
        (json!({"path": path, "id": ID}), json!({"id": ID})),
        (json!({"path": path, "max_peers": 0}), json!({"id": "__x"})),
        (json!({"path": 7}), json!({"id": 7})),
    ] {
        let (ours, _) = refusal_of(&api, "vm.add-ivsmc", &ours)?;
        let (theirs, _) = refusal_of(&api, "vm.add-net", &theirs)?;
        ensure!(ours == theirs, "status {ours}, of a network card {theirs}");
    }
    let unknown = api.put_with("vm.remove-device", &json!({"id": "nobody"}));
    ensure!(
        unknown.is_err(),
        "vm.remove-device removes what is not there"
    );
    let after = api.get("vm.info")?["config"]["ivsmc"].clone();
    ensure!(
        before == after,
        "the configuration has changed: {before}, then {after}"
    );
    works(pair)
}

/// The request for a device has to be refused; gives what the VMM says.
fn refusal(api: &Api, body: &Value) -> Result<String> {
    Ok(refusal_of(api, "vm.add-ivsmc", body)?.1)
}

/// The request has to be refused; gives HTTP's status and what the VMM says.
fn refusal_of(api: &Api, request: &str, body: &Value) -> Result<(u16, String)> {
    match api.put_with(request, body) {
        Ok(answer) => bail!("{request} {body} is accepted: {answer}"),
        Err(Error::Refused {
            status: status @ 400..=599,
            text,
            ..
        }) => Ok((status, text)),
        Err(error) => Err(error).with_context(|| format!("{request} {body}")),
    }
}

/// Bytes without meaning that are sent.
const NOISE: usize = 10_000;
/// Connections that are made and left.
const CONNECTS: usize = 1000;

fn hostile_peers(pair: &mut Pair, path: &Path) -> Result<()> {
    works(pair)?;
    let flowing = start_endless(pair, From::B)?;
    let wanted = footprints(pair)?;
    let connect = || Client::connect(path, NOTICE).context("cannot connect to the device");

    let say = |packet: &[u8]| -> Result<()> {
        let client = connect()?;
        // The device may have closed the connection; that is its right.
        let _ = client.send(packet, &[]);
        let end = client.end(NOTICE);
        end.map(drop)
            .with_context(|| format!("the device hears {} bytes that are no good", packet.len()))
    };

    // Of a fabric that is another. It is first, as events are not told for each of many.
    say(&intruder::hello(0xff01))?;
    wait_until(
        "there is an event that tells of the other fabric",
        NOTICE,
        || {
            let refused = |event: &Value| {
                let why = event["properties"]["reason"].as_str().unwrap_or("");
                event["event"] == "refused" && why.contains("fabric")
            };
            Ok(pair.a.vmm().events()?.iter().any(refused))
        },
    )?;

    // In one packet, which is too long for any message; in many; and as messages begin.
    let noise = intruder::noise(NOISE);
    say(&noise)?;
    for packet in noise.chunks(50) {
        say(packet)?;
    }
    let hello = intruder::hello(0xff00);
    for length in 1..hello.len() {
        say(&hello[..length])?;
    }
    for _ in 0..CONNECTS {
        connect()?;
    }
    // These stay: one that says nothing, one that says half of it, and more than may wait at a time.
    let silent = connect()?;
    let half = connect()?;
    half.send(&hello, &[])?;
    let crowd: Vec<_> = (0..100).map(|_| connect()).collect::<Result<_>>()?;
    std::thread::sleep(Duration::from_secs(3));
    // The VMM has given up on all of them by itself. It keeps one socket, of the one that was sent descriptors and has not
    // taken them.
    let mut kept = wanted;
    kept[0].0.descriptors += 1;
    wait_for_footprints(pair, &kept)?;
    drop(half);
    wait_for_footprints(pair, &wanted)?;
    drop((silent, crowd));

    let ended = pair.b.agent().wait(flowing, Duration::ZERO)?;
    ensure!(ended.is_none(), "the traffic has ended: {ended:?}");
    pair.b.agent().kill(flowing, libc::SIGKILL)?;
    pair.b.agent().wait(flowing, NOTICE)?;
    println!("counters: {:?}", pair.a.vmm().counters()?);
    works(pair)
}

// --- BARs

/// The guest takes the device away and finds it again, and gives it other addresses than it had.
fn bars_are_moved(pair: &mut Pair) -> Result<()> {
    for from in BOTH {
        let (guest, _) = pair.ends(from);
        let device = guest.shell(FIND_DEVICE)?.trim().to_owned();
        let bars = |guest: &mut Running| guest.shell(&format!("head -n 3 {device}/resource"));
        guest.shell("rmmod ivpci")?;
        let before = bars(guest)?;
        guest.shell(&format!(
            "echo 1 >{device}/remove && echo 1 >/sys/bus/pci/rescan"
        ))?;
        let after = bars(guest)?;
        println!("BARs of {}:\n{before}then\n{after}", guest.guest().name());
        ensure!(before != after, "the guest has moved nothing");
        guest.load_driver(Mode::NoCopy)?;
        works(pair)?;
    }
    Ok(())
}
