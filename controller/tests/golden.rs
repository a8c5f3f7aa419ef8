//! From Kubernetes YAML to what the maps hold: each file in `golden/` has the files of a cluster-state directory and, after `== maps ==`,
//! what node n1 makes of them. `== then ==` starts a later state of the directory; `-- NAME (gone) --` is a file that is deleted.
//!
//! A backend of this node has a `*`. A line `# settings: KEY: VALUE` is the agent's configuration,
//! `# further address: IP` one that the node has besides.
//!
//! `BLESS=1 cargo test -p shunt --test golden` writes what came out; read the difference before you commit it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{Display, Write as _},
    fs,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use shunt::{
    cluster::FileSource,
    compile::{Compiler, NodeView},
    config::Config,
    diff::{Capacities, Differ},
    kernel::{
        fake::FakeKernel,
        step::{Actual, Kernel as _},
    },
};
use shunt_common::{
    address::{self, route, route_flags},
    net::{Ip4, V4, proto},
    service::{Run, Service, ServiceKey, backend_flags, flags, kind, node_ports, state},
};

const MAPS: &str = "== maps ==\n";
const THEN: &str = "== then ==\n";

#[tokio::test]
async fn yaml_becomes_maps() -> Result<()> {
    let mut paths: Vec<_> = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden"))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    paths.sort();
    ensure!(!paths.is_empty(), "no golden files");
    let bless = std::env::var_os("BLESS").is_some();
    let mut wrong = String::new();
    for path in paths {
        let text = fs::read_to_string(&path)?;
        let (input, expected) = text.split_once(MAPS).unwrap_or((&text, ""));
        let actual = run(input).await.with_context(|| format!("{}", path.display()))?;
        if bless {
            fs::write(&path, format!("{input}{MAPS}{actual}"))?;
        } else if actual != expected {
            write!(wrong, "{}\nexpected:\n{expected}\ncame out:\n{actual}\n", path.display())?;
        }
    }
    ensure!(wrong.is_empty(), "{wrong}");
    Ok(())
}

/// Brings a directory through its states and dumps what the kernel then holds.
async fn run(input: &str) -> Result<String> {
    let dir = tempfile::tempdir()?;
    let ip = Ip4::new(192, 0, 2, 1);
    let said = |what: &str| input.lines().find_map(|line| line.strip_prefix(what)).unwrap_or_default();
    let config = Config::parse(said("# settings: "))?;
    let further = said("# further address: ").parse::<std::net::Ipv4Addr>().ok().map(Ip4::from);
    let view = NodeView {
        name: "n1".into(),
        ip,
        subnet: "192.0.2.0/24".parse()?,
        addresses: [ip].into_iter().chain(further).collect(),
        non_masquerade: ["10.0.0.0/8".parse()?].into(),
        node_port_addresses: config.node_port_addresses,
        node_port: config.node_port,
        load_balancer: config.load_balancer,
    };
    let mut compiler = Compiler::new(view);
    let mut differ = Differ::new(&Actual::default(), Capacities::default());
    let mut kernel = FakeKernel::default();
    let mut source = None;
    for state in input.split(THEN) {
        write_files(dir.path(), state)?;
        let changes = match &mut source {
            None => {
                let (opened, changes) = FileSource::open(dir.path())?;
                source = Some(opened);
                changes
            }
            Some(source) => {
                let mut changes = source.next().await;
                while let Ok(more) = tokio::time::timeout(Duration::from_millis(200), source.next()).await {
                    changes.absorb(more);
                }
                changes
            }
        };
        let model = source.as_ref().context("opened above")?.model();
        let patch = compiler.update(model, &changes);
        let plan = differ.plan(compiler.desired(), &patch);
        kernel.carry_out(&plan.steps).map_err(|(step, error)| anyhow::anyhow!("step {step}: {error}"))?;
    }
    let source = source.context("opened above")?;
    let mut text = dump(kernel.held());
    let health_checks = compiler.desired().health_checks.iter().map(|(port, it)| {
        let way_out = if it.only_terminating { ", others on their way out" } else { "" };
        format!("{port} {}: {} ready{way_out}", it.service, it.local_ready)
    });
    section(&mut text, "health checks", health_checks);
    let problems = [source.problems(), compiler.problems()].concat();
    for (heading, lines) in [("problems", problems), ("notices", source.notices())] {
        section(&mut text, heading, lines);
    }
    Ok(text)
}

fn write_files(dir: &Path, state: &str) -> Result<()> {
    let mut files: Vec<(&str, String)> = Vec::new();
    for line in state.split_inclusive('\n') {
        if let Some(name) = line.strip_prefix("-- ").and_then(|line| line.strip_suffix(" --\n")) {
            files.push((name, String::new()));
        } else if let Some((_, text)) = files.last_mut() {
            text.push_str(line);
        }
    }
    for (name, text) in files {
        match name.strip_suffix(" (gone)") {
            Some(name) => fs::remove_file(dir.join(name))?,
            None => fs::write(dir.join(name), text)?,
        }
    }
    Ok(())
}

/// What the maps hold, in the order of addresses as people read them.
fn dump(held: &Actual) -> String {
    let mut text = String::new();

    let mut addresses: Vec<_> = held.addresses.iter().collect();
    addresses.sort_by_key(|(addr, _)| addr.to_host());
    let addresses = addresses.into_iter().map(|(addr, address)| match address.kind {
        address::kind::HOST => format!("{addr} this host"),
        address::kind::NODE => format!("{addr} node at {} {}", address.underlay, address.mac),
        address::kind::SERVICE => format!("{addr} virtual"),
        other => format!("{addr} of kind {other}"),
    });
    section(&mut text, "ADDRESSES", addresses);

    let mut routes: Vec<_> = held.routes.iter().collect();
    routes.sort_by_key(|(prefix, _)| (prefix.addr.to_host(), prefix.len));
    let routes = routes.into_iter().map(|(prefix, route)| {
        let way = match route.kind {
            route::TUNNEL if route.flags & route_flags::TAKES_NAMES != 0 => {
                format!("tunnel to {} {}, direct return", route.underlay, route.mac)
            }
            route::TUNNEL => format!("tunnel to {} {}", route.underlay, route.mac),
            route::LOCAL => "pods of this node".to_owned(),
            route::NATIVE => "native".to_owned(),
            other => format!("of kind {other}"),
        };
        format!("{}/{} {way}", prefix.addr, prefix.len)
    });
    section(&mut text, "ROUTES", routes);
    section(&mut text, "host routes", &held.host_routes);

    let mut services: Vec<_> = held.services.iter().collect();
    services.sort_by_key(|(key, _)| (key.addr.to_host(), key.port.to_host(), key.proto));
    let lines = services.iter().map(|(key, service)| {
        let cluster = serves(held, service.cluster, service.flags & flags::DROP_WHEN_EMPTY != 0);
        let outside = serves(held, service.outside, service.flags & flags::DROP_OUTSIDE_WHEN_EMPTY != 0);
        let outside = if outside == cluster { String::new() } else { format!("; from outside {outside}") };
        format!("{}:{}/{}{} {cluster}{outside}", key.addr, key.port, protocol(key.proto), traits(service))
    });
    section(&mut text, "SERVICES", lines);

    let limits = held.source_ranges.iter().map(|range| {
        let limited = |(_, service): &&(&ServiceKey<V4>, &Service)| {
            service.flags & flags::SOURCE_RANGES != 0 && service.id == range.clients.service
        };
        let frontends = services.iter().filter(limited).map(|(key, _)| format!("{}:{}", key.addr, key.port));
        let frontends = frontends.collect::<Vec<_>>().join(" ");
        format!("{}/{} to {frontends}", range.clients.addr, range.len - 32)
    });
    section(&mut text, "SOURCE_RANGES", limits.collect::<BTreeSet<_>>());

    let bits = held.node_ports.iter().flat_map(|(index, ports)| {
        let bits = (0..node_ports::PORTS).filter(move |bit| ports >> bit & 1 != 0);
        let first = index % node_ports::WORDS * node_ports::PORTS;
        bits.map(move |bit| format!("{}/{}", first + bit, ["TCP", "UDP", "SCTP"][(index / node_ports::WORDS) as usize]))
    });
    section(&mut text, "NODE_PORTS", bits);

    let named: BTreeSet<u32> = held
        .services
        .values()
        .flat_map(|service| service.cluster.slots().chain(service.outside.slots()))
        .map(|slot| held.slots[&slot])
        .collect();
    let unnamed = held.backends.iter().filter(|(id, backend)| backend.state != state::FREE && !named.contains(id));
    section(&mut text, "draining", unnamed.map(|(_, backend)| format!("{}:{}", backend.addr, backend.port)));
    text
}

/// Who serves, in numerical order; of a Maglev table with the places that each has.
fn serves(held: &Actual, run: Run, drops: bool) -> String {
    let mut backends: BTreeMap<(u32, u16, u8), u32> = BTreeMap::new();
    for slot in run.slots() {
        let backend = &held.backends[&held.slots[&slot]];
        *backends.entry((backend.addr.to_host(), backend.port.to_host(), backend.flags)).or_default() += 1;
    }
    let is_table = backends.values().any(|places| *places > 1);
    let backends: Vec<_> = backends
        .into_iter()
        .map(|((addr, port, flags), places)| {
            let here = if flags & backend_flags::LOCAL != 0 { "*" } else { "" };
            let places = if is_table { format!("({places})") } else { String::new() };
            format!("{}:{port}{here}{places}", Ip4::from_host(addr))
        })
        .collect();
    match (backends.is_empty(), drops) {
        (true, true) => "drops".to_owned(),
        (true, false) => "refuses".to_owned(),
        (false, _) => format!("-> {}", backends.join(" ")),
    }
}

/// What is out of the ordinary.
fn traits(service: &Service) -> String {
    let kind = match service.kind() {
        kind::CLUSTER_IP => "",
        kind::NODE_PORT => " node port",
        kind::LOAD_BALANCER => " load balancer",
        kind::EXTERNAL_IP => " external IP",
        kind::HOST_PORT => " host port",
        _ => " of unknown kind",
    };
    let affinity = format!(" affinity {} s", service.affinity_secs);
    let words = [
        (flags::KEEP_SOURCE, " keeps sources"),
        (flags::DIRECT_RETURN, " answers directly"),
        (flags::AFFINITY, &affinity),
        (flags::SOURCE_RANGES, " limited"),
        (flags::MAGLEV, " maglev"),
    ];
    let words = words.iter().filter(|(flag, _)| service.flags & flag != 0).map(|(_, word)| *word);
    assert_eq!(service.flags & flags::EXTERNAL != 0, service.kind() != kind::CLUSTER_IP);
    format!("{kind}{}", words.collect::<String>())
}

fn protocol(number: u8) -> &'static str {
    match number {
        proto::TCP => "TCP",
        proto::UDP => "UDP",
        proto::SCTP => "SCTP",
        _ => "?",
    }
}

/// Nothing for what is empty.
fn section(text: &mut String, heading: &str, lines: impl IntoIterator<Item: Display>) {
    let lines: String = lines.into_iter().map(|line| format!("  {line}\n")).collect();
    if !lines.is_empty() {
        text.push_str(heading);
        text.push('\n');
        text.push_str(&lines);
    }
}
