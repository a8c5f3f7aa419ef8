//! Connections while endpoints come and go ("Connections and change" of the specification).
//!
//! ```text
//!   n1 -- pods a (client), b        n2 -- pod c
//! ```

use std::net::SocketAddrV4;

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
);

/// A Service with `b` behind it; `c` serves too but is no endpoint yet.
fn scene(translation: Translation) -> Result<Scene> {
    Scene::set(Lab::build_with(&PAIR, translation)?, &["b"])
}

/// A UDP socket that keeps its port is answered by the backend that is there.
fn udp_follows(scene: &Scene, from: &Netns, connected: bool) -> Result<()> {
    let Scene { lab, b, c, service, .. } = scene;
    let client = UdpClient::bind(from, 45_000)?;
    if connected {
        client.connect(service.vip)?;
    }
    let answered_by = |name: &str| {
        eventually(SOON, || {
            let answer = client.ask(service.vip, b"who?")?;
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
        ensure!(client.ask(service.vip, b"anybody?").is_err(), "nobody should answer");
    }
    service.set_pods(lab, &[b])?;
    answered_by("b")
}

#[test]
fn a_udp_socket_of_a_pod_follows_the_endpoints() -> Result<()> {
    let scene = scene(Translation::Connect)?;
    udp_follows(&scene, &scene.a.netns, false)
}

#[test]
fn a_connected_udp_socket_of_a_pod_follows_the_endpoints() -> Result<()> {
    let scene = scene(Translation::Connect)?;
    udp_follows(&scene, &scene.a.netns, true)
}

#[test]
fn a_udp_socket_of_a_node_follows_the_endpoints() -> Result<()> {
    let scene = scene(Translation::Connect)?;
    udp_follows(&scene, &scene.lab.node("n1").netns, false)
}

#[test]
fn a_connected_udp_socket_of_a_node_follows_the_endpoints() -> Result<()> {
    let scene = scene(Translation::Connect)?;
    udp_follows(&scene, &scene.lab.node("n1").netns, true)
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

/// What the end-to-end tests do to a Service that lives: `should be able to change the type from ExternalName to NodePort` and the like, `should
/// implement service.kubernetes.io/service-proxy-name` and `.../headless`.
fn a_service_is_served_whatever_its_type_was_and_for_as_long_as_it_is_ours(translation: Translation) -> Result<()> {
    const NODE_PORT: u16 = 30_090;
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
