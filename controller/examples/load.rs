//! What it costs to start with a cluster and to follow one change, with a fake in place of the kernel: `load SOURCE NODE NODE_IP`, where
//! SOURCE is a directory of YAML or a kubeconfig. Changes of an API server's cluster are followed until nothing comes for ten seconds.

use std::{
    net::Ipv4Addr,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use shunt::{
    cluster::{Origin, Source},
    compile::{Compiler, NodeView},
    config::{LoadBalancer, NodePortAddresses, NodePortMode, SourceOptions},
    diff::{Capacities, Differ},
    kernel::step::Actual,
    model::Changes,
};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [from, node, ip] = arguments.as_slice() else { anyhow::bail!("want SOURCE NODE NODE_IP") };
    let ip: Ipv4Addr = ip.parse().with_context(|| format!("{ip:?} is no IPv4 address"))?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run(Path::new(from), node, ip))
}

async fn run(from: &Path, node: &str, ip: Ipv4Addr) -> anyhow::Result<()> {
    let view = NodeView {
        name: node.into(),
        ip: ip.into(),
        subnet: ip.into(),
        addresses: [ip.into()].into(),
        non_masquerade: Default::default(),
        node_port_addresses: NodePortAddresses::Primary,
        node_port: NodePortMode::Snat,
        load_balancer: LoadBalancer::Random,
    };
    report("started")?;
    let is_dir = from.is_dir();
    let options = if is_dir { SourceOptions::Files(from.into()) } else { SourceOptions::Kubeconfig(from.into()) };
    let start = Instant::now();
    let (mut source, mut changes) = Source::open(&Origin::of(&options).await?)?;
    while !source.is_complete() {
        changes.absorb(source.next().await);
    }
    println!("known after {:?}", start.elapsed());
    report(&format!("loaded {:?}, {} problems", source.counts(), source.problems().len()))?;
    for problem in source.problems().iter().take(10) {
        println!("  {problem}");
    }
    let mut compiler = Compiler::new(view);
    let patch = compiler.update(source.model(), &changes);
    report(&format!("compiled {} frontends, {} problems", patch.frontends.len(), compiler.problems().len()))?;
    let mut differ = Differ::new(&Actual::default(), Capacities::default());
    let plan = differ.plan(compiler.desired(), &patch);
    report(&format!("planned {} steps", plan.steps.len()))?;
    drop((patch, plan, changes));
    report("at rest")?;

    if !is_dir {
        return follow(source, compiler, differ).await;
    }
    let again = from.join("service-1.yaml");
    if let Ok(text) = std::fs::read_to_string(&again) {
        let changed = text.replacen("ready: true", "ready: false", 1);
        for text in [changed, text] {
            let start = Instant::now();
            std::fs::write(&again, text)?;
            let changes = source.next().await;
            let patch = compiler.update(source.model(), &changes);
            let plan = differ.plan(compiler.desired(), &patch);
            println!("one file changed: {} steps after {:?}", plan.steps.len(), start.elapsed());
        }
    }
    Ok(())
}

async fn follow(mut source: Source, mut compiler: Compiler, mut differ: Differ) -> anyhow::Result<()> {
    const QUIET: Duration = Duration::from_secs(10);
    let (mut rounds, mut total) = (0, Changes::default());
    while let Ok(changes) = tokio::time::timeout(QUIET, source.next()).await {
        let patch = compiler.update(source.model(), &changes);
        differ.plan(compiler.desired(), &patch);
        rounds += 1;
        total.absorb(changes);
    }
    report(&format!("followed {} changes of slices in {rounds} rounds", total.triggers.len()))
}

/// CPU time used and memory held by this process so far, as the kernel counts them (proc(5)).
fn report(what: &str) -> anyhow::Result<()> {
    let mut cpu = std::mem::MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: the pointer is valid for writing one timespec.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, cpu.as_mut_ptr()) };
    anyhow::ensure!(result == 0, "clock_gettime: {}", std::io::Error::last_os_error());
    // SAFETY: the call has succeeded, so it was written.
    let cpu = unsafe { cpu.assume_init() };
    let status = std::fs::read_to_string("/proc/self/status")?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("unknown").trim();
    let file = status.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap_or("unknown").trim();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("unknown").trim();
    println!(
        "{:4}.{:03} s CPU, {resident} resident ({file} of it program text), {peak} at most: {what}",
        cpu.tv_sec,
        cpu.tv_nsec / 1_000_000
    );
    Ok(())
}
