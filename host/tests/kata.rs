// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The files of host/kata: the policies are policies, and say of Kata's sandboxes what docs/kata.md says.

use ivsmc_host::labels;
use ivsmc_host::name::Name;
use ivsmc_host::policy::Policy;
use std::path::Path;
use std::process::Command;

/// A sandbox's name.
const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/kata"))
}

fn policy(file: &str) -> Policy {
    Policy::read(&folder().join(file), Path::new("/run/ivsmc")).unwrap()
}

/// The fabric of a sandbox with this API socket, and with labels as in this file.
fn fabric<'a>(policy: &'a Policy, socket: &str, file: &str) -> Option<&'a str> {
    let socket = socket.replace("ID", ID);
    let name = Name::new(ID.as_bytes()).unwrap();
    let labels = labels::parse(file.as_bytes()).unwrap();
    let place = policy.fabric_of(&name, Path::new(&socket), &labels)?;
    Some(policy.fabrics[place].name.as_str())
}

#[test]
fn pods_are_told_apart_by_their_namespace() {
    let policy = policy("host.toml");
    assert_eq!(policy.label_file.as_deref(), Some("ivsmc.labels"));
    for socket in ["/run/vc/vm/ID/clh-api.sock", "/run/kata/ID/ch-api.sock"] {
        let of = |labels| fabric(&policy, socket, labels);
        assert_eq!(of("namespace=shop\npod=redis\n"), Some("shop"));
        assert_eq!(
            of("namespace=shop\npod=redis\nfabric=payment\n"),
            Some("shop-payment")
        );
        assert_eq!(of("namespace=blog\nfabric=payment\n"), Some("blog"));
        assert_eq!(of("namespace=shopper\n"), None);
        assert_eq!(of(""), None);
    }
}

#[test]
fn rootless_vmms_are_admitted_by_their_group() {
    let policy = policy("host-rootless.toml");
    let socket = "/run/user/1001/run/vc/vm/ID/clh-api.sock";
    assert_eq!(fabric(&policy, socket, ""), Some("all"));
    let [all] = policy.fabrics.as_slice() else {
        panic!("{policy:?}");
    };
    let group = all.group.unwrap();
    let (device, _) = all.device_of(&Name::new(ID.as_bytes()).unwrap());
    assert_eq!(
        serde_json::to_value(device.allow).unwrap().to_string(),
        format!("[\"group:{group}\"]")
    );
}

#[test]
fn what_kata_reads_is_toml_and_json() {
    let read = |file| std::fs::read_to_string(folder().join(file)).unwrap();
    let config: toml::Table = toml::from_str(&read("config.d/50-ivsmc.toml")).unwrap();
    assert!(config["hypervisor"]["clh"]["path"].is_str());
    let pod: serde_json::Value = serde_json::from_str(&read("kubernetes/crictl-pod.json")).unwrap();
    assert_eq!(pod["metadata"]["namespace"], "shop");
}

/// What a pod says of itself does not get it another pod's labels.
#[test]
fn labels_are_made_of_what_containerd_says() {
    if Command::new("jq").arg("--version").output().is_err() {
        eprintln!("skipped: there is no jq");
        return;
    }
    let run = tempfile::tempdir().unwrap();
    let pod = |id: &str, bundle: &str| {
        std::fs::create_dir_all(run.path().join("vm").join(id)).unwrap();
        std::fs::create_dir_all(run.path().join("bundles").join(id)).unwrap();
        let file = run.path().join("bundles").join(id).join("config.json");
        std::fs::write(file, bundle).unwrap();
    };
    let of = |namespace: &str, fabric: &str| {
        format!(
            "{{\"annotations\": {{\"io.kubernetes.cri.sandbox-namespace\": \"{namespace}\", \
             \"io.kubernetes.cri.sandbox-name\": \"web\", \"ivsmc.fabric\": \"{fabric}\"}}}}"
        )
    };
    pod("a", &of("shop", "payment"));
    pod("b", &of("blog", "payment\\nnamespace=shop"));
    pod("c", "{");
    pod("d", "{}");
    std::fs::create_dir(run.path().join("vm/e")).unwrap();
    let done = Command::new(folder().join("labels/ivsmc-kata-labels"))
        .arg("--once")
        .args(["bundles", "vm", "none"].map(|name| run.path().join(name)))
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
    let labels = |id: &str| {
        let file = run.path().join("vm").join(id).join("ivsmc.labels");
        std::fs::read_to_string(file).ok()
    };
    assert_eq!(
        labels("a").unwrap(),
        "namespace=shop\npod=web\nfabric=payment\n"
    );
    assert_eq!(labels("b").unwrap(), "namespace=blog\npod=web\n");
    assert_eq!(labels("c"), None);
    assert_eq!(labels("d").unwrap(), "");
    assert_eq!(labels("e"), None);
}
