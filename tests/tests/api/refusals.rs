//! The API server doesn't let the agent in, to all or to one resource.

use std::time::Duration;

use anyhow::{Result, ensure};
use shunt_lab::service::{Service, refused};

use super::*;

/// The client reads its token anew within a minute, and tries again after a back-off of up to half of one.
const TOKEN: Duration = Duration::from_secs(180);

#[test]
fn an_expired_token_is_followed_by_the_next() -> Result<()> {
    if !has_double("a token that expires at once") {
        return Ok(());
    }
    let (scene, server) = scene_with_double()?;
    let n1 = scene.lab.node("n1");
    server.expire_token();
    server.end_streams();
    unhealthy(n1, "does not accept the agent's credentials")?;
    answered_by(&scene, "b")?;
    server.rotate_token()?;
    for node in &scene.lab.nodes {
        eventually(TOKEN, || {
            let reasons = node.status()?.reasons;
            ensure!(reasons.is_empty(), "{}: {reasons:?}", node.name);
            Ok(())
        })?;
    }
    scene.service.set_pods(&scene.lab, &[&scene.c])?;
    answered_by(&scene, "c")
}

#[test]
fn one_forbidden_resource_leaves_the_others_followed() -> Result<()> {
    if !has_double("permissions that come and go") {
        return Ok(());
    }
    let (scene, server) = scene_with_double()?;
    let Scene { lab, a, service, .. } = &scene;
    let n1 = lab.node("n1");
    server.trouble(|trouble| trouble.forbidden = [Resource::EndpointSlices].into());
    server.end_streams();
    let reason = unhealthy(n1, "endpointslices is forbidden")?;
    ensure!(reason.contains("list and watch on endpointslices") && !reason.contains("services"), "{reason}");
    // What is known of the forbidden one stays, and Services go on.
    answered_by(&scene, "b")?;
    lab.cluster.put_service("new", "10.96.0.213".parse()?, &shunt_lab::service::PORTS)?;
    eventually(PATIENCE, || refused(&a.netns, "10.96.0.213:80".parse()?))?;
    server.trouble(|trouble| trouble.forbidden.clear());
    healthy(n1)?;
    service.set_pods(lab, &[&scene.c])?;
    answered_by(&scene, "c")
}

#[test]
fn a_resource_that_was_never_allowed_is_named() -> Result<()> {
    if !has_double("permissions that come and go") {
        return Ok(());
    }
    let (mut lab, server) = lab_with_double()?;
    server.trouble(|trouble| trouble.forbidden = [Resource::Services].into());
    lab.node_mut("n1").start_agent()?;
    // The others may be listed after the refusal: until then they are awaited too.
    let reason = unhealthy(lab.node("n1"), "first list of services;")?;
    ensure!(reason.contains("services is forbidden") && reason.contains("list and watch on services"), "{reason}");
    server.trouble(|trouble| trouble.forbidden.clear());
    lab.node_mut("n2").start_agent()?;
    lab.nodes.iter().try_for_each(Node::wait_ready)?;
    let b = lab.pod("n1", "b")?;
    Service::create(&lab, "web", 210, &[&b]).map(drop)
}
