//! Maps without room: what was in force stays, and the operator is told in `status` and on the Node.

use serde_json::{Value, json};
use shunt_common::verdict::DropReason;
use shunt_lab::{
    service::udp_answer,
    traffic::echo::{TcpClient, UdpClient},
};

use super::*;

/// More of them than fit: so many Services with so many clients each.
const SERVICES: u32 = 7;
const RANGES: u32 = 10_000;

/// The Events of this reason about a node.
fn told_of(server: &ApiServer, node: &str) -> Vec<Value> {
    let mut events = server.all(Resource::Events);
    events.retain(|event| {
        event["reason"] == "MapFull" && event["regarding"]["kind"] == "Node" && event["regarding"]["name"] == node
    });
    events
}

/// A Service at an address of a load balancer, for many clients and no others.
fn for_clients(number: u32) -> Value {
    let ranges: Vec<String> =
        (0..RANGES).map(|client| format!("{}/32", std::net::Ipv4Addr::from(0x1400_0000 + number * RANGES + client))).collect();
    let vip = format!("10.96.0.{}", 220 + number);
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": format!("closed-{number}"), "namespace": "default" },
        "spec": {
            "type": "LoadBalancer", "clusterIP": vip, "clusterIPs": [vip], "ports": [{ "port": 80 }], "loadBalancerSourceRanges": ranges,
        },
        "status": { "loadBalancer": { "ingress": [{ "ip": format!("198.51.100.{number}") }] } },
    })
}

#[test]
fn a_map_without_room_is_told_on_the_node_until_there_is_some() -> Result<()> {
    if !has_double("Events that can be counted") {
        return Ok(());
    }
    let (scene, server) = scene_with_double()?;
    let n1 = scene.lab.node("n1");
    for number in 0..SERVICES {
        server.put(&for_clients(number))?;
    }
    let problem = eventually(PATIENCE, || {
        let problems = n1.status()?.problems;
        problems.into_iter().find(|problem| problem.map.is_some()).context("all of it found room")
    })?;
    let capacity = maps::SOURCE_RANGES.capacity;
    ensure!(problem.map.as_deref() == Some("SOURCE_RANGES"), "{problem:?}");
    ensure!(problem.object.as_deref().is_some_and(|object| object.starts_with("Service default/closed-")), "{problem:?}");
    ensure!(problem.message.contains(&format!("is full: of its {capacity} entries")), "{problem:?}");
    eventually(PATIENCE, || {
        for node in ["n1", "n2"] {
            let events = told_of(&server, node);
            let [event] = events.as_slice() else { anyhow::bail!("not one Event but {events:#?}") };
            ensure!(event["type"] == "Warning", "{event}");
            ensure!(event["note"].as_str() == Some(&problem.to_string()), "{event}");
        }
        Ok(())
    })?;
    // What fits is followed.
    scene.service.set_pods(&scene.lab, &[&scene.c])?;
    answered_by(&scene, "c")?;

    let gone = (0..SERVICES).map(|number| format!("closed-{number}")).find(|name| !problem.to_string().contains(name.as_str()));
    server.delete(Resource::Services, "default", &gone.context("no other Service")?);
    healthy(n1)?;
    ensure!(told_of(&server, "n1").len() == 1 && told_of(&server, "n2").len() == 1, "it was told again");
    Ok(())
}

#[test]
fn a_full_table_of_flows_is_told_on_the_node_and_mended_as_told() -> Result<()> {
    if !has_double("Events that can be counted") {
        return Ok(());
    }
    let (mut lab, server) = lab_with_double()?;
    std::fs::write(lab.node("n1").config_file(), "conntrackMax: 1024")?;
    lab.start_agents()?;
    let mut scene = Scene::set(lab, &["b"])?;
    let mut live = TcpClient::connect(&scene.a.netns, scene.service.vip)?;
    let first = UdpClient::bind(&scene.a.netns, 0)?;
    first.ask(scene.service.vip, b"first")?;
    let n1 = scene.lab.node("n1");
    // One flow a port, until one finds no room.
    let mut ports = 20_000..22_000;
    while n1.drops(DropReason::ConntrackFull)? == 0 {
        let port = ports.next().context("there was room for 2000 flows")?;
        let _ = UdpClient::bind(&scene.a.netns, port)?.ask(scene.service.vip, b"another");
    }
    unhealthy(n1, "CONNTRACK is full: packets that would have begun one flow more than the 1024 that fit")?;
    eventually(PATIENCE, || {
        let events = told_of(&server, "n1");
        let [event] = events.as_slice() else { anyhow::bail!("not one Event but {events:#?}") };
        let note = event["note"].as_str().unwrap_or_default();
        ensure!(event["type"] == "Warning" && note.contains("Raise `conntrackMax`"), "{event}");
        Ok(())
    })?;
    ensure!(told_of(&server, "n2").is_empty(), "the other node has room");
    live.touch().context("a flow that there was")?;
    first.ask(scene.service.vip, b"second").context("a UDP flow that there was")?;

    std::fs::write(n1.config_file(), "conntrackMax: 4096")?;
    scene.lab.node_mut("n1").stop_agent()?;
    scene.lab.node_mut("n1").start_agent()?;
    scene.lab.node("n1").wait_ready()?;
    healthy(scene.lab.node("n1"))?;
    live.touch().context("a flow that there was")?;
    udp_answer(&scene.a.netns, scene.service.vip).context("a new flow")?;
    Ok(())
}
