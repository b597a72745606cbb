// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Policies that are none: each is refused whole, with line and reason.

use ivsmc_host::labels;
use ivsmc_host::name::Name;
use ivsmc_host::policy::Policy;
use std::path::Path;

const SOCKETS: &str =
    "sockets = [\"/run/vms/*/api.sock\", \"kata-go\", \"kata-rust\"]\nlabel_file = \"labels\"\n";

fn parse(text: &str) -> Result<Policy, String> {
    Policy::parse(text, Path::new("/run/ivsmc")).map_err(|error| error.to_string())
}

/// A fabric of this name with these lines after SOCKETS, of which the first is line 5.
fn fabric(name: &str, lines: &str) -> Result<Policy, String> {
    parse(&format!(
        "{SOCKETS}[[fabric]]\nname = \"{name}\"\n{lines}\n"
    ))
}

/// An error that begins with the place and has all of the words.
fn refused(parsed: Result<Policy, String>, place: &str, words: &[&str]) {
    let error = parsed.expect_err(place);
    assert!(error.starts_with(place), "{error}");
    assert!(!error.contains('\n'), "{error}");
    for word in words {
        assert!(error.contains(word), "{word}: {error}");
    }
}

#[test]
fn what_is_no_toml_or_of_another_kind() {
    refused(parse("sockets = ["), "line 1", &[]);
    refused(parse("sockets = 1\n"), "line 1, column 11", &["sequence"]);
    refused(parse(""), "line 1", &["sockets"]);
    refused(parse(SOCKETS), "line 1", &["fabric"]);
    refused(
        fabric("a", "vms = [\"*\"]\ncolour = 1"),
        "line 6",
        &["colour", "max_peers"],
    );
    refused(
        parse(&format!("colour = 1\n{SOCKETS}")),
        "line 1",
        &["colour"],
    );
    refused(
        fabric("a", "vms = [\"*\"]\nvms = []"),
        "line 6",
        &["duplicate"],
    );
    refused(
        fabric("a", "vms = [\"*\"]\nmax_peers = 70000"),
        "line 6",
        &["70000"],
    );
    refused(
        fabric("a", "vms = [\"*\"]\nmax_peers = -1"),
        "line 6",
        &["-1"],
    );
    refused(
        fabric("a", "vms = [\"*\"]\nhugepages = 1"),
        "line 6",
        &["boolean"],
    );
}

#[test]
fn patterns() {
    let with = |sockets: &str| {
        parse(&format!(
            "sockets = [\n{sockets}]\n[[fabric]]\nname = \"a\"\nvms = [\"*\"]\n"
        ))
    };
    refused(with(""), "line 1", &["sockets = [\"/run/vms"]);
    refused(
        with("\"kata-go\",\n\"run/*\""),
        "line 3, column 1",
        &["absolute"],
    );
    refused(with("\"/run/vm/api.sock\""), "line 2", &["'*'"]);
    refused(with("\"/run/*/*-*/x\""), "line 2", &["one '*'"]);
    refused(
        with("\"kata-go\",\n\n\"/run/vc/vm/*/clh-api.sock\""),
        "line 4",
        &["twice"],
    );
    refused(with("\"/run/[a]/*\""), "line 2", &["special"]);
    let many: String = (0..65).map(|n| format!("\"/{n}/*\",\n")).collect();
    refused(with(&many), "line 1", &["65", "64"]);
}

#[test]
fn rules() {
    refused(fabric("a", ""), "line 3", &["no rule", "vms = [\"*\"]"]);
    refused(fabric("a", "vms = []"), "line 3", &["no rule"]);
    refused(
        fabric("a", "vms = [\"x\", \"\"]"),
        "line 5, column 13",
        &["empty"],
    );
    refused(fabric("a", "vms = [\"[\"]"), "line 5", &["range"]);
    refused(
        fabric("a", "vms = [\"*a*b*c*d*e*f*g*h*i\"]"),
        "line 5",
        &["eight"],
    );
    refused(
        fabric("a", "sockets = [\"vms/*\"]"),
        "line 5",
        &["absolute"],
    );
    refused(
        fabric("a", "labels = { \"a=b\" = \"c\" }"),
        "line 5",
        &["key"],
    );
    refused(fabric("a", "labels = { a = 1 }"), "line 5", &["string"]);
    let no_file = "sockets = [\"kata-go\"]\n[[fabric]]\nname = \"a\"\nlabels = { a = \"b\" }\n";
    refused(parse(no_file), "line 4, column 12", &["label_file"]);
    for file in ["../x", "a/b", "*-*", "", ".hidden"] {
        let text =
            format!("sockets = [\"kata-go\"]\nlabel_file = \"{file}\"\n[[fabric]]\nname = \"a\"\n");
        refused(parse(&text), "line 2, column 14", &["label_file"]);
    }
}

#[test]
fn fabrics() {
    refused(
        fabric("../a", "vms = [\"*\"]"),
        "line 4, column 8",
        &["A-Z"],
    );
    refused(fabric("", "vms = [\"*\"]"), "line 4", &["character"]);
    refused(
        fabric(&"a".repeat(40), "vms = [\"*\"]"),
        "line 4",
        &["too long by", "--run-dir"],
    );
    refused(
        fabric(
            "a",
            "vms = [\"*\"]\n\n[[fabric]]\nname = \"a\"\nvms = [\"*\"]",
        ),
        "line 8",
        &["already"],
    );
}

#[test]
fn options_of_the_device() {
    for (line, words) in [
        ("size = \"3M\"", &["size=3M", "power of two"][..]),
        ("size = \"1M\"", &["at least 2M"]),
        ("size = 2097153", &["power of two"]),
        ("size = \"big\"", &["size=big"]),
        ("size = \"64M,path=/x\"", &["not a size"]),
        ("size = \"1T\"", &["max_peers"]),
        ("max_peers = 65", &["1 to 64"]),
        ("vectors = 0", &["1 to 16"]),
        ("fabric_id = 1", &["0xff00"]),
        ("allow = [1, 1]", &["twice"]),
        ("allow = \"root\"", &["id -u"]),
        ("allow = [-1]", &["allow=-1"]),
    ] {
        refused(
            fabric("a", &format!("vms = [\"*\"]\n{line}")),
            "line 6",
            words,
        );
    }
}

#[test]
fn the_first_fabric_that_matches() {
    let policy = parse(&format!(
        "{SOCKETS}
        [[fabric]]
        name = \"tenant\"
        sockets = [\"kata-go\", \"/run/vms/t-*/api.sock\"]
        vms = [\"t-*\", \"u-?\"]
        labels = {{ env = \"prod*\", app = \"*\" }}
        [[fabric]]
        name = \"kata\"
        sockets = [\"kata-rust\"]
        size = \"128M\"
        [[fabric]]
        name = \"rest\"
        vms = [\"*\"]
        [[fabric]]
        name = \"never\"
        vms = [\"*\"]"
    ))
    .unwrap();
    let of = |name: &str, socket: &str, labels: &str| {
        let labels = labels::parse(labels.as_bytes()).unwrap();
        let name = Name::new(name.as_bytes()).unwrap();
        let fabric = policy.fabric_of(&name, Path::new(socket), &labels).unwrap();
        policy.fabrics[fabric].name.to_string()
    };
    let (labels, vm) = ("env=production\napp=", "/run/vms/t-1/api.sock");
    assert_eq!(of("t-1", vm, labels), "tenant");
    assert_eq!(of("u-1", vm, labels), "tenant");
    assert_eq!(of("u-1", "/run/vc/vm/u-1/clh-api.sock", labels), "tenant");
    assert_eq!(of("u-11", vm, labels), "rest");
    assert_eq!(of("t-1", "/run/vms/t-1/more/api.sock", labels), "rest");
    assert_eq!(of("t-1", vm, "env=prod"), "rest");
    assert_eq!(of("t-1", vm, "env=test\napp=x"), "rest");
    assert_eq!(of("t-1", "/run/kata/t-1/ch-api.sock", labels), "kata");
    let (device, segment) = policy.fabrics[1].device_of(&Name::new(b"x").unwrap());
    assert_eq!(device.path, Path::new("/run/ivsmc/kata/x"));
    assert_eq!(device.peers, [Path::new("/run/ivsmc/kata")]);
    assert_eq!((device.window_size, segment), (128 << 20, None));
    // The longest name that a VM can have is one that its device can have.
    let name = Name::new("x".repeat(64).as_bytes()).unwrap();
    for fabric in &policy.fabrics {
        fabric.device_of(&name).0.validate().unwrap();
    }
}

#[test]
fn the_examples_of_the_documents() {
    let documents = [
        include_str!("../../docs/host.md"),
        include_str!("../README.md"),
    ];
    let mut examples = 0;
    for block in documents
        .iter()
        .flat_map(|text| text.split("```toml\n").skip(1))
    {
        let (text, _) = block.split_once("```").unwrap();
        let only_sockets = "\n[[fabric]]\nname = \"a\"\nvms = [\"*\"]\n";
        let rest = if text.contains("[[fabric]]") {
            ""
        } else {
            only_sockets
        };
        parse(&format!("{text}{rest}")).unwrap_or_else(|error| panic!("{text}: {error}"));
        examples += 1;
    }
    assert_eq!(examples, 6);
}
