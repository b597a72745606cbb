// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Links that are listed and dropped, of VMMs that tell of them well, badly and never.

use super::program::{command, output};
use super::vmm::{Mode, Vmm};
use super::{ALL, Host, LIMIT};
use ivsmc_host::drop_link::{Wanted, Wish, drop_link};
use ivsmc_host::list::Listing;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const TWO: &str = "[[fabric]]\nname = \"blue\"\nlabels = { t = \"b\" }\n\
                   [[fabric]]\nname = \"all\"\nvms = [\"*\"]\n";

fn gid(n: u8) -> String {
    format!("{n:08x}-0000-4000-8000-000000000000")
}

fn link(number: usize, state: &str, peer: u8, path: Value) -> Value {
    json!({
        "link": number, "state": state, "peer": gid(peer), "path": path, "side": 1, "size": 64 << 20,
        "vectors": 4, "generation": 2, "claimed": true, "up_seconds": if state == "up" { json!(75) } else { Value::Null },
        "colour": "green",
    })
}

/// A VMM whose VM has its device already.
fn attached(host: &Host, vm: &str, mode: Mode) -> Vmm {
    let vmm = Vmm::with(host.socket(vm), mode, Ok("Running"));
    let device = json!({"id": "ivsmc-host", "path": host.device("all", vm)});
    vmm.state().devices.push(device);
    vmm
}

/// A VM with a link to the VM b and one to somebody else, one that is lost to what was b before, and a peer that it refuses.
fn busy(host: &Host, vm: &str) -> Vmm {
    let vmm = attached(host, vm, Mode::Good);
    let b = host.device("all", "b");
    vmm.state().links = vec![
        link(0, "up", 2, b.clone().into()),
        link(1, "up", 3, Value::Null),
        link(2, "lost", 4, b.into()),
        link(3, "up", 5, "/elsewhere\u{1b}[31m/x".into()),
    ];
    let refused = json!({"peer": gid(6), "path": host.device("all", "f")});
    vmm.state().refused.push(refused);
    vmm
}

async fn do_it(
    host: &Host,
    fabrics: &str,
    words: [&str; 2],
    fabric: Option<&str>,
    wish: Wish,
) -> Result<String, String> {
    let wanted = Wanted {
        vm: words[0].into(),
        peer: words[1].into(),
        fabric: fabric.map(Into::into),
    };
    let limit = Duration::from_millis(500);
    let done = drop_link(host.policy(fabrics), &wanted, wish, limit).await;
    done.map_err(|error| error.to_string())
}

#[tokio::test]
async fn links_are_listed() {
    let host = Host::new();
    let vmm = busy(&host, "a");
    let booting = attached(&host, "new", Mode::Good);
    booting.state().vm = Ok("Created");
    let mut list = command(&host, ALL, "list");
    list.arg("--json");
    let listing: Listing = serde_json::from_slice(&output(list).await.stdout).unwrap();
    assert_eq!(listing, host.list(ALL).await);
    let (a, new) = (&listing.vms[0], &listing.vms[1]);
    let links = a.links.as_ref().unwrap();
    let vms: Vec<_> = links.iter().map(|each| each.vm.as_deref()).collect();
    assert_eq!(vms, [Some("b"), None, Some("b"), None]);
    assert_eq!(links[0].link.up_seconds, Some(75));
    assert_eq!(a.refused[0].vm.as_deref(), Some("f"));
    assert!(new.attached && new.no_links_why.is_none());
    assert_eq!(new.links.as_deref(), Some(&[][..]), "it is not booted");
    let said = output(command(&host, ALL, "list")).await.stdout;
    let said = String::from_utf8(said).unwrap();
    for line in [
        format!(
            "    link 0 to b ({}): up for 75 s, in use, 64 MiB, side 1",
            gid(2)
        ),
        format!(
            "    link 1 to {}: up for 75 s, in use, 64 MiB, side 1",
            gid(3)
        ),
        format!(
            "    link 2 to b ({}): lost, and the guest still has the window, in use, 64 MiB, side 1",
            gid(4)
        ),
        format!("    refuses f ({})", gid(6)),
    ] {
        assert!(said.lines().any(|each| each == line), "{line}\n{said}");
    }
    assert!(!said.contains('\u{1b}'), "{said}");
    drop(vmm);
}

#[tokio::test]
async fn vms_whose_links_are_not_known_are_listed() {
    let host = Host::new();
    let _old = attached(&host, "old", Mode::NoCall);
    let _hangs = attached(&host, "hangs", Mode::SilentLinks);
    let odd = [
        (200, String::new()),
        (200, "[".into()),
        (200, "{}".into()),
        (200, "[]".into()),
        (200, json!([{"id": "ivsmc-host"}]).to_string()),
        (200, json!([{"id": "other", "links": []}]).to_string()),
        (200, "[".repeat(1 << 20)),
        (200, " ".repeat(2 << 20)),
        (
            500,
            json!(["Error from API", "\u{1b}", "x".repeat(9999)]).to_string(),
        ),
        (403, String::new()),
    ];
    let odd: Vec<_> = (0..).zip(odd).collect();
    let _odd: Vec<_> = odd
        .into_iter()
        .map(|(n, answer)| {
            let vmm = attached(&host, &format!("odd{n}"), Mode::Good);
            vmm.state().odd_links = Some(answer);
            vmm
        })
        .collect();
    let listing = host.list(ALL).await;
    assert_eq!(listing.vms.len(), 12);
    assert_eq!(listing.fabrics[0].attached, 12);
    for vm in &listing.vms {
        let why = vm.no_links_why.as_deref().unwrap_or_default();
        assert!(vm.attached && vm.links.is_none(), "{vm:?}");
        assert!(why.contains("vm.ivsmc-links") && why.len() < 500, "{vm:?}");
        assert!(!why.contains(char::is_control), "{vm:?}");
    }
    let why = |vm: usize| listing.vms[vm].no_links_why.as_deref().unwrap();
    assert!(why(0).contains("no answer within"), "{}", why(0));
    assert!(
        why(11).contains("no such call: build it with"),
        "{}",
        why(11)
    );
    let mut said = Vec::new();
    listing.print(&mut said).unwrap();
    let said = String::from_utf8(said).unwrap();
    assert_eq!(said.matches("    links are not known: ").count(), 12);
    // What is not known is not dropped.
    let error = do_it(&host, ALL, ["old", "b"], None, Wish::Drop)
        .await
        .unwrap_err();
    assert!(error.contains("old: vm.ivsmc-links: status 404"), "{error}");
}

#[tokio::test]
async fn a_link_is_dropped_and_its_peer_allowed_again() {
    let host = Host::new();
    let a = busy(&host, "a");
    // By name it is the link that is up.
    let said = do_it(&host, ALL, ["a", "b"], None, Wish::Drop)
        .await
        .unwrap();
    assert!(
        said.contains(&format!("the link to b ({}) ends", gid(2))),
        "{said}"
    );
    let call =
        |peer: u8, refuse: bool| json!({"id": "ivsmc-host", "peer": gid(peer), "refuse": refuse});
    assert_eq!(a.state().drops, [call(2, true)]);
    let said = do_it(&host, ALL, ["a", "f"], None, Wish::Drop)
        .await
        .unwrap();
    assert!(said.contains("is refused already"), "{said}");
    assert_eq!(a.state().drops.len(), 1);
    // By GID any other.
    for peer in [3, 4] {
        do_it(&host, ALL, ["a", &gid(peer)], None, Wish::Drop)
            .await
            .unwrap();
        assert_eq!(a.state().drops.last(), Some(&call(peer, true)));
    }
    let listing = host.list(ALL).await;
    assert_eq!(listing.vms[0].links.as_ref().unwrap().len(), 1);
    assert_eq!(listing.vms[0].refused.len(), 4);
    // Two that were b are refused now.
    let error = do_it(&host, ALL, ["a", "b"], None, Wish::Allow)
        .await
        .unwrap_err();
    assert!(error.contains("name one by its GID"), "{error}");
    assert!(
        error.contains(&gid(2)) && error.contains(&gid(4)),
        "{error}"
    );
    // The program says the same.
    let mut allow = command(&host, ALL, "allow");
    allow.args(["a", "f"]);
    let done = output(allow).await;
    assert!(done.status.success(), "{done:?}");
    let said = String::from_utf8(done.stdout).unwrap();
    assert!(said.contains("may have a link again"), "{said}");
    assert_eq!(a.state().drops.last(), Some(&call(6, false)));
    // It is none of those that are refused any more, and a link that is up is not to be allowed.
    let calls = a.state().drops.len();
    for peer in ["f", &gid(5)] {
        let error = do_it(&host, ALL, ["a", peer], None, Wish::Allow)
            .await
            .unwrap_err();
        assert!(
            error.contains("none of the peers that it refuses"),
            "{error}"
        );
    }
    assert_eq!(a.state().drops.len(), calls);
}

#[tokio::test]
async fn what_is_not_there_is_not_dropped() {
    let host = Host::new();
    let a = busy(&host, "a");
    let _none = Vmm::start(host.socket("none"));
    let stranger = gid(9);
    let drop_of = async |fabrics: &str, words, fabric| {
        do_it(&host, fabrics, words, fabric, Wish::Drop)
            .await
            .unwrap_err()
    };
    for (words, fabric, expected) in [
        (
            ["x", "b"],
            None,
            "x: there is no such VM; ivsmc-host list has",
        ),
        (
            ["a", "b"],
            Some("blue"),
            "a: there is no such VM in the fabric blue;",
        ),
        (
            ["a", "b"],
            Some("red"),
            "--fabric \"red\": the policy has no such fabric; it has blue, all",
        ),
        (["none", "b"], None, "none: it has no device"),
        (
            ["a", "x"],
            None,
            "a: x is none of its peers; name one of these, by its VM or its GID: b (",
        ),
        (["a", &stranger], None, "none of its peers"),
        (["a", ""], None, "none of its peers"),
        (["a", "/elsewhere"], None, "none of its peers"),
    ] {
        let error = drop_of(TWO, words, fabric).await;
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains(char::is_control), "{error}");
    }
    // Somebody else says that it is there, too.
    let path = host.device("all", "b");
    a.state().links.push(link(4, "up", 7, path.into()));
    let error = drop_of(TWO, ["a", "b"], None).await;
    assert!(error.contains("more than one peer"), "{error}");
    assert!(a.state().drops.is_empty());
    let mut program = command(&host, TWO, "drop");
    program.args(["a", "x", "--fabric", "all"]);
    let done = output(program).await;
    assert_eq!(done.status.code(), Some(1));
    let said = String::from_utf8(done.stderr).unwrap();
    assert!(
        said.starts_with("ivsmc-host: a: x is none of its peers"),
        "{said}"
    );
}

#[tokio::test]
async fn a_name_in_two_fabrics_needs_the_fabric() {
    let host = Host::new();
    let pattern = host.at("*/*/api.sock");
    let text = format!(
        "sockets = [{pattern:?}]\n[[fabric]]\nname = \"one\"\nsockets = [{:?}]\n{ALL}",
        host.at("vms2/*/*")
    );
    let policy = || ivsmc_host::policy::Policy::parse(&text, &host.at("run")).unwrap();
    let vms = [("vms/a", "all"), ("vms2/a", "one")].map(|(vm, fabric)| {
        let vmm = Vmm::start(host.at(vm).join("api.sock"));
        let device = json!({"id": "ivsmc-host", "path": host.device(fabric, "a")});
        vmm.state().devices.push(device);
        vmm.state().links = vec![link(0, "up", 2, host.device(fabric, "b").into())];
        vmm
    });
    let mut wanted = Wanted {
        vm: "a".into(),
        peer: "b".into(),
        fabric: None,
    };
    let limit = Duration::from_millis(500);
    let error = drop_link(policy(), &wanted, Wish::Drop, limit).await;
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("--fabric: all, one") || error.contains("--fabric: one, all"),
        "{error}"
    );
    wanted.fabric = Some("one".into());
    let said = drop_link(policy(), &wanted, Wish::Drop, limit)
        .await
        .unwrap();
    assert!(said.contains("ivsmc-host allow --fabric one a "), "{said}");
    let drops = vms.map(|vmm| vmm.state().drops.len());
    assert_eq!(drops, [0, 1]);
}

#[tokio::test]
async fn a_vm_that_hangs_ends_the_call_in_time() {
    let host = Host::new();
    let hangs = busy(&host, "a");
    for mode in [Mode::Silent, Mode::SilentLinks, Mode::EndlessBody] {
        hangs.state().mode = mode;
        let begin = Instant::now();
        let error = do_it(&host, ALL, ["a", "b"], None, Wish::Drop)
            .await
            .unwrap_err();
        assert!(begin.elapsed() < LIMIT, "{mode:?}");
        assert!(error.starts_with("a: vm."), "{mode:?}: {error}");
    }
    assert!(hangs.state().drops.is_empty());
}
