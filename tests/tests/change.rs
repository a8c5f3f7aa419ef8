//! Connections while endpoints come and go ("Connections and change" of the specification).
//!
//! ```text
//!   n1 -- pods a (client), b        n2 -- pod c
//! ```

use std::{collections::BTreeSet, net::SocketAddrV4};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use shunt_lab::{
    both_translations,
    cluster::{Endpoint, Port},
    lab::{Lab, eventually},
    netns::Netns,
    scene::Scene,
    service::{PORT, PORTS, SOON, Service, TARGET, refused, tcp_answer, udp_answer},
    topology::PAIR,
    traffic::echo::{Server, TcpClient, UdpClient},
    translation::Translation,
};

both_translations!(
    a_tcp_connection_stays_with_its_backend_while_that_lives,
    when_all_terminate_the_serving_ones_take_new_connections,
    a_service_that_is_deleted_and_made_again_serves_again,
    a_service_is_served_whatever_its_type_was_and_for_as_long_as_it_is_ours,
    an_endpoint_that_is_not_ready_serves_only_where_such_are_published,
    tcp_and_udp_of_one_port_come_and_go_each_alone,
);

/// Of the Service, where a test says what type it has.
const NODE_PORT: u16 = 30_090;

/// A Service with `b` behind it; `c` serves too but is no endpoint yet.
fn scene(translation: Translation) -> Result<Scene> {
    Scene::set(Lab::build_with(&PAIR, translation)?, &["b"])
}

/// A UDP socket that keeps its port is answered by the backend that is there.
fn udp_follows(scene: &Scene, from: &Netns, to: SocketAddrV4, connected: bool) -> Result<()> {
    let Scene { lab, b, c, service, .. } = scene;
    let client = UdpClient::bind(from, 45_000)?;
    if connected {
        client.connect(to)?;
    }
    let answered_by = |name: &str| {
        eventually(SOON, || {
            let answer = client.ask(to, b"who?")?;
            ensure!(answer.server == name, "answered by {}", answer.server);
            Ok(())
        })
        .with_context(|| format!("{}, connected: {connected}, expecting {name}", from.name()))
    };
    service.set_pods(lab, &[b])?;
    answered_by("b")?;
    service.set_pods(lab, &[c])?;
    answered_by("c")?;

    // The target port changes: the old one is silent.
    let elsewhere = SocketAddrV4::new(c.address, TARGET + 1);
    let _moved = Server::udp(&c.netns, elsewhere, "c on another port")?;
    service.set(lab, &[Port::udp(PORT, TARGET + 1)], &[Endpoint::ready(c.address, "n2")])?;
    answered_by("c on another port")?;

    // Packets sent while nobody was there leave no black hole.
    service.set_pods(lab, &[])?;
    for _ in 0..3 {
        ensure!(client.ask(to, b"anybody?").is_err(), "nobody should answer");
    }
    service.set_pods(lab, &[b])?;
    answered_by("b")
}

/// End to end:
/// - `should be able to preserve UDP traffic when server pod cycles for a ClusterIP service`
/// - `should be able to preserve UDP traffic when initial unready endpoints get ready`
#[test]
fn a_udp_socket_of_a_pod_follows_the_endpoints() -> Result<()> {
    let scene = scene(Translation::Connect)?;
    udp_follows(&scene, &scene.a.netns, scene.service.vip, false)
}

#[test]
fn a_connected_udp_socket_of_a_pod_follows_the_endpoints() -> Result<()> {
    let scene = scene(Translation::Connect)?;
    udp_follows(&scene, &scene.a.netns, scene.service.vip, true)
}

/// End to end:
/// - `should be able to preserve UDP traffic when server pod cycles for a ClusterIP service and client is hostNetwork`
#[test]
fn a_udp_socket_of_a_node_follows_the_endpoints() -> Result<()> {
    let scene = scene(Translation::Connect)?;
    udp_follows(&scene, &scene.lab.node("n1").netns, scene.service.vip, false)
}

#[test]
fn a_connected_udp_socket_of_a_node_follows_the_endpoints() -> Result<()> {
    let scene = scene(Translation::Connect)?;
    udp_follows(&scene, &scene.lab.node("n1").netns, scene.service.vip, true)
}

/// End to end:
/// - `should be able to preserve UDP traffic when server pod cycles for a NodePort service`
#[test]
fn a_udp_socket_of_a_pod_follows_the_endpoints_of_a_node_port() -> Result<()> {
    let scene = scene(Translation::Connect)?;
    let Scene { lab, a, service, .. } = &scene;
    lab.cluster.put_node_port("web", *service.vip.ip(), &PORTS, NODE_PORT)?;
    udp_follows(&scene, &a.netns, SocketAddrV4::new(lab.node("n2").address(), NODE_PORT), false)
}

fn a_tcp_connection_stays_with_its_backend_while_that_lives(translation: Translation) -> Result<()> {
    let Scene { lab, a, b, c, service, servers: _servers } = scene(translation)?;
    let n1 = lab.node("n1");
    let mut pod = TcpClient::connect(&a.netns, service.vip)?;
    let mut host = TcpClient::connect(&n1.netns, service.vip)?;
    let mut still = |what: &str| -> Result<()> {
        pod.exchange(&[1; 5000]).with_context(|| format!("from the pod, {what}"))?;
        host.exchange(&[1; 5000]).with_context(|| format!("from the node, {what}"))
    };
    still("at first")?;
    service.set_pods(&lab, &[&b, &c])?;
    still("with another endpoint")?;
    service.set(&lab, &PORTS, &[Endpoint::terminating(b.address, "n1"), Endpoint::ready(c.address, "n2")])?;
    still("while its backend terminates")?;
    for _ in 0..10 {
        ensure!(tcp_answer(&a.netns, service.vip)?.server == "c", "a terminating backend got a new connection");
    }
    service.set_pods(&lab, &[&c])?;
    still("with its endpoint gone from the list")?;
    service.set_pods(&lab, &[])?;
    still("without any endpoint")?;
    refused(&a.netns, service.vip)
}

fn when_all_terminate_the_serving_ones_take_new_connections(translation: Translation) -> Result<()> {
    let Scene { lab, a, b, service, servers: _servers, .. } = scene(translation)?;
    service.set(&lab, &PORTS, &[Endpoint::terminating(b.address, "n1")])?;
    ensure!(tcp_answer(&a.netns, service.vip)?.server == "b");
    ensure!(udp_answer(&a.netns, service.vip)?.server == "b");
    Ok(())
}

/// End to end:
/// - `should work after the service has been recreated`
fn a_service_that_is_deleted_and_made_again_serves_again(translation: Translation) -> Result<()> {
    let Scene { lab, a, b, service, servers: _servers, .. } = scene(translation)?;
    tcp_answer(&a.netns, service.vip)?;
    lab.cluster.remove("service-web.yaml")?;
    lab.cluster.remove("endpoints-web.yaml")?;
    eventually(SOON, || match tcp_answer(&a.netns, service.vip) {
        Ok(answer) => anyhow::bail!("{} still answers", answer.server),
        Err(_) => Ok(()),
    })?;
    let service = Service::create(&lab, "web", 10, &[&b])?;
    ensure!(tcp_answer(&a.netns, service.vip)?.server == "b");
    Ok(())
}

/// End to end:
/// - `should be able to change the type from ExternalName to ClusterIP`
/// - `should be able to change the type from ExternalName to NodePort`
/// - `should be able to change the type from ClusterIP to ExternalName`
/// - `should be able to change the type from NodePort to ExternalName`
/// - `should implement service.kubernetes.io/service-proxy-name`
/// - `should implement service.kubernetes.io/headless`
fn a_service_is_served_whatever_its_type_was_and_for_as_long_as_it_is_ours(translation: Translation) -> Result<()> {
    let Scene { lab, a, service, servers: _servers, .. } = scene(translation)?;
    let node_port = SocketAddrV4::new(lab.node("n1").address(), NODE_PORT);
    let put = |kind: &str, label: Option<&str>| {
        let mut ports =
            PORTS.map(|port| json!({ "name": port.name(), "protocol": port.protocol, "port": PORT, "targetPort": TARGET }));
        let mut spec = json!({ "type": kind, "selector": { "app": "web" } });
        if kind == "NodePort" {
            ports.iter_mut().for_each(|port| port["nodePort"] = json!(NODE_PORT));
        }
        if kind == "ExternalName" {
            spec["externalName"] = json!("example.org");
        } else {
            (spec["clusterIP"], spec["clusterIPs"]) = (json!(service.vip.ip()), json!([service.vip.ip()]));
            spec["ports"] = json!(ports);
        }
        let labels = label.map(|label| json!({ format!("service.kubernetes.io/{label}"): "other" }));
        let metadata = json!({ "name": "web", "namespace": "default", "labels": labels.unwrap_or_else(|| json!({})) });
        lab.cluster
            .put("service-web.yaml", &[json!({ "apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec })])
    };
    for (kind, label, is_served) in [
        ("NodePort", None, true),
        ("ClusterIP", None, true),
        ("ClusterIP", Some("service-proxy-name"), false),
        ("ClusterIP", None, true),
        ("ClusterIP", Some("headless"), false),
        ("NodePort", None, true),
        ("ExternalName", None, false),
        ("ClusterIP", None, true),
        ("ExternalName", None, false),
        ("NodePort", None, true),
    ] {
        put(kind, label)?;
        for (to, is_served) in [(service.vip, is_served), (node_port, is_served && kind == "NodePort")] {
            eventually(SOON, || {
                let answered = tcp_answer(&a.netns, to).is_ok();
                ensure!(answered == is_served, "{kind}, label {label:?}: {to} is served: {answered}");
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// End to end:
/// - `should be able to connect to terminating and unready endpoints if PublishNotReadyAddresses is true`
/// - `should not be able to connect to terminating and unready endpoints if PublishNotReadyAddresses is false`
fn an_endpoint_that_is_not_ready_serves_only_where_such_are_published(translation: Translation) -> Result<()> {
    let Scene { lab, a, b, c, service, servers: _servers } = scene(translation)?;
    let unready = Endpoint { ready: false, ..Endpoint::ready(c.address, "n2") };
    let terminating = Endpoint::terminating(b.address, "n1");
    let both = [unready, terminating];
    for (is_published, endpoints, serving) in [
        (false, &both[..1], &[][..]),
        (true, &both[..1], &["c"]),
        (true, &both[..], &["b", "c"]),
        // Of those that are not published one serves what it has, which is better than nobody.
        (false, &both[..], &["b"]),
    ] {
        let ports =
            PORTS.map(|port| json!({ "name": port.name(), "protocol": port.protocol, "port": PORT, "targetPort": TARGET }));
        let spec = json!({
            "type": "ClusterIP", "clusterIP": service.vip.ip(), "clusterIPs": [service.vip.ip()], "selector": { "app": "web" },
            "ports": ports, "publishNotReadyAddresses": is_published,
        });
        let metadata = json!({ "name": "web", "namespace": "default" });
        let object = json!({ "apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec });
        lab.cluster.put("service-web.yaml", &[object])?;
        lab.cluster.put_endpoints("web", &PORTS, endpoints)?;
        eventually(SOON, || {
            if serving.is_empty() {
                return refused(&a.netns, service.vip);
            }
            let answers = (0..20).map(|_| Ok(tcp_answer(&a.netns, service.vip)?.server));
            let answered = answers.collect::<Result<BTreeSet<_>>>()?;
            ensure!(answered.iter().eq(serving), "published: {is_published}, {answered:?} serve, not {serving:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// End to end:
/// - `should serve endpoints on same port and different protocols`
fn tcp_and_udp_of_one_port_come_and_go_each_alone(translation: Translation) -> Result<()> {
    let Scene { lab, a, b, service, servers: _servers, .. } = scene(translation)?;
    for protocols in [&["TCP"][..], &["UDP"], &["TCP", "UDP"], &["TCP"]] {
        let ports: Vec<_> = PORTS.into_iter().filter(|port| protocols.contains(&port.protocol)).collect();
        lab.cluster.put_service("web", *service.vip.ip(), &ports)?;
        lab.cluster.put_endpoints("web", &ports, &[Endpoint::ready(b.address, "n1")])?;
        eventually(SOON, || {
            let answered =
                [("TCP", tcp_answer(&a.netns, service.vip).is_ok()), ("UDP", udp_answer(&a.netns, service.vip).is_ok())];
            for (protocol, is_served) in answered {
                ensure!(is_served == protocols.contains(&protocol), "of {protocols:?} {protocol} is served: {is_served}");
            }
            Ok(())
        })?;
    }
    Ok(())
}
