//! Services of every kind as real clients see them: which backend answers, and which source it sees.
//!
//! ```text
//!   outside -- router --+-- n1 -- pods a, b       every virtual IP is routed to n1
//!                       +-- n2 -- pods c, d
//! ```

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use shunt_common::{config::link_local::HAIRPIN, net::proto, verdict::DropReason};
use shunt_lab::{
    both_translations,
    cluster::Endpoint,
    lab::{Lab, eventually},
    netns::Netns,
    node::Node,
    service::{PORT, PORTS, SOON, TARGET, refused, serve, serve_pod, tcp_answer, udp_answer},
    topology::{OUTSIDE, PAIR},
    traffic::{
        echo::{Answer, TcpClient, UdpClient},
        http,
    },
    translation::Translation,
};

const NODE_PORT: u16 = 30_080;
const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const LOAD_BALANCER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
const EXTERNAL_IP: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 20);

/// The Service with fields of its spec beside those that all have.
fn put_service(lab: &Lab, fields: &Value) -> Result<()> {
    let ports: Vec<_> = PORTS.iter().map(|port| port.at_nodes(NODE_PORT)).collect();
    let mut spec = json!({
        "type": "LoadBalancer", "clusterIP": CLUSTER_IP, "clusterIPs": [CLUSTER_IP], "externalIPs": [EXTERNAL_IP],
        "selector": { "app": "web" }, "ports": ports,
    });
    if let (Some(spec), Some(fields)) = (spec.as_object_mut(), fields.as_object()) {
        spec.extend(fields.clone());
    }
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "namespace": "default" }, "spec": spec,
        "status": { "loadBalancer": { "ingress": [{ "ip": LOAD_BALANCER }] } },
    });
    lab.cluster.put("service-web.yaml", &[service])
}

/// Gives the Service endpoints; in force on every node when this returns.
fn put_endpoints(lab: &Lab, endpoints: &[Endpoint], is_local: bool) -> Result<()> {
    lab.cluster.put_endpoints("web", &PORTS, endpoints)?;
    for node in &lab.nodes {
        for number in [proto::TCP, proto::UDP] {
            for (address, port) in [(CLUSTER_IP, PORT), (LOAD_BALANCER, PORT), (EXTERNAL_IP, PORT), (node.address(), NODE_PORT)]
            {
                let local = is_local && address != CLUSTER_IP;
                let here = |endpoint: &&Endpoint| !local || endpoint.node == node.name;
                let wanted: BTreeSet<_> = endpoints.iter().filter(here).map(|endpoint| endpoint.address).collect();
                eventually(SOON, || {
                    let rows = node.kernel()?.services()?;
                    let row = rows.iter().find(|row| {
                        (Ipv4Addr::from(row.key.addr), row.key.port.to_host(), row.key.proto) == (address, port, number)
                    });
                    let row = row.with_context(|| format!("{address}:{port} is not in the map of {}", node.name))?;
                    let held: BTreeSet<_> = row.outside.iter().map(|row| Ipv4Addr::from(row.backend.addr)).collect();
                    ensure!(held == wanted, "{address}:{port} on {} leads to {held:?}, not to {wanted:?}", node.name);
                    Ok(())
                })?;
            }
        }
    }
    Ok(())
}

/// A lab whose outside knows the way to virtual IPs.
fn lab(translation: Translation) -> Result<Lab> {
    let lab = Lab::build_with(&PAIR, translation)?;
    let surroundings = lab.surroundings.as_ref().context("a router")?;
    for range in ["10.96.0.0/24", "198.51.100.0/24"] {
        surroundings.route(range, lab.node("n1").address())?;
    }
    Ok(lab)
}

/// What a client asks: each with whether `externalTrafficPolicy` is meant for it.
fn frontends(lab: &Lab) -> [(&'static str, SocketAddrV4, bool); 4] {
    [
        ("ClusterIP", SocketAddrV4::new(CLUSTER_IP, PORT), false),
        ("load balancer's IP", SocketAddrV4::new(LOAD_BALANCER, PORT), true),
        ("externalIP", SocketAddrV4::new(EXTERNAL_IP, PORT), true),
        ("NodePort", SocketAddrV4::new(lab.node("n1").address(), NODE_PORT), true),
    ]
}

/// Where a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    /// Pod a of n1.
    Pod,
    /// A process of n1.
    Host,
    /// Pod d of n2, which reaches n1 through the tunnel.
    OtherPod,
    /// A process of n2.
    OtherHost,
    /// A host outside.
    Outside,
}

/// Who asks n1 at what, for all that is served by n1: another node serves virtual IPs to its own clients itself.
fn asks(position: Position, kind: &str) -> bool {
    match position {
        Position::Pod | Position::Host | Position::Outside => true,
        Position::OtherPod | Position::OtherHost => kind == "NodePort",
    }
}

/// Some answers over TCP and UDP: which servers, and which sources they saw.
fn answers(client: &Netns, to: SocketAddrV4, tries: usize) -> Result<(BTreeSet<String>, BTreeSet<Ipv4Addr>)> {
    let all: Vec<Answer> = (0..tries).flat_map(|_| [tcp_answer(client, to), udp_answer(client, to)]).collect::<Result<_>>()?;
    Ok((all.iter().map(|answer| answer.server.clone()).collect(), all.iter().map(|answer| *answer.peer.ip()).collect()))
}

both_translations!(
    every_kind_position_and_policy_has_its_backends_and_its_source,
    large_transfers_from_outside_go_both_ways,
    a_client_stays_with_one_backend_while_its_service_wants_that,
    a_client_may_meet_another_backend_after_a_silence_as_long_as_its_service_says,
    one_client_port_for_a_node_port_and_for_another_way_to_its_backend_is_two_connections,
    source_ranges_keep_others_from_the_load_balancers_address_alone,
);

fn every_kind_position_and_policy_has_its_backends_and_its_source(translation: Translation) -> Result<()> {
    let lab = lab(translation)?;
    let (a, b, c, d) = (lab.pod("n1", "a")?, lab.pod("n1", "b")?, lab.pod("n2", "c")?, lab.pod("n2", "d")?);
    let (n1, n2) = (lab.node("n1"), lab.node("n2"));
    let _servers =
        (serve_pod(&b)?, serve_pod(&c)?, serve(&n1.netns, n1.address(), "n1")?, serve(&n2.netns, n2.address(), "n2")?);
    let clients = [
        (Position::Pod, &a.netns, a.address),
        (Position::Host, &n1.netns, n1.address()),
        (Position::OtherPod, &d.netns, d.address),
        (Position::OtherHost, &n2.netns, n2.address()),
        (Position::Outside, lab.outside(), OUTSIDE),
    ];
    let here = |name: &str| name == "b" || name == "n1";
    let backends = [("b", b.address, "n1"), ("c", c.address, "n2"), ("n1", n1.address(), "n1"), ("n2", n2.address(), "n2")];
    for (policy, is_local) in [("Cluster", false), ("Local", true)] {
        put_service(&lab, &json!({ "externalTrafficPolicy": policy }))?;
        for names in [&["b"][..], &["c"], &["n1"], &["n2"], &["b", "c"], &[]] {
            let chosen = backends.iter().filter(|(name, ..)| names.contains(name));
            let endpoints: Vec<_> = chosen.map(|(_, address, node)| Endpoint::ready(*address, node)).collect();
            put_endpoints(&lab, &endpoints, is_local)?;
            for (kind, to, has_policy) in frontends(&lab) {
                for (position, client, address) in clients {
                    if !asks(position, kind) {
                        continue;
                    }
                    let what = || format!("{position:?} -> {kind} of {names:?}, policy {policy}");
                    let is_guest = !matches!(position, Position::Pod | Position::Host);
                    let limited = is_local && has_policy && is_guest;
                    let serving: BTreeSet<String> =
                        names.iter().filter(|name| !limited || here(name)).map(|name| (*name).to_owned()).collect();
                    if names.is_empty() {
                        refused(client, to).with_context(what)?;
                        continue;
                    }
                    if serving.is_empty() {
                        // Silence takes its time: one position stands for all.
                        if position == Position::Outside {
                            let before = n1.drops(DropReason::NoLocalEndpoints)?;
                            ensure!(tcp_answer(client, to).is_err(), "{} was answered", what());
                            ensure!(n1.drops(DropReason::NoLocalEndpoints)? > before, "{}: not counted", what());
                        }
                        continue;
                    }
                    let tries = if serving.len() > 1 { 12 } else { 1 };
                    let (servers, sources) = answers(client, to, tries).with_context(what)?;
                    ensure!(servers == serving, "{}: answered by {servers:?}", what());
                    let source = match position {
                        Position::Pod => address,
                        // Towards a process of the node itself that is the only way back through us.
                        Position::Host if names == ["n1"] => Ipv4Addr::from(HAIRPIN),
                        _ if limited || names == ["n1"] => address,
                        _ => n1.address(),
                    };
                    // A socket of the node that is connected to one of the node has no need of that: there is no way back to be made sure of.
                    let of_tcp = match translation {
                        Translation::Connect if position == Position::Host => n1.address(),
                        _ => source,
                    };
                    let expected = BTreeSet::from([of_tcp, source]);
                    ensure!(sources == expected, "{}: it saw {sources:?}, not {expected:?}", what());
                }
            }
        }
    }
    Ok(())
}

fn large_transfers_from_outside_go_both_ways(translation: Translation) -> Result<()> {
    let lab = lab(translation)?;
    let (b, c, d) = (lab.pod("n1", "b")?, lab.pod("n2", "c")?, lab.pod("n2", "d")?);
    let n1 = lab.node("n1");
    let _servers = (serve_pod(&b)?, serve_pod(&c)?, serve(&n1.netns, n1.address(), "n1")?);
    for (address, node) in [(b.address, "n1"), (c.address, "n2"), (n1.address(), "n1")] {
        put_service(&lab, &json!({}))?;
        put_endpoints(&lab, &[Endpoint::ready(address, node)], false)?;
        // Out of the tunnel and into it again.
        let at_n1 = SocketAddrV4::new(n1.address(), NODE_PORT);
        TcpClient::connect(&d.netns, at_n1)?.exchange(&vec![7; 2 << 20])?;
        // Over `lo`, whose segments are larger than anything behind it carries.
        TcpClient::connect(&n1.netns, at_n1)?.exchange(&vec![7; 2 << 20])?;
        for (_, to, _) in frontends(&lab) {
            TcpClient::connect(lab.outside(), to)?.exchange(&vec![7; 2 << 20])?;
            // In two fragments on the way there and back. The tunnel carries none of an underlay's full size.
            if node == "n1" {
                let client = UdpClient::bind(lab.outside(), 0)?;
                client.ask(to, &[9; 2000]).with_context(|| format!("2,000 bytes to {to}"))?;
            }
        }
    }
    Ok(())
}

/// End to end:
/// - `should have session affinity work for service with type clusterIP`
/// - `should have session affinity work for NodePort service`
/// - `should be able to switch session affinity for service with type clusterIP`
/// - `should be able to switch session affinity for NodePort service`
fn a_client_stays_with_one_backend_while_its_service_wants_that(translation: Translation) -> Result<()> {
    let lab = lab(translation)?;
    let (a, b, c) = (lab.pod("n1", "a")?, lab.pod("n1", "b")?, lab.pod("n2", "c")?);
    let _servers = (serve_pod(&b)?, serve_pod(&c)?);
    let endpoints = [&b, &c].map(|pod| Endpoint::ready(pod.address, &pod.node));
    let anybody_serves = || {
        put_service(&lab, &json!({}))?;
        put_endpoints(&lab, &endpoints, false)?;
        eventually(SOON, || {
            for (kind, to, _) in frontends(&lab) {
                let (both, _) = answers(lab.outside(), to, 20)?;
                ensure!(both.len() == 2, "{kind}: {both:?}");
            }
            Ok(())
        })
    };
    anybody_serves()?;
    // Switched on while it lives.
    put_service(&lab, &json!({ "sessionAffinity": "ClientIP" }))?;
    let clients = [(Position::Pod, &a.netns), (Position::Host, &lab.node("n1").netns), (Position::Outside, lab.outside())];
    for (position, client) in clients {
        eventually(SOON, || {
            let mut all = BTreeSet::new();
            for (_, to, _) in frontends(&lab).into_iter().filter(|(kind, ..)| asks(position, kind)) {
                all.extend(answers(client, to, 15)?.0);
            }
            ensure!(all.len() == 1, "{position:?}: all ports of all kinds are one Service's, but {all:?} answered");
            Ok(())
        })?;
    }
    // The backend that the outside has leaves.
    let to = SocketAddrV4::new(lab.node("n1").address(), NODE_PORT);
    let (first, _) = answers(lab.outside(), to, 1)?;
    let left: Vec<_> =
        endpoints.iter().filter(|endpoint| !first.contains(if endpoint.address == b.address { "b" } else { "c" })).collect();
    put_endpoints(&lab, &left.into_iter().cloned().collect::<Vec<_>>(), false)?;
    let (second, _) = answers(lab.outside(), to, 3)?;
    ensure!(first.is_disjoint(&second), "{first:?} is gone, {second:?} answered");
    // Switched off while it lives.
    anybody_serves()
}

/// End to end:
/// - `should have session affinity timeout work for service with type clusterIP`
/// - `should have session affinity timeout work for NodePort service`
fn a_client_may_meet_another_backend_after_a_silence_as_long_as_its_service_says(translation: Translation) -> Result<()> {
    // Of two backends one that is chosen anew each time is the same all these times once in a million tests.
    const RETURNS: usize = 20;
    let lab = lab(translation)?;
    let (a, b, c) = (lab.pod("n1", "a")?, lab.pod("n1", "b")?, lab.pod("n2", "c")?);
    let _servers = (serve_pod(&b)?, serve_pod(&c)?);
    let timeout = json!({ "clientIP": { "timeoutSeconds": 1 } });
    put_service(&lab, &json!({ "sessionAffinity": "ClientIP", "sessionAffinityConfig": timeout }))?;
    put_endpoints(&lab, &[&b, &c].map(|pod| Endpoint::ready(pod.address, &pod.node)), false)?;
    let node_port = SocketAddrV4::new(lab.node("n1").address(), NODE_PORT);
    for (client, to) in [(&a.netns, SocketAddrV4::new(CLUSTER_IP, PORT)), (lab.outside(), node_port)] {
        let first = tcp_answer(client, to)?.server;
        let mut returns = 0;
        loop {
            thread::sleep(Duration::from_millis(1100));
            if tcp_answer(client, to)?.server != first {
                break;
            }
            returns += 1;
            ensure!(returns < RETURNS, "{to} is {first} for {} all the time", client.name());
        }
    }
    Ok(())
}

fn one_client_port_for_a_node_port_and_for_another_way_to_its_backend_is_two_connections(
    translation: Translation,
) -> Result<()> {
    let lab = lab(translation)?;
    let (a, c) = (lab.pod("n1", "a")?, lab.pod("n2", "c")?);
    let _server = serve_pod(&c)?;
    put_service(&lab, &json!({ "externalTrafficPolicy": "Local" }))?;
    put_endpoints(&lab, &[Endpoint::ready(c.address, "n2")], true)?;
    let node_port = SocketAddrV4::new(lab.node("n2").address(), NODE_PORT);
    let others = [SocketAddrV4::new(CLUSTER_IP, PORT), SocketAddrV4::new(c.address, TARGET)];
    for (port, other) in (46_000..).zip(others) {
        // n2 translates the one and keeps the client's address; what n1 has translated, or nobody, comes to it with the same ends.
        let mut first = TcpClient::connect_from(&a.netns, port, node_port)?;
        let mut second = TcpClient::connect_from(&a.netns, port, other)?;
        first.exchange(b"first")?;
        second.exchange(b"second")?;
        first.exchange(b"first again")?;
        let udp = UdpClient::bind(&a.netns, port)?;
        udp.ask(node_port, b"first")?;
        udp.ask(other, b"second")?;
        udp.ask(node_port, b"first again")?;
    }
    Ok(())
}

/// End to end:
/// - `should only allow access from service loadbalancer source ranges`
fn source_ranges_keep_others_from_the_load_balancers_address_alone(translation: Translation) -> Result<()> {
    let lab = lab(translation)?;
    let (a, b) = (lab.pod("n1", "a")?, lab.pod("n1", "b")?);
    let _server = serve_pod(&b)?;
    put_service(&lab, &json!({ "loadBalancerSourceRanges": [format!("{OUTSIDE}/32")] }))?;
    put_endpoints(&lab, &[Endpoint::ready(b.address, "n1")], false)?;
    let to = SocketAddrV4::new(LOAD_BALANCER, PORT);
    answers(lab.outside(), to, 1)?;
    let n1 = lab.node("n1");
    for client in [&a.netns, &n1.netns] {
        let before = n1.drops(DropReason::SourceNotAllowed)?;
        ensure!(tcp_answer(client, to).is_err() && udp_answer(client, to).is_err(), "{} was let in", client.name());
        ensure!(n1.drops(DropReason::SourceNotAllowed)? >= before + 2);
        answers(client, SocketAddrV4::new(CLUSTER_IP, PORT), 1)?;
    }
    Ok(())
}

/// Asks a node for the health of the Service, as its load balancer does, until it hears as many endpoints as there should be.
fn expect_health(client: &Netns, node: &Node, port: u16, endpoints: u32) -> Result<()> {
    let at = SocketAddr::from((node.address(), port));
    let answer = eventually(SOON, || {
        let answer = http::get(client, at, "/", "")?;
        let weight = answer.header("x-load-balancing-endpoint-weight");
        ensure!(weight == Some(&*endpoints.to_string()), "{} says {answer:?}", node.name);
        Ok(answer)
    })?;
    let body = json!({
        "service": { "namespace": "default", "name": "web" }, "localEndpoints": endpoints, "serviceProxyHealthy": true,
    });
    ensure!(serde_json::from_str::<Value>(&answer.body)? == body, "{answer:?}");
    ensure!(answer.code == if endpoints > 0 { 200 } else { 503 }, "{answer:?}");
    ensure!(answer.header("x-content-type-options") == Some("nosniff"), "{answer:?}");
    ensure!(answer.header("content-type") == Some("application/json"), "{answer:?}");
    Ok(())
}

fn health_is_gone(client: &Netns, node: &Node, port: u16) -> Result<()> {
    eventually(SOON, || {
        let answer = http::get(client, SocketAddr::from((node.address(), port)), "/", "");
        ensure!(answer.is_err(), "{} answers still: {answer:?}", node.name);
        Ok(())
    })
}

/// End to end:
/// - `should fail health check node port if there are only terminating endpoints`
#[test]
fn load_balancers_hear_which_nodes_have_endpoints() -> Result<()> {
    const HEALTH: u16 = 32_100;
    let lab = lab(Translation::Connect)?;
    let (n1, n2) = (lab.node("n1"), lab.node("n2"));
    let (a, b) = (lab.pod("n1", "a")?, lab.pod("n1", "b")?);
    put_service(&lab, &json!({ "externalTrafficPolicy": "Local", "healthCheckNodePort": HEALTH }))?;
    let both = [a.address, b.address].map(|address| Endpoint::ready(address, "n1"));
    put_endpoints(&lab, &both, true)?;
    for client in [lab.outside(), &n1.netns, &n2.netns, &a.netns] {
        expect_health(client, n1, HEALTH, 2)?;
        expect_health(client, n2, HEALTH, 0)?;
    }
    lab.cluster.put_endpoints("web", &PORTS, &both[..1])?;
    expect_health(lab.outside(), n1, HEALTH, 1)?;
    // It is still used, but nobody new should be sent to it.
    lab.cluster.put_endpoints("web", &PORTS, &[Endpoint::terminating(a.address, "n1")])?;
    expect_health(lab.outside(), n1, HEALTH, 0)?;
    put_service(&lab, &json!({ "externalTrafficPolicy": "Local", "healthCheckNodePort": HEALTH + 1 }))?;
    expect_health(lab.outside(), n1, HEALTH + 1, 0)?;
    health_is_gone(lab.outside(), n1, HEALTH)?;
    lab.cluster.remove("service-web.yaml")?;
    health_is_gone(lab.outside(), n1, HEALTH + 1)?;
    health_is_gone(lab.outside(), n2, HEALTH + 1)
}

#[test]
fn a_health_port_that_another_has_is_told_of_and_heals() -> Result<()> {
    const HEALTH: u16 = 32_100;
    let lab = lab(Translation::Connect)?;
    let (n1, n2) = (lab.node("n1"), lab.node("n2"));
    let at = SocketAddr::from((n1.address(), HEALTH));
    let squatter = n1.netns.inside(|| TcpListener::bind(at))?;
    let b = lab.pod("n1", "b")?;
    let _server = serve_pod(&b)?;
    put_service(&lab, &json!({ "externalTrafficPolicy": "Local", "healthCheckNodePort": HEALTH }))?;
    put_endpoints(&lab, &[Endpoint::ready(b.address, "n1")], true)?;
    eventually(SOON, || {
        let status = n1.status()?;
        let [problem] = &status.problems[..] else { bail!("{:?}", status.problems) };
        let text = problem.to_string();
        ensure!(text.starts_with(&format!("Service default/web: spec.healthCheckNodePort: {at} ")), "{text}");
        ensure!(text.contains("in use"), "{text}");
        Ok(())
    })?;
    expect_health(lab.outside(), n2, HEALTH, 0)?;
    let to = SocketAddrV4::new(n1.address(), NODE_PORT);
    ensure!(answers(lab.outside(), to, 1)?.0 == BTreeSet::from(["b".to_owned()]), "the Service itself is served");
    drop(squatter);
    expect_health(lab.outside(), n1, HEALTH, 1)?;
    eventually(SOON, || {
        let problems = n1.status()?.problems;
        ensure!(problems.is_empty(), "{problems:?}");
        Ok(())
    })
}
