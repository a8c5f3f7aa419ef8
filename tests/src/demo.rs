//! `shunt-lab demo`: the main job, whole and real, shown with its figures.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
    os::unix::process::CommandExt,
    process::{ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    cluster::{Endpoint, Port},
    lab::{Lab, eventually},
    node::Node,
    pod::Pod,
    terminal::Terminal,
    topology::{OUTSIDE, PAIR},
    traffic::{
        echo::{Server, TcpClient, ask_tcp, ask_udp},
        flood::Flood,
        iperf::IperfServer,
        ping::ping,
    },
};

const SERVICES: &str = include_str!("../../manifests/examples/cluster/services.yaml");
/// Of the Services in that file.
const WEB: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 10), 80);
const EMPTY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 20), 80);
const TARGET: u16 = 8080;
const APPLIED_WITHIN: Duration = Duration::from_secs(5);

/// The demo's lab with its pods.
#[derive(Debug)]
pub struct Stage {
    /// The lab.
    pub lab: Lab,
    client: Pod,
    /// Two on the client's node, one on the other.
    web: Vec<Pod>,
}

impl Stage {
    /// Builds it: two nodes, four pods, two Services.
    ///
    /// # Errors
    /// Something could not be made.
    pub fn build(terminal: &Terminal) -> Result<Self> {
        terminal.step("namespaces, a switch, a router, a host outside; an agent on each node");
        let lab = Lab::build(&PAIR)?;
        terminal.step("both agents are healthy; making pods through the CNI plugin");
        let client = lab.pod("n1", "client")?;
        let web = vec![lab.pod("n1", "web-a")?, lab.pod("n1", "web-b")?, lab.pod("n2", "web-c")?];
        lab.cluster.put_text("services.yaml", SERVICES)?;
        let endpoints: Vec<_> = web.iter().map(|pod| Endpoint::ready(pod.address, &pod.node)).collect();
        let ports = [Port { protocol: "TCP", port: 80, target: TARGET }, Port { protocol: "UDP", port: 80, target: TARGET }];
        lab.cluster.put_named_endpoints("web", &[("http", ports[0]), ("udp", ports[1])], &endpoints)?;
        Ok(Self { lab, client, web })
    }

    /// Leaves it standing, its servers as processes.
    ///
    /// # Errors
    /// A server could not be started.
    pub fn keep(&mut self) -> Result<()> {
        for pod in &self.web {
            let mut server = pod.netns.command(std::env::current_exe()?);
            server.args(["serve", &pod.name, &SocketAddrV4::new(pod.address, TARGET).to_string()]);
            server.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        }
        self.lab.keep()
    }

    fn drawing(&self) -> String {
        let at = |pod: &Pod| format!("{} {}", pod.name, pod.address);
        let (n1, n2) = (self.lab.node("n1").address(), self.lab.node("n2").address());
        format!(
            "           outside {OUTSIDE}\n\
             \u{20}             |\n\
             \u{20}          router\n\
             \u{20}             |\n\
             \u{20} ------------+------------ switch\n\
             \u{20}   |                     |\n\
             \u{20}  n1 {n1:<18} n2 {n2}\n\
             \u{20}   |- {:<19}|- {}\n\
             \u{20}   |- {}\n\
             \u{20}   |- {}\n\n\
             Service web   {WEB} -> the three web pods, TCP and UDP\n\
             Service empty {EMPTY} -> nobody",
            at(&self.client),
            at(&self.web[2]),
            at(&self.web[0]),
            at(&self.web[1]),
        )
    }
}

/// Shows it.
///
/// # Errors
/// The lab could not be built. A check that fails is shown, and makes the exit code.
pub fn run(keep: bool) -> Result<ExitCode> {
    let terminal = Terminal::default();
    terminal.section("Set-up");
    let mut stage = Stage::build(&terminal)?;
    terminal.step("pods have addresses, the Services are written");
    terminal.section("Topology");
    terminal.text(&stage.drawing());

    terminal.section("Checks");
    let mut report = Report { terminal: &terminal, failed: 0 };
    let servers = serve(&stage)?;
    report.check("Service is in force", || in_force(&stage));
    report.check("ping, same node", || pinged(&stage.client, &stage.web[0]));
    report.check("ping, cross node", || pinged(&stage.client, &stage.web[2]));
    report.check("TCP throughput, same node (iperf3, 3 s)", || throughput(&stage.client, &stage.web[0]));
    report.check("TCP throughput, cross node (iperf3, 3 s)", || throughput(&stage.client, &stage.web[2]));
    report.check("Service spreads 300 connections", || spread(&stage));
    report.check("Service from a process of the node", || from_host(&stage));
    report.check("Service over UDP", || over_udp(&stage));
    report.check("outside sees the node's address", || outside(&stage));
    report.check("no endpoints: refused at once", || refused(&stage));
    report.check_mut("kill -9 of an agent under load", &mut stage, killed);
    report.check_mut("its restart under load", &mut stage, restarted);
    let failed = report.failed;
    drop(servers);

    terminal.section("What the kernel of n1 holds");
    for what in ["nodes", "pods", "services", "backends"] {
        show(&terminal, stage.lab.node("n1"), &["get", what])?;
    }
    show(&terminal, stage.lab.node("n1"), &["status"])?;

    if keep {
        stage.keep()?;
        say_how_to_use(&terminal, &stage);
    } else {
        terminal.section("Cleaning up");
        drop(stage);
        terminal.step("nothing is left: no namespace, no pin, no process");
    }
    terminal.section(&if failed == 0 { "All checks passed".to_owned() } else { format!("{failed} checks FAILED") });
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// How to use and remove a lab that is kept.
pub fn say_how_to_use(terminal: &Terminal, stage: &Stage) {
    let id = stage.lab.id();
    let run_dir = stage.lab.dir().join("n1/run");
    terminal.section(&format!("Lab {id} is left standing"));
    terminal.text(&stage.drawing());
    terminal.text(&format!(
        "\ncargo xtask lab exec n1-client ping -c 3 {}      a command in a pod\n\
         cargo xtask lab exec n1 ip route                  a command on a node\n\
         cargo xtask lab exec n1 shunt get services --run-dir {}\n\
         {}      the cluster's YAML: edit it\n\
         cargo xtask lab list                              what there is\n\
         cargo xtask lab down {id}                         remove it",
        stage.web[2].address,
        run_dir.display(),
        stage.lab.cluster.dir().display(),
    ));
}

struct Report<'a> {
    terminal: &'a Terminal,
    failed: usize,
}

impl Report<'_> {
    fn check(&mut self, what: &str, work: impl FnOnce() -> Result<String>) {
        self.outcome(what, work());
    }

    fn check_mut(&mut self, what: &str, stage: &mut Stage, work: impl FnOnce(&mut Stage) -> Result<String>) {
        self.outcome(what, work(stage));
    }

    fn outcome(&mut self, what: &str, outcome: Result<String>) {
        match outcome {
            Ok(figure) => self.terminal.check(true, what, &figure),
            Err(error) => {
                self.failed += 1;
                self.terminal.check(false, what, &format!("{error:#}"));
            }
        }
    }
}

fn serve(stage: &Stage) -> Result<Vec<Server>> {
    let mut servers = Vec::new();
    for pod in &stage.web {
        let at = SocketAddrV4::new(pod.address, TARGET);
        servers.push(Server::tcp(&pod.netns, at, &pod.name)?);
        servers.push(Server::udp(&pod.netns, at, &pod.name)?);
    }
    servers.push(Server::tcp(stage.lab.outside(), SocketAddrV4::new(OUTSIDE, 80), "outside")?);
    Ok(servers)
}

fn in_force(stage: &Stage) -> Result<String> {
    let start = Instant::now();
    let answer = eventually(APPLIED_WITHIN, || ask_tcp(&stage.client.netns, WEB, b"hello"))?;
    Ok(format!("answered by {} after {} ms", answer.server, start.elapsed().as_millis()))
}

fn pinged(from: &Pod, to: &Pod) -> Result<String> {
    let pinged = ping(&from.netns, to.address, 10, 0.05, 56)?;
    ensure!(pinged.received == pinged.sent, "{} of {} came back", pinged.received, pinged.sent);
    Ok(format!("10 of 10, {:.0} us", pinged.average_us))
}

fn throughput(from: &Pod, to: &Pod) -> Result<String> {
    let server = IperfServer::start(&to.netns, to.address)?;
    let measured = server.measure(&from.netns, to.address, 3, &[])?;
    Ok(format!("{:.1} Gbit/s, {} retransmits", measured.bits_per_second / 1e9, measured.retransmits))
}

fn spread(stage: &Stage) -> Result<String> {
    let mut hits: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..300 {
        *hits.entry(TcpClient::connect(&stage.client.netns, WEB)?.server).or_default() += 1;
    }
    let shown: Vec<_> = hits.iter().map(|(name, count)| format!("{name} {count}")).collect();
    ensure!(hits.len() == stage.web.len() && hits.values().all(|count| *count > 50), "uneven: {}", shown.join(", "));
    Ok(shown.join(", "))
}

fn from_host(stage: &Stage) -> Result<String> {
    let mut backends = BTreeMap::new();
    for _ in 0..20 {
        let answer = ask_tcp(&stage.lab.node("n1").netns, WEB, b"hello")?;
        backends.insert(answer.server, answer.peer.ip().to_owned());
    }
    Ok(backends.iter().map(|(name, peer)| format!("{name} sees {peer}")).collect::<Vec<_>>().join(", "))
}

fn over_udp(stage: &Stage) -> Result<String> {
    let answer = ask_udp(&stage.client.netns, WEB, &[1; 1000])?;
    ensure!(*answer.peer.ip() == stage.client.address, "the backend sees {}", answer.peer);
    Ok(format!("{} sees the pod's own {}", answer.server, answer.peer.ip()))
}

fn outside(stage: &Stage) -> Result<String> {
    let answer = ask_tcp(&stage.client.netns, SocketAddrV4::new(OUTSIDE, 80), b"hello")?;
    let node = stage.lab.node("n1").address();
    ensure!(*answer.peer.ip() == node, "it sees {}", answer.peer);
    Ok(format!("{OUTSIDE} sees {}", answer.peer))
}

fn refused(stage: &Stage) -> Result<String> {
    let start = Instant::now();
    match TcpClient::connect(&stage.client.netns, EMPTY) {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            Ok(format!("ECONNREFUSED after {:.1} ms", start.elapsed().as_secs_f64() * 1000.0))
        }
        Err(error) => Err(error).context("not refused"),
        Ok(client) => anyhow::bail!("{} answered", client.server),
    }
}

fn load_of(stage: &Stage) -> Result<[Flood; 2]> {
    let every = Duration::from_micros(500);
    let cross_node = SocketAddrV4::new(stage.web[2].address, TARGET);
    Ok([Flood::start(&stage.client.netns, cross_node, every)?, Flood::start(&stage.client.netns, WEB, every)?])
}

fn counted(floods: [Flood; 2]) -> Result<String> {
    let mut sent = 0;
    for flood in floods {
        let tally = flood.stop()?;
        ensure!(tally.lost() == 0, "{} of {} datagrams lost", tally.lost(), tally.sent);
        sent += tally.sent;
    }
    Ok(format!("{sent} datagrams to a pod and a Service, 0 lost"))
}

fn killed(stage: &mut Stage) -> Result<String> {
    let floods = load_of(stage)?;
    thread::sleep(Duration::from_millis(500));
    stage.lab.node_mut("n1").kill_agent()?;
    thread::sleep(Duration::from_secs(2));
    counted(floods)
}

fn restarted(stage: &mut Stage) -> Result<String> {
    let floods = load_of(stage)?;
    thread::sleep(Duration::from_millis(500));
    let start = Instant::now();
    stage.lab.node_mut("n1").start_agent()?;
    stage.lab.node("n1").wait_ready()?;
    let healthy = start.elapsed();
    thread::sleep(Duration::from_millis(500));
    Ok(format!("{}, healthy after {} ms", counted(floods)?, healthy.as_millis()))
}

fn show(terminal: &Terminal, node: &Node, args: &[&str]) -> Result<()> {
    let output = node.shunt(args)?;
    terminal.text(&format!("\n$ shunt {}", args.join(" ")));
    terminal.text(&String::from_utf8_lossy(&output.stdout));
    if !output.status.success() {
        terminal.text(&String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
