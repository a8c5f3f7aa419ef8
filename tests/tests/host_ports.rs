//! Ports of a node that lead to its pods: CNI's `portMappings`, as runtimes pass a Pod's `hostPort` and `hostIP` on.
//!
//! ```text
//!   outside -- router --+-- n1 -- pods a, b, ...     n1 has a second address
//!                       +-- n2 -- pod d
//! ```

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use shunt::kernel::pins::PinDir;
use shunt_common::{config::link_local::GATEWAY, maps, service::kind};
use shunt_lab::{
    both_translations,
    foreign::freeze,
    lab::{Lab, eventually},
    netns::Netns,
    node::Node,
    pod::{Call, Pod},
    service::{PORTS, SOON, TARGET, refused, serve_pod, tcp_answer, udp_answer},
    topology::{OUTSIDE, PAIR},
    traffic::{
        echo::{Server, TcpClient},
        http,
    },
    translation::Translation,
};

both_translations!(
    a_pod_is_reached_by_its_host_port_from_everywhere_with_the_clients_own_address,
    a_port_of_the_hosts_loopback_is_none_of_a_pods,
);

const HOST_PORT: u16 = 8081;

/// Beside its own, n1 has this address.
const SECOND: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 111);

/// A lab whose n1 has two addresses.
fn lab(translation: Translation) -> Result<Lab> {
    let mut lab = Lab::wired_with(&PAIR, translation)?;
    let n1 = &lab.node("n1").netns;
    let route = n1.ip(&format!("-o -4 addr show to {}", lab.node("n1").address()))?;
    let interface = route.split_whitespace().nth(1).context("n1 has its address")?;
    n1.ip(&format!("addr add {SECOND}/24 dev {interface}"))?;
    lab.start_agents()?;
    Ok(lab)
}

/// TCP and UDP from a port of the node to a pod's server, at one address or all.
fn mappings(host_port: u16, host_ip: Option<Ipv4Addr>) -> Value {
    let item = |protocol: &str| {
        let mut item = json!({ "hostPort": host_port, "containerPort": TARGET, "protocol": protocol });
        if let Some(address) = host_ip {
            item["hostIP"] = json!(address);
        }
        item
    };
    json!({ "runtimeConfig": { "portMappings": [item("tcp"), item("udp")] } })
}

/// The server behind an address, by TCP and UDP, and the source that it saw.
fn ask(client: &Netns, to: SocketAddrV4) -> Result<(String, Ipv4Addr)> {
    let what = || format!("{to} from {}", client.name());
    let (tcp, udp) = (tcp_answer(client, to).with_context(what)?, udp_answer(client, to).with_context(what)?);
    ensure!((&tcp.server, tcp.peer.ip()) == (&udp.server, udp.peer.ip()), "{}: {tcp:?} and {udp:?}", what());
    Ok((tcp.server, *tcp.peer.ip()))
}

/// The addresses at which the maps have a port of the node for pods.
fn held(node: &Node, port: u16) -> Result<Vec<Ipv4Addr>> {
    let mut rows = node.kernel()?.services()?;
    rows.retain(|row| row.service.kind() == kind::HOST_PORT && row.key.port.to_host() == port);
    let mut addresses: Vec<_> = rows.iter().map(|row| Ipv4Addr::from(row.key.addr)).collect();
    addresses.sort();
    addresses.dedup();
    Ok(addresses)
}

/// The one thing that a node refuses.
fn problem(node: &Node) -> Result<String> {
    let problems = node.status()?.problems;
    let [problem] = &problems[..] else { bail!("{problems:?}") };
    Ok(problem.to_string())
}

fn a_pod_is_reached_by_its_host_port_from_everywhere_with_the_clients_own_address(translation: Translation) -> Result<()> {
    let lab = lab(translation)?;
    let (n1, n2) = (lab.node("n1"), lab.node("n2"));
    let (a, d) = (lab.pod("n1", "a")?, lab.pod("n2", "d")?);
    let b = Pod::add_with(n1, "b", mappings(HOST_PORT, None))?;
    let _server = serve_pod(&b)?;
    for address in [n1.address(), SECOND] {
        // In force when the ADD has come back: nothing is waited for.
        let to = SocketAddrV4::new(address, HOST_PORT);
        // The Node does not name the second, so that n2 takes it for the outside's.
        let of_d = if address == SECOND { n2.address() } else { d.address };
        for (client, source) in [
            (lab.outside(), OUTSIDE),
            (&a.netns, a.address),
            (&n1.netns, n1.address()),
            (&d.netns, of_d),
            (&n2.netns, n2.address()),
        ] {
            let found = ask(client, to)?;
            ensure!(found == ("b".to_owned(), source), "{to} from {}: {found:?}", client.name());
        }
        // Itself: it would not take its own address for another's, unless its socket is connected to its own address indeed.
        let by_packet = Ipv4Addr::from(GATEWAY);
        let by_tcp = if translation == Translation::Connect { b.address } else { by_packet };
        let (tcp, udp) = (tcp_answer(&b.netns, to)?, udp_answer(&b.netns, to)?);
        ensure!((*tcp.peer.ip(), *udp.peer.ip()) == (by_tcp, by_packet), "{to} from itself: {tcp:?}, {udp:?}");
        TcpClient::connect(lab.outside(), to)?.exchange(&vec![7; 2 << 20])?;
    }
    let shown = String::from_utf8(n1.shunt(&["get", "pods"])?.stdout)?;
    ensure!(shown.contains("8081->8080/TCP,8081->8080/UDP"), "{shown}");
    Ok(())
}

fn a_port_of_the_hosts_loopback_is_none_of_a_pods(translation: Translation) -> Result<()> {
    let lab = lab(translation)?;
    let n1 = lab.node("n1");
    let (a, b) = (lab.pod("n1", "a")?, Pod::add_with(n1, "b", mappings(HOST_PORT, None))?);
    let _server = serve_pod(&b)?;
    let to = SocketAddrV4::new(Ipv4Addr::LOCALHOST, HOST_PORT);
    ensure!(held(n1, HOST_PORT)?.contains(to.ip()));
    ensure!(tcp_answer(&a.netns, to).is_err(), "a pod that serves nothing was answered at its loopback");
    let _its_own = Server::tcp(&a.netns, to, "a")?;
    ensure!(tcp_answer(&a.netns, to)?.server == "a");
    match translation {
        Translation::Connect => ensure!(tcp_answer(&n1.netns, to)?.server == "b"),
        Translation::Packet => refused(&n1.netns, to)?,
    }
    Ok(())
}

/// End to end:
/// - `validates that there is no conflict between pods with same hostPort but different hostIP and protocol`
#[test]
fn one_host_port_is_several_pods_by_address_and_protocol() -> Result<()> {
    let lab = lab(Translation::Connect)?;
    let n1 = lab.node("n1");
    let (first, second) = (SocketAddrV4::new(n1.address(), HOST_PORT), SocketAddrV4::new(SECOND, HOST_PORT));
    let b = Pod::add_with(n1, "b", mappings(HOST_PORT, Some(*first.ip())))?;
    let _server = serve_pod(&b)?;
    ensure!(ask(lab.outside(), first)?.0 == "b");
    refused(lab.outside(), second)?;
    let tcp = json!({ "runtimeConfig": { "portMappings": [
        { "hostPort": HOST_PORT, "containerPort": TARGET, "protocol": "tcp", "hostIP": SECOND },
    ] } });
    let udp = json!({ "runtimeConfig": { "portMappings": [
        { "hostPort": HOST_PORT, "containerPort": TARGET, "protocol": "udp", "hostIP": SECOND },
    ] } });
    let (c, d) = (Pod::add_with(n1, "c", tcp)?, Pod::add_with(n1, "d", udp)?);
    let loopback = Pod::add_with(n1, "l", mappings(HOST_PORT, Some(Ipv4Addr::LOCALHOST)))?;
    let _servers = (serve_pod(&c)?, serve_pod(&d)?, serve_pod(&loopback)?);
    ensure!(ask(lab.outside(), first)?.0 == "b");
    ensure!(tcp_answer(lab.outside(), second)?.server == "c" && udp_answer(lab.outside(), second)?.server == "d");
    ensure!(n1.status()?.problems.is_empty());

    // What is another's already is refused by name, and nothing is left of the pod.
    let pods = n1.status()?.counts.pods;
    for (extra, holder) in [(mappings(HOST_PORT, None), "b"), (mappings(HOST_PORT, Some(SECOND)), "c")] {
        let netns = n1.netns.create_beside(&format!("{}-late", n1.netns.name()))?;
        let path = netns.path().display().to_string();
        let add = Call { command: "ADD", container: "late", netns: &path, pod: "late", extra };
        let output = add.on(n1)?;
        let error: Value = serde_json::from_slice(&output.stdout)?;
        let text = error["msg"].as_str().unwrap_or_default();
        ensure!(error["code"] == 105 && text.contains(&format!("is pod default/{holder}'s")), "{error}");
        shunt_lab::netns::remove(netns.name())?;
    }
    ensure!(n1.status()?.counts.pods == pods);
    ensure!(ask(lab.outside(), first)?.0 == "b");

    // An address that is not this node's leads nowhere, and is told of.
    let _astray = Pod::add_with(n1, "e", mappings(9090, Some(OUTSIDE)))?;
    let text = problem(n1)?;
    ensure!(text.starts_with("Pod default/e: hostPort: 203.0.113.10 is no address of this node"), "{text}");
    Ok(())
}

#[test]
fn a_host_port_goes_with_its_pod_and_stays_with_a_new_agent() -> Result<()> {
    let mut lab = lab(Translation::Connect)?;
    let to = SocketAddrV4::new(lab.node("n1").address(), HOST_PORT);
    let b = Pod::add_with(lab.node("n1"), "b", mappings(HOST_PORT, None))?;
    let c = Pod::add_with(lab.node("n1"), "c", mappings(HOST_PORT + 1, None))?;
    let _server = serve_pod(&b)?;
    let before = held(lab.node("n1"), HOST_PORT)?;
    ensure!(before == [Ipv4Addr::LOCALHOST, *to.ip(), SECOND], "{before:?}");
    let mut client = TcpClient::connect(lab.outside(), to)?;
    lab.node_mut("n1").kill_agent()?;
    client.exchange(b"nobody is there but the programs")?;
    ensure!(ask(lab.outside(), to)?.0 == "b");
    // A pod goes meanwhile, and nobody tells of that.
    let interface = c.result["interfaces"][0]["name"].as_str().context("an ADD names the interface")?;
    lab.node("n1").netns.ip(&format!("link del {interface}"))?;
    lab.node_mut("n1").start_agent()?;
    let n1 = lab.node("n1");
    n1.wait_ready()?;
    client.exchange(b"and now the new one")?;
    ensure!(ask(lab.outside(), to)?.0 == "b");
    ensure!(held(n1, HOST_PORT)? == before && held(n1, HOST_PORT + 1)?.is_empty());
    drop(client);

    b.delete(n1)?;
    ensure!(held(n1, HOST_PORT)?.is_empty());
    refused(lab.outside(), to)?;
    // The next pod has it at once.
    let e = Pod::add_with(n1, "e", mappings(HOST_PORT, None))?;
    let _server = serve_pod(&e)?;
    ensure!(ask(lab.outside(), to)?.0 == "e");
    Ok(())
}

#[test]
fn a_service_has_its_node_port_before_any_pod_and_the_pod_is_told_of() -> Result<()> {
    const NODE_PORT: u16 = 30_080;
    let lab = lab(Translation::Connect)?;
    let n1 = lab.node("n1");
    let (a, b) = (lab.pod("n1", "a")?, Pod::add_with(n1, "b", mappings(NODE_PORT, None))?);
    let _servers = (serve_pod(&a)?, serve_pod(&b)?);
    let (first, second) = (SocketAddrV4::new(n1.address(), NODE_PORT), SocketAddrV4::new(SECOND, NODE_PORT));
    ensure!(ask(lab.outside(), first)?.0 == "b");
    lab.cluster.put_node_port("web", Ipv4Addr::new(10, 96, 0, 10), &PORTS, NODE_PORT)?;
    // Two protocols, two problems; none at the address where node ports are not.
    eventually(SOON, || {
        let problems: Vec<String> = n1.status()?.problems.iter().map(ToString::to_string).collect();
        ensure!(problems.len() == 2, "{problems:?}");
        for (text, protocol) in problems.iter().zip(["TCP", "UDP"]) {
            let wanted = format!("Pod default/b: hostPort: {first}/{protocol} is Service default/web's already");
            ensure!(text.starts_with(&wanted), "{text}");
        }
        Ok(())
    })?;
    refused(lab.outside(), first).context("the Service has no endpoints")?;
    ensure!(ask(lab.outside(), second)?.0 == "b");
    lab.cluster.remove("service-web.yaml")?;
    eventually(SOON, || {
        ensure!(n1.status()?.problems.is_empty());
        Ok(())
    })?;
    ensure!(ask(lab.outside(), first)?.0 == "b");
    Ok(())
}

#[test]
fn a_services_health_check_has_its_port_before_any_pod() -> Result<()> {
    const CHECK: u16 = 32_000;
    let lab = lab(Translation::Connect)?;
    let n1 = lab.node("n1");
    let pod = Pod::add_with(n1, "a", mappings(CHECK, None))?;
    let _servers = serve_pod(&pod)?;
    let at = SocketAddrV4::new(n1.address(), CHECK);
    ensure!(ask(lab.outside(), at)?.0 == "a");
    let spec = json!({
        "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": CHECK,
        "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ports": PORTS.map(|port| port.at_nodes(30_080)),
    });
    let service =
        json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "namespace": "default" }, "spec": spec });
    lab.cluster.put("service-web.yaml", &[service])?;
    eventually(SOON, || {
        let problems: Vec<String> = n1.status()?.problems.iter().map(ToString::to_string).collect();
        let wanted = format!("Pod default/a: hostPort: {at}/TCP is Service default/web's already");
        ensure!(problems.len() == 1 && problems[0].starts_with(&wanted), "{problems:?}");
        let answer = http::get(lab.outside(), at.into(), "/", "")?;
        ensure!(answer.code == 503, "{answer:?}");
        Ok(())
    })?;
    lab.cluster.remove("service-web.yaml")?;
    eventually(SOON, || {
        ensure!(ask(lab.outside(), at)?.0 == "a");
        ensure!(n1.status()?.problems.is_empty());
        Ok(())
    })
}

#[test]
fn what_cannot_be_written_keeps_only_those_pods_from_coming_and_going_that_have_ports() -> Result<()> {
    let lab = Lab::build(&PAIR)?;
    let (n1, a) = (lab.node("n1"), lab.pod("n1", "a")?);
    let _server = serve_pod(&a)?;
    freeze(&PinDir::new(n1.pin_dir()).map(&maps::SERVICES))?;
    lab.cluster.put_service("late", Ipv4Addr::new(10, 96, 0, 77), &PORTS)?;
    eventually(SOON, || {
        let reasons = n1.status()?.reasons.join("\n");
        ensure!(reasons.contains("SERVICES"), "n1 says {reasons}");
        Ok(())
    })?;
    let b = lab.pod("n1", "b")?;
    tcp_answer(&b.netns, SocketAddrV4::new(a.address, TARGET))?;
    b.delete(n1)?;
    let refusal =
        Pod::add_with(n1, "c", mappings(HOST_PORT, None)).err().context("a pod whose ports lead nowhere was added")?;
    ensure!(format!("{refusal:#}").contains("SERVICES"), "{refusal:#}");
    Ok(())
}
