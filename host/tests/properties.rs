// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whatever others say: policies, label files, file names, and what answers at an API socket.

use ivsmc_host::api::{Api, parse_info, told};
use ivsmc_host::labels;
use ivsmc_host::list::list;
use ivsmc_host::name::Name;
use ivsmc_host::pattern::{Part, Pattern};
use ivsmc_host::policy::Policy;
use ivsmc_host::vm::Standing;
use proptest::collection::vec;
use proptest::prelude::*;
use rustix::fs::{Mode, OFlags};
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

/// An answer that looks like one, and is not quite.
fn answer() -> impl Strategy<Value = Vec<u8>> {
    let body = prop_oneof![
        Just(b"{\"config\": {}, \"state\": \"Running\"}".to_vec()),
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
    fn what_a_vmm_says(bytes in vec(any::<u8>(), 0..300), id in "\\PC{0,9}", path in "\\PC{0,9}", state in "\\PC{0,9}") {
        let _ = parse_info(&bytes);
        let text = serde_json::json!({"config": {"ivsmc": [{"id": id, "path": path}]}, "state": state});
        let info = parse_info(text.to_string().as_bytes()).unwrap();
        // Whatever device that is: the VM gets no other one.
        prop_assert!(!matches!(Standing::of(&info, Path::new("/p")), Standing::Free | Standing::Waits(_)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn what_answers_at_an_api_socket(answer in answer(), pieces in 1..5usize) {
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
            if let Err(error) = api.info().await {
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
