//! Pods that flannel's plugin made, and ours has to look after.

use serde_json::{Value, json};

use super::*;

/// Nothing is left of a pod on its node.
fn gone(scene: &Scene, pod: &FlannelPod) -> Result<()> {
    let n1 = scene.lab.node("n1");
    ensure!(n1.netns.ip(&format!("link show dev {}", pod.veth)).is_err(), "its interface is left");
    ensure!(!scene.flannel.allocation(pod.address).exists(), "its allocation is left");
    ensure!(n1.kernel()?.addresses()?.iter().all(|(addr, _)| *addr != pod.address.into()), "its address is left");
    Ok(())
}

#[test]
fn an_adopted_pod_is_deleted_by_our_plugin() -> Result<()> {
    let mut scene = scene(Mode::Iptables)?;
    scene.lab.node_mut("n1").start_takeover()?;
    let n1 = scene.lab.node("n1");
    n1.wait_ready()?;
    let path = scene.b.netns.path().display().to_string();
    let call =
        |command| Call { command, container: &scene.b.container, netns: &path, pod: "b", extra: json!({ "name": NETWORK }) };
    answer(&call("DEL").on(n1)?)?;
    answer(&call("DEL").on(n1)?).context("a second time")?;
    gone(&scene, &scene.b)?;
    tcp_answer(&scene.a.netns, SocketAddrV4::new(scene.c.address, TARGET))?;
    Ok(())
}

#[test]
fn a_pod_that_comes_late_by_flannels_plugin_is_adopted() -> Result<()> {
    let mut scene = scene(Mode::Iptables)?;
    scene.lab.node_mut("n1").start_takeover()?;
    scene.lab.node("n1").wait_ready()?;
    let late = scene.flannel.pod(scene.lab.node("n1"), "late", 99)?;
    scene.lab.node_mut("n1").stop_agent()?;
    scene.lab.node_mut("n1").start_agent()?;
    scene.lab.node("n1").wait_ready()?;
    tcp_answer(&late.netns, SocketAddrV4::new(VIP, PORT))?;
    ensure!(scene.lab.node("n1").status()?.counts.pods == 3);
    Ok(())
}

#[test]
fn an_adopted_pod_is_checked_against_what_flannels_plugin_answered() -> Result<()> {
    let mut scene = scene(Mode::Iptables)?;
    scene.lab.node_mut("n1").start_takeover()?;
    let (n1, a) = (scene.lab.node("n1"), &scene.a);
    n1.wait_ready()?;
    let path = a.netns.path().display().to_string();
    let kept = scene.flannel.result(a)?;
    let check = || {
        let extra = json!({ "name": "shunt", "cniVersion": "0.4.0", "prevResult": kept });
        Call { command: "CHECK", container: &a.container, netns: &path, pod: "a", extra }.on(n1)
    };
    let differs = |expected: &str| {
        let refused = answer(&check()?);
        ensure!(format!("{refused:?}").contains(expected), "{expected:?} is not said: {refused:?}");
        anyhow::Ok(())
    };
    answer(&check()?)?;
    a.netns.ip("route del default")?;
    differs("the default route via 10.244.1.1 is missing")?;
    a.netns.ip("route add default via 10.244.1.1")?;
    answer(&check()?)?;
    a.netns.ip(&format!("addr del {}/24 dev eth0", a.address))?;
    differs(&format!("eth0 has not the address {}", a.address))?;
    a.netns.ip(&format!("addr add {}/24 dev eth0", a.address))?;
    n1.netns.ip(&format!("link set {} down", a.veth))?;
    differs(&format!("the interface {} is down", a.veth))
}

/// A runtime lists the attachments of one network: those of another are none of that call's business.
#[test]
fn gc_removes_adopted_pods_by_the_name_of_their_own_network() -> Result<()> {
    let mut scene = scene(Mode::Iptables)?;
    scene.lab.node_mut("n1").start_takeover()?;
    let n1 = scene.lab.node("n1");
    n1.wait_ready()?;
    let gc = |network: &str, valid: Value| {
        let extra = json!({ "name": network, "cni.dev/valid-attachments": valid });
        answer(&Call { command: "GC", container: "", netns: "", pod: "", extra }.on(n1)?)
    };
    gc("shunt", json!([]))?;
    scene.everything_works().context("after a GC of our own network")?;
    gc(NETWORK, json!([{ "containerID": scene.a.container, "ifname": "eth0" }]))?;
    gone(&scene, &scene.b)?;
    ensure!(scene.flannel.allocation(scene.a.address).exists(), "the allocation of a pod that lives is gone");
    tcp_answer(&scene.a.netns, SocketAddrV4::new(scene.c.address, TARGET))?;
    tcp_answer(&scene.c.netns, SocketAddrV4::new(scene.a.address, TARGET))?;
    Ok(())
}
