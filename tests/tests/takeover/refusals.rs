//! Nodes that cannot be taken over: refused with what, where and what to do, before anything is touched.

use std::{fs, time::Duration};

use super::*;

/// Everything on the node that a takeover would change.
fn picture(scene: &Scene) -> Result<String> {
    let n1 = scene.lab.node("n1");
    let mut picture = vec![rules(&n1.netns)?];
    for what in ["-o link show", "-4 -o addr show", "route show", "neigh show nud permanent"] {
        // Entries that the kernel has learned come and go; a link's state follows what hangs on it, and its IPv6 address is tentative for a while.
        picture.push(n1.netns.ip(what)?);
    }
    for key in ["all/rp_filter", "cni0/rp_filter", "cni0/proxy_arp"] {
        picture.push(n1.netns.run("cat", &format!("/proc/sys/net/ipv4/conf/{key}"))?);
    }
    Ok(picture.join("\n"))
}

/// An agent with the option refuses with all of these words, and nothing is touched.
fn refuses(scene: &mut Scene, expected: &[&str]) -> Result<()> {
    let before = picture(scene)?;
    scene.lab.node_mut("n1").start_takeover()?;
    let n1 = scene.lab.node("n1");
    eventually(Duration::from_secs(20), || {
        let reasons = n1.status()?.reasons.join("\n");
        ensure!(reasons.contains("this node cannot be taken over"), "it says: {reasons}");
        ensure!(expected.iter().all(|words| reasons.contains(words)), "not all of {expected:?} are in: {reasons}");
        Ok(())
    })?;
    ensure!(!n1.state_dir().join("takeover.json").exists(), "it has written a record");
    ensure!(n1.status()?.counts.pods == 0, "it has adopted pods");
    scene.lab.node_mut("n1").kill_agent()?;
    let after = picture(scene)?;
    ensure!(after == before, "before:\n{before}\nafter:\n{after}");
    Ok(())
}

#[test]
fn what_cannot_be_taken_over_is_refused_until_it_can() -> Result<()> {
    let mut scene = scene(Mode::Iptables)?;
    let ip = |scene: &Scene, arguments: &str| scene.lab.node("n1").netns.ip(arguments).map(drop);

    for (device, expected) in [
        ("kube-ipvs0", &["ipvs mode", "kube-ipvs0", "set its mode to iptables or nftables"][..]),
        ("cali123", &["cali123 is the device of another network", "Remove that network"]),
        ("flannel-v6.1", &["IPv6", "flannel-v6.1", "Set `EnableIPv6` to false"]),
    ] {
        ip(&scene, &format!("link add {device} type bridge"))?;
        refuses(&mut scene, expected)?;
        ip(&scene, &format!("link del {device}"))?;
    }

    for (setting, has) in [("vni: 7", "VNI 7 and UDP port 8472"), ("vxlanPort: 4789", "VNI 1 and UDP port 4789")] {
        fs::write(scene.lab.node("n1").config_file(), setting)?;
        let device = "flannel.1 has VNI 1 and UDP port 8472";
        refuses(&mut scene, &[device, has, "set `vni: 1` and `vxlanPort: 8472`"])?;
    }
    fs::remove_file(scene.lab.node("n1").config_file())?;

    ip(&scene, "link add vethstranger type veth peer name elsewhere")?;
    ip(&scene, "link set vethstranger master cni0")?;
    refuses(&mut scene, &["nobody is found behind vethstranger", "delete its pod, or the interface"])?;
    ip(&scene, "link del vethstranger")?;

    let veth = scene.a.veth.clone();
    scene.a.netns.ip("addr add 2001:db8::5/64 dev eth0 nodad")?;
    refuses(&mut scene, &[&veth, "has an IPv6 address", "delete that pod"])?;
    scene.a.netns.ip("addr del 2001:db8::5/64 dev eth0")?;

    let allocation = scene.flannel.allocation(scene.a.address);
    let (text, dir) = (fs::read_to_string(&allocation)?, scene.lab.node("n1").cni_state_dir().join("networks"));
    fs::remove_file(&allocation)?;
    let (address, dir) = (scene.a.address.to_string(), dir.display().to_string());
    refuses(&mut scene, &[&address, &veth, &dir, "correct --cni-state-dir, or delete the pod"])?;
    fs::write(&allocation, text)?;

    let (node, range) = (scene.lab.node("n1").address(), scene.lab.node("n1").pod_range());
    let mac = scene.flannel.vtep_mac.clone();
    scene.lab.cluster.put_node("n1", node, ([10, 244, 77, 0].into(), 24), Some(&mac))?;
    refuses(&mut scene, &["cni0 has the address 10.244.1.1/24", "podCIDR 10.244.77.0/24", "Drain the node, delete cni0"])?;
    scene.lab.cluster.put_node("n1", node, range, Some(&mac))?;

    // None of this has left anything behind that would be in the way. The other node hears of the range that is back in its own time.
    eventually(Duration::from_secs(20), || scene.everything_works())?;
    scene.lab.node_mut("n1").start_takeover()?;
    scene.lab.node("n1").wait_ready()?;
    scene.everything_works()
}

#[test]
fn a_node_of_flannels_host_gw_backend_is_refused() -> Result<()> {
    let mut scene = scene(Mode::Iptables)?;
    let n1 = &scene.lab.node("n1").netns;
    n1.ip("link del flannel.1")?;
    for other in [2, 3] {
        let (base, len) = pod_range(other);
        n1.ip(&format!("route add {base}/{len} via {}", node_address(other)))?;
    }
    refuses(&mut scene, &["bridge cni0", "host-gw", "Set `Backend.Type` to vxlan", "restart flanneld"])
}
