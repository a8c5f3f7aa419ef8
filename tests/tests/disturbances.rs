//! Somebody changes what the agent has set up on a node; the agent finds it and mends it.
//!
//! ```text
//!   n1 -- pod a        n2 -- pod b (serves)
//! ```

use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};
use shunt_lab::{
    lab::{Lab, eventually},
    pod::Pod,
    service::{PORTS, SOON, Service, TARGET, refused, serve_pod, tcp_answer},
    topology::{PAIR, VNI},
    traffic::echo::Server,
};

/// The agent is told of devices at once, and looks at everything else every 30 s.
const MENDED: Duration = Duration::from_secs(40);

struct Scene {
    lab: Lab,
    a: Pod,
    b: Pod,
    service: Service,
    _servers: [Server; 2],
}

impl Scene {
    fn build() -> Result<Self> {
        let lab = Lab::build(&PAIR)?;
        let (a, b) = (lab.pod("n1", "a")?, lab.pod("n2", "b")?);
        let servers = serve_pod(&b)?;
        let service = Service::create(&lab, "web", 10, &[&b])?;
        Ok(Self { lab, a, b, service, _servers: servers })
    }

    /// The pod and its node reach the other pod, directly and through the Service.
    fn works(&self) -> Result<()> {
        for from in [&self.a.netns, &self.lab.node("n1").netns] {
            tcp_answer(from, SocketAddrV4::new(self.b.address, TARGET))?;
            tcp_answer(from, self.service.vip)?;
        }
        Ok(())
    }

    fn is_mended(&self) -> Result<()> {
        eventually(MENDED, || self.works())?;
        self.lab.node("n1").wait_ready()
    }

    fn links(&self) -> Result<Vec<String>> {
        let names = fs::read_dir(self.lab.node("n1").pin_dir().join("links"))?;
        let mut names: Vec<String> = names.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        names.sort();
        Ok(names)
    }
}

#[test]
fn a_removed_tunnel_device_is_made_again() -> Result<()> {
    let scene = Scene::build()?;
    let node = scene.lab.node("n1");
    let before = node.netns.ifindex("shunt0")?;
    node.netns.ip("link delete shunt0")?;
    scene.is_mended()?;
    ensure!(node.netns.ifindex("shunt0")? != before);
    ensure!(node.netns.ip("route show 169.254.1.2")?.contains("shunt0"));
    Ok(())
}

/// What the bridge is for is only speed: nothing is lost while it isn't there.
#[test]
fn a_removed_bridge_of_pods_is_made_again_and_missed_by_nobody() -> Result<()> {
    let scene = Scene::build()?;
    let node = scene.lab.node("n1");
    let before = node.netns.ifindex("shunt-pods")?;
    let bridged = || -> Result<()> {
        let ports = node.netns.ip("-oneline link show master shunt-pods")?;
        ensure!(ports.contains("shunt-room") && ports.lines().count() == 2, "{ports}");
        Ok(())
    };
    bridged()?;
    node.netns.ip("link delete shunt-pods")?;
    scene.works()?;
    eventually(MENDED, bridged)?;
    ensure!(node.netns.ifindex("shunt-pods")? != before);
    scene.is_mended()
}

#[test]
fn a_pod_that_has_lost_its_gateways_mac_asks_and_is_told() -> Result<()> {
    let scene = Scene::build()?;
    let show = || scene.a.netns.ip("neigh show 169.254.1.1 dev eth0");
    let before = show()?;
    ensure!(before.contains("PERMANENT"), "{before}");
    scene.a.netns.ip("neigh del 169.254.1.1 dev eth0")?;
    scene.works()?;
    let mac = |line: &str| line.split_whitespace().skip_while(|word| *word != "lladdr").nth(1).map(str::to_owned);
    ensure!(mac(&before).is_some() && mac(&show()?) == mac(&before), "{before} became {}", show()?);
    Ok(())
}

#[test]
fn an_underlay_that_was_down_leads_on_and_no_link_is_lost() -> Result<()> {
    let scene = Scene::build()?;
    let before = scene.links()?;
    let node = scene.lab.node("n1");
    node.netns.ip("link set eth0 down")?;
    node.netns.ip("link set eth0 up")?;
    scene.is_mended()?;
    ensure!(scene.links()? == before, "{:?} instead of {before:?}", scene.links()?);
    Ok(())
}

#[test]
fn an_address_that_the_node_lost_is_missed_and_taken_up_again() -> Result<()> {
    let scene = Scene::build()?;
    let node = scene.lab.node("n1");
    let (address, uplink) = (node.address(), "eth0");
    let held = node.netns.ip(&format!("-oneline address show dev {uplink}"))?;
    let prefix = held.split_whitespace().find(|word| word.starts_with(&format!("{address}/"))).unwrap_or_default().to_owned();
    node.netns.ip(&format!("address delete {prefix} dev {uplink}"))?;
    eventually(MENDED, || {
        let reasons = node.status()?.reasons;
        ensure!(reasons.iter().any(|reason| reason.contains(&address.to_string())), "{reasons:?}");
        Ok(())
    })?;
    node.netns.ip(&format!("address add {prefix} dev {uplink}"))?;
    scene.is_mended()
}

#[test]
fn flushed_routes_neighbours_and_lost_links_are_put_back() -> Result<()> {
    let scene = Scene::build()?;
    let node = scene.lab.node("n1");
    let before = scene.links()?;
    node.netns.ip("route flush proto 83")?;
    node.netns.ip("neighbour flush dev shunt0 nud permanent")?;
    for name in &before {
        fs::remove_file(node.pin_dir().join("links").join(name))?;
    }
    scene.is_mended()?;
    eventually(MENDED, || {
        ensure!(scene.links()? == before, "{:?} instead of {before:?}", scene.links()?);
        ensure!(node.netns.ip(&format!("route show {}", scene.a.address))?.contains("proto 83"), "no route to the pod");
        Ok(())
    })
}

/// Of an operator, on the way to a Service's external IP and in place of the one to another node's pods.
#[test]
fn routes_of_others_stay_are_named_and_give_way_when_they_go() -> Result<()> {
    const EXTERNAL_IP: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
    const RANGE: &str = "10.244.2.0/24";
    let mut scene = Scene::build()?;
    let put = |scene: &Scene, ips: &[Ipv4Addr]| {
        let ports = PORTS.map(|port| port.at_nodes(30_080));
        let spec = json!({ "type": "NodePort", "clusterIP": scene.service.vip.ip(), "externalIPs": ips, "ports": ports });
        let service = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "namespace": "default" }, "spec": spec });
        scene.lab.cluster.put("service-web.yaml", &[service])
    };
    let named = |scene: &Scene, wanted: &[&str]| {
        let problems = scene.lab.node("n1").status()?.problems;
        let held: Vec<_> = problems.iter().filter_map(|problem| problem.object.clone()).collect();
        ensure!(held == wanted, "{problems:?}");
        Ok(problems)
    };
    let leads = |scene: &Scene, prefix: &str, way: &str| {
        let route = scene.lab.node("n1").netns.ip(&format!("route show exact {prefix}"))?;
        ensure!(route.contains(way) && route.lines().count() == 1, "{route:?} instead of {way}");
        Ok(())
    };
    let other = format!("via {} dev eth0 proto static", scene.lab.node("n2").address());
    let (external, range) = (format!("host route {EXTERNAL_IP}/32"), format!("host route {RANGE}"));
    let ip = |scene: &Scene, arguments: String| scene.lab.node("n1").netns.ip(&arguments).map(drop);

    ip(&scene, format!("route add {EXTERNAL_IP}/32 {other}"))?;
    put(&scene, &[EXTERNAL_IP])?;
    eventually(SOON, || named(&scene, &[&external]))?;
    leads(&scene, &EXTERNAL_IP.to_string(), &other)?;
    ip(&scene, format!("route replace {RANGE} {other}"))?;
    let problems = eventually(MENDED, || named(&scene, &[&range, &external]))?;
    ensure!(problems.iter().all(|problem| problem.message.contains(&other)), "{problems:?}");
    leads(&scene, RANGE, &other)?;

    // Pods are served, and a new agent takes no more than the old one.
    let served = |scene: &Scene| tcp_answer(&scene.a.netns, SocketAddrV4::new(EXTERNAL_IP, scene.service.vip.port()));
    served(&scene)?;
    scene.lab.node_mut("n1").kill_agent()?;
    scene.lab.node_mut("n1").start_agent()?;
    eventually(SOON, || named(&scene, &[&range, &external]))?;
    served(&scene)?;
    leads(&scene, RANGE, &other)?;

    put(&scene, &[])?;
    eventually(SOON, || named(&scene, &[&range]))?;
    leads(&scene, &EXTERNAL_IP.to_string(), &other)?;
    put(&scene, &[EXTERNAL_IP])?;
    eventually(SOON, || named(&scene, &[&range, &external]))?;
    for prefix in [RANGE.to_owned(), format!("{EXTERNAL_IP}/32")] {
        ip(&scene, format!("route del {prefix}"))?;
    }
    eventually(MENDED, || named(&scene, &[]))?;
    for prefix in [RANGE.to_owned(), EXTERNAL_IP.to_string()] {
        leads(&scene, &prefix, "dev shunt0 proto 83")?;
    }
    let log = fs::read_to_string(scene.lab.node("n1").log_file())?;
    let mended = log.lines().filter(|line| line.contains("changed by someone else")).count();
    ensure!(mended <= 1, "the audit takes a route that stays for a fault: {log}");
    scene.is_mended()
}

#[test]
fn a_pod_that_could_not_be_mended_is_tried_again_soon() -> Result<()> {
    let scene = Scene::build()?;
    let node = scene.lab.node("n1");
    let before = scene.links()?;
    let name = before.iter().find(|name| name.contains("from_pod")).context("the pod has no link")?;
    let pin = node.pin_dir().join("links").join(name);
    fs::remove_file(&pin)?;
    fs::create_dir(&pin)?;
    // The agent looks at everything when something happens to a device of the node.
    node.netns.ip("link set eth0 txqueuelen 1001")?;
    eventually(MENDED, || {
        let reasons = node.status()?.reasons;
        ensure!(reasons.iter().any(|reason| reason.contains("from_pod")), "{reasons:?}");
        Ok(())
    })?;
    fs::remove_dir(&pin)?;
    // Long before the agent looks at everything by itself.
    eventually(MENDED / 3, || {
        let (reasons, links) = (node.status()?.reasons, scene.links()?);
        ensure!(reasons.is_empty() && links == before, "{reasons:?}, {links:?}");
        Ok(())
    })?;
    scene.works()
}

#[test]
fn what_half_a_setup_has_changed_stays_while_the_rest_fails() -> Result<()> {
    let lab = Lab::build(&PAIR)?;
    let (node, stray) = (lab.node("n1"), lab.node("n1").pin_dir().join("links/stray"));
    let (a, b, c) = (lab.pod("n1", "a")?, lab.pod("n1", "b")?, lab.pod("n2", "c")?);
    let _servers = [serve_pod(&b)?, serve_pod(&c)?];
    let web = Service::create(&lab, "web", 10, &[&b])?;
    let answers = |service: &Service, name: &str| -> Result<()> {
        let server = tcp_answer(&a.netns, service.vip)?.server;
        ensure!(server == name, "{server} answers, not {name}");
        Ok(())
    };
    // The Node and the Service's endpoints change at once: they come in one file.
    let mut together = Vec::new();
    for (kind, name) in [("Node", "n1"), ("EndpointSlice", "web")] {
        let is_it = |object: &Value| {
            let own =
                object["metadata"]["labels"]["kubernetes.io/service-name"].as_str().or(object["metadata"]["name"].as_str());
            object["kind"] == kind && own == Some(name)
        };
        together.push(lab.cluster.objects()?.into_iter().find(is_it).with_context(|| format!("no {kind} {name}"))?);
    }
    lab.cluster.remove("endpoints-web.yaml")?;
    eventually(SOON, || refused(&a.netns, web.vip))?;
    lab.cluster.put("node-n1.yaml", &together)?;
    eventually(SOON, || answers(&web, "b"))?;

    // Programs are put in force after the maps, and pins that nobody needs any more go last: this one cannot.
    fs::create_dir(&stray)?;
    let data = json!({ "VNI": VNI, "VtepMAC": "02:00:00:00:00:11" }).to_string();
    together[0]["metadata"]["annotations"] = json!({ "flannel.alpha.coreos.com/backend-data": data });
    together[1]["endpoints"][0]["addresses"] = json!([c.address]);
    lab.cluster.put("node-n1.yaml", &together)?;
    eventually(SOON, || {
        let reasons = node.status()?.reasons;
        ensure!(reasons.iter().any(|reason| reason.contains("cannot remove") && reason.contains("stray")), "{reasons:?}");
        Ok(())
    })?;
    // Not even for the moment until the setup is tried again.
    let done = AtomicBool::new(false);
    let late = thread::scope(|scope| {
        let asking = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                answers(&web, "c")?;
            }
            Ok(())
        });
        let late = Service::create(&lab, "late", 11, &[&b]);
        done.store(true, Ordering::Relaxed);
        asking.join().map_err(|_| anyhow!("the client panicked"))?.and(late)
    })?;
    answers(&late, "b")?;

    fs::remove_dir(&stray)?;
    eventually(SOON, || node.wait_ready())?;
    answers(&web, "c")?;
    answers(&late, "b")
}

#[test]
fn a_pod_that_vanished_without_a_word_leaves_nothing_in_the_dataplane() -> Result<()> {
    let scene = Scene::build()?;
    let node = scene.lab.node("n1");
    scene.a.netns.ip("link delete eth0")?;
    eventually(MENDED, || {
        let addresses = node.kernel()?.addresses()?;
        ensure!(!addresses.iter().any(|(address, _)| *address == scene.a.address.into()), "its address is still there");
        ensure!(scene.links()?.iter().all(|name| !name.contains("_pod_")), "{:?}", scene.links()?);
        Ok(())
    })
}
