//! The API server forgets, and what was known is listed again: nothing of that is seen in the dataplane.

use std::time::Duration;

use anyhow::{Result, ensure};
use shunt_lab::{
    api_server::Expired,
    traffic::{echo::TcpClient, flood::Flood},
};

use super::*;

/// Whether a request is for all there is.
fn is_list(seen: &Seen) -> bool {
    is_of_cluster(seen) && (seen.verb == "list" || seen.query.contains("sendInitialEvents=true"))
}

/// Breaks every watch at a version that is forgotten, and waits until everything was listed again.
fn forget(server: &ApiServer) -> Result<()> {
    server.requests();
    server.compact();
    server.end_streams();
    let mut lists = Vec::new();
    eventually(PATIENCE, || {
        lists.extend(server.requests().into_iter().filter(is_list));
        for resource in WATCHED {
            let count = lists.iter().filter(|seen| seen.resource == resource).count();
            ensure!(count >= 2, "{count} lists of {} by two agents", resource.plural());
        }
        Ok(())
    })?;
    watched(server)
}

#[test]
fn a_list_read_anew_changes_nothing() -> Result<()> {
    if !has_double("a server that forgets at once") {
        return Ok(());
    }
    let (scene, server) = scene_with_double()?;
    let Scene { lab, a, service, .. } = &scene;
    let n1 = lab.node("n1");
    let mut connection = TcpClient::connect(&a.netns, service.vip)?;
    let flood = Flood::start(&a.netns, service.vip, Duration::from_micros(500))?;
    let (before, writes) = (Held::of(n1)?, Writes::of(n1)?);
    for expired in [Expired::InStream, Expired::AsStatus] {
        server.trouble(|trouble| trouble.expired = expired);
        forget(&server).with_context(|| format!("{expired:?}"))?;
    }
    // Whatever the lists might have brought about has come before this is known to be followed.
    scene.lab.cluster.put_service("later", "10.96.0.220".parse()?, &shunt_lab::service::PORTS)?;
    eventually(PATIENCE, || {
        ensure!(writes.count() > 0, "the new Service is not in force");
        Ok(())
    })?;
    connection.exchange(&[1; 10_000])?;
    let tally = flood.stop()?;
    ensure!(tally.lost() == 0 && tally.sent > 20, "{tally:?}");
    scene.lab.cluster.remove("service-later.yaml")?;
    eventually(PATIENCE, || {
        let after = Held::of(n1)?;
        let is_same =
            (&after.addresses, &after.routes, &after.services) == (&before.addresses, &before.routes, &before.services);
        ensure!(is_same, "{before:#?}\nbecame\n{after:#?}");
        Ok(())
    })
}

#[test]
fn nothing_is_written_while_everything_is_listed_again() -> Result<()> {
    if !has_double("a server that forgets at once") {
        return Ok(());
    }
    let (scene, server) = scene_with_double()?;
    let n1 = scene.lab.node("n1");
    let (before, writes) = (Held::of(n1)?, Writes::of(n1)?);
    forget(&server)?;
    server.trouble(|trouble| trouble.expired = Expired::AsStatus);
    forget(&server)?;
    // The kernel is compared with what it should hold; the epoch says how often a flow had to find its way anew.
    ensure!(Held::of(n1)? == before, "{before:#?}\nbecame\n{:#?}", Held::of(n1)?);
    ensure!(writes.count() == 0, "{} writes", writes.count());
    healthy(n1)
}

#[test]
fn what_was_deleted_unseen_is_gone_after_the_next_list() -> Result<()> {
    if !has_double("a server that forgets at once") {
        return Ok(());
    }
    let (scene, server) = scene_with_double()?;
    let Scene { lab, a, service, .. } = &scene;
    server.down();
    lab.cluster.remove("service-web.yaml")?;
    server.compact();
    server.up()?;
    eventually(PATIENCE, || {
        ensure!(tcp_answer(&a.netns, service.vip).is_err(), "a deleted Service still answers");
        Ok(())
    })?;
    healthy(lab.node("n1"))
}
