//! Objects that cannot be meant, and events that cannot have happened: refused by name, and the rest goes on.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use shunt_lab::service::{Service, refused};

use super::*;

fn service(name: &str, spec: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": "default" }, "spec": spec })
}

fn slice(name: &str, of: &str, addresses: &[String]) -> Value {
    let endpoints: Vec<_> = addresses.iter().map(|address| json!({ "addresses": [address] })).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": { "name": name, "namespace": "default", "labels": { "kubernetes.io/service-name": of } },
        "addressType": "IPv4", "ports": [{ "name": "tcp-80", "port": 8080, "protocol": "TCP" }], "endpoints": endpoints,
    })
}

fn node(name: &str, addresses: Value, range: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": name },
        "spec": { "podCIDR": range, "podCIDRs": [range] }, "status": { "addresses": addresses },
    })
}

/// An endpoint each, so many.
fn hosts(count: u32) -> Vec<String> {
    (0..count).map(|host| std::net::Ipv4Addr::from(0x0afa_0001 + host).to_string()).collect()
}

#[test]
fn bad_objects_are_refused_by_name_and_the_rest_goes_on() -> Result<()> {
    if !has_double("a server that takes any object") {
        return Ok(());
    }
    let (scene, server) = scene_with_double()?;
    let n1 = scene.lab.node("n1");
    let web = "10.96.0.210";
    let own = "192.0.2.99";
    let bad = [
        ("Service default/bad", service("bad", json!({ "clusterIP": "10.96.0.230", "ports": [{ "port": 99_999 }] }))),
        ("Service default/bad", service("bad", json!({ "clusterIP": "nowhere", "ports": [{ "port": 80 }] }))),
        ("Service default/bad", service("bad", json!({ "clusterIP": "10.96.0.230", "ports": "eighty" }))),
        (
            "Service default/bad",
            service("bad", json!({ "clusterIP": "10.96.0.230", "ports": [{ "port": 80 }], "type": "Wormhole" })),
        ),
        ("Service default/bad", service("bad", Value::Null)),
        // Of two that are as old, to the second, the first by name is believed.
        (
            "Service default/web-too",
            service("web-too", json!({ "clusterIP": web, "ports": [{ "port": 80, "name": "tcp-80" }] })),
        ),
        ("EndpointSlice default/bad", slice("bad", "web", &["2001:db8::1".to_owned()])),
        ("EndpointSlice default/bad", slice("bad", "web", &hosts(1001))),
        ("EndpointSlice default/bad", slice("bad", "web", &["not an address".to_owned()])),
        ("Node odd", node("odd", json!([{ "type": "InternalIP", "address": own }]), "10.244.300.0/24")),
        ("Node odd", node("odd", json!([{ "type": "InternalIP", "address": "127.0.0.1" }]), "10.244.77.0/24")),
    ];
    for (number, (name, object)) in bad.iter().enumerate() {
        server.put(object)?;
        let problem = eventually(PATIENCE, || {
            let problems = n1.status()?.problems;
            let named = problems.iter().find(|problem| problem.object.as_deref() == Some(*name)).cloned();
            named.with_context(|| format!("number {number}, {name}, is not refused: {problems:?}"))
        })?;
        ensure!(!problem.message.is_empty() && problem.file.is_none(), "{problem:?}");
        let log = std::fs::read_to_string(n1.log_file())?;
        ensure!(log.contains(&problem.to_string()), "{problem} is not in the log");
        // Everything else is followed.
        let pod = if number % 2 == 0 { &scene.c } else { &scene.b };
        scene.service.set_pods(&scene.lab, &[pod])?;
        answered_by(&scene, &pod.name)?;
        Api::delete(&*server, object)?;
        healthy(n1)?;
    }
    Ok(())
}

#[test]
fn what_is_only_unknown_is_no_fault() -> Result<()> {
    let (scene, server) = scene()?;
    let n1 = scene.lab.node("n1");
    let mut future = server.get(&service("web", Value::Null))?.context("no Service")?;
    future["spec"]["quantumAffinity"] = json!({ "entangled": [1, { "two": null }] });
    future["metadata"]["annotations"] = json!({ "example.org/x": "y" });
    server.put(&future)?;
    server.put(&slice("orphan", "nobody", &hosts(3)))?;
    server.put(&slice("large", "nobody", &hosts(1000)))?;
    let mut family = slice("six", "web", &["2001:db8::1".to_owned()]);
    family["addressType"] = json!("IPv6");
    server.put(&family)?;
    family["addressType"] = json!("FQDN");
    family["metadata"]["name"] = json!("names");
    family["endpoints"] = json!([{ "addresses": ["example.org"] }]);
    server.put(&family)?;
    let mut unnamed = slice("unlabelled", "web", &hosts(1));
    unnamed["metadata"]["labels"] = json!({});
    server.put(&unnamed)?;
    scene.service.set_pods(&scene.lab, &[&scene.c])?;
    answered_by(&scene, "c")?;
    healthy(n1)
}

/// Another node's object is its own affair until it has what it takes; this node's own one shows.
#[test]
fn a_node_without_an_address_takes_nothing_down() -> Result<()> {
    let (scene, server) = scene()?;
    let n1 = scene.lab.node("n1");
    let whole = server.get(&node("n1", Value::Null, ""))?.context("no Node")?;
    let mut without = whole.clone();
    without["status"]["addresses"] = json!([{ "type": "Hostname", "address": "n1" }]);
    server.put(&without)?;
    unhealthy(n1, "Node n1 has no IPv4 address")?;
    answered_by(&scene, "b")?;
    server.put(&whole)?;
    healthy(n1)?;

    server.put(&node("bare", json!([]), "10.244.66.0/24"))?;
    scene.service.set_pods(&scene.lab, &[&scene.c])?;
    answered_by(&scene, "c")
}

#[test]
fn a_bad_version_of_another_object_by_the_name_withdraws_the_old_one() -> Result<()> {
    if !has_double("a server that takes any object") {
        return Ok(());
    }
    let (scene, server) = scene_with_double()?;
    let Scene { lab, a, b, .. } = &scene;
    let n1 = lab.node("n1");
    let other = Service::create(lab, "other", 214, &[b])?;
    let good = server.get(Resource::Services, "default", "other").context("no Service")?;
    let mut bad = good.clone();
    bad["spec"]["ports"][0]["port"] = json!(0);
    // The same object: its last good version stays.
    server.put(&bad)?;
    eventually(PATIENCE, || {
        ensure!(!n1.status()?.problems.is_empty(), "not refused");
        Ok(())
    })?;
    ensure!(tcp_answer(&a.netns, other.vip)?.server == "b");
    // Another one: nothing of the old one stays.
    server.delete(Resource::Services, "default", "other");
    server.put(&bad)?;
    eventually(PATIENCE, || {
        ensure!(tcp_answer(&a.netns, other.vip).is_err(), "the deleted Service still answers");
        Ok(())
    })?;
    server.put(&good)?;
    healthy(n1)?;
    ensure!(tcp_answer(&a.netns, other.vip)?.server == "b");
    Ok(())
}

#[test]
fn events_out_of_order_end_in_what_a_list_says() -> Result<()> {
    if !has_double("events that cannot have happened") {
        return Ok(());
    }
    let (scene, server) = scene_with_double()?;
    let Scene { lab, a, b, c, .. } = &scene;
    let n1 = lab.node("n1");
    let old = server.get(Resource::EndpointSlices, "default", "web-1").context("no slice")?;
    scene.service.set_pods(lab, &[c])?;
    // The type comes first, as every server writes it.
    let event = |kind: &str, object: &Value| format!(r#"{{"type":"{kind}","object":{object}}}"#);
    let mut ghost = service("ghost", json!({ "clusterIP": "10.96.0.215", "ports": [{ "port": 80 }] }));
    ghost["metadata"]["resourceVersion"] = json!("1");
    ghost["metadata"]["uid"] = json!("00000000-0000-4000-8000-00000000dead");
    let bodiless = json!({ "kind": "Service", "apiVersion": "v1", "metadata": { "resourceVersion": "2" } });
    for (resource, line) in [
        (Resource::Services, event("DELETED", &ghost)),
        (Resource::Services, event("MODIFIED", &ghost)),
        (Resource::Services, event("ADDED", &ghost)),
        (Resource::Services, event("ADDED", &ghost)),
        (Resource::Services, event("ADDED", &bodiless)),
        (Resource::EndpointSlices, event("MODIFIED", &old)),
        (Resource::EndpointSlices, event("ADDED", &old)),
    ] {
        server.send_line(resource, &line);
    }
    // The stream is believed...
    answered_by(&scene, "b")?;
    eventually(PATIENCE, || refused(&a.netns, "10.96.0.215:80".parse()?))?;
    // ... until a list says otherwise.
    server.compact();
    server.end_streams();
    answered_by(&scene, "c")?;
    eventually(PATIENCE, || {
        ensure!(n1.netns.ip("route show 10.96.0.215")?.is_empty(), "what never was is still there");
        Ok(())
    })?;
    healthy(n1)?;
    scene.service.set_pods(lab, &[b])?;
    answered_by(&scene, "b")
}
