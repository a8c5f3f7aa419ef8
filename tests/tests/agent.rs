//! The agent dies, restarts, and reads what people write.
//!
//! ```text
//!   n1 -- pods a (client), b        n2 -- pod c
//! ```

use std::{fs, net::SocketAddrV4, path::Path, thread, time::Duration};

use anyhow::{Result, ensure};
use shunt_lab::{
    both_translations,
    cluster::Endpoint,
    lab::{Lab, eventually},
    node::Node,
    scene::Scene,
    service::{PORTS, SOON, TARGET, serve_pod, tcp_answer},
    topology::PAIR,
    traffic::{echo::TcpClient, flood::Flood},
    translation::Translation,
};

both_translations!(killing_and_restarting_the_agent_loses_nothing);

fn scene(translation: Translation) -> Result<Scene> {
    Scene::set(Lab::build_with(&PAIR, translation)?, &["b", "c"])
}

fn pause(milliseconds: u64) {
    thread::sleep(Duration::from_millis(milliseconds));
}

/// End to end:
/// - `should work after restarting kube-proxy`
fn killing_and_restarting_the_agent_loses_nothing(translation: Translation) -> Result<()> {
    let mut scene = scene(translation)?;
    let every = Duration::from_micros(500);
    let targets = [SocketAddrV4::new(scene.b.address, TARGET), SocketAddrV4::new(scene.c.address, TARGET), scene.service.vip];
    let mut connection = TcpClient::connect(&scene.a.netns, scene.service.vip)?;
    let mut from_node = TcpClient::connect(&scene.lab.node("n1").netns, scene.service.vip)?;
    let floods: Vec<_> = targets.iter().map(|to| Flood::start(&scene.a.netns, *to, every)).collect::<Result<_>>()?;
    pause(300);
    for _ in 0..3 {
        scene.lab.node_mut("n1").kill_agent()?;
        pause(200);
        connection.exchange(&[1; 10_000])?;
        ensure!(["b", "c"].contains(&tcp_answer(&scene.a.netns, scene.service.vip)?.server.as_str()));
        scene.lab.node_mut("n1").start_agent()?;
        scene.lab.node("n1").wait_ready()?;
        connection.exchange(&[1; 10_000])?;
        from_node.exchange(&[1; 10_000])?;
    }
    for (flood, to) in floods.into_iter().zip(targets) {
        let tally = flood.stop()?;
        ensure!(tally.lost() == 0 && tally.sent > 1000, "to {to}: {tally:?}, {} lost", tally.lost());
    }
    Ok(())
}

#[test]
fn what_changed_while_the_agent_was_dead_is_applied_when_it_returns() -> Result<()> {
    let Scene { mut lab, a, b, c, service, servers: _servers } = scene(Translation::Connect)?;
    lab.node_mut("n1").kill_agent()?;
    lab.cluster.put_endpoints("web", &PORTS, &[Endpoint::ready(c.address, "n2")])?;
    lab.cluster.put_service("new", std::net::Ipv4Addr::new(10, 96, 0, 11), &PORTS)?;
    lab.cluster.put_endpoints("new", &PORTS, &[Endpoint::ready(b.address, "n1")])?;
    lab.node_mut("n1").start_agent()?;
    lab.node("n1").wait_ready()?;
    for _ in 0..10 {
        ensure!(tcp_answer(&a.netns, service.vip)?.server == "c", "a stale endpoint survived");
    }
    ensure!(tcp_answer(&a.netns, "10.96.0.11:80".parse()?)?.server == "b");
    // Pods of before are known, and new ones don't get their addresses.
    let d = lab.pod("n1", "d")?;
    ensure!(d.address != a.address && d.address != b.address);
    let _server = serve_pod(&d)?;
    ensure!(tcp_answer(&a.netns, SocketAddrV4::new(d.address, TARGET))?.server == "d");
    Ok(())
}

#[test]
fn an_agent_that_is_asked_to_end_leaves_the_dataplane_in_place() -> Result<()> {
    let Scene { mut lab, a, service, servers: _servers, .. } = scene(Translation::Connect)?;
    lab.node_mut("n1").stop_agent()?;
    tcp_answer(&a.netns, service.vip)?;
    lab.node_mut("n1").start_agent()?;
    lab.node("n1").wait_ready()
}

fn problems(node: &Node) -> Result<usize> {
    Ok(node.status()?.problems.len())
}

fn healthy(node: &Node) -> Result<bool> {
    Ok(node.shunt(&["status"])?.status.success())
}

#[test]
fn a_bad_document_is_refused_and_everything_else_goes_on() -> Result<()> {
    let Scene { lab, a, b, service, servers: _servers, .. } = scene(Translation::Connect)?;
    let n1 = lab.node("n1");
    let bad = [
        "kind: [unclosed\n",
        "apiVersion: v1\nkind: Service\nmetadata: {name: x, namespace: default}\nspec: {clusterIP: 10.96.0.99, ports: [{port: 99999}]}\n",
        "apiVersion: v1\nkind: Service\nmetadata: {name: x, namespace: default}\nspec: {clusterIP: not-an-address, ports: [{port: 80}]}\n",
        "- just\n- a list\n",
        "\u{0}\u{1}\u{2}",
    ];
    for text in bad {
        lab.cluster.put_text("bad.yaml", text)?;
        eventually(SOON, || {
            ensure!(problems(n1)? > 0, "not noticed: {text:?}");
            Ok(())
        })?;
        let problem = &n1.status()?.problems[0];
        ensure!(
            problem.file.as_deref().is_some_and(|file| file.contains("bad.yaml")) && !problem.message.is_empty(),
            "{problem:?}"
        );
        ensure!(!healthy(n1)?, "the exit code shows it");
        tcp_answer(&a.netns, service.vip)?;
    }
    // Others are still followed meanwhile.
    service.set_pods(&lab, &[&b])?;
    for _ in 0..10 {
        ensure!(tcp_answer(&a.netns, service.vip)?.server == "b");
    }
    lab.cluster.remove("bad.yaml")?;
    eventually(SOON, || {
        ensure!(problems(n1)? == 0 && healthy(n1)?, "{:?}", n1.status()?.problems);
        Ok(())
    })
}

#[test]
fn the_last_good_version_of_an_object_stays_in_force() -> Result<()> {
    let Scene { lab, a, service, servers: _servers, .. } = scene(Translation::Connect)?;
    let n1 = lab.node("n1");
    let good = fs::read_to_string(lab.cluster.dir().join("service-web.yaml"))?;
    lab.cluster.put_text("service-web.yaml", &good.replace("port: 80\n", "port: 800000\n"))?;
    eventually(SOON, || {
        ensure!(problems(n1)? > 0, "not noticed");
        Ok(())
    })?;
    tcp_answer(&a.netns, service.vip)?;
    lab.cluster.put_text("service-web.yaml", &good)?;
    eventually(SOON, || {
        ensure!(problems(n1)? == 0, "{:?}", n1.status()?.problems);
        Ok(())
    })
}

#[test]
fn the_directory_is_watched_however_files_are_written() -> Result<()> {
    let Scene { lab, a, b, c, service, servers: _servers } = scene(Translation::Connect)?;
    let n1 = lab.node("n1");
    let file = lab.cluster.dir().join("endpoints-web.yaml");
    let both = fs::read_to_string(&file)?;
    let only = |address: std::net::Ipv4Addr| {
        let mut value: serde_json::Value = serde_yaml::from_str(&both)?;
        let endpoints = value["endpoints"].as_array_mut().into_iter();
        endpoints.for_each(|list| list.retain(|endpoint| endpoint["addresses"][0] == address.to_string()));
        anyhow::Ok(serde_yaml::to_string(&value)?)
    };
    let answered_by = |name: &str| {
        eventually(SOON, || {
            for _ in 0..8 {
                let answer = tcp_answer(&a.netns, service.vip)?;
                ensure!(answer.server == name, "{} answers instead of {name}", answer.server);
            }
            Ok(())
        })
    };

    // In place, in two writes with a pause: what is half there is not taken for the whole.
    let text = only(b.address)?;
    fs::write(&file, &text[..text.len() / 2])?;
    pause(100);
    fs::write(&file, &text)?;
    answered_by("b")?;
    // By rename, as editors and kubectl do it.
    lab.cluster.put_text("endpoints-web.yaml", &only(c.address)?)?;
    answered_by("c")?;
    // Files that editors leave lying around mean nothing.
    for junk in [".endpoints-web.yaml.swp", "endpoints-web.yaml~", "#endpoints-web.yaml#", "4913", "notes.txt"] {
        fs::write(lab.cluster.dir().join(junk), "kind: [")?;
    }
    pause(300);
    ensure!(problems(n1)? == 0, "{:?}", n1.status()?.problems);
    // A file moved away and another with the same object moved in.
    fs::rename(&file, lab.dir().join("away.yaml"))?;
    lab.cluster.put_text("other-name.yaml", &only(b.address)?)?;
    answered_by("b")
}

#[test]
fn the_examples_are_accepted() -> Result<()> {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/examples");
    let mut lab = Lab::wired(&PAIR)?;
    let n1 = lab.node_mut("n1");
    fs::copy(examples.join("agent.yaml"), n1.config_file())?;
    n1.start_agent_on(Some(&examples.join("cluster")))?;
    n1.wait_ready()?;
    let status = n1.status()?;
    ensure!(status.problems.is_empty() && status.reasons.is_empty(), "{status:?}");
    ensure!(status.counts.nodes == 2 && status.counts.services == 3 && status.counts.backends == 4, "{:?}", status.counts);
    Ok(())
}

#[test]
fn a_second_agent_on_the_same_node_is_refused() -> Result<()> {
    let lab = Lab::build(&PAIR)?;
    let output = shunt_lab::command::output(&mut lab.node("n1").agent_command(None)?)?;
    ensure!(!output.status.success(), "it runs");
    lab.node("n1").wait_ready()
}

#[test]
fn cleanup_leaves_no_trace_of_a_node() -> Result<()> {
    let Scene { mut lab, service, servers: _servers, .. } = scene(Translation::Connect)?;
    let vip = service.vip.ip().to_string();
    let n1 = lab.node_mut("n1");
    ensure!(n1.netns.ip("route show")?.contains(&vip));
    n1.stop_agent()?;
    n1.cleanup()?;
    ensure!(!n1.netns.ip("-o link show")?.contains("shunt"), "{}", n1.netns.ip("-o link show")?);
    for family in ["-4", "-6"] {
        let routes = n1.netns.ip(&format!("{family} route show table all proto 83"))?;
        ensure!(routes.is_empty(), "{routes}");
    }
    let pins: Vec<_> = fs::read_dir(n1.pin_dir()).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    ensure!(pins.is_empty(), "{pins:?}");
    // And it can start afresh.
    n1.start_agent()?;
    n1.wait_ready()
}
