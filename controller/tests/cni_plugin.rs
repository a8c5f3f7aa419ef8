//! The plugin as a runtime calls it, in real network namespaces, against a fake agent.
//!
//!     node namespace                     pod namespace
//!     shunt<hash>, ee:ee:ee:ee:ee:ee --- eth0, its /32, default via 169.254.1.1
//!
//! The fake keeps addresses in a real book and takes interfaces away on DEL; it attaches no program and writes no map, so
//! that what a green run doesn't prove is everything behind `pod_attach`. The namespaces have no names and no mounts: they
//! are gone with the descriptors that this process holds. Needs root; without it the tests say so and pass.

use std::{
    fs::File,
    io::Write,
    net::Ipv4Addr,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::SystemTime,
};

use nix::sched::{CloneFlags, setns, unshare};
use serde_json::{Value, json};
use shunt::{
    attachment::HOST_MAC,
    ipam::Ipam,
    socket::{
        claim::{Claim, Holder},
        protocol::{
            MonitorEvent, Pod, PodAdd, PodAdded, PodAttach, PodCheck, PodDelete, PodGc, PodGcDone, Refusal, RefusalReason,
            Status,
        },
        server::{self, Handler, Limits},
    },
};
use tokio::sync::broadcast;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// A network namespace that lives as long as this.
struct Netns(File);

impl Netns {
    fn new() -> Self {
        let open = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        };
        Self(thread::spawn(open).join().unwrap())
    }

    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let enter = || {
                setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            };
            scope.spawn(enter).join().unwrap()
        })
    }

    fn ip(&self, args: &str) -> String {
        let output = self.run(|| Command::new("ip").args(args.split_whitespace()).output().unwrap());
        assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn links(&self) -> Vec<String> {
        let text = self.ip("-j link");
        let links: Vec<Value> = serde_json::from_str(&text).unwrap();
        links.iter().map(|link| link["ifname"].as_str().unwrap().to_owned()).filter(|name| name != "lo").collect()
    }
}

/// An agent without a dataplane.
struct Fake {
    node: Arc<Netns>,
    ipam: Mutex<Ipam>,
    /// What the next request of each kind is refused with.
    refuse_attach: Mutex<Option<Refusal>>,
    refuse_ready: Mutex<Option<Refusal>>,
}

impl Fake {
    fn added(pod: &Pod) -> PodAdded {
        PodAdded {
            address: pod.address,
            gateway: GATEWAY,
            mtu: 1450,
            host_interface: pod.host_interface.clone(),
            host_mac: HOST_MAC,
            pod_mac: pod.mac,
        }
    }

    fn remove(&self, attachment: &shunt::attachment::AttachmentKey) {
        // It may be gone already, or be going with the pod's namespace this very moment.
        let name = attachment.host_interface();
        self.node.run(|| Command::new("ip").args(["link", "del", &name]).output().unwrap());
        self.ipam.lock().unwrap().release(attachment, SystemTime::now()).unwrap();
    }
}

impl Handler for Fake {
    async fn status(&self) -> Result<Status, Refusal> {
        Err(Refusal::new(RefusalReason::Failed, "a fake has no status"))
    }

    async fn ready(&self) -> Result<(), Refusal> {
        self.refuse_ready.lock().unwrap().take().map_or(Ok(()), Err)
    }

    async fn pods(&self) -> Result<Vec<Pod>, Refusal> {
        Ok(self.ipam.lock().unwrap().pods().values().cloned().collect())
    }

    async fn pod_add(&self, request: PodAdd) -> Result<PodAdded, Refusal> {
        let range = Some("10.77.0.0/29".parse().unwrap());
        let pod = self.ipam.lock().unwrap().allocate(&request, range, |_| false, SystemTime::now())?;
        Ok(Self::added(&pod))
    }

    async fn pod_attach(&self, request: PodAttach) -> Result<(), Refusal> {
        if let Some(refusal) = self.refuse_attach.lock().unwrap().take() {
            return Err(refusal);
        }
        let name = request.attachment.host_interface();
        self.node.ip(&format!("link set {name} up"));
        Ok(())
    }

    async fn pod_check(&self, request: PodCheck) -> Result<PodAdded, Refusal> {
        let ipam = self.ipam.lock().unwrap();
        let pod = ipam.pods().get(&request.attachment);
        pod.map(Self::added).ok_or_else(|| Refusal::new(RefusalReason::Unknown, "no such attachment"))
    }

    async fn pod_delete(&self, request: PodDelete) -> Result<(), Refusal> {
        self.remove(&request.attachment);
        Ok(())
    }

    async fn pod_gc(&self, request: PodGc) -> Result<PodGcDone, Refusal> {
        let all: Vec<Pod> = self.ipam.lock().unwrap().pods().values().cloned().collect();
        let stale = all.into_iter().filter(|pod| pod.network == request.network && !request.valid.contains(&pod.attachment));
        let removed: Vec<_> = stale.map(|pod| pod.attachment).collect();
        removed.iter().for_each(|attachment| self.remove(attachment));
        Ok(PodGcDone { removed })
    }

    async fn monitor(&self) -> Result<broadcast::Receiver<MonitorEvent>, Refusal> {
        Err(Refusal::new(RefusalReason::Failed, "a fake has no events"))
    }
}

/// A node with its fake agent, and a way to call the plugin on it.
struct Node {
    netns: Arc<Netns>,
    fake: Arc<Fake>,
    dir: tempfile::TempDir,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Node {
    /// `None` without root.
    fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("not run: network namespaces need root");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let netns = Arc::new(Netns::new());
        let fake = Arc::new(Fake {
            node: netns.clone(),
            ipam: Mutex::new(Ipam::open(&dir.path().join("state")).unwrap()),
            refuse_attach: Mutex::default(),
            refuse_ready: Mutex::default(),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let holder = Holder {
            pid: std::process::id(),
            node: "fake".to_owned(),
            pin_dir: PathBuf::new(),
            state_dir: dir.path().join("state"),
        };
        let claim = Claim::take(dir.path(), &holder).unwrap();
        let handler = fake.clone();
        runtime.spawn(async move {
            let listener = claim.listen().unwrap();
            server::serve(listener, handler, Limits::default(), shunt::ending::ending().1).await;
        });
        let node = Self { netns, fake, dir, runtime: Some(runtime) };
        while !node.socket().exists() {
            thread::sleep(std::time::Duration::from_millis(1));
        }
        Some(node)
    }

    fn socket(&self) -> PathBuf {
        shunt::socket::path(self.dir.path())
    }

    /// The agent is killed: its socket stays behind.
    fn kill_agent(&mut self) {
        self.runtime.take().unwrap().shutdown_timeout(std::time::Duration::from_secs(5));
    }

    fn config(&self, version: &str) -> Value {
        json!({ "cniVersion": version, "name": "shunt", "type": "shunt", "agentSocket": self.socket(), "runtimeConfig": { "x": 1 } })
    }

    fn call(&self, command: &str, id: &str, netns: &str, config: &Value) -> Result<Option<Value>, Value> {
        let output = self.netns.run(|| plugin(command, id, netns, config.to_string().as_bytes()));
        let text = String::from_utf8(output.stdout).unwrap();
        let value = (!text.is_empty()).then(|| serde_json::from_str::<Value>(&text).expect("JSON alone on standard output"));
        match output.status.code() {
            Some(0) => Ok(value),
            Some(1) => Err(value.expect("an error says why")),
            code => panic!("exit {code:?}: {}", String::from_utf8_lossy(&output.stderr)),
        }
    }

    fn held(&self) -> usize {
        self.fake.ipam.lock().unwrap().pods().len()
    }
}

fn plugin(command: &str, id: &str, netns: &str, config: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_shunt"))
        .env_clear()
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", id)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_NETNS", netns)
        .env("CNI_PATH", "/opt/cni/bin")
        .env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID=u1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // VERSION answers without having read; then the pipe may be closed.
    let _ = child.stdin.take().unwrap().write_all(config);
    child.wait_with_output().unwrap()
}

fn with_previous(config: &Value, result: &Value) -> Value {
    let mut config = config.clone();
    config["prevResult"] = result.clone();
    config
}

#[test]
fn a_pod_lives_and_dies_in_every_version() {
    let Some(node) = Node::new() else { return };
    for (i, version) in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"].into_iter().enumerate() {
        let pod = Netns::new();
        let id = format!("c{i}");
        let mut config = node.config(version);
        config["dns"] = json!({ "nameservers": ["10.96.0.10"], "search": ["svc.cluster.local"] });
        let result = node.call("ADD", &id, &pod.path(), &config).unwrap().unwrap();
        let address = format!("10.77.0.{}", 2 + i);
        let host = shunt::attachment::AttachmentKey::new(id.as_str(), "eth0").unwrap().host_interface();
        let pod_mac = format!("72:70:0a:4d:00:0{}", 2 + i);
        let mut interfaces = json!([
            { "name": host, "mac": "ee:ee:ee:ee:ee:ee" },
            { "name": "eth0", "mac": pod_mac, "sandbox": pod.path() },
        ]);
        let mut ip = json!({ "address": format!("{address}/32"), "gateway": "169.254.1.1", "interface": 1 });
        if version == "1.1.0" {
            interfaces[0]["mtu"] = json!(1450);
            interfaces[1]["mtu"] = json!(1450);
        }
        if version.starts_with("0.") {
            ip["version"] = json!("4");
        }
        let expected = json!({
            "cniVersion": version,
            "interfaces": interfaces,
            "ips": [ip],
            "routes": [{ "dst": "0.0.0.0/0", "gw": "169.254.1.1" }],
            "dns": { "nameservers": ["10.96.0.10"], "search": ["svc.cluster.local"] },
        });
        assert_eq!(result, expected);

        let eth0: Value = serde_json::from_str(&pod.ip("-j -d addr show dev eth0")).unwrap();
        assert_eq!(eth0[0]["mtu"], 1450);
        assert_eq!(eth0[0]["address"], json!(pod_mac));
        assert_eq!(eth0[0]["operstate"], "UP");
        assert!(pod.ip("-d link show eth0").contains("addrgenmode none"), "no IPv6 is tried");
        let addresses = eth0[0]["addr_info"].as_array().unwrap();
        assert_eq!(addresses.len(), 1, "{addresses:?}");
        assert_eq!((&addresses[0]["local"], &addresses[0]["prefixlen"]), (&json!(address), &json!(32)));
        assert!(pod.ip("link show lo").contains("LOOPBACK,UP"));
        assert_eq!(pod.ip("route show").trim(), "default via 169.254.1.1 dev eth0 proto static onlink");
        assert!(pod.ip("neigh show").contains("169.254.1.1 dev eth0 lladdr ee:ee:ee:ee:ee:ee PERMANENT"));
        let veth: Value = serde_json::from_str(&node.netns.ip(&format!("-j link show {host}"))).unwrap();
        assert_eq!((&veth[0]["address"], &veth[0]["mtu"]), (&json!("ee:ee:ee:ee:ee:ee"), &json!(1450)));

        let known = node.fake.ipam.lock().unwrap().pods().values().next().cloned().unwrap();
        assert_eq!((known.pod.namespace.as_str(), known.pod.name.as_str(), known.pod.uid.as_str()), ("default", "web-0", "u1"));

        let check = with_previous(&config, &result);
        match version {
            "0.3.1" => assert_eq!(node.call("CHECK", &id, &pod.path(), &check).unwrap_err()["code"], 1),
            _ => assert_eq!(node.call("CHECK", &id, &pod.path(), &check).unwrap(), None),
        }
        for _ in 0..2 {
            assert_eq!(node.call("DEL", &id, &pod.path(), &check).unwrap(), None);
            assert!(pod.links().is_empty() && node.netns.links().is_empty());
            assert_eq!(node.held(), 0);
        }
    }
}

#[test]
fn a_delete_succeeds_without_the_namespace() {
    let Some(node) = Node::new() else { return };
    let pod = Netns::new();
    let path = pod.path();
    node.call("ADD", "c", &path, &node.config("1.0.0")).unwrap();
    drop(pod);
    assert_eq!(node.call("DEL", "c", &path, &node.config("1.0.0")).unwrap(), None);
    assert_eq!(node.call("DEL", "c", "", &node.config("1.0.0")).unwrap(), None);
    assert_eq!(node.call("DEL", "never-added", "", &node.config("1.0.0")).unwrap(), None);
    let spoilt = with_previous(&node.config("1.0.0"), &json!({ "ips": "spoilt" }));
    assert_eq!(node.call("DEL", "c", "", &spoilt).unwrap(), None, "what is wrong with an earlier result keeps nobody alive");
    assert_eq!(node.held(), 0);
}

#[test]
fn a_failed_add_leaves_nothing() {
    let Some(node) = Node::new() else { return };
    let pod = Netns::new();
    let config = node.config("1.0.0");

    *node.fake.refuse_attach.lock().unwrap() = Some(Refusal::new(RefusalReason::Failed, "the verifier says no"));
    let error = node.call("ADD", "c", &pod.path(), &config).unwrap_err();
    assert_eq!((&error["code"], &error["cniVersion"]), (&json!(100), &json!("1.0.0")));
    assert_eq!(error["msg"], "the verifier says no");
    assert_eq!((pod.links(), node.netns.links(), node.held()), (vec![], vec![], 0));

    // The host's name is taken by somebody else: the kernel refuses the pair.
    let host = shunt::attachment::AttachmentKey::new("d", "eth0").unwrap().host_interface();
    node.netns.ip(&format!("link add {host} type veth peer name other"));
    let error = node.call("ADD", "d", &pod.path(), &config).unwrap_err();
    assert_eq!(error["code"], 100);
    assert!(error["msg"].as_str().unwrap().contains(&host), "{error}");
    assert_eq!((pod.links(), node.held()), (vec![], 0));
}

#[test]
fn a_second_add_is_refused_and_harms_nobody() {
    let Some(node) = Node::new() else { return };
    let pod = Netns::new();
    let config = node.config("1.0.0");
    let result = node.call("ADD", "c", &pod.path(), &config).unwrap().unwrap();
    for id in ["c", "other"] {
        let error = node.call("ADD", id, &pod.path(), &config).unwrap_err();
        assert_eq!(error["code"], 104, "{error}");
    }
    assert_eq!(node.call("CHECK", "c", &pod.path(), &with_previous(&config, &result)).unwrap(), None);
    assert_eq!(node.held(), 1);
}

#[test]
fn a_check_names_what_is_not_as_it_should_be() {
    let Some(node) = Node::new() else { return };
    let pod = Netns::new();
    let config = node.config("1.1.0");
    let result = node.call("ADD", "c", &pod.path(), &config).unwrap().unwrap();
    let check = with_previous(&config, &result);
    for (damage, repair, expected) in [
        (
            "neigh del 169.254.1.1 dev eth0",
            "neigh add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent",
            "the permanent neighbour",
        ),
        (
            "route del default",
            "route add default via 169.254.1.1 dev eth0 onlink",
            "the default route via 169.254.1.1 is missing",
        ),
        ("link set eth0 mtu 1400", "link set eth0 mtu 1450", "the MTU of eth0 is 1400, not 1450"),
        ("addr add 10.9.9.9/32 dev eth0", "addr del 10.9.9.9/32 dev eth0", ""),
        (
            "link set eth0 address 02:00:00:00:00:01",
            // A new MAC flushes the neighbours too, permanent ones included.
            "link set eth0 address 72:70:0a:4d:00:02 && neigh add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent",
            "the MAC of eth0 is 02:00:00:00:00:01",
        ),
    ] {
        pod.ip(damage);
        let outcome = node.call("CHECK", "c", &pod.path(), &check);
        match outcome {
            Ok(_) => assert_eq!(expected, "", "{damage} was not seen"),
            Err(error) => {
                assert_eq!(error["code"], 103);
                assert!(error["msg"].as_str().unwrap().contains(expected) && !expected.is_empty(), "{damage}: {error}");
            }
        }
        repair.split(" && ").for_each(|repair| drop(pod.ip(repair)));
        node.call("CHECK", "c", &pod.path(), &check).unwrap_or_else(|error| panic!("{repair}: {error}"));
    }
    pod.ip("link del eth0");
    let error = node.call("CHECK", "c", &pod.path(), &check).unwrap_err();
    assert!(error["msg"].as_str().unwrap().contains("no interface eth0"), "{error}");
    let error = node.call("CHECK", "c", "/proc/1/no/such/netns", &check).unwrap_err();
    assert_eq!(error["code"], 7, "another sandbox than the result's: {error}");
    assert_eq!(node.call("CHECK", "c", &pod.path(), &config).unwrap_err()["code"], 7, "without prevResult");
}

#[test]
fn gc_removes_what_is_not_valid_and_of_this_network_only() {
    let Some(node) = Node::new() else { return };
    let pods: Vec<Netns> = (0..3).map(|_| Netns::new()).collect();
    let config = node.config("1.1.0");
    for (i, pod) in pods.iter().enumerate() {
        let mut config = config.clone();
        config["name"] = json!(if i == 2 { "other" } else { "shunt" });
        node.call("ADD", &format!("c{i}"), &pod.path(), &config).unwrap();
    }
    assert_eq!(node.call("GC", "", "", &config).unwrap_err()["code"], 7, "never everything by omission");
    assert_eq!(node.held(), 3);
    let mut gc = config.clone();
    gc["cni.dev/valid-attachments"] = json!([{ "containerID": "c0", "ifname": "eth0" }]);
    assert_eq!(node.call("GC", "", "", &gc).unwrap(), None);
    assert_eq!((pods[0].links().len(), pods[1].links().len(), pods[2].links().len()), (1, 0, 1));
    assert_eq!(node.held(), 2);
    gc["cniVersion"] = json!("1.0.0");
    assert_eq!(node.call("GC", "", "", &gc).unwrap_err()["code"], 1);
}

#[test]
fn a_dead_agent_is_an_error_that_asks_for_another_try() {
    let Some(mut node) = Node::new() else { return };
    let pod = Netns::new();
    let config = node.config("1.1.0");
    node.call("ADD", "c", &pod.path(), &config).unwrap();
    assert_eq!(node.call("STATUS", "", "", &config).unwrap(), None);
    *node.fake.refuse_ready.lock().unwrap() = Some(Refusal::new(RefusalReason::NotReady, "not synced yet"));
    assert_eq!(node.call("STATUS", "", "", &config).unwrap_err()["code"], 50);
    *node.fake.refuse_ready.lock().unwrap() = Some(Refusal::new(RefusalReason::Failed, "a program is gone"));
    assert_eq!(node.call("STATUS", "", "", &config).unwrap_err()["code"], 51);

    node.kill_agent();
    let fresh = Netns::new();
    for (command, id, netns, expected) in
        [("STATUS", "", String::new(), 50), ("ADD", "d", fresh.path(), 11), ("DEL", "c", pod.path(), 11)]
    {
        let error = node.call(command, id, &netns, &config).unwrap_err();
        assert_eq!(error["code"], expected, "{error}");
        assert!(error["msg"].as_str().unwrap().contains("is dead"), "{error}");
    }
    assert!(fresh.links().is_empty());
    assert_eq!(pod.links(), ["eth0"], "the pod that lives goes on living");
    std::fs::remove_file(node.socket()).unwrap();
    let error = node.call("DEL", "c", &pod.path(), &config).unwrap_err();
    assert_eq!(error["code"], 11);
    assert!(error["msg"].as_str().unwrap().contains("no agent listens"), "{error}");
}

#[test]
fn what_cannot_be_done_has_its_code() {
    let Some(node) = Node::new() else { return };
    let pod = Netns::new();
    let good = node.config("1.1.0");
    let plain = node.dir.path().join("state/ipam.json.not");
    std::fs::write(&plain, "x").unwrap();
    for (netns, expected) in [
        ("/run/netns/shunt-no-such".to_owned(), 3),
        (node.netns.path(), 4),
        (plain.display().to_string(), 4),
        ("/proc/self/ns/mnt".to_owned(), 4),
    ] {
        let error = node.call("ADD", "c", &netns, &good).unwrap_err();
        assert_eq!(error["code"], expected, "{netns}: {error}");
    }
    let chained = with_previous(&good, &json!({ "cniVersion": "1.1.0" }));
    assert_eq!(node.call("ADD", "c", &pod.path(), &chained).unwrap_err()["code"], 7);
    for i in 0..5 {
        node.call("ADD", &format!("c{i}"), &Netns::new().path(), &good).unwrap();
    }
    let error = node.call("ADD", "c5", &pod.path(), &good).unwrap_err();
    assert_eq!(error["code"], 101, "{error}");
    assert!(error["msg"].as_str().unwrap().contains("10.77.0.0/29 is full"), "{error}");
    node.call("DEL", "c0", "", &good).unwrap();
    let error = node.call("ADD", "c5", &pod.path(), &good).unwrap_err();
    assert_eq!(error["code"], 11, "the address was released just now: {error}");
    assert!(pod.links().is_empty());
}

#[test]
fn version_is_answered_whatever_comes_in() {
    for (config, expected) in
        [(&b"{\"cniVersion\":\"0.4.0\"}"[..], "0.4.0"), (b"", "1.1.0"), (b"{\"cniVersion\":\"9.9.9\"}", "1.1.0")]
    {
        let output = plugin("VERSION", "", "", config);
        assert!(output.status.success());
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(answer, json!({ "cniVersion": expected, "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] }));
    }
    let output = plugin("FROBNICATE", "", "", b"");
    assert_eq!(output.status.code(), Some(1));
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(error["code"], 4);
}

#[test]
fn a_socket_path_that_cannot_be_one_is_told() {
    let config =
        json!({ "cniVersion": "1.1.0", "name": "n", "type": "shunt", "agentSocket": Path::new("/").join("x".repeat(200)) });
    let output = plugin("STATUS", "", "", config.to_string().as_bytes());
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(error["code"], 50, "{error}");
}
