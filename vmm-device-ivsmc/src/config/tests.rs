// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What options can be, and what is said of those that cannot.

use super::*;

fn checked(text: &str) -> Result<Config, ConfigError> {
    let config: Config = text.parse()?;
    config.validate()?;
    Ok(config)
}

fn message(text: &str) -> String {
    checked(text).map_or_else(|error| error.to_string(), |_| String::new())
}

#[test]
fn defaults() {
    let config = checked("path=/run/a").unwrap();
    assert_eq!(config, Config::new("/run/a"));
    assert_eq!(config.window_size, 64 << 20);
    assert_eq!(
        (config.max_peers, config.vectors, config.fabric_id),
        (8, 4, 0xff00)
    );
}

#[test]
fn everything_given() {
    let gid = "01234567-89ab-4def-8123-456789abcdef";
    let config = checked(&format!(
        "path=\"/run/a,b\",peer=[/run/c,\"/run/d]\"],size=2G,max_peers=2,vectors=0x10,\
         gid={gid},fabric_id=0xfffe,hugepages=on,allow=[0,1000]"
    ))
    .unwrap();
    assert_eq!(config.path, PathBuf::from("/run/a,b"));
    assert_eq!(
        config.peers,
        [PathBuf::from("/run/c"), PathBuf::from("/run/d]")]
    );
    assert_eq!(config.window_size, 2 << 30);
    assert_eq!(
        (config.max_peers, config.vectors, config.fabric_id),
        (2, 16, 0xfffe)
    );
    assert_eq!(config.gid.unwrap().to_string(), gid);
    assert!(config.hugepages);
    assert_eq!(config.allow, [0, 1000].map(Allowed::from));
    let allowed = |text: &str| checked(&format!("path=/a,allow={text}")).unwrap().allow;
    assert_eq!(allowed("7"), [7].map(Allowed::from));
    assert_eq!(
        allowed("[7,8-9,group:7,group:990-999]"),
        [
            Allowed::Users(7..=7),
            Allowed::Users(8..=9),
            Allowed::Groups(7..=7),
            Allowed::Groups(990..=999)
        ]
    );
    assert!(checked("path=/a,allow=[]").unwrap().allow.is_empty());
}

#[test]
fn a_vmm_s_own_options_are_left_to_it() {
    let mut id = String::new();
    let config = Config::parse_with("id=\"a,b\",path=/a,peer=[/b,id=c]", |option, value| {
        let is_own = option == "id";
        if is_own {
            id = value.into();
        }
        is_own
    });
    let config = config.unwrap();
    assert_eq!(id, "a,b");
    assert_eq!(config.peers, [PathBuf::from("/b"), PathBuf::from("id=c")]);
    let twice = Config::parse_with("id=a,path=/a,id=b", |option, _| option == "id");
    assert_eq!(twice, Err(ConfigError::Twice("id".into())));
}

#[test]
fn each_option_can_be_set_and_serialised() {
    let values = [
        "/a",
        "[/b,/c]",
        "2M",
        "3",
        "5",
        "01234567-89ab-4def-8123-456789abcdef",
        "0xff07",
        "on",
        "[1000,1001]",
    ];
    let (mut config, mut text) = (Config::default(), String::new());
    assert_eq!(values.len(), Config::OPTIONS.len());
    for (option, value) in Config::OPTIONS.iter().zip(values) {
        config.set(option, value).unwrap();
        text += &format!("{option}={value},");
        assert!(Config::SYNTAX.contains(&format!("{option}=<")) || *option == "hugepages");
    }
    assert_eq!(text.trim_end_matches(',').parse(), Ok(config.clone()));
    let json = serde_json::to_value(&config).unwrap();
    assert_eq!(json.as_object().unwrap().len(), Config::OPTIONS.len());
    assert_eq!(json["peer"], serde_json::json!(["/b", "/c"]));
    assert_eq!(json["size"], 2 << 20);
    assert_eq!(json["allow"], serde_json::json!([1000, 1001]));
    assert_eq!(serde_json::from_value::<Config>(json).unwrap(), config);
    let unknown = ConfigError::UnknownOption("id".into());
    assert_eq!(config.set("id", "x"), Err(unknown));
}

#[test]
fn a_vmm_can_flatten_the_options_into_its_own() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Own {
        id: String,
        #[serde(flatten)]
        config: Config,
    }
    let text = r#"{"id":"x","path":"/a","peer":"/b","allow":1000,"other":1}"#;
    let own: Own = serde_json::from_str(text).unwrap();
    assert_eq!(own.config.peers, [PathBuf::from("/b")]);
    assert_eq!(own.config.allow, [1000].map(Allowed::from));
    let json = serde_json::to_value(&own).unwrap();
    assert!(json.get("gid").is_none());
    assert_eq!(serde_json::from_value::<Own>(json).unwrap(), own);
    for wrong in [r#""peer":1"#, r#""allow":"root""#, r#""allow":[-1]"#] {
        let text = format!(r#"{{"id":"x","path":"/a",{wrong}}}"#);
        serde_json::from_str::<Own>(&text).unwrap_err();
    }
    for (allow, words) in [("\"root\"", "allow=root"), ("[1,-1]", "allow=-1")] {
        let text = format!(r#"{{"path":"/a","allow":{allow}}}"#);
        let error = serde_json::from_str::<Config>(&text).unwrap_err();
        let said = error.to_string();
        assert!(said.contains(words) && said.contains("id -u"), "{said}");
    }
}

#[test]
fn every_error_names_option_value_and_remedy() {
    let long = "x".repeat(108);
    let peers: Vec<String> = (0..9).map(|n| format!("/p{n}")).collect();
    let peers = format!("path=/a,peer=[{}]", peers.join(","));
    for (text, words) in [
        (
            "path=/a,size=3M",
            &["size=3M", "power of two", "2M", "4M"][..],
        ),
        ("path=/a,size=1M", &["size=1M", "at least 2M"]),
        ("path=/a,size=0", &["size=0", "at least 2M"]),
        (
            "path=/a,size=1T,max_peers=2",
            &["size=1T", "max_peers=2", "lower"],
        ),
        ("path=/a,size=12X", &["size=12X", "64M"]),
        ("path=/a,size=99999999999T", &["size=99999999999T", "64M"]),
        (
            &format!("path=/{long}"),
            &["path=/xx", "109 bytes", "107", "shorter"],
        ),
        (
            &format!("path=/a,peer={long}"),
            &["peer=xx", "108 bytes", "107", "shorter"],
        ),
        (
            "path=/a/b,peer=/a/./b",
            &["peer=/a/./b", "own path", "another"],
        ),
        ("path=/a,peer=[/b,/b]", &["peer=/b", "twice", "once"]),
        (&peers, &["peer lists 9", "max_peers=8", "raise"]),
        ("path=/a,peer=", &["peer=\"\"", "empty"]),
        ("peer=/b", &["path is missing", "path=/run/ivsmc/a"]),
        ("path=,peer=/b", &["path is missing", "path=/run/ivsmc/a"]),
        ("path=/a,pear=/b", &["'pear'", "options are", "peer="]),
        ("path=/a,id=b", &["'id'", "options are"]),
        ("path=/a,peer", &["'peer'", "option=value"]),
        ("path=/a,path=/b", &["path", "twice", "once"]),
        ("path=/a,peer=[/b", &["not closed", "[a,b]"]),
        (
            "path=/a,max_peers=many",
            &["max_peers=many", "not a number"],
        ),
        ("path=/a,max_peers=0", &["max_peers=0", "1 to 64"]),
        ("path=/a,max_peers=65", &["max_peers=65", "1 to 64"]),
        (
            "path=/a,max_peers=70000",
            &["max_peers=70000", "not a number"],
        ),
        ("path=/a,vectors=17", &["vectors=17", "1 to 16"]),
        (
            "path=/a,fabric_id=0xffff",
            &["fabric_id=0xffff", "0xff00 to 0xfffe"],
        ),
        ("path=/a,allow=root", &["allow=root", "id -u", "allow=1000"]),
        ("path=/a,allow=", &["allow= is", "allow=1000"]),
        ("path=/a,allow=-1", &["allow=-1", "allow=1000"]),
        ("path=/a,allow=4294967295", &["allow=4294967295", "digits"]),
        ("path=/a,allow=+1", &["allow=+1", "digits"]),
        ("path=/a,allow=9-8", &["allow=9-8", "2000-2999"]),
        ("path=/a,allow=group:", &["allow=group:", "group:990"]),
        (
            "path=/a,allow=group:wheel",
            &["allow=group:wheel", "getent"],
        ),
        ("path=/a,allow=[1-5,5]", &["allow=5 ", "twice", "once"]),
        ("path=/a,allow=[1,2,1]", &["allow=1 ", "twice", "once"]),
        ("path=/a,hugepages=yes", &["hugepages=yes", "on nor off"]),
        ("path=/a,gid=12", &["gid=12", "UUID"]),
        (
            "path=/a,gid=00000000-0000-0000-0000-000000000000",
            &["gid=00000000", "not all zeros"],
        ),
    ] {
        let message = message(text);
        for word in words {
            assert!(
                message.contains(word),
                "{text}: '{message}' does not say '{word}'"
            );
        }
    }
}

#[test]
fn a_path_of_107_bytes_is_just_right() {
    checked(&format!("path=/{}", "x".repeat(106))).unwrap();
}
