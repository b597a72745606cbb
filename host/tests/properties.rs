// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whatever others say: policies, label files, file names, and what answers at an API socket.

use ivsmc_host::api::{Api, DropLink, parse_info, parse_links, told};
use ivsmc_host::drop_link::{Wanted, Wish, choose_peer};
use ivsmc_host::labels;
use ivsmc_host::list::{Listing, VmLine, list};
use ivsmc_host::name::Name;
use ivsmc_host::pattern::{Part, Pattern};
use ivsmc_host::policy::Policy;
use ivsmc_host::vm::Standing;
use proptest::collection::vec;
use proptest::prelude::*;
use rustix::fs::{Mode, OFlags};
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::runtime::{Builder, Runtime};

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Pieces of policies, in any order.
fn policy_text() -> impl Strategy<Value = String> {
    let line = prop_oneof![
        "(sockets|vms|labels|name|size|allow|fabric|label_file|max_peers|group) = [\\[{\"]?[a-z0-9*/=, \"-]{0,20}[\\]}\"]?",
        Just("[[fabric]]".to_string()),
        Just("[fabric]".to_string()),
        Just("sockets = [\"/run/vms/*/api.sock\"]".to_string()),
        Just("name = \"a\"".to_string()),
        Just("vms = [\"*\"]".to_string()),
        "\\PC{0,40}",
    ];
    vec(line, 0..12).prop_map(|lines| lines.join("\n"))
}

/// A value that may be the right one.
fn odd(right: Value) -> impl Strategy<Value = Value> {
    prop_oneof![
        8 => Just(right),
        1 => any::<u64>().prop_map(Value::from),
        1 => "\\PC{0,20}|[\0-\u{ff}]{0,20}".prop_map(Value::from),
        1 => Just(Value::Null),
    ]
}

/// What vm.ivsmc-links may answer, of a device that ivsmc-host has given.
fn links() -> impl Strategy<Value = Value> {
    let gid = || "[0-9a-f]{8}-0000-4000-8000-000000000000".prop_map(Value::from);
    let path = || "(/run/ivsmc/a/)?(\\PC{0,20}|[\0-\u{ff}]{0,20}|vm[0-9])".prop_map(Value::from);
    let state = prop_oneof![Just("up"), Just("lost"), Just("down")].prop_map(Value::from);
    let numbers = (odd(0.into()), odd(1.into()), odd(Value::from(1u64 << 21)));
    let rest = (numbers, any::<bool>(), odd(7.into()));
    let link = (state.prop_flat_map(odd), gid(), path(), rest).prop_map(
        |(state, peer, path, ((link, side, size), claimed, up_seconds))| {
            json!({
                "link": link, "state": state, "peer": peer, "path": path, "side": side, "size": size, "vectors": 1,
                "generation": 1, "claimed": claimed, "up_seconds": up_seconds,
            })
        },
    );
    let refused = (gid(), path()).prop_map(|(peer, path)| json!({"peer": peer, "path": path}));
    let device = (gid(), vec(link, 0..4), vec(refused, 0..4)).prop_map(|(gid, links, refused)| {
        json!([{
            "id": "ivsmc-host", "gid": gid, "path": "/run/ivsmc/a/x", "doorbells_trapped": 0, "links": links,
            "refused": refused,
        }])
    });
    device.prop_flat_map(odd)
}

/// An answer that looks like one, and is not quite.
fn answer() -> impl Strategy<Value = Vec<u8>> {
    let body = prop_oneof![
        Just(b"{\"config\": {}, \"state\": \"Running\"}".to_vec()),
        links().prop_map(|links| links.to_string().into_bytes()),
        vec(any::<u8>(), 0..200),
        "[\\[{\"a-z0-9:,}\\]]{0,100}".prop_map(String::into_bytes),
    ];
    let head = (
        0..1000u16,
        "[ -~]{0,10}",
        "(Content-Length|Transfer-Encoding|X|)",
        ": ?[ -~]{0,20}",
    );
    let whole =
        (head, body, any::<bool>()).prop_map(|((status, reason, name, value), body, is_true)| {
            let length = if is_true { body.len() } else { 7 };
            let head = format!(
                "HTTP/1.1 {status} {reason}\r\n{name}{value}\r\nContent-Length: {length}\r\n\r\n"
            );
            [head.into_bytes(), body].concat()
        });
    prop_oneof![whole, vec(any::<u8>(), 0..500)]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn policies(text in policy_text()) {
        match Policy::parse(&text, Path::new("/run/ivsmc")) {
            Ok(policy) => for fabric in &policy.fabrics {
                let name = Name::new(b"vm").unwrap();
                prop_assert!(fabric.device_of(&name).0.validate().is_ok());
                prop_assert_eq!(fabric.folder.parent(), Some(Path::new("/run/ivsmc")));
            },
            Err(error) => {
                prop_assert!(error.line <= text.matches('\n').count() + 1);
                prop_assert!(!error.reason.is_empty() && !error.reason.contains('\n'));
            }
        }
    }

    #[test]
    fn label_files(bytes in vec(any::<u8>(), 0..500), text in "([a-z]{0,2} ?= ?\\PC{0,5}\n){0,9}") {
        let _ = labels::parse(&bytes);
        if let Ok(labels) = labels::parse(text.as_bytes()) {
            prop_assert!(labels.keys().all(|key| !key.is_empty() && !key.contains('=')));
        }
    }

    #[test]
    fn names_stay_in_their_folder(bytes in vec(any::<u8>(), 0..80), likely in "[a-zA-Z0-9._/-]{0,70}") {
        for bytes in [&bytes[..], likely.as_bytes()] {
            if let Ok(name) = Name::new(bytes) {
                let path = Path::new("/folder").join(name.as_str());
                prop_assert_eq!(path.parent(), Some(Path::new("/folder")));
                prop_assert_eq!(path.file_name().unwrap().as_bytes(), bytes);
                prop_assert!(bytes.len() <= 64);
            }
        }
    }

    #[test]
    fn patterns(text in "/[a-z*./-]{0,30}", file in "[a-z.-]{0,20}") {
        if let Ok(pattern) = Pattern::new(&text) {
            prop_assert!(pattern.folder.is_absolute());
            for part in &pattern.parts {
                if let (Part::Star { before, after }, Some(Ok(name))) = (part, part.stands_for(file.as_bytes())) {
                    prop_assert_eq!(format!("{before}{name}{after}"), &*file);
                }
            }
        }
    }

    #[test]
    fn what_is_told_fits_a_line(text in "\\PC{0,1000}|[\0-\u{ff}]{0,100}") {
        prop_assert!(!told(&text).contains(char::is_control));
    }

    #[test]
    fn what_a_vmm_says_of_links_fits_lines(answer in links(), peer in "\\PC{0,9}|vm[0-9]") {
        let text = "sockets = [\"/v/*\"]\n[[fabric]]\nname = \"a\"\nvms = [\"*\"]\n";
        let policy = Policy::parse(text, Path::new("/run/ivsmc")).unwrap();
        if let Ok(devices) = parse_links(answer.to_string().as_bytes()) {
            let links = devices.into_iter().next().map(|device| device.links);
            let mut line = VmLine::default();
            line.take(&policy.fabrics[0], links);
            let wanted = Wanted { vm: "x".into(), peer, fabric: None };
            for wish in [Wish::Drop, Wish::Allow] {
                // Whatever is chosen is one of those that are there.
                match choose_peer(&line, &wanted, wish) {
                    Ok((gid, _)) => prop_assert!(answer.to_string().contains(&gid.to_string())),
                    Err(error) => prop_assert!(!error.to_string().contains(char::is_control)),
                }
            }
            let (links, refused) = (line.links.as_ref().unwrap().len(), line.refused.len());
            let mut said = Vec::new();
            Listing { vms: vec![line], ..Listing::default() }.print(&mut said).unwrap();
            let said = String::from_utf8(said).unwrap();
            prop_assert_eq!(said.lines().count(), 4 + links + refused);
            prop_assert!(said.split('\n').all(|line| !line.contains(char::is_control)));
        }
    }

    #[test]
    fn what_a_vmm_says(bytes in vec(any::<u8>(), 0..300), id in "\\PC{0,9}", path in "\\PC{0,9}", state in "\\PC{0,9}") {
        let _ = parse_info(&bytes);
        let _ = parse_links(&bytes);
        let text = serde_json::json!({"config": {"ivsmc": [{"id": id, "path": path}]}, "state": state});
        let info = parse_info(text.to_string().as_bytes()).unwrap();
        // Whatever device that is: the VM gets no other one.
        prop_assert!(!matches!(Standing::of(&info, Path::new("/p")), Standing::Free | Standing::Waits(_)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn what_answers_at_an_api_socket(answer in answer(), pieces in 1..5usize, which in 0..3) {
        let folder = tempfile::Builder::new().prefix("ivsmc-").tempdir_in("/tmp").unwrap();
        let path = folder.path().join("api.sock");
        runtime().block_on(async {
            let listener = UnixListener::bind(&path).unwrap();
            let server = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 4096]).await;
                for piece in answer.chunks(answer.len() / pieces + 1) {
                    let _ = stream.write_all(piece).await;
                    tokio::task::yield_now().await;
                }
            });
            let socket = rustix::fs::open(&path, OFlags::PATH, Mode::empty()).unwrap();
            let api = Api { socket, limit: Duration::from_secs(30) };
            // The other end closes the connection, so that this ends.
            let gid = "5a5a5a5a-0000-4000-8000-000000000000".parse().unwrap();
            let link = DropLink { id: "x", peer: gid, refuse: true };
            let done = match which {
                0 => api.info().await.map(drop),
                1 => api.links().await.map(drop),
                _ => api.drop_link(&link).await,
            };
            if let Err(error) = done {
                let error = error.to_string();
                assert!(error.len() < 2000 && !error.contains(char::is_control), "{error:?}");
            }
            server.await.unwrap();
        });
    }

    #[test]
    fn files_of_any_names(files in vec(vec(any::<u8>(), 1..100), 0..8)) {
        let folder = tempfile::Builder::new().prefix("ivsmc-").tempdir_in("/tmp").unwrap();
        let mut made = Vec::new();
        for file in &files {
            let name = [&file[..], b".sock"].concat();
            made.extend(StdListener::bind(folder.path().join(OsStr::from_bytes(&name))));
        }
        fs::write(folder.path().join("x.sock"), "").unwrap();
        let sockets = folder.path().join("*.sock");
        let text = format!("sockets = [{sockets:?}]\n[[fabric]]\nname = \"a\"\nvms = [\"*\"]\n");
        let policy = Policy::parse(&text, Path::new("/run/ivsmc")).unwrap();
        let listing = runtime().block_on(list(policy, Duration::from_millis(1)));
        for vm in &listing.vms {
            prop_assert!(Name::new(vm.name.as_bytes()).is_ok());
            prop_assert_eq!(vm.socket.parent(), Some(folder.path()));
        }
        prop_assert!(listing.vms.len() <= made.len());
        for skipped in &listing.skipped {
            prop_assert!(!skipped.path.contains(char::is_control));
        }
    }
}
