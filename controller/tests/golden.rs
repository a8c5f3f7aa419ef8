//! From Kubernetes YAML to what the maps hold: each file in `golden/` has the files of a cluster-state directory and, after `== maps ==`,
//! what node n1 makes of them. `== then ==` starts a later state of the directory; `-- NAME (gone) --` is a file that is deleted.
//!
//! `BLESS=1 cargo test -p shunt --test golden` writes what came out; read the difference before you commit it.

use std::{
    fmt::{Display, Write as _},
    fs,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use shunt::{
    cluster::FileSource,
    compile::{Compiler, NodeView},
    diff::{Capacities, Differ},
    kernel::{
        fake::FakeKernel,
        step::{Actual, Kernel as _},
    },
};
use shunt_common::{
    address::{kind, route},
    net::{Ip4, proto},
    service::{flags, state},
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
    let view = NodeView { name: "n1".into(), ip, addresses: [ip].into(), non_masquerade: ["10.0.0.0/8".parse()?].into() };
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
        kind::HOST => format!("{addr} this host"),
        kind::NODE => format!("{addr} node at {} {}", address.underlay, address.mac),
        kind::SERVICE => format!("{addr} virtual"),
        other => format!("{addr} of kind {other}"),
    });
    section(&mut text, "ADDRESSES", addresses);

    let mut routes: Vec<_> = held.routes.iter().collect();
    routes.sort_by_key(|(prefix, _)| (prefix.addr.to_host(), prefix.len));
    let routes = routes.into_iter().map(|(prefix, route)| {
        let way = match route.kind {
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
    let mut named = Vec::new();
    let services = services.into_iter().map(|(key, service)| {
        let protocol = match key.proto {
            proto::TCP => "TCP",
            proto::UDP => "UDP",
            proto::SCTP => "SCTP",
            _ => "?",
        };
        let ids = (service.base..service.base + service.count).map(|slot| held.slots[&slot]);
        let mut backends: Vec<_> = ids
            .map(|id| {
                named.push(id);
                (held.backends[&id].addr.to_host(), held.backends[&id].port.to_host())
            })
            .collect();
        backends.sort_unstable();
        let backends: Vec<_> = backends.into_iter().map(|(addr, port)| format!("{}:{port}", Ip4::from_host(addr))).collect();
        let way = match (backends.is_empty(), service.flags & flags::DROP_WHEN_EMPTY != 0) {
            (true, true) => "drops".to_owned(),
            (true, false) => "refuses".to_owned(),
            (false, _) => format!("-> {}", backends.join(" ")),
        };
        format!("{}:{}/{protocol} {way}", key.addr, key.port)
    });
    let services: Vec<_> = services.collect();
    section(&mut text, "SERVICES", services);

    let unnamed = held.backends.iter().filter(|(id, backend)| backend.state != state::FREE && !named.contains(id));
    section(&mut text, "draining", unnamed.map(|(_, backend)| format!("{}:{}", backend.addr, backend.port)));
    text
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
