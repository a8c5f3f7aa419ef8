//! What the agent does to its node, and follows of it: installation, settings, address, pod range, MTU, programs of others.
//!
//! ```text
//!   n1 -- pod a        n2 -- pod b (serves)
//! ```

use std::{
    fs,
    io::Read as _,
    net::{Ipv4Addr, SocketAddrV4},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use shunt_lab::{
    foreign::{Foreign, Hook, ping_data},
    lab::{Lab, eventually},
    netns::Netns,
    node::Node,
    pod::Call,
    service::{SOON, Service, TARGET, serve, serve_pod, tcp_answer},
    topology::{OUTSIDE, PAIR, ROUTER},
    traffic::{
        echo::{TcpClient, UdpClient, ask_tcp},
        ping::ping,
    },
};

/// The agent looks at settings every 30 s.
const MENDED: Duration = Duration::from_secs(40);

fn sysctl(netns: &Netns, key: &str) -> Result<String> {
    let path = format!("/proc/sys/net/{key}");
    // Read piece by piece, most settings end with the first piece.
    let mut text = vec![0; 1 << 19];
    let length = netns.inside(|| fs::File::open(&path)?.read(&mut text)).with_context(|| path.clone())?;
    Ok(str::from_utf8(&text[..length])?.trim().to_owned())
}

fn holds(condition: bool) -> Result<()> {
    ensure!(condition, "it does not hold");
    Ok(())
}

/// Directories for CNI beside a node's own, named in its configuration.
fn with_cni(lab: &Lab, node: &str, more: &str) -> Result<(PathBuf, PathBuf)> {
    let (conf, bin) = (lab.dir().join("net.d"), lab.dir().join("bin"));
    fs::create_dir_all(&conf)?;
    fs::create_dir_all(&bin)?;
    let text = format!("cniConfDir: {}\ncniBinDir: {}\n{more}", conf.display(), bin.display());
    fs::write(lab.node(node).config_file(), text)?;
    Ok((conf.join("10-shunt.conflist"), bin.join("shunt")))
}

fn put_node(lab: &Lab, name: &str, address: Ipv4Addr, range: Option<&str>) -> Result<()> {
    let mut node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": name },
        "status": { "addresses": [{ "type": "InternalIP", "address": address }] },
    });
    if let Some(range) = range {
        node["spec"] = json!({ "podCIDR": range, "podCIDRs": [range] });
    }
    lab.cluster.put(&format!("node-{name}.yaml"), &[node])
}

fn says(node: &Node, what: &str) -> Result<()> {
    let status = node.status()?;
    let said = format!("{:?} {:?} {:?} {:?}", status.reasons, status.problems, status.notes, status.xdp);
    ensure!(said.contains(what), "{} does not say {what:?}: {said}", node.name);
    Ok(())
}

/// The plugin's answer to an ADD that fails: its code and words.
fn refused_add(node: &Node) -> Result<Value> {
    let netns = node.netns.create_beside(&format!("{}-refused", node.netns.name()))?;
    let path = netns.path().display().to_string();
    let output = Call { command: "ADD", container: "refused", netns: &path, pod: "refused", extra: Value::Null }.on(node)?;
    shunt_lab::netns::remove(netns.name())?;
    ensure!(!output.status.success(), "a pod was added");
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[test]
fn the_plugin_is_installed_at_once_its_configuration_when_there_is_a_pod_range() -> Result<()> {
    let mut lab = Lab::wired(&PAIR)?;
    let (conf, plugin) = with_cni(&lab, "n1", "")?;
    put_node(&lab, "n1", lab.node("n1").address(), None)?;
    lab.node_mut("n1").start_agent()?;
    let n1 = lab.node("n1");
    eventually(SOON, || says(n1, "no IPv4 podCIDR"))?;
    eventually(SOON, || holds(plugin.exists()))?;
    let refusal = refused_add(n1)?;
    ensure!(refusal["code"] == 11 && refusal.to_string().contains("podCIDR"), "{refusal}");
    ensure!(!conf.exists(), "pods are promised too early");

    put_node(&lab, "n1", n1.address(), Some("10.244.1.0/24"))?;
    eventually(SOON, || Ok(fs::read_to_string(&conf).map(drop)?))?;
    n1.wait_ready()?;
    let text = fs::read_to_string(&conf)?;
    ensure!(text.contains(&n1.socket().display().to_string()), "{text}");
    // What is installed is what serves.
    let version = shunt_lab::command::run(n1.netns.command(&plugin).arg("--version"))?;
    ensure!(version.starts_with("shunt "), "{version}");
    let a = lab.pod("n1", "a")?;

    // Whoever removes or changes it has it back; another that comes first is named.
    fs::remove_file(&conf)?;
    eventually(MENDED, || holds(fs::read_to_string(&conf)? == text))?;
    fs::write(&conf, "{}")?;
    eventually(MENDED, || holds(fs::read_to_string(&conf)? == text))?;
    let rival = conf.with_file_name("05-other.conflist");
    fs::write(&rival, "{}")?;
    eventually(MENDED, || says(n1, "05-other.conflist"))?;
    n1.wait_ready()?;
    fs::remove_file(&rival)?;

    // It outlives the agent, and cleanup while pods live.
    lab.node_mut("n1").stop_agent()?;
    ensure!(conf.exists() && plugin.exists());
    let said = lab.node("n1").cleanup()?;
    ensure!(said.contains("1 pod(s)") && conf.exists() && plugin.exists(), "{said}");
    shunt_lab::netns::remove(a.netns.name())?;
    lab.node("n1").cleanup()?;
    ensure!(!conf.exists() && !plugin.exists());
    Ok(())
}

#[test]
fn directories_that_are_missing_are_named_and_used_once_they_are_there() -> Result<()> {
    let mut lab = Lab::wired(&PAIR)?;
    let (conf, plugin) = with_cni(&lab, "n1", "")?;
    let dir = |file: &Path| file.parent().map(Path::to_owned).context("no directory");
    fs::remove_dir(dir(&conf)?)?;
    lab.node_mut("n1").start_agent()?;
    let n1 = lab.node("n1");
    eventually(SOON, || says(n1, "cniConfDir"))?;
    ensure!(!n1.shunt(&["status"])?.status.success());
    ensure!(plugin.exists(), "the other is used");
    fs::create_dir(dir(&conf)?)?;
    n1.wait_ready()?;
    eventually(SOON, || holds(conf.exists()))
}

#[test]
fn settings_are_explained_kept_and_put_back() -> Result<()> {
    let mut lab = Lab::wired(&PAIR)?;
    let set = [("ipv4/ip_forward", "0", "1"), ("ipv4/conf/eth0/rp_filter", "1", "2")];
    for (key, before, _) in set {
        lab.node("n1").netns.sysctl(key, before)?;
    }
    lab.node_mut("n1").start_agent()?;
    let n1 = lab.node("n1");
    n1.wait_ready()?;
    let log = fs::read_to_string(n1.log_file())?;
    for (key, before, wanted) in set {
        ensure!(sysctl(&n1.netns, key)? == wanted);
        ensure!(log.contains(&format!("net/{key} is set to {wanted} (it was {before})")), "{log}");
    }
    // As systemd-networkd and udev do it.
    n1.netns.sysctl("ipv4/conf/eth0/rp_filter", "1")?;
    n1.netns.sysctl("ipv4/conf/shunt0/rp_filter", "1")?;
    n1.netns.ip("link set shunt0 address 02:00:00:00:00:01")?;
    eventually(MENDED, || {
        ensure!(n1.netns.ip("link show shunt0")?.contains(&n1.vtep_mac()), "another MAC");
        ensure!(sysctl(&n1.netns, "ipv4/conf/shunt0/rp_filter")? == "2");
        holds(sysctl(&n1.netns, "ipv4/conf/eth0/rp_filter")? == "2")
    })?;
    n1.wait_ready()?;
    lab.node_mut("n1").stop_agent()?;
    let said = lab.node("n1").cleanup()?;
    for (key, before, _) in set {
        ensure!(sysctl(&lab.node("n1").netns, key)? == before, "{key} was not put back: {said}");
    }
    Ok(())
}

#[test]
fn node_ports_are_given_to_no_socket_that_asks_for_any() -> Result<()> {
    const KEY: &str = "ipv4/ip_local_reserved_ports";
    let mut lab = Lab::wired(&PAIR)?;
    let reserved = |lab: &Lab, wanted: &str| {
        let held = sysctl(&lab.node("n1").netns, KEY)?;
        ensure!(held == wanted, "{held:?} is reserved, not {wanted:?}");
        Ok(())
    };
    let put = |lab: &Lab, ports: &[u16]| {
        let ports: Vec<_> =
            ports.iter().map(|port| json!({ "name": format!("p{port}"), "port": port, "nodePort": port })).collect();
        let spec = json!({ "type": "NodePort", "clusterIP": "10.96.0.210", "clusterIPs": ["10.96.0.210"], "ports": ports });
        let service = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "namespace": "default" }, "spec": spec });
        lab.cluster.put("service-web.yaml", &[service])
    };
    lab.node("n1").netns.sysctl(KEY, "5000")?;
    put(&lab, &[30_080])?;
    lab.node_mut("n1").start_agent()?;
    lab.node("n1").wait_ready()?;
    reserved(&lab, "5000,30080")?;
    put(&lab, &[30_081, 30_080])?;
    eventually(SOON, || reserved(&lab, "5000,30080-30081"))?;
    // Whoever doesn't know of ours writes over them, and what else they write stays.
    lab.node("n1").netns.sysctl(KEY, "6000")?;
    eventually(MENDED, || reserved(&lab, "6000,30080-30081"))?;
    lab.node_mut("n1").kill_agent()?;
    put(&lab, &[30_081])?;
    lab.node_mut("n1").start_agent()?;
    eventually(SOON, || reserved(&lab, "6000,30081"))?;
    lab.node("n1").wait_ready()?;
    lab.node_mut("n1").stop_agent()?;
    lab.node("n1").cleanup()?;
    reserved(&lab, "6000")
}

#[test]
fn ports_that_others_reserve_stay_reserved_however_many_and_come_back() -> Result<()> {
    const KEY: &str = "ipv4/ip_local_reserved_ports";
    let mut lab = Lab::wired(&PAIR)?;
    let ours: Vec<u16> = (30_001..30_020).step_by(3).collect();
    let ports: Vec<_> = ours.iter().map(|port| json!({ "name": format!("p{port}"), "port": port, "nodePort": port })).collect();
    let spec = json!({ "type": "NodePort", "clusterIP": "10.96.0.210", "clusterIPs": ["10.96.0.210"], "ports": ports });
    let service =
        json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "namespace": "default" }, "spec": spec });
    lab.cluster.put("service-web.yaml", &[service])?;
    let listed = |ports: &[u16]| ports.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
    // More than a small buffer holds, more than a page, none.
    for count in [50, 3000, 0] {
        let others: Vec<u16> = (1000..).step_by(7).take(count).collect();
        let both = listed(&[&*others, &*ours].concat());
        lab.node("n1").netns.sysctl(KEY, &format!("{}\n", listed(&others)))?;
        lab.node_mut("n1").start_agent()?;
        let n1 = lab.node("n1");
        n1.wait_ready()?;
        let held = sysctl(&n1.netns, KEY)?;
        ensure!(held == both, "beside {count} of others {held:?} is reserved");
        lab.node_mut("n1").stop_agent()?;
        let n1 = lab.node("n1");
        let said = n1.cleanup()?;
        let held = sysctl(&n1.netns, KEY)?;
        ensure!(held == listed(&others), "of {count} {held:?} is left: {said}");
    }
    Ok(())
}

#[test]
fn a_new_pod_range_is_for_new_pods_and_old_ones_stay_reachable_here() -> Result<()> {
    let lab = Lab::build(&PAIR)?;
    let (a, b) = (lab.pod("n1", "a")?, lab.pod("n2", "b")?);
    let _servers = (serve_pod(&a)?, serve_pod(&b)?);
    let n1 = lab.node("n1");
    put_node(&lab, "n1", n1.address(), Some("10.244.101.0/24"))?;
    eventually(SOON, || says(n1, "is now 10.244.101.0/24"))?;
    says(n1, &a.address.to_string())?;
    let c = lab.pod("n1", "c")?;
    let _more = serve_pod(&c)?;
    ensure!(c.address.octets()[..3] == [10, 244, 101], "{}", c.address);
    let (old, new) = (SocketAddrV4::new(a.address, TARGET), SocketAddrV4::new(c.address, TARGET));
    eventually(SOON, || tcp_answer(&b.netns, new))?;
    tcp_answer(&c.netns, SocketAddrV4::new(b.address, TARGET))?;
    tcp_answer(&c.netns, old)?;
    tcp_answer(&n1.netns, old)?;
    tcp_answer(&a.netns, new)?;
    a.delete(n1)?;
    // The look at everything, or the next change, finds that nobody is left outside.
    eventually(MENDED, || holds(n1.status()?.problems.is_empty()))?;
    n1.wait_ready()
}

#[test]
fn a_pod_range_that_collides_is_refused_by_name_and_pods_are_not_added() -> Result<()> {
    let lab = Lab::build(&PAIR)?;
    let (n1, n2) = (lab.node("n1"), lab.node("n2"));
    for (range, reason) in [("10.244.1.0/25", "of Node n1"), ("192.0.2.128/25", "overlaps 192.0.2.0/24")] {
        put_node(&lab, "n2", n2.address(), Some(range))?;
        eventually(SOON, || says(n2, reason))?;
        eventually(SOON, || says(n1, reason))?;
        ensure!(!n2.shunt(&["status"])?.status.success());
        let refusal = refused_add(n2)?;
        ensure!(refusal.to_string().contains(reason), "{refusal}");
    }
    put_node(&lab, "n2", n2.address(), Some("10.244.2.0/24"))?;
    eventually(SOON, || n2.wait_ready())?;
    lab.pod("n2", "b").map(drop)
}

#[test]
fn a_node_that_changes_its_address_keeps_its_pods_and_their_connections() -> Result<()> {
    let lab = Lab::build(&PAIR)?;
    let (a, b) = (lab.pod("n1", "a")?, lab.pod("n2", "b")?);
    let _servers = (serve_pod(&a)?, serve_pod(&b)?, serve(lab.outside(), OUTSIDE, "outside")?);
    let n1 = lab.node("n1");
    let mut connection = TcpClient::connect(&a.netns, SocketAddrV4::new(b.address, TARGET))?;
    let works = |connection: &mut TcpClient| -> Result<()> {
        for (from, to) in [(&a.netns, b.address), (&b.netns, a.address), (&n1.netns, b.address), (&n1.netns, a.address)] {
            tcp_answer(from, SocketAddrV4::new(to, TARGET))?;
        }
        ensure!(ping(&a.netns, OUTSIDE, 2, 0.05, 56)?.received == 2, "to the outside");
        connection.exchange(&[1; 10_000])
    };
    let follows = |address: Ipv4Addr| {
        let status = n1.status()?;
        holds(status.node_ip == Some(address) && status.reasons.is_empty())
    };
    works(&mut connection)?;

    // The new one beside the old one, which then goes; systemd has the kernel promote what comes second.
    let (old, new) = (n1.address(), Ipv4Addr::new(192, 0, 2, 111));
    n1.netns.sysctl("ipv4/conf/eth0/promote_secondaries", "1")?;
    n1.netns.ip(&format!("address add {new}/24 dev eth0"))?;
    put_node(&lab, "n1", new, Some("10.244.1.0/24"))?;
    eventually(MENDED, || follows(new))?;
    eventually(SOON, || works(&mut connection)).context("with both addresses")?;
    n1.netns.ip(&format!("address delete {old}/24 dev eth0"))?;
    eventually(SOON, || works(&mut connection)).context("with the new address alone")?;
    // It goes on from one port, so that what masquerades it never gets old.
    let datagrams = UdpClient::bind(&a.netns, 0)?;
    let masqueraded = || Ok(*datagrams.ask(SocketAddrV4::new(OUTSIDE, TARGET), b"from one port")?.peer.ip());
    ensure!(masqueraded()? == new);

    // One in place of the other, as a lease that ran out does it: with the last address all routes go that lean on it.
    n1.netns.ip(&format!("address delete {new}/24 dev eth0"))?;
    eventually(SOON, || says(n1, "no interface holds the node's InternalIP 192.0.2.111"))?;
    n1.netns.ip(&format!("address add {old}/24 dev eth0"))?;
    n1.netns.ip(&format!("route replace default via {ROUTER}"))?;
    put_node(&lab, "n1", old, Some("10.244.1.0/24"))?;
    eventually(MENDED, || {
        // Also while programs that know one address give way to those that know the other.
        datagrams.socket().send_to(b"meanwhile", SocketAddrV4::new(OUTSIDE, TARGET))?;
        follows(old)
    })?;
    eventually(SOON, || works(&mut connection)).context("with the old address again")?;
    ensure!(eventually(SOON, masqueraded).context("from one port, with the old address again")? == old);
    lab.pod("n1", "c")?;
    eventually(SOON, || n1.wait_ready())
}

#[test]
fn the_mtu_of_the_underlay_is_followed() -> Result<()> {
    let lab = Lab::build(&PAIR)?;
    let (a, b) = (lab.pod("n1", "a")?, lab.pod("n2", "b")?);
    let _servers = (serve_pod(&b)?, serve(lab.outside(), OUTSIDE, "outside")?);
    let service = Service::create(&lab, "web", 10, &[&b])?;
    let n1 = lab.node("n1");
    let to = |address| SocketAddrV4::new(address, TARGET);
    let mut connections = Vec::new();
    for to in [to(b.address), service.vip, to(OUTSIDE)] {
        connections.push((to, TcpClient::connect(&a.netns, to)?));
    }
    for (mtu, name) in [(1400, "c"), (1500, "d")] {
        lab.set_underlay_mtu(mtu)?;
        for node in &lab.nodes {
            eventually(SOON, || holds(node.status()?.mtu == Some(mtu - 50)))?;
        }
        let pod = lab.pod("n1", name)?;
        let held = pod.netns.ip("link show eth0")?;
        ensure!(held.contains(&format!("mtu {}", mtu - 50)), "{held}");
        // A pod of before has the MTU that it was made with: it is told what is too big, and so is who serves.
        for (to, connection) in &mut connections {
            let went = connection.exchange(&[7; 1 << 20]);
            went.with_context(|| format!("to {to} on a connection of before, the underlay's MTU being {mtu}"))?;
        }
        for from in [&a.netns, &pod.netns, &n1.netns] {
            for to in [to(b.address), service.vip, to(OUTSIDE)] {
                ask_tcp(from, to, &[7; 1 << 20]).with_context(|| format!("the underlay's MTU being {mtu}"))?;
            }
        }
    }
    for node in &lab.nodes {
        node.wait_ready()?;
    }
    Ok(())
}

#[test]
fn programs_of_others_on_the_underlay_stay_and_run() -> Result<()> {
    let mut lab = Lab::wired(&PAIR)?;
    // On n1 they are there first, on n2 it comes later.
    fs::write(lab.node("n1").config_file(), "tunnelDecap: xdp\n")?;
    let tcx = Foreign::attach(&lab.node("n1").netns, "eth0", Hook::Tcx, 742)?;
    let xdp = Foreign::attach(&lab.node("n1").netns, "eth0", Hook::Xdp, 744)?;
    for name in ["n1", "n2"] {
        lab.node_mut(name).start_agent()?;
    }
    for node in &lab.nodes {
        node.wait_ready()?;
    }
    says(lab.node("n1"), "Unavailable(\"cannot attach program from_wire_xdp on eth0")?;
    let late = Foreign::attach(&lab.node("n2").netns, "eth0", Hook::Tcx, 746)?;
    let (a, b) = (lab.pod("n1", "a")?, lab.pod("n2", "b")?);
    let _servers = (serve_pod(&a)?, serve_pod(&b)?);
    let run = |lab: &Lab, lengths: &[u16]| -> Result<()> {
        let (from, to) = (&lab.node("n2").netns, lab.node("n1").address());
        for length in [740, 742, 744, 746] {
            let received = ping(from, to, 2, 0.05, ping_data(length))?.received;
            let expected = if lengths.contains(&length) { 0 } else { 2 };
            ensure!(received == expected, "{received} of 2 frames of {length} bytes, not {expected}");
        }
        Ok(())
    };
    let works = |lab: &Lab, lengths: &[u16]| -> Result<()> {
        run(lab, lengths)?;
        tcp_answer(&a.netns, SocketAddrV4::new(b.address, TARGET))?;
        tcp_answer(&b.netns, SocketAddrV4::new(a.address, TARGET)).map(drop)
    };
    works(&lab, &[742, 744, 746])?;
    for name in ["n1", "n2"] {
        lab.node_mut(name).kill_agent()?;
        lab.node_mut(name).start_agent()?;
        lab.node(name).wait_ready()?;
    }
    works(&lab, &[742, 744, 746]).context("after a restart")?;
    drop(late);
    works(&lab, &[742, 744]).context("when one of them has gone")?;
    for name in ["n1", "n2"] {
        lab.node_mut(name).stop_agent()?;
        lab.node(name).cleanup()?;
    }
    run(&lab, &[742, 744]).context("after cleanup")?;
    drop((tcx, xdp));
    run(&lab, &[])
}
