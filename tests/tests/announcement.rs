//! What a node tells the cluster of itself, against the API server double: annotations, condition, Events.
//!
//! ```text
//!   n1 (agent) -- 127.0.0.1:6443 (API server)
//! ```

use std::{
    net::Ipv4Addr,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use shunt_lab::{
    api_server::{ApiServer, Expired, Resource, Transport},
    lab::{Lab, eventually},
    netns::Netns,
    topology::PAIR,
};

/// Events wait until a start has settled, and for their turn.
const TOLD: Duration = Duration::from_secs(30);

const FLANNEL: &str = "flannel.alpha.coreos.com";

fn node(address: Ipv4Addr, range: Option<&str>) -> Value {
    let mut node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" }, "spec": {},
        "status": {
            "addresses": [{ "type": "InternalIP", "address": address }],
            "conditions": [{ "type": "Ready", "status": "True" }, { "type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated" }],
        },
    });
    if let Some(range) = range {
        node["spec"] = json!({ "podCIDR": range, "podCIDRs": [range] });
    }
    node
}

fn scene() -> Result<(Lab, ApiServer)> {
    let mut lab = Lab::wired(&PAIR)?;
    let netns = Netns::open(lab.node("n1").netns.name())?;
    let server = ApiServer::start("127.0.0.1:6443".parse()?, Some(netns), Transport::Tls)?;
    let kubeconfig = server.kubeconfig(&lab.dir().join("kubeconfig"))?;
    lab.node_mut("n1").follow_api(&kubeconfig);
    Ok((lab, server))
}

fn present(server: &ApiServer) -> Result<Value> {
    server.get(Resource::Nodes, "", "n1").context("no Node n1")
}

/// The annotations are flannel's, the network is available, and what else the Node says is as it was.
fn announced(server: &ApiServer, mac: &str, ip: &str) -> Result<()> {
    let node = present(server)?;
    let annotation =
        |key: &str| node["metadata"]["annotations"][format!("{FLANNEL}/{key}")].as_str().unwrap_or_default().to_owned();
    ensure!(annotation("backend-data") == format!(r#"{{"VNI":1,"VtepMAC":"{mac}","DirectReturn":true}}"#), "{node}");
    ensure!(annotation("backend-type") == "vxlan" && annotation("kube-subnet-manager") == "true", "{node}");
    ensure!(annotation("public-ip") == ip, "{node}");
    let conditions = node["status"]["conditions"].as_array().context("no conditions")?;
    let of = |kind: &str| conditions.iter().find(|condition| condition["type"] == kind);
    let network = of("NetworkUnavailable").context("no condition")?;
    ensure!(network["status"] == "False" && network["reason"] == "ShuntIsUp", "{node}");
    ensure!(of("Ready").is_some_and(|ready| ready["status"] == "True"), "{node}");
    Ok(())
}

/// The node's status has a reason that says this.
fn named(lab: &Lab, text: &str) -> Result<()> {
    let reasons = lab.node("n1").status()?.reasons;
    ensure!(reasons.iter().any(|reason| reason.contains("annotations and condition") && reason.contains(text)), "{reasons:?}");
    Ok(())
}

/// The node's status has no reason at all.
fn healthy(lab: &Lab) -> Result<()> {
    let reasons = lab.node("n1").status()?.reasons;
    ensure!(reasons.is_empty(), "{reasons:?}");
    Ok(())
}

fn node_patches(server: &ApiServer) -> usize {
    server.requests().iter().filter(|seen| seen.verb == "patch" && seen.resource == Resource::Nodes).count()
}

fn events(server: &ApiServer, reason: &str) -> Vec<Value> {
    server.all(Resource::Events).into_iter().filter(|event| event["reason"] == reason).collect()
}

#[test]
fn a_node_is_announced_once_it_is_up_and_kept_so() -> Result<()> {
    let (mut lab, server) = scene()?;
    let address = lab.node("n1").address();
    let (mac, ip) = (lab.node("n1").vtep_mac(), address.to_string());
    server.put(&node(address, Some("10.244.1.0/24")))?;
    lab.node_mut("n1").start_agent()?;
    eventually(TOLD, || announced(&server, &mac, &ip))?;
    lab.node("n1").wait_ready()?;

    // Somebody strips the annotations, and a cloud controller takes the condition back.
    server.put(&node(address, Some("10.244.1.0/24")))?;
    eventually(TOLD, || announced(&server, &mac, &ip))?;
    let mut overwritten = node(address, Some("10.244.1.0/24"));
    overwritten["metadata"]["annotations"] = json!({ format!("{FLANNEL}/public-ip-overwrite"): "203.0.113.7" });
    server.put(&overwritten)?;
    eventually(TOLD, || announced(&server, &mac, "203.0.113.7"))?;

    // What is said is not written again, by the next agent either.
    eventually(TOLD, || {
        ensure!(!events(&server, "DataplaneUp").is_empty(), "no Event");
        Ok(())
    })?;
    // Asking forgets: once at the start, once for each time that somebody else wrote.
    ensure!(node_patches(&server) == 3, "written more often than there was reason to");
    lab.node_mut("n1").stop_agent()?;
    lab.node_mut("n1").start_agent()?;
    lab.node("n1").wait_ready()?;
    eventually(TOLD, || {
        ensure!(events(&server, "DataplaneUp").len() == 2, "the second agent has not told of itself");
        Ok(())
    })?;
    ensure!(node_patches(&server) == 0, "the Node was written again");
    announced(&server, &mac, "203.0.113.7")
}

#[test]
fn a_node_is_kept_announced_by_a_server_that_has_forgotten_what_was_read() -> Result<()> {
    let (mut lab, server) = scene()?;
    let address = lab.node("n1").address();
    let (mac, ip) = (lab.node("n1").vtep_mac(), address.to_string());
    server.trouble(|trouble| trouble.expired = Expired::AsStatus);
    server.put(&node(address, Some("10.244.1.0/24")))?;
    lab.node_mut("n1").start_agent()?;
    eventually(TOLD, || announced(&server, &mac, &ip))?;

    // While nobody could see it somebody strips the annotations, and the server answers what came after with 410 Gone.
    server.down();
    server.put(&node(address, Some("10.244.1.0/24")))?;
    server.compact();
    server.up()?;
    eventually(TOLD, || announced(&server, &mac, &ip))
}

#[test]
fn troubles_and_refusals_are_told_once_where_an_operator_looks() -> Result<()> {
    let (mut lab, server) = scene()?;
    let address = lab.node("n1").address();
    server.put(&node(address, None))?;
    let bad = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "bad", "namespace": "shop" },
        "spec": { "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "ports": [{ "port": 70000 }] },
    });
    server.put(&bad)?;
    lab.node_mut("n1").start_agent()?;
    eventually(TOLD, || {
        let missing = events(&server, "PodRangeUnusable");
        let event = missing.first().context("no Event of the missing range")?;
        ensure!(event["regarding"]["kind"] == "Node" && event["regarding"]["name"] == "n1", "{event}");
        ensure!(event["type"] == "Warning" && event["note"].as_str().is_some_and(|note| note.contains("podCIDR")), "{event}");
        let refused = events(&server, "Refused");
        let event = refused.first().context("no Event of the refused Service")?;
        ensure!(event["metadata"]["namespace"] == "shop" && event["regarding"]["name"] == "bad", "{event}");
        let uid = &server.get(Resource::Services, "shop", "bad").context("no Service")?["metadata"]["uid"];
        ensure!(event["regarding"]["uid"] == *uid, "{event}");
        ensure!(event["reportingController"] == "shunt" && event["reportingInstance"] == "n1", "{event}");
        Ok(())
    })?;
    // When the range comes, it goes on; what stands is not told again.
    server.put(&node(address, Some("10.244.1.0/24")))?;
    eventually(TOLD, || {
        ensure!(events(&server, "DataplaneUp").len() == 1, "not up");
        Ok(())
    })?;
    ensure!(events(&server, "Refused").len() == 1 && events(&server, "PodRangeUnusable").len() == 1);
    ensure!(events(&server, "Refused")[0].get("series").is_none_or(Value::is_null), "told twice");
    Ok(())
}

#[test]
fn an_account_that_may_not_write_the_node_is_named_until_it_may() -> Result<()> {
    let (mut lab, server) = scene()?;
    let address = lab.node("n1").address();
    let (mac, ip) = (lab.node("n1").vtep_mac(), address.to_string());
    server.trouble(|trouble| trouble.forbidden_verbs = [("patch", Resource::Nodes)].into());
    server.put(&node(address, Some("10.244.1.0/24")))?;
    lab.node_mut("n1").start_agent()?;
    eventually(TOLD, || named(&lab, r#"cannot patch resource "nodes/status""#))?;
    ensure!(announced(&server, &mac, &ip).is_err(), "the Node was written");
    server.trouble(|trouble| trouble.forbidden_verbs.clear());
    eventually(TOLD, || announced(&server, &mac, &ip))?;
    eventually(TOLD, || healthy(&lab))
}

#[test]
fn who_is_forestalled_writes_the_node_again() -> Result<()> {
    let (mut lab, server) = scene()?;
    let address = lab.node("n1").address();
    let (mac, ip) = (lab.node("n1").vtep_mac(), address.to_string());
    server.trouble(|trouble| trouble.conflicts = [(Resource::Nodes, 2)].into());
    server.put(&node(address, Some("10.244.1.0/24")))?;
    lab.node_mut("n1").start_agent()?;
    eventually(TOLD, || announced(&server, &mac, &ip))?;
    eventually(TOLD, || healthy(&lab))?;
    ensure!(node_patches(&server) == 3, "two writes are refused, and the third is the last");
    Ok(())
}

#[test]
fn a_server_that_takes_too_long_over_the_node_is_named_until_it_answers() -> Result<()> {
    let (mut lab, server) = scene()?;
    let address = lab.node("n1").address();
    let (mac, ip) = (lab.node("n1").vtep_mac(), address.to_string());
    server.put(&node(address, Some("10.244.1.0/24")))?;
    lab.node_mut("n1").start_agent()?;
    eventually(TOLD, || announced(&server, &mac, &ip))?;

    // Slow, but not too slow: there is nothing to be told.
    server.trouble(|trouble| trouble.answer_after = Duration::from_secs(2));
    server.put(&node(address, Some("10.244.1.0/24")))?;
    eventually(TOLD, || announced(&server, &mac, &ip))?;
    eventually(TOLD, || healthy(&lab))?;

    // Streams that are open go on; what is asked gets no answer in time.
    server.trouble(|trouble| trouble.answer_after = Duration::from_secs(3600));
    server.put(&node(address, Some("10.244.1.0/24")))?;
    eventually(TOLD * 2, || named(&lab, "took more than 20 s"))?;
    server.trouble(|trouble| trouble.answer_after = Duration::ZERO);
    // What was asked before that is waited for once more.
    eventually(TOLD * 2, || announced(&server, &mac, &ip))?;
    eventually(TOLD, || healthy(&lab))
}

#[test]
fn streams_of_the_node_that_end_at_once_are_not_asked_for_without_pause() -> Result<()> {
    let (mut lab, server) = scene()?;
    let address = lab.node("n1").address();
    let (mac, ip) = (lab.node("n1").vtep_mac(), address.to_string());
    server.put(&node(address, Some("10.244.1.0/24")))?;
    lab.node_mut("n1").start_agent()?;
    eventually(TOLD, || announced(&server, &mac, &ip))?;
    server.requests();
    let start = Instant::now();
    for _ in 0..40 {
        server.end_streams();
        sleep(Duration::from_millis(50));
    }
    let mut watches = server.requests();
    watches.retain(|seen| seen.verb == "watch" && seen.resource == Resource::Nodes && seen.query.contains("metadata.name"));
    // One a second, and one at each end of the time.
    ensure!(!watches.is_empty() && watches.len() as u64 <= start.elapsed().as_secs() + 2, "{watches:#?}");

    // It is followed on.
    server.put(&node(address, Some("10.244.1.0/24")))?;
    eventually(TOLD, || announced(&server, &mac, &ip))
}
