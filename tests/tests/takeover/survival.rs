//! Connections that there are when a node is taken over live on, whoever's rules they came by, and whatever becomes of the agent meanwhile.

use std::time::Duration;

use shunt::takeover::plan::REMOVE_LEGACY;
use shunt_lab::command;

use super::*;

/// UDP sockets that are connected to the Service, with the server that answers each.
fn udp_flows(from: &Netns, to: SocketAddrV4, count: usize) -> Result<Vec<(UdpClient, String)>> {
    let mut flows = Vec::new();
    for _ in 0..count {
        let client = UdpClient::bind(from, 0)?;
        client.connect(to)?;
        let server = client.ask(to, b"first")?.server;
        flows.push((client, server));
    }
    Ok(flows)
}

fn survives(mode: Mode) -> Result<()> {
    let mut scene = scene(mode)?;
    scene.everything_works().context("before")?;
    let connections = scene.connections(4)?;
    let vip = SocketAddrV4::new(VIP, PORT);
    let udp = udp_flows(&scene.a.netns, vip, 100)?;
    let every = Duration::from_millis(1);
    let floods = scene.ways().into_iter().map(|(_, from, to)| Flood::start(from, to, every)).collect::<Result<_>>()?;
    let steady = Steady::start(connections, every)?;

    scene.lab.node_mut("n1").start_takeover()?;
    let n1 = scene.lab.node("n1");
    n1.wait_ready()?;

    let outcome = steady.stop()?;
    let mut lost = Vec::new();
    for ((name, ..), tally) in scene.ways().into_iter().zip(Flood::stop_all(floods)?) {
        println!("{name}: {tally:?}");
        lost.extend((tally.lost() != 0).then(|| format!("{name}: {} of {} datagrams", tally.lost(), tally.sent)));
    }
    ensure!(lost.is_empty(), "lost: {lost:#?}\n{:#?}\n{}", n1.status()?, n1.log_tail());
    println!("{} exchanges, slowest {:?}", outcome.exchanges, outcome.slowest);
    ensure!(outcome.lost.is_empty(), "lost connections: {:#?}\n{}", outcome.lost, n1.log_tail());
    let mut moved = Vec::new();
    for (client, server) in &udp {
        let port = client.local_port()?;
        match client.ask(vip, b"second") {
            Ok(answer) if answer.server == *server => {}
            Ok(answer) => moved.push(format!("port {port}: {server} answered before, {} now", answer.server)),
            Err(error) => moved.push(format!("port {port}, served by {server}: {error}")),
        }
    }
    ensure!(moved.is_empty(), "{} of {} UDP flows to the Service: {moved:#?}\n{}", moved.len(), udp.len(), n1.log_tail());
    scene.everything_works().context("after")?;
    println!("{:#?}", n1.status()?.notes);
    Ok(())
}

#[test]
fn every_connection_survives_with_kube_proxy_in_iptables_mode() -> Result<()> {
    survives(Mode::Iptables)
}

#[test]
fn every_connection_survives_with_kube_proxy_in_nftables_mode() -> Result<()> {
    survives(Mode::Nftables)
}

/// Legacy tables are left: `shunt status` says what is to be run, and that does it.
#[test]
fn rules_of_legacy_iptables_are_told_until_they_are_removed() -> Result<()> {
    let mut scene = scene(Mode::LegacyIptables)?;
    let connections = scene.connections(2)?;
    let steady = Steady::start(connections, Duration::from_millis(1))?;
    scene.lab.node_mut("n1").start_takeover()?;
    let n1 = scene.lab.node("n1");
    n1.wait_ready()?;
    let told = notes(&scene)?;
    ensure!(told.contains("legacy iptables (filter, nat)") && told.contains(REMOVE_LEGACY), "{told}");
    scene.everything_works().context("with the rules in force")?;

    // As an operator types it.
    command::run(n1.netns.command("sh").args(["-c", REMOVE_LEGACY]).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"))?;
    let left = command::run(&mut n1.netns.command("iptables-legacy-save"))?;
    ensure!(!left.contains("KUBE-S") && left.contains("KUBE-FIREWALL") && left.contains("KUBE-KUBELET-CANARY"), "{left}");
    scene.everything_works().context("without the rules")?;
    let outcome = steady.stop()?;
    ensure!(outcome.lost.is_empty(), "lost connections: {:#?}", outcome.lost);
    scene.lab.node_mut("n1").stop_agent()?;
    scene.lab.node_mut("n1").start_agent()?;
    scene.lab.node("n1").wait_ready()?;
    ensure!(!notes(&scene)?.contains("legacy"), "{}", notes(&scene)?);
    Ok(())
}

#[test]
fn an_agent_killed_at_any_moment_of_a_takeover_is_gone_on_with() -> Result<()> {
    let mut scene = scene(Mode::Iptables)?;
    let steady = Steady::start(scene.connections(2)?, Duration::from_millis(1))?;
    let record = scene.lab.node("n1").state_dir().join("takeover.json");
    let done = || std::fs::read_to_string(&record).is_ok_and(|text| text.contains("\"stage\":\"done\""));
    // Each try is killed a little later than the one before, until one was let to its end.
    let mut kills = 0;
    for milliseconds in (50u64..).step_by(150) {
        scene.lab.node_mut("n1").start_takeover()?;
        std::thread::sleep(Duration::from_millis(milliseconds));
        scene.lab.node_mut("n1").kill_agent()?;
        if done() {
            break;
        }
        kills += 1;
        // A node that is half taken over serves what there is and what comes.
        scene.everything_works().with_context(|| format!("killed after {milliseconds} ms"))?;
    }
    ensure!(kills > 1, "it was never killed under way");
    // Without the option, an agent goes on with what there is.
    scene.lab.node_mut("n1").start_agent()?;
    scene.lab.node("n1").wait_ready()?;
    scene.everything_works()?;
    let outcome = steady.stop()?;
    ensure!(outcome.lost.is_empty(), "lost connections: {:#?}", outcome.lost);
    ensure!(notes(&scene)?.contains("was taken over"), "{}", notes(&scene)?);
    Ok(())
}
