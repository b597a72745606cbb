// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The attach loop, with VMMs that are well and others that are not.

mod links;
mod program;
mod vmm;

use ivsmc_host::attach::{Timing, attach};
use ivsmc_host::list::{Listing, list};
use ivsmc_host::policy::Policy;
use ivsmc_host::scan::scan;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use vmm::{Mode, Vmm, listen_at};

/// How long anything may take: far longer than it does.
const LIMIT: Duration = Duration::from_secs(60);

/// A folder with VMs' sockets in it, and one for fabrics.
struct Host {
    folder: TempDir,
}

/// A loop that ends with this.
struct Running(JoinHandle<()>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Host {
    fn new() -> Self {
        // A short path, whatever TMPDIR is: sockets have to fit.
        let folder = tempfile::Builder::new().prefix("ivsmc-").tempdir_in("/tmp");
        let host = Host {
            folder: folder.unwrap(),
        };
        fs::create_dir(host.at("vms")).unwrap();
        host
    }

    fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(path)
    }

    fn socket(&self, vm: &str) -> PathBuf {
        self.at("vms").join(vm).join("api.sock")
    }

    /// Where a VM's device is to listen.
    fn device(&self, fabric: &str, vm: &str) -> String {
        self.at("run").join(fabric).join(vm).display().to_string()
    }

    /// A policy for all of `vms/*/api.sock`, with these fabrics.
    fn text(&self, fabrics: &str) -> String {
        let pattern = self.at("vms/*/api.sock");
        let folder = self.at("").display().to_string();
        format!(
            "sockets = [{pattern:?}]\nlabel_file = \"labels\"\n{}",
            fabrics.replace("FOLDER/", &folder)
        )
    }

    fn policy(&self, fabrics: &str) -> Policy {
        Policy::parse(&self.text(fabrics), &self.at("run")).unwrap()
    }

    fn attach(&self, fabrics: &str, timing: Timing) -> Running {
        let policy = self.policy(fabrics);
        Running(tokio::spawn(async move {
            match attach(policy, timing).await {}
        }))
    }

    async fn list(&self, fabrics: &str) -> Listing {
        list(self.policy(fabrics), Duration::from_millis(500)).await
    }
}

const ALL: &str = "[[fabric]]\nname = \"all\"\nvms = [\"*\"]\n";

fn quick() -> Timing {
    Timing::default().faster(20)
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < LIMIT, "it is not so: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Long enough for several looks at everything.
async fn some_rounds() {
    sleep(Duration::from_secs(2)).await;
}

#[tokio::test]
async fn vms_of_a_fabric_get_devices() {
    let host = Host::new();
    let fabrics = "[[fabric]]\nname = \"web\"\nvms = [\"w*\"]\nsize = \"16M\"\nmax_peers = 3\nvectors = 2\n\
                   fabric_id = 0xff01\nhugepages = true\nallow = [1000, \"1001\"]\npci_segment = 1\n";
    let one = Vmm::start(host.socket("w1"));
    let _running = host.attach(fabrics, quick());
    until("w1 has a device", || one.paths().len() == 1).await;
    // Another one that comes later, and one that no rule matches.
    let (two, other) = (Vmm::start(host.socket("w2")), Vmm::start(host.socket("x")));
    until("w2 has a device", || two.paths().len() == 1).await;
    assert_eq!(
        one.state().devices[0],
        json!({
            "id": "ivsmc-host", "pci_segment": 1, "path": host.device("web", "w1"),
            "peer": [host.at("run/web")], "size": 16 << 20, "max_peers": 3, "vectors": 2,
            "fabric_id": 0xff01, "hugepages": true, "allow": [1000, 1001],
        })
    );
    assert_eq!(two.paths(), [host.device("web", "w2")]);
    some_rounds().await;
    assert_eq!(one.state().adds, 1);
    assert_eq!(other.state().calls, 0, "it was none of its business");
    let mode = fs::metadata(host.at("run/web")).unwrap().mode();
    assert_eq!(mode & 0o7777, 0o700);
    let listing = host.list(fabrics).await;
    assert_eq!(listing.fabrics[0].attached, 2);
    let devices: Vec<_> = listing
        .vms
        .iter()
        .map(|vm| (vm.name.as_str(), vm.attached))
        .collect();
    assert_eq!(devices, [("w1", true), ("w2", true), ("x", false)]);
    assert!(listing.vms[2].why.as_ref().unwrap().contains("no fabric"));
}

#[tokio::test]
async fn fabrics_never_share_a_folder() {
    let host = Host::new();
    let fabrics = "[[fabric]]\nname = \"blue\"\nlabels = { tenant = \"blue\" }\n\
                   [[fabric]]\nname = \"red\"\nlabels = { tenant = \"red\", \"app/x\" = \"w*\" }\n\
                   [[fabric]]\nname = \"rest\"\nsockets = [\"FOLDER/vms/r*/api.sock\"]\n";
    let labels = [
        ("b1", "tenant=blue", "blue"),
        ("b2", "tenant = blue\napp/x=web", "blue"),
        ("r1", "tenant=red\napp/x=web", "red"),
        ("r2", "tenant=red\napp/x=db", "rest"),
        ("r3", "", "rest"),
        ("b3", "tenant=bluegreen", ""),
        ("r4", "tenant", ""),
        ("r5", "tenant=blue\ntenant=red", ""),
    ];
    let mut vms = Vec::new();
    for (vm, labels, fabric) in labels {
        fs::create_dir(host.at("vms").join(vm)).unwrap();
        fs::write(host.at("vms").join(vm).join("labels"), labels).unwrap();
        vms.push((Vmm::start(host.socket(vm)), vm, fabric));
    }
    let _running = host.attach(fabrics, quick());
    for (vmm, vm, fabric) in vms.iter().filter(|(.., fabric)| !fabric.is_empty()) {
        until("it has a device", || !vmm.paths().is_empty()).await;
        let device = vmm.state().devices[0].clone();
        assert_eq!(device["path"], Value::from(host.device(fabric, vm)));
        assert_eq!(device["peer"], json!([host.at("run").join(fabric)]));
    }
    some_rounds().await;
    for (vmm, vm, fabric) in &vms {
        assert_eq!(vmm.paths().len(), usize::from(!fabric.is_empty()), "{vm}");
    }
    let listing = host.list(fabrics).await;
    let line = listing.vms.iter().find(|line| line.name == "r4").unwrap();
    assert!(line.why.as_ref().unwrap().contains("key=value"), "{line:?}");
    // Labels of a VM that has a device do not move it.
    fs::write(host.at("vms/b1/labels"), "tenant=red\napp/x=web").unwrap();
    some_rounds().await;
    assert_eq!(vms[0].0.paths(), [host.device("blue", "b1")]);
    let listing = host.list(fabrics).await;
    let why = listing.vms[0].why.as_ref().unwrap();
    assert!(why.contains("remove-device ivsmc-host"), "{why}");
}

const BAD: [Mode; 13] = [
    Mode::Silent,
    Mode::Half,
    Mode::Cut,
    Mode::EndlessBody,
    Mode::EndlessHead,
    Mode::EndlessInterim,
    Mode::Garbage,
    Mode::NotJson,
    Mode::OtherJson,
    Mode::Status(500),
    Mode::Status(404),
    Mode::Status(301),
    Mode::NoCall,
];

#[tokio::test]
async fn a_vm_that_hangs_delays_no_other() {
    let host = Host::new();
    // Calls that hang do so for longer than this test may last.
    let timing = Timing {
        call: 10 * LIMIT,
        ..quick()
    };
    let bad: Vec<_> = (0..40)
        .map(|n| {
            let mode = [Mode::Silent, Mode::Half, Mode::EndlessInterim][n % 3];
            Vmm::with(host.socket(&format!("bad{n}")), mode, Ok("Running"))
        })
        .collect();
    let _running = host.attach(ALL, timing);
    until("all hang", || bad.iter().all(|vmm| vmm.state().calls > 0)).await;
    for n in 0..5 {
        let good = Vmm::start(host.socket(&format!("good{n}")));
        until("it has a device", || !good.paths().is_empty()).await;
    }
    assert!(bad.iter().all(|vmm| vmm.state().calls == 1));
}

#[tokio::test]
async fn whatever_a_vmm_says_it_is_served_when_it_is_well() {
    let host = Host::new();
    let bad = BAD.map(|mode| {
        let name = format!("{mode:?}").replace(['(', ')'], "");
        Vmm::with(host.socket(&name), mode, Ok("Running"))
    });
    let _running = host.attach(ALL, quick());
    until("each was asked again", || {
        bad.iter().all(|vmm| vmm.state().calls > 2)
    })
    .await;
    let listing = host.list(ALL).await;
    for vm in &listing.vms {
        let why = vm.why.as_deref().unwrap_or_default();
        assert!(!vm.attached && !why.is_empty() && why.len() < 500, "{vm:?}");
        assert!(!why.contains(char::is_control), "{vm:?}");
    }
    for vmm in &bad {
        vmm.state().mode = Mode::Good;
    }
    for vmm in &bad {
        until("it has a device", || !vmm.paths().is_empty()).await;
    }
}

#[tokio::test]
async fn a_device_that_was_added_without_an_answer_is_found() {
    let host = Host::new();
    let vmm = Vmm::with(host.socket("a"), Mode::AddsSilently, Ok("Running"));
    let _running = host.attach(ALL, quick());
    until("it has a device", || !vmm.paths().is_empty()).await;
    let calls = vmm.state().calls;
    until("it is asked again", || vmm.state().calls > calls + 2).await;
    assert_eq!(vmm.state().adds, 1);
}

#[tokio::test]
async fn a_vm_that_is_deleted_meanwhile_is_waited_for() {
    let host = Host::new();
    let vmm = Vmm::with(host.socket("a"), Mode::Deletes, Ok("Running"));
    let _running = host.attach(ALL, quick());
    until("it was deleted", || vmm.state().vm.is_err()).await;
    let calls = vmm.state().calls;
    until("it is asked again", || vmm.state().calls > calls + 2).await;
    assert_eq!(vmm.state().adds, 1);
    vmm.state().mode = Mode::Good;
    vmm.state().vm = Ok("Running");
    until("it has a device", || !vmm.paths().is_empty()).await;
}

#[tokio::test]
async fn devices_that_are_there_are_left_alone() {
    let host = Host::new();
    let vms = ["other", "ours", "elsewhere"].map(|vm| Vmm::start(host.socket(vm)));
    let devices = [
        json!({"id": "_ivsmc0", "path": "/run/x"}),
        json!({"id": "ivsmc-host", "path": host.device("all", "ours")}),
        json!({"id": "ivsmc-host", "path": "/run/y"}),
    ];
    for (vmm, device) in vms.iter().zip(devices) {
        vmm.state().devices.push(device);
    }
    let _running = host.attach(ALL, quick());
    until("all were asked", || {
        vms.iter().all(|vmm| vmm.state().calls > 2)
    })
    .await;
    assert!(vms.iter().all(|vmm| vmm.state().adds == 0));
    let listing = host.list(ALL).await;
    let attached: Vec<_> = listing.vms.iter().map(|vm| vm.attached).collect();
    // By name: elsewhere, other, ours.
    assert_eq!(attached, [false, false, true]);
    assert!(listing.vms[1].why.as_ref().unwrap().contains("_ivsmc0"));
}

#[tokio::test]
async fn states_of_a_vm() {
    let host = Host::new();
    let old = Vmm::with(host.socket("old"), Mode::Good, Err(500));
    let new = Vmm::with(host.socket("new"), Mode::Good, Err(404));
    let paused = Vmm::with(host.socket("paused"), Mode::Good, Ok("Paused"));
    let _running = host.attach(ALL, quick());
    let all = [&old, &new, &paused];
    until("all were asked", || {
        all.iter().all(|vmm| vmm.state().calls > 3)
    })
    .await;
    assert!(all.iter().all(|vmm| vmm.state().adds == 0));
    // Before it boots, so that it boots with it.
    old.state().vm = Ok("Created");
    new.state().vm = Ok("Running");
    until("it has a device", || !old.paths().is_empty()).await;
    until("it has a device", || !new.paths().is_empty()).await;
    assert!(paused.paths().is_empty());
    paused.state().vm = Ok("Running");
    until("it has a device", || !paused.paths().is_empty()).await;
    // Another VM in the same VMM.
    old.state().devices.clear();
    until("it has one again", || !old.paths().is_empty()).await;
}

#[tokio::test]
async fn a_vmm_at_the_same_path_is_another_one() {
    let host = Host::new();
    // Nothing is looked at again by itself.
    let timing = Timing {
        recheck: 10 * LIMIT,
        retry: 10 * LIMIT,
        ..quick()
    };
    let _running = host.attach(ALL, timing);
    for _ in 0..5 {
        let vmm = Vmm::start(host.socket("a"));
        until("it has a device", || !vmm.paths().is_empty()).await;
    }
    // Its folder is removed and made again, as Kata Containers does.
    fs::remove_dir_all(host.at("vms")).unwrap();
    some_rounds().await;
    let vmm = Vmm::start(host.socket("a"));
    until("it has a device", || !vmm.paths().is_empty()).await;
}

#[tokio::test]
async fn links_and_names_that_are_none() {
    let host = Host::new();
    let elsewhere = Vmm::start(host.at("else/b/api.sock"));
    symlink(host.at("else/b"), host.at("vms/b")).unwrap();
    fs::create_dir(host.at("vms/c")).unwrap();
    symlink(&elsewhere.socket, host.socket("c")).unwrap();
    let odd = ["sp ace", "-x", ".y", "ne\nw", "ümlaut", &"l".repeat(65)];
    let odd = odd.map(|name| Vmm::start(host.socket(name)));
    fs::write(host.at("vms/file"), "").unwrap();
    fs::create_dir_all(host.socket("folder")).unwrap();
    let good = Vmm::start(host.socket(&"g".repeat(64)));
    let _running = host.attach(ALL, quick());
    until("it has a device", || !good.paths().is_empty()).await;
    some_rounds().await;
    assert_eq!(elsewhere.state().calls, 0);
    assert!(odd.iter().all(|vmm| vmm.state().calls == 0));
    let listing = host.list(ALL).await;
    assert_eq!(listing.vms.len(), 1);
    assert_eq!(listing.skipped.len(), 8, "{:?}", listing.skipped);
    assert!(
        listing
            .skipped
            .iter()
            .all(|skipped| !skipped.path.contains('\n'))
    );
}

#[tokio::test]
async fn what_was_found_is_what_is_called() {
    let host = Host::new();
    let policy = host.policy(ALL);
    let look = || scan(&policy, &policy.patterns[0]).found.remove(0);
    let vmm = Vmm::start(host.socket("a"));
    let found = look();
    assert!(found.open().is_ok());
    drop(vmm);
    let _other = Vmm::start(host.socket("a"));
    assert!(found.open().is_err(), "another socket in its place");
    let found = look();
    fs::rename(host.at("vms/a"), host.at("vms/b")).unwrap();
    assert!(found.open().is_err(), "it is gone");
    symlink(host.at("vms/b"), host.at("vms/a")).unwrap();
    assert!(found.open().is_err(), "it is behind a link");
    fs::remove_file(host.at("vms/a")).unwrap();
    fs::rename(host.at("vms/b"), host.at("vms/a")).unwrap();
    assert!(found.open().is_ok());
}

#[tokio::test]
async fn the_same_name_twice_in_a_fabric() {
    let host = Host::new();
    let pattern = host.at("*/*/api.sock");
    let text = format!(
        "sockets = [{pattern:?}]\n[[fabric]]\nname = \"one\"\nsockets = [{:?}]\n{ALL}",
        host.at("vms3/*/*")
    );
    let policy = Policy::parse(&text, &host.at("run")).unwrap();
    let vms = ["vms/a", "vms2/a", "vms3/a"].map(|vm| Vmm::start(host.at(vm).join("api.sock")));
    let [first, second, third] = &vms;
    let _running = Running(tokio::spawn(async move {
        match attach(policy, quick()).await {}
    }));
    // That of another fabric is another one.
    until("it has a device", || !third.paths().is_empty()).await;
    some_rounds().await;
    assert!(first.paths().is_empty() && second.paths().is_empty());
    fs::remove_file(&second.socket).unwrap();
    until("it has a device", || !first.paths().is_empty()).await;
}

#[tokio::test]
async fn what_dead_vms_leave_is_removed_and_nothing_else() {
    let host = Host::new();
    let folder = host.at("run/all");
    fs::create_dir_all(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
    let at = |name: &str| folder.join(name);
    // Left by a VM; in use by one that is not known, or by another program; of a name that is not ours; no socket; of a VM that is there.
    for name in ["dead", ".other", "there"] {
        drop(listen_at(&at(name)).unwrap());
    }
    let _live = listen_at(&at("live")).unwrap();
    fs::write(at("file"), "").unwrap();
    fs::create_dir(at("folder")).unwrap();
    symlink(at("dead"), at("link")).unwrap();
    let _stream = UnixListener::bind(at("stream")).unwrap();
    let _there = Vmm::with(host.socket("there"), Mode::Silent, Ok("Running"));
    let vmm = Vmm::start(host.socket("a"));
    let _running = host.attach(ALL, quick());
    until("it has a device", || !vmm.paths().is_empty()).await;
    until("it is removed", || !at("dead").exists()).await;
    drop(vmm);
    fs::remove_file(host.socket("a")).unwrap();
    until("it is removed", || !at("a").exists()).await;
    some_rounds().await;
    let mut left: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    let kept = [
        ".other", "file", "folder", "link", "live", "stream", "there",
    ];
    assert_eq!(left, kept);
}

#[tokio::test]
async fn folders_are_there_before_any_vm() {
    let host = Host::new();
    let group = fs::metadata(host.at("vms")).unwrap().gid();
    let fabrics = format!("{ALL}[[fabric]]\nname = \"b\"\nvms = [\"b\"]\ngroup = {group}\n");
    let _running = host.attach(&fabrics, quick());
    for (fabric, mode) in [("all", 0o700), ("b", 0o3770)] {
        let folder = host.at("run").join(fabric);
        let has_mode = |folder: fs::Metadata| folder.mode() & 0o7777 == mode;
        until("it is there", || fs::metadata(&folder).is_ok_and(has_mode)).await;
    }
}

#[tokio::test]
async fn folders_that_are_not_for_a_fabric() {
    let host = Host::new();
    let vmm = Vmm::start(host.socket("a"));
    fs::create_dir_all(host.at("run")).unwrap();
    fs::create_dir(host.at("mine")).unwrap();
    symlink(host.at("mine"), host.at("run/all")).unwrap();
    let _running = host.attach(ALL, quick());
    until("it was asked", || vmm.state().calls > 2).await;
    assert_eq!(vmm.state().adds, 0);
    fs::remove_file(host.at("run/all")).unwrap();
    fs::create_dir(host.at("run/all")).unwrap();
    fs::set_permissions(host.at("run/all"), fs::Permissions::from_mode(0o777)).unwrap();
    let calls = vmm.state().calls;
    until("it was asked", || vmm.state().calls > calls + 2).await;
    let adds = vmm.state().adds;
    // Between the two of them it had the mode of an ordinary folder.
    assert!(adds <= 1, "{adds}");
    fs::set_permissions(host.at("run/all"), fs::Permissions::from_mode(0o700)).unwrap();
    until("it has a device", || !vmm.paths().is_empty()).await;
}
