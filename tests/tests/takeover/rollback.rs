//! `shunt rollback`: the node is flannel's and kube-proxy's again, with its live connections.

use std::time::Duration;

use super::*;

#[test]
fn a_node_is_put_back_as_it_was() -> Result<()> {
    let mut scene = scene(Mode::Iptables)?;
    let before = rules(&scene.lab.node("n1").netns)?;
    scene.lab.node_mut("n1").start_takeover()?;
    scene.lab.node("n1").wait_ready()?;
    let during = rules(&scene.lab.node("n1").netns)?;
    ensure!(!during.contains("KUBE-SERVICES") && !during.contains("FLANNEL-POSTRTG"), "rules are left:\n{during}");
    ensure!(during.contains("KUBE-KUBELET-CANARY"), "a chain of kubelet's went:\n{during}");
    // A pod of ours comes meanwhile; its address is none that host-local had given.
    let d = scene.lab.pod("n1", "d")?;
    ensure!(d.address != scene.a.address && d.address != scene.b.address, "{} was given twice", d.address);
    let _server = serve(&d.netns, d.address, "d")?;
    let at_d = SocketAddrV4::new(d.address, TARGET);
    tcp_answer(&scene.a.netns, at_d).context("an adopted pod asks one of ours")?;
    tcp_answer(&d.netns, SocketAddrV4::new(scene.a.address, TARGET)).context("the reverse")?;

    let steady = Steady::start(scene.connections(3)?, Duration::from_millis(1))?;
    scene.lab.node_mut("n1").stop_agent()?;
    let n1 = scene.lab.node("n1");
    let refused = n1.cleanup();
    ensure!(format!("{refused:?}").contains("shunt rollback"), "cleanup would leave pods without a network: {refused:?}");
    println!("{}", n1.rollback()?);
    let outcome = steady.stop()?;
    println!("{} exchanges, slowest {:?}", outcome.exchanges, outcome.slowest);
    ensure!(outcome.lost.is_empty(), "lost connections: {:#?}", outcome.lost);
    let after = rules(&n1.netns)?;
    ensure!(after == before, "before:\n{before}\nafter:\n{after}");
    ensure!(n1.netns.ip("link show dev shunt0").is_err(), "shunt0 is left");
    let routes = n1.netns.ip("route show proto 83")?;
    ensure!(!routes.contains("dev shunt0 "), "{routes}");
    ensure!(scene.flannel.allocation(d.address).exists(), "host-local would give the address of a pod of ours again");
    scene.everything_works().context("after")?;
    tcp_answer(&scene.a.netns, at_d).context("a pod of ours is reached as before")?;
    tcp_answer(&d.netns, SocketAddrV4::new(VIP, PORT)).context("and reaches a Service")?;
    ensure!(n1.rollback().is_err(), "nothing is left to be rolled back");
    Ok(())
}

#[test]
fn a_rollback_killed_at_any_moment_is_gone_on_with() -> Result<()> {
    let mut scene = scene(Mode::Iptables)?;
    let before = rules(&scene.lab.node("n1").netns)?;
    scene.lab.node_mut("n1").start_takeover()?;
    scene.lab.node("n1").wait_ready()?;
    scene.lab.node_mut("n1").stop_agent()?;
    let steady = Steady::start(scene.connections(2)?, Duration::from_millis(1))?;
    let record = scene.lab.node("n1").state_dir().join("takeover.json");
    let mut kills = 0;
    // Each try is killed a little later than the one before, until one came to its end.
    for milliseconds in (2u64..).step_by(7) {
        let mut rollback = scene.lab.node("n1").rollback_command()?.spawn()?;
        std::thread::sleep(Duration::from_millis(milliseconds));
        rollback.kill()?;
        if rollback.wait()?.success() {
            break;
        }
        kills += 1;
        if !record.exists() {
            // Killed with nothing left to do but to say so.
            break;
        }
        scene.everything_works().with_context(|| format!("killed after {milliseconds} ms"))?;
        if std::fs::read_to_string(&record)?.contains("rollingBack") {
            // No agent works against it.
            scene.lab.node_mut("n1").start_agent()?;
            let n1 = scene.lab.node("n1");
            eventually(Duration::from_secs(10), || {
                ensure!(n1.log_tail().contains("run `shunt rollback` again"), "{}", n1.log_tail());
                Ok(())
            })?;
            scene.lab.node_mut("n1").kill_agent()?;
        }
    }
    ensure!(kills > 1, "it was never killed under way");
    let n1 = scene.lab.node("n1");
    let outcome = steady.stop()?;
    ensure!(outcome.lost.is_empty(), "lost connections: {:#?}", outcome.lost);
    let after = rules(&n1.netns)?;
    ensure!(after == before, "before:\n{before}\nafter:\n{after}");
    ensure!(n1.netns.ip("link show dev shunt0").is_err(), "shunt0 is left");
    ensure!(!n1.pin_dir().exists(), "pins are left in {}", n1.pin_dir().display());
    scene.everything_works().context("after")?;
    ensure!(n1.rollback().is_err(), "nothing is left to be rolled back");
    Ok(())
}
