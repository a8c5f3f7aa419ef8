use proptest::prelude::*;

use super::*;

fn refused(config: Value) -> CniError {
    NetworkConfig::parse(config.to_string().as_bytes()).expect_err(&config.to_string())
}

#[test]
fn a_full_configuration_is_understood() {
    let config = json!({
        "cniVersion": "1.1.0",
        "name": "shunt",
        "type": "shunt",
        "agentSocket": "/run/n1/agent.sock",
        "dns": { "nameservers": ["10.96.0.10"], "domain": "d", "search": ["s"], "options": ["ndots:5"] },
        "capabilities": { "portMappings": true },
        "ipMasq": true,
        "ipam": {},
        "args": { "labels": [] },
        "runtimeConfig": { "portMappings": [{ "hostPort": 80, "containerPort": 8080 }], "dns": {} },
        "ourOwn": { "deep": [1, null] },
        "cni.dev/valid-attachments": [{ "containerID": "c1", "ifname": "eth0", "more": 1 }],
        "prevResult": {
            "cniVersion": "1.1.0",
            "interfaces": [
                { "name": "shunt0123456789", "mac": "ee:ee:ee:ee:ee:ee" },
                { "name": "eth0", "mac": "72:70:0a:01:00:02", "mtu": 1450, "sandbox": "/run/netns/x" },
            ],
            "ips": [{ "address": "10.1.0.2/32", "gateway": "169.254.1.1", "interface": 1 }, { "address": "fd00::2/128", "interface": 1 }],
            "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
        },
    });
    let parsed = NetworkConfig::parse(config.to_string().as_bytes()).unwrap();
    assert_eq!((parsed.version, parsed.name.as_str()), (SpecVersion::V1_1_0, "shunt"));
    assert_eq!(parsed.agent_socket.to_str(), Some("/run/n1/agent.sock"));
    assert_eq!(parsed.dns, Some(config["dns"].clone()));
    assert_eq!(parsed.valid_attachments, Some(vec![AttachmentKey::new("c1", "eth0").unwrap()]));
    assert_eq!(parsed.port_mappings.iter().map(ToString::to_string).collect::<Vec<_>>(), ["80->8080/TCP"]);
    let previous = parsed.prev_result.unwrap();
    assert_eq!(previous.interfaces[1].mtu, Some(1450));
    assert_eq!(previous.interfaces[1].mac, Some("72:70:0a:01:00:02".parse().unwrap()));
    assert_eq!(previous.addresses, [("10.1.0.2/32".parse().unwrap(), Some(1))]);
    assert_eq!(previous.routes, ["0.0.0.0/0".parse().unwrap()]);
}

#[test]
fn little_is_needed() {
    let parsed =
        NetworkConfig::parse(br#"{"cniVersion":"0.3.1","name":"n","type":"shunt","dns":{},"prevResult":null}"#).unwrap();
    assert_eq!(
        parsed,
        NetworkConfig {
            version: SpecVersion::V0_3_1,
            name: "n".to_owned(),
            agent_socket: "/run/shunt/agent.sock".into(),
            dns: None,
            prev_result: None,
            port_mappings: vec![],
            valid_attachments: None,
        }
    );
}

#[test]
fn what_is_wrong_has_its_code_and_names_the_field() {
    for (text, code, expected) in [
        (&b""[..], code::DECODE, "not JSON"),
        (b"{\"cniVersion\":\"1.0.0\",", code::DECODE, "not JSON"),
        (b"[]", code::DECODE, "not a JSON object"),
        (b"\xff", code::DECODE, "not JSON"),
        (b"{}", code::VERSION, "`cniVersion` is \"\""),
        (b"{\"cniVersion\":\"0.2.0\"}", code::VERSION, "supported are 0.3.1, 0.4.0, 1.0.0, 1.1.0"),
        (b"{\"cniVersion\":\"1.2.0\"}", code::VERSION, "`cniVersion` is \"1.2.0\""),
        (b"{\"cniVersion\":1}", code::CONFIG, "`cniVersion` must be a string, not 1"),
    ] {
        let error = NetworkConfig::parse(text).unwrap_err();
        assert_eq!(error.code, code, "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
    let good = json!({ "cniVersion": "0.4.0", "name": "n", "type": "shunt" });
    for (key, value, code, expected) in [
        ("name", json!(""), code::CONFIG, "`name` is \"\""),
        ("name", json!(null), code::CONFIG, "`name` is \"\""),
        ("name", json!("-n"), code::CONFIG, "`name` is \"-n\""),
        ("name", json!({}), code::CONFIG, "`name` must be a string, not {}"),
        ("type", json!(null), code::CONFIG, "`type` is missing"),
        ("type", json!(["shunt"]), code::CONFIG, "`type` must be a string"),
        ("agentSocket", json!("agent.sock"), code::CONFIG, "`agentSocket` is \"agent.sock\""),
        ("agentSocket", json!(5), code::CONFIG, "`agentSocket` must be a string, not 5"),
        (
            "ipam",
            json!({ "type": "host-local" }),
            code::UNSUPPORTED_FIELD,
            "`ipam` is not supported; its value is {\"type\":\"host-local\"}",
        ),
        ("ipam", json!("host-local"), code::CONFIG, "`ipam` must be an object"),
        ("dns", json!([]), code::CONFIG, "`dns` must be an object"),
        ("dns", json!({ "nameservers": "10.96.0.10" }), code::CONFIG, "`dns.nameservers` must be a list"),
        ("dns", json!({ "search": [1] }), code::CONFIG, "`dns.search` must be a list of strings"),
        ("dns", json!({ "domain": 1 }), code::CONFIG, "`dns.domain` must be a string"),
        ("runtimeConfig", json!([]), code::CONFIG, "`runtimeConfig` must be an object"),
        ("prevResult", json!("x"), code::CONFIG, "`prevResult` must be an object"),
        ("prevResult", json!({ "ips": {} }), code::CONFIG, "`prevResult.ips` must be a list"),
        ("prevResult", json!({ "ips": ["x"] }), code::CONFIG, "`prevResult.ips` must be a list of objects"),
        ("prevResult", json!({ "ips": [{ "address": "x" }] }), code::CONFIG, "`prevResult.ips[].address` is \"x\""),
        (
            "prevResult",
            json!({ "ips": [{ "address": "10.0.0.1/32", "interface": -1 }] }),
            code::CONFIG,
            "`prevResult.ips[].interface`",
        ),
        ("prevResult", json!({ "interfaces": [{ "name": 1 }] }), code::CONFIG, "`prevResult.interfaces[].name`"),
        ("prevResult", json!({ "routes": [{ "dst": "everywhere" }] }), code::CONFIG, "`prevResult.routes[].dst`"),
        ("cni.dev/valid-attachments", json!({}), code::CONFIG, "`cni.dev/valid-attachments` must be a list"),
        ("cni.dev/valid-attachments", json!([1]), code::CONFIG, "an item that is no object"),
        ("cni.dev/valid-attachments", json!([{ "containerID": "c" }]), code::CONFIG, "interface name \"\" is not valid"),
    ] {
        let mut config = good.clone();
        config[key] = value;
        let error = refused(config);
        assert_eq!((error.code, error.version), (code, SpecVersion::V0_4_0), "{error}");
        assert!(error.to_string().contains(expected), "{error}, not {expected}");
    }
}

#[test]
fn results_are_what_each_version_wants() {
    let result = AddResult {
        host_interface: "shunt0123456789".to_owned(),
        host_mac: crate::attachment::HOST_MAC,
        ifname: "eth0".to_owned(),
        pod_mac: "72:70:0a:01:00:02".parse().unwrap(),
        sandbox: "/run/netns/x".to_owned(),
        mtu: 1450,
        address: Ipv4Addr::new(10, 1, 0, 2),
        gateway: Ipv4Addr::new(169, 254, 1, 1),
        dns: None,
    };
    let pretty = |text: String| serde_json::to_string_pretty(&serde_json::from_str::<Value>(&text).unwrap()).unwrap();
    insta::assert_snapshot!(pretty(result.to_json(SpecVersion::V0_4_0)), @r#"
    {
      "cniVersion": "0.4.0",
      "interfaces": [
        {
          "mac": "ee:ee:ee:ee:ee:ee",
          "name": "shunt0123456789"
        },
        {
          "mac": "72:70:0a:01:00:02",
          "name": "eth0",
          "sandbox": "/run/netns/x"
        }
      ],
      "ips": [
        {
          "address": "10.1.0.2/32",
          "gateway": "169.254.1.1",
          "interface": 1,
          "version": "4"
        }
      ],
      "routes": [
        {
          "dst": "0.0.0.0/0",
          "gw": "169.254.1.1"
        }
      ]
    }
    "#);
    insta::assert_snapshot!(pretty(result.to_json(SpecVersion::V1_1_0)), @r#"
    {
      "cniVersion": "1.1.0",
      "interfaces": [
        {
          "mac": "ee:ee:ee:ee:ee:ee",
          "mtu": 1450,
          "name": "shunt0123456789"
        },
        {
          "mac": "72:70:0a:01:00:02",
          "mtu": 1450,
          "name": "eth0",
          "sandbox": "/run/netns/x"
        }
      ],
      "ips": [
        {
          "address": "10.1.0.2/32",
          "gateway": "169.254.1.1",
          "interface": 1
        }
      ],
      "routes": [
        {
          "dst": "0.0.0.0/0",
          "gw": "169.254.1.1"
        }
      ]
    }
    "#);
    assert_eq!(result.to_json(SpecVersion::V0_3_1), result.to_json(SpecVersion::V0_4_0).replace("0.4.0", "0.3.1"));
    assert!(!result.to_json(SpecVersion::V1_0_0).contains("mtu"), "since 1.1.0");
    assert!(!result.to_json(SpecVersion::V1_0_0).contains("version\":\"4"), "until 0.4.0");
}

#[test]
fn errors_are_the_specifications() {
    let error = CniError { version: SpecVersion::V0_4_0, ..CniError::new(code::TRY_AGAIN, "busy").with_details("wait") };
    let expected = json!({ "cniVersion": "0.4.0", "code": 11, "msg": "busy", "details": "wait" });
    assert_eq!(serde_json::from_str::<Value>(&error.to_json()).unwrap(), expected);
    let codes = [
        code::VERSION,
        code::UNSUPPORTED_FIELD,
        code::UNKNOWN_CONTAINER,
        code::ENVIRONMENT,
        code::IO,
        code::DECODE,
        code::CONFIG,
        code::TRY_AGAIN,
        code::NOT_AVAILABLE,
        code::LIMITED_CONNECTIVITY,
    ];
    assert_eq!(codes, [1, 2, 3, 4, 5, 6, 7, 11, 50, 51]);
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-z0-9./:]{0,20}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(
                "name|mac|mtu|address|interface|dst|containerID|ifname|search|hostPort|containerPort|protocol|hostIP",
                inner,
                0..4
            )
            .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes: Vec<u8>) {
        let _ = NetworkConfig::parse(&bytes);
    }

    #[test]
    fn no_json_panics(
        key in proptest::sample::select(&["name", "type", "agentSocket", "ipam", "dns", "prevResult", "runtimeConfig", "cni.dev/valid-attachments"][..]),
        deep in proptest::option::of(proptest::sample::select(&["interfaces", "ips", "routes", "portMappings"][..])),
        value in json_value(),
    ) {
        let mut config = json!({ "cniVersion": "1.1.0", "name": "n", "type": "shunt" });
        config[key] = match deep {
            Some(deep) => json!({ deep: [value] }),
            None => value,
        };
        let _ = NetworkConfig::parse(config.to_string().as_bytes());
    }
}
