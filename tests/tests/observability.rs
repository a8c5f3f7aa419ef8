//! What an operator sees of a node: health, readiness, metrics, the log, and how the agent ends.
//!
//! ```text
//!   n1 -- pods a, b        n2
//! ```

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use shunt::{
    attachment::{AttachmentKey, PodIdentity},
    kernel::{pins::PinDir, table::Table},
    metrics,
    socket::{
        client::{Client, ClientError},
        protocol::{PodAdd, PodAttach},
    },
};
use shunt_common::{
    maps,
    net::V4,
    service::{ServiceKey, SourceRange},
};
use shunt_lab::{
    api_server::{ApiServer, Transport},
    cluster::Endpoint,
    lab::{Lab, eventually},
    netns::Netns,
    node::Node,
    service::{PORTS, SOON, Service, serve_pod, tcp_answer},
    topology::PAIR,
    traffic::{
        http,
        packet::{send_ipv4, udp},
    },
};

const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9466);

/// Status code and body.
fn get(netns: &Netns, path: &str, accept: &str) -> Result<(u16, String)> {
    let answer = http::get(netns, LISTEN, path, &format!("Accept: {accept}\r\n"))?;
    Ok((answer.code, answer.body))
}

fn metrics(node: &Node) -> Result<String> {
    let (code, text) = get(&node.netns, "/metrics", "text/plain")?;
    ensure!(code == 200, "{code}: {text}");
    Ok(text)
}

/// The value of a series, written as it stands in the text.
fn value(node: &Node, series: &str) -> Result<f64> {
    let text = metrics(node)?;
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    Ok(line.with_context(|| format!("no {series} in\n{text}"))?.parse()?)
}

#[test]
fn what_somebody_else_does_to_maps_and_routes_is_found_mended_and_counted() -> Result<()> {
    let lab = Lab::build(&PAIR)?;
    let (n1, pod) = (lab.node("n1"), lab.pod("n1", "a")?);
    let _servers = serve_pod(&pod)?;
    let web = Service::create(&lab, "web", 10, &[&pod])?;
    let audits = |finding: &str| value(n1, &format!("shunt_audits_total{{finding=\"{finding}\"}}"));
    // The agent looks at everything twice a minute, and when something happens to a device of the node.
    let mut length = 1000;
    let mut looked_at = |finding: &str, least: f64| -> Result<()> {
        length += 1;
        n1.netns.ip(&format!("link set eth0 txqueuelen {length}"))?;
        eventually(SOON, || {
            let found = audits(finding)?;
            ensure!(found >= least, "{found} audits with the finding {finding}");
            Ok(())
        })
    };
    looked_at("as_known", 1.0)?;
    ensure!(audits("differs")? == 0.0, "the agent takes what it has written itself for somebody else's doing");

    let services = Table::<ServiceKey<V4>, shunt_common::service::Service>::open(
        &maps::SERVICES,
        &PinDir::new(n1.pin_dir()).map(&maps::SERVICES),
    )?;
    for (key, _) in services.entries()? {
        services.delete(&key)?;
    }
    looked_at("differs", 1.0)?;
    tcp_answer(&pod.netns, web.vip)?;

    n1.netns.ip("route flush proto 83")?;
    looked_at("differs", 2.0)?;
    ensure!(n1.netns.ip(&format!("route show {}", pod.address))?.contains("proto 83"));
    let before = audits("as_known")?;
    looked_at("as_known", before + 1.0)?;
    ensure!(audits("differs")? == 2.0, "what was mended is found again");
    n1.wait_ready()
}

/// A trie that is asked for an entry that is gone answers with a shorter one.
#[test]
fn a_source_range_that_somebody_removes_is_missed_though_a_shorter_one_covers_it() -> Result<()> {
    let lab = Lab::build(&PAIR)?;
    let n1 = lab.node("n1");
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "namespace": "default" },
        "spec": {
            "type": "LoadBalancer", "clusterIP": "10.96.0.10", "ports": PORTS.map(|port| port.at_nodes(30_080)),
            "loadBalancerSourceRanges": ["0.0.0.0/0", "10.0.0.0/8"],
        },
        "status": { "loadBalancer": { "ingress": [{ "ip": "198.51.100.10" }] } },
    });
    lab.cluster.put("service-web.yaml", &[service])?;
    let pins = PinDir::new(n1.pin_dir());
    let ranges = Table::<SourceRange<V4>, u32>::open(&maps::SOURCE_RANGES, &pins.map(&maps::SOURCE_RANGES))?;
    let all = || {
        let mut all: Vec<SourceRange<V4>> = ranges.entries()?.into_iter().map(|(range, _)| range).collect();
        all.sort_by_key(|range| range.len);
        ensure!(all.len() == 2, "{all:?}");
        Ok(all)
    };
    let before = eventually(SOON, all)?;
    ranges.delete(&before[1])?;
    ensure!(ranges.get(&before[1])?.is_some(), "the shorter range does not answer for it");
    n1.netns.ip("link set eth0 txqueuelen 1001")?;
    eventually(SOON, || {
        ensure!(all()? == before);
        ensure!(value(n1, "shunt_audits_total{finding=\"differs\"}")? == 1.0, "it was not an audit that mended it");
        Ok(())
    })
}

#[test]
fn what_happens_to_packets_pods_and_services_shows_in_the_metrics() -> Result<()> {
    let lab = Lab::build(&PAIR)?;
    let n1 = lab.node("n1");
    let (services, adds) =
        ("shunt_map_entries{map=\"services\"}", "shunt_cni_requests_total{request=\"pod_add\",outcome=\"ok\"}");
    let spoofed = "shunt_dropped_packets_total{reason=\"source_spoofed\"}";
    let delivered = "shunt_packets_total{action=\"to_local_pod\"}";
    ensure!(value(n1, services)? == 0.0 && value(n1, adds)? == 0.0 && value(n1, "shunt_pods")? == 0.0);
    let addresses = value(n1, "shunt_map_entries{map=\"addresses\"}")?;

    let (a, b) = (lab.pod("n1", "a")?, lab.pod("n1", "b")?);
    ensure!(value(n1, adds)? == 2.0 && value(n1, "shunt_pods")? == 2.0);
    ensure!(value(n1, "shunt_cni_request_duration_seconds_count{request=\"pod_attach\"}")? == 2.0);
    ensure!(
        value(n1, "shunt_ipam_addresses{state=\"used\"}")? == 2.0
            && value(n1, "shunt_ipam_addresses{state=\"free\"}")? == 251.0
    );
    ensure!(value(n1, "shunt_map_entries{map=\"addresses\"}")? == addresses + 2.0);

    ensure!(value(n1, spoofed)? == 0.0);
    let forged = udp((b.address, 1234), (b.address, 9000), b"forged");
    let honest = udp((a.address, 1234), (b.address, 9000), b"honest");
    send_ipv4(&a.netns, &[forged.clone(), forged, honest])?;
    eventually(SOON, || {
        ensure!(value(n1, spoofed)? == 2.0 && value(n1, delivered)? >= 1.0);
        Ok(())
    })?;

    let syncs = value(n1, "shunt_sync_duration_seconds_count")?;
    lab.cluster.put_service("web", "10.96.0.10".parse()?, &PORTS)?;
    lab.cluster.put_endpoints("web", &PORTS, &[Endpoint::ready(a.address, "n1"), Endpoint::ready(b.address, "n1")])?;
    eventually(SOON, || {
        let (ports, backends) = (value(n1, "shunt_service_ports")?, value(n1, "shunt_backends")?);
        ensure!(ports == PORTS.len() as f64 && backends == 2.0 * ports, "{ports} ports, {backends} backends");
        Ok(())
    })?;
    for map in ["slots", "backends"] {
        ensure!(value(n1, &format!("shunt_map_entries{{map=\"{map}\"}}"))? >= 2.0 * PORTS.len() as f64, "{map}");
    }
    ensure!(value(n1, services)? == PORTS.len() as f64 && value(n1, "shunt_sync_duration_seconds_count")? > syncs);
    ensure!(value(n1, "shunt_unhealthy{subject=\"dataplane\"}")? == 0.0 && value(n1, "shunt_ready")? == 1.0);

    // What the exposition has is what the list has, in both formats.
    let (_, open) = get(&n1.netns, "/metrics", "application/openmetrics-text; version=1.0.0")?;
    ensure!(open.ends_with("# EOF\n"));
    let plain = metrics(n1)?;
    for metric in metrics::ALL {
        ensure!(open.contains(&format!("# TYPE {} {}\n", metric.family(), metric.kind)), "{}", metric.name);
        ensure!(plain.contains(&format!("# HELP {} {}\n", metric.name, metric.help)), "{}", metric.name);
    }
    let types = open.lines().filter(|line| line.starts_with("# TYPE ")).count();
    ensure!(types == metrics::ALL.len(), "{types} metrics, {} in the list", metrics::ALL.len());

    // The log sums drops up; the first line of a reason comes with the next look at the counters, within 10 s.
    eventually(Duration::from_secs(20), || {
        let log = fs::read_to_string(n1.log_file())?;
        ensure!(
            log.lines().filter(|line| line.contains("packets are dropped") && line.contains("source_spoofed")).count() == 1
        );
        Ok(())
    })
}

#[test]
fn readiness_waits_for_all_it_needs_and_health_for_nothing() -> Result<()> {
    let mut lab = Lab::wired(&PAIR)?;
    lab.cluster.remove("node-n1.yaml")?;
    lab.node_mut("n1").start_agent()?;
    let n1 = lab.node("n1");
    let expect = |code: u16, text: &str| {
        eventually(SOON, || {
            let (found, body) = get(&n1.netns, "/readyz", "*/*")?;
            ensure!(found == code && body.contains(text), "{found}: {body}");
            ensure!(value(n1, "shunt_ready")? == f64::from(u8::from(code == 200)));
            let (alive, body) = get(&n1.netns, "/healthz", "*/*")?;
            ensure!(alive == 200, "{alive}: {body}");
            Ok(())
        })
    };
    expect(503, "there is no Node n1")?;
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n";
    let status = "status: {addresses: [{type: InternalIP, address: 192.0.2.11}]}\n";
    lab.cluster.put_text("node-n1.yaml", &format!("{node}{status}"))?;
    expect(503, "podCIDR")?;
    lab.cluster.put_node("n1", n1.address(), n1.pod_range(), None)?;
    expect(200, "ok\n")?;
    ensure!(value(n1, "shunt_refused_objects{kind=\"none\"}")? == 0.0);

    // Broken cluster state is told of, and takes nobody down.
    lab.cluster.put_text("bad.yaml", "kind: [unclosed\n")?;
    eventually(SOON, || {
        ensure!(value(n1, "shunt_refused_objects{kind=\"none\"}")? == 1.0);
        Ok(())
    })?;
    expect(200, "ok\n")?;
    lab.cluster.remove("bad.yaml")?;
    lab.cluster.remove("node-n1.yaml")?;
    expect(503, "there is no Node n1")
}

#[test]
fn an_address_in_use_is_told_of_and_tried_again() -> Result<()> {
    let mut lab = Lab::wired(&PAIR)?;
    let squatter = lab.node("n1").netns.inside(|| TcpListener::bind(LISTEN))?;
    lab.node_mut("n1").start_agent()?;
    let n1 = lab.node("n1");
    eventually(SOON, || {
        let status = n1.status()?;
        let [reason] = &status.reasons[..] else { bail!("{:?}", status.reasons) };
        ensure!(reason.contains("127.0.0.1:9466") && reason.contains("httpListen") && reason.contains("in use"), "{reason}");
        Ok(())
    })?;
    let _pod = lab.pod("n1", "a").context("the agent goes on meanwhile")?;
    drop(squatter);
    n1.wait_ready()?;
    ensure!(get(&n1.netns, "/readyz", "*/*")?.0 == 200);
    Ok(())
}

/// What the API server of these tests holds: the two nodes.
fn api_server(lab: &Lab) -> Result<ApiServer> {
    let netns = Netns::open(lab.node("n1").netns.name())?;
    let server = ApiServer::start("127.0.0.1:6443".parse()?, Some(netns), Transport::Tls)?;
    for name in ["n1", "n2"] {
        let node = lab.node(name);
        let range = format!("{}/{}", node.pod_range().0, node.pod_range().1);
        server.put(&json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": name },
            "spec": { "podCIDR": range, "podCIDRs": [range] },
            "status": { "addresses": [{ "type": "InternalIP", "address": node.address() }] },
        }))?;
    }
    Ok(server)
}

#[test]
fn a_dead_api_server_shows_and_neither_health_nor_readiness_minds() -> Result<()> {
    let mut lab = Lab::wired(&PAIR)?;
    let server = api_server(&lab)?;
    let kubeconfig = server.kubeconfig(&lab.dir().join("kubeconfig"))?;
    server.down();
    lab.node_mut("n1").follow_api(&kubeconfig);
    lab.node_mut("n1").start_agent()?;
    let n1 = lab.node("n1");
    let answers = |ready: u16, text: &str| {
        eventually(Duration::from_secs(20), || {
            let (found, body) = get(&n1.netns, "/readyz", "*/*")?;
            ensure!(found == ready && body.contains(text), "{found}: {body}");
            let (alive, body) = get(&n1.netns, "/healthz", "*/*")?;
            ensure!(alive == 200, "{alive}: {body}");
            Ok(())
        })
    };
    let connected = "shunt_api_connected{kind=\"Service\"}";
    // Without having heard of the cluster there is nothing to be ready with.
    answers(503, "the API server is not reached")?;
    ensure!(value(n1, connected)? == 0.0);
    eventually(SOON, || {
        ensure!(value(n1, "shunt_api_errors_total{kind=\"Node\",code=\"none\"}")? >= 1.0);
        Ok(())
    })?;

    server.up()?;
    answers(200, "ok\n")?;
    let status = n1.status()?;
    let source = status.source.context("no source")?;
    ensure!(source.connected && source.heard_at_unix_ms.is_some() && source.from.contains("kubeconfig"), "{source:?}");
    ensure!(value(n1, connected)? == 1.0 && value(n1, "shunt_api_lists_total{kind=\"Service\"}")? >= 1.0);
    let programmed = "shunt_network_programming_duration_seconds_count";
    ensure!(value(n1, programmed)? == 0.0);

    server.put(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "namespace": "default" },
        "spec": { "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ports": [{ "port": 80, "protocol": "TCP" }] },
    }))?;
    // One change of before the agent's start, which says nothing of it, and one of now.
    let now = utc_now(&n1.netns)?;
    for (name, trigger) in [("web-1", "2020-01-01T00:00:00Z"), ("web-2", now.trim())] {
        server.put(&json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {
                "name": name, "namespace": "default", "labels": { "kubernetes.io/service-name": "web" },
                "annotations": { "endpoints.kubernetes.io/last-change-trigger-time": trigger },
            },
            "ports": [{ "name": "", "protocol": "TCP", "port": 8080 }],
            "endpoints": [{ "addresses": [format!("10.244.2.{}", &name[4..])], "conditions": { "ready": true } }],
        }))?;
    }
    eventually(SOON, || {
        ensure!(value(n1, "shunt_backends")? == 2.0 && value(n1, programmed)? == 1.0, "{}", value(n1, programmed)?);
        Ok(())
    })?;

    server.down();
    answers(200, "ok\nthe API server is not reached")?;
    // Each kind has a stream of its own, and finds out by itself.
    eventually(SOON, || {
        ensure!(value(n1, connected)? == 0.0 && value(n1, "shunt_unhealthy{subject=\"source\"}")? == 1.0);
        Ok(())
    })?;
    ensure!(value(n1, "shunt_ready")? == 1.0 && value(n1, "shunt_backends")? == 2.0);
    ensure!(!n1.status()?.source.context("no source")?.connected && !n1.shunt(&["status"])?.status.success());
    Ok(())
}

/// The time in RFC 3339, to the nanosecond.
fn utc_now(netns: &Netns) -> Result<String> {
    netns.run("date", "-u +%Y-%m-%dT%H:%M:%S.%NZ")
}

/// A plugin that has an address and has not asked yet for the pod to be attached.
fn amid_add(node: &Node) -> Result<(Client, AttachmentKey)> {
    let attachment = AttachmentKey::new("amid-add", "eth0")?;
    let mut plugin = Client::connect(&node.socket(), SOON)?;
    plugin.pod_add(PodAdd {
        attachment: attachment.clone(),
        network: "shunt".to_owned(),
        netns: "/proc/self/ns/net".into(),
        pod: PodIdentity::default(),
        port_mappings: vec![],
    })?;
    Ok((plugin, attachment))
}

fn nobody_listens(socket: &Path) -> Result<()> {
    eventually(SOON, || {
        ensure!(matches!(Client::connect(socket, SOON), Err(ClientError::Dead(_))), "the agent takes clients still");
        Ok(())
    })
}

#[test]
fn an_agent_that_is_told_to_end_finishes_what_it_began() -> Result<()> {
    let mut lab = Lab::build(&PAIR)?;
    let socket = lab.node("n1").socket();
    let (mut plugin, attachment) = amid_add(lab.node("n1"))?;
    let n1 = lab.node_mut("n1");
    let start = Instant::now();
    let ended = thread::scope(|scope| {
        let ending = scope.spawn(|| n1.stop_agent());
        nobody_listens(&socket)?;
        // There is no such interface, which is an answer.
        let answer = plugin.pod_attach(PodAttach { attachment, netns_cookie: None });
        ensure!(matches!(answer, Err(ClientError::Refused(_))), "{answer:?}");
        ending.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    ended?;
    ensure!(start.elapsed() < Duration::from_secs(4), "it waited for nobody");
    // A half that is never asked for holds nobody up for long either.
    n1.start_agent()?;
    n1.wait_ready()?;
    let _amid = amid_add(n1)?;
    n1.stop_agent()
}

#[test]
fn a_second_signal_ends_it_at_once() -> Result<()> {
    let mut lab = Lab::build(&PAIR)?;
    let n1 = lab.node_mut("n1");
    let _amid = amid_add(n1)?;
    let pid = Pid::from_raw(n1.agent_pid().context("no agent")?.cast_signed());
    kill(pid, Signal::SIGTERM)?;
    nobody_listens(&n1.socket())?;
    let start = Instant::now();
    kill(pid, Signal::SIGTERM)?;
    eventually(SOON, || {
        // A zombie, until we look after it.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        ensure!(stat.contains(") Z "), "{stat}");
        Ok(())
    })?;
    ensure!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    n1.kill_agent()
}
