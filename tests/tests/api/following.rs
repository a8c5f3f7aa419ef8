//! What is written to the API server comes into force, however it is told.

use std::time::Duration;

use anyhow::{Result, ensure};
use shunt_lab::{
    api_server::StreamingLists,
    cluster::Endpoint,
    service::{PORTS, Service, refused, tcp_answer},
};

use super::*;

#[test]
fn services_answer_and_changes_are_followed() -> Result<()> {
    let (scene, _server) = scene()?;
    let Scene { lab, a, b, c, service, .. } = &scene;
    answered_by(&scene, "b")?;
    service.set_pods(lab, &[c])?;
    answered_by(&scene, "c")?;
    service.set(lab, &PORTS, &[Endpoint::terminating(c.address, "n2"), Endpoint::ready(b.address, "n1")])?;
    answered_by(&scene, "b")?;
    service.set_pods(lab, &[])?;
    refused(&a.netns, service.vip)?;
    let other = Service::create(lab, "other", 211, &[b])?;
    ensure!(tcp_answer(&lab.node("n2").netns, other.vip)?.server == "b", "from a node");
    lab.cluster.remove("service-other.yaml")?;
    eventually(PATIENCE, || {
        ensure!(tcp_answer(&a.netns, other.vip).is_err(), "it is still served");
        Ok(())
    })
}

#[test]
fn a_service_made_again_under_its_name_is_another() -> Result<()> {
    let (scene, _server) = scene()?;
    let Scene { lab, a, c, service, .. } = &scene;
    lab.cluster.remove("service-web.yaml")?;
    lab.cluster.remove("endpoints-web.yaml")?;
    let moved = Service::create(lab, "web", 212, &[c])?;
    ensure!(tcp_answer(&a.netns, moved.vip)?.server == "c");
    eventually(PATIENCE, || {
        ensure!(tcp_answer(&a.netns, service.vip).is_err(), "the old virtual IP still answers");
        Ok(())
    })?;
    healthy(lab.node("n1"))
}

#[test]
fn a_node_says_of_itself_what_its_cluster_looks_for() -> Result<()> {
    let (scene, server) = scene()?;
    let name = serde_json::json!({ "kind": "Node", "metadata": { "name": "n1" } });
    eventually(PATIENCE, || {
        let node = server.get(&name)?.context("no Node")?;
        let annotations = &node["metadata"]["annotations"];
        let address = scene.lab.node("n1").address().to_string();
        let says = |key: &str| annotations[format!("flannel.alpha.coreos.com/{key}")].as_str().unwrap_or_default();
        ensure!(says("backend-type") == "vxlan" && says("public-ip") == address, "{annotations}");
        ensure!(says("backend-data").contains(&scene.lab.node("n1").vtep_mac()), "{annotations}");
        let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let network = conditions.iter().find(|condition| condition["type"] == "NetworkUnavailable");
        ensure!(network.is_some_and(|condition| condition["status"] == "False"), "{conditions:?}");
        Ok(())
    })
}

#[test]
fn servers_without_streaming_lists_are_followed_too() -> Result<()> {
    if !has_double("a server that is older than it is") {
        return Ok(());
    }
    for streaming in [StreamingLists::Forbidden, StreamingLists::Unknown] {
        let (mut lab, server) = lab_with_double()?;
        server.trouble(|trouble| trouble.streaming_lists = streaming);
        lab.start_agents().with_context(|| format!("{streaming:?}"))?;
        let scene = Scene::set(lab, &["b"])?;
        scene.service.set_pods(&scene.lab, &[&scene.c])?;
        answered_by(&scene, "c")?;
    }
    Ok(())
}

#[test]
fn a_slow_server_is_waited_for() -> Result<()> {
    if !has_double("slow answers") {
        return Ok(());
    }
    let (mut lab, server) = lab_with_double()?;
    server.trouble(|trouble| {
        trouble.answer_after = Duration::from_secs(1);
        trouble.trickle = Some((100, Duration::from_millis(5)));
    });
    lab.start_agents()?;
    let scene = Scene::set(lab, &["b"])?;
    scene.service.set_pods(&scene.lab, &[&scene.c])?;
    answered_by(&scene, "c")
}
