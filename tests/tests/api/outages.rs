//! The API server is away, or what it sends breaks off: the dataplane stays as it is, and `shunt status` says why.

use std::time::Duration;

use anyhow::{Result, ensure};
use shunt_lab::traffic::{echo::TcpClient, flood::Flood};

use super::*;

/// End to end:
/// - `should work after restarting apiserver`
#[test]
fn a_dead_server_changes_nothing_and_shows() -> Result<()> {
    let (scene, server) = scene()?;
    let Scene { lab, a, c, service, .. } = &scene;
    let n1 = lab.node("n1");
    let mut connection = TcpClient::connect(&a.netns, service.vip)?;
    let flood = Flood::start(&a.netns, service.vip, Duration::from_micros(500))?;
    let before = Held::of(n1)?;
    server.down();
    unhealthy(n1, "the API server is not reached")?;
    ensure!(!n1.shunt(&["status"])?.status.success(), "the exit code shows it");
    ensure!(Held::of(n1)? == before, "{before:#?}\nbecame\n{:#?}", Held::of(n1)?);
    connection.exchange(&[1; 10_000])?;
    let tally = flood.stop()?;
    ensure!(tally.lost() == 0 && tally.sent > 20, "{tally:?}");
    // Pods come and go meanwhile.
    lab.pod("n1", "d")?.delete(n1)?;

    lab.cluster.put_endpoints("web", &shunt_lab::service::PORTS, &[shunt_lab::cluster::Endpoint::ready(c.address, "n2")])?;
    server.up()?;
    healthy(n1)?;
    answered_by(&scene, "c")
}

#[test]
fn an_agent_that_restarts_without_a_server_deletes_nothing() -> Result<()> {
    let (mut scene, server) = scene()?;
    let mut connection = TcpClient::connect(&scene.a.netns, scene.service.vip)?;
    let flood = Flood::start(&scene.a.netns, scene.service.vip, Duration::from_micros(500))?;
    let before = Held::of(scene.lab.node("n1"))?;
    server.down();
    scene.lab.node_mut("n1").kill_agent()?;
    scene.lab.node_mut("n1").start_agent()?;
    let n1 = scene.lab.node("n1");
    let reason = unhealthy(n1, "the API server is not reached")?;
    ensure!(reason.contains("first list of"), "{reason}");
    ensure!(Held::of(n1)? == before, "{before:#?}\nbecame\n{:#?}", Held::of(n1)?);
    connection.exchange(&[1; 10_000])?;
    answered_by(&scene, "b")?;
    ensure!(!n1.netns.ip(&format!("route show {}", scene.service.vip.ip()))?.is_empty(), "the route is gone");

    server.up()?;
    healthy(n1)?;
    connection.exchange(&[1; 10_000])?;
    let tally = flood.stop()?;
    ensure!(tally.lost() == 0 && tally.sent > 20, "{tally:?}");
    scene.service.set_pods(&scene.lab, &[&scene.c])?;
    answered_by(&scene, "c")
}

#[test]
fn an_agent_without_a_server_from_the_start_waits_and_says_so() -> Result<()> {
    let (mut lab, server) = lab()?;
    server.down();
    lab.node_mut("n1").start_agent()?;
    unhealthy(lab.node("n1"), "the API server is not reached")?;
    ensure!(lab.pod("n1", "early").is_err(), "a pod was added to a node that has no dataplane");
    server.up()?;
    healthy(lab.node("n1"))?;
    lab.pod("n1", "a").map(drop)
}

#[test]
fn streams_that_break_or_bring_rubbish_are_taken_up_again() -> Result<()> {
    if !has_double("streams that break or bring rubbish") {
        return Ok(());
    }
    let (scene, server) = scene_with_double()?;
    let Scene { lab, b, c, service, .. } = &scene;
    let error = r#"{"type":"ERROR","object":{"kind":"Status","status":"Failure","code":500,"reason":"InternalError","message":"etcd"}}"#;
    let surprise = r#"{"type":"SURPRISE","object":{"metadata":{"name":"x"}}}"#;
    for (what, pod) in [("cut", c), ("}{ no JSON", b), (surprise, c), (error, b)] {
        watched(&server)?;
        for resource in WATCHED {
            match what {
                "cut" => server.cut_streams(resource),
                line => server.send_line(resource, line),
            }
        }
        if what == error {
            server.end_streams();
        }
        service.set_pods(lab, &[pod])?;
        answered_by(&scene, &pod.name).with_context(|| what.to_owned())?;
    }
    healthy(lab.node("n1"))
}

#[test]
fn an_overloaded_server_is_asked_again_later() -> Result<()> {
    if !has_double("a server that refuses for a while") {
        return Ok(());
    }
    let (scene, server) = scene_with_double()?;
    server.trouble(|trouble| {
        trouble.too_many_requests = (4, Duration::from_secs(1));
        trouble.internal_errors = 4;
    });
    server.end_streams();
    watched(&server)?;
    scene.service.set_pods(&scene.lab, &[&scene.c])?;
    answered_by(&scene, "c")?;
    healthy(scene.lab.node("n1"))
}

#[test]
fn streams_that_end_at_once_are_not_asked_for_without_pause() -> Result<()> {
    if !has_double("streams that end at once") {
        return Ok(());
    }
    let (scene, server) = scene_with_double()?;
    server.requests();
    for _ in 0..20 {
        server.end_streams();
        std::thread::sleep(Duration::from_millis(100));
    }
    let mut requests = server.requests();
    requests.retain(is_of_cluster);
    // Two agents, three kinds, some two seconds on a machine that is busy.
    ensure!(requests.len() <= 24, "{} requests: {requests:#?}", requests.len());
    watched(&server)?;
    healthy(scene.lab.node("n1"))
}
