//! The agent has exactly the privileges that its DaemonSet asks for: enough for all it does, and none to spare.
//!
//! ```text
//!   n1, its agent with few capabilities -- pods a, b        n2 -- pod c (serves)
//! ```

use std::{
    fs,
    net::SocketAddrV4,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use shunt_lab::{
    command,
    flannel::FlannelNode,
    lab::{Lab, eventually},
    node::{Node, shunt_binary},
    service::{PORTS, Service, TARGET, serve, serve_pod, tcp_answer, udp_answer},
    topology::{MIXED, PAIR},
};

/// The names behind `securityContext.capabilities.add`, without `CAP_`.
fn granted() -> Result<Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/base/daemonset.yaml");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let daemon_set: serde_yaml::Value = serde_yaml::from_str(&text)?;
    let context = &daemon_set["spec"]["template"]["spec"]["containers"][0]["securityContext"];
    ensure!(context["capabilities"]["drop"][0] == "ALL", "everything else must be dropped");
    let names = context["capabilities"]["add"].as_sequence().context("no capabilities are added")?;
    names.iter().map(|name| name.as_str().map(str::to_owned).context("a capability is a name")).collect()
}

/// The agent as root with these capabilities alone, and no way to more.
fn limited(node: &Node, capabilities: &[String]) -> Result<Command> {
    let agent = node.agent_command(None)?;
    let names: Vec<_> = capabilities.iter().map(|name| format!(",+{}", name.to_lowercase())).collect();
    let mut command = node.netns.command(command::program("setpriv".as_ref()));
    command.args(["--no-new-privs", "--inh-caps=-all", "--ambient-caps=-all"]);
    command.arg(format!("--bounding-set=-all{}", names.concat()));
    command.arg(agent.get_program()).args(agent.get_args());
    command.stdin(Stdio::null());
    Ok(command)
}

/// The file system as a runtime gives it to the container: /proc/sys and /sys can only be read, but for what is mounted there, and the node's
/// settings are where the DaemonSet mounts them. The rest is this machine's, with nothing written to it.
const AS_CONTAINER: &str = r#"
    set -e
    mount -t tmpfs tmpfs "$1"
    mkdir "$1/upper" "$1/work" "$1/root"
    mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
    cd "$1/root"
    mkdir -p host/proc/sys/net
    for dir in proc sys run; do mount --rbind "/$dir" "$dir"; done
    mount --bind /proc/sys/net host/proc/sys/net
    mount --bind /proc/sys proc/sys
    mount -o remount,bind,ro proc/sys
    for file in $3; do mount --bind "$file" ".$file"; done
    mount -o remount,bind,ro sys
    mkdir -p ".$2"
    mount --bind "$2" ".$2"
    shift 3
    # Not every caller's PATH has root's programs.
    exec /usr/sbin/chroot . "$@"
"#;

/// The capabilities that the takeover's overlay adds to them.
fn granted_for_takeover() -> Result<Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/overlays/takeover/kustomization.yaml");
    let overlay: serde_yaml::Value = serde_yaml::from_str(&fs::read_to_string(&path)?)?;
    let mut added = Vec::new();
    for patch in overlay["patches"].as_sequence().context("no patches")? {
        let Some(steps) = patch["patch"].as_str() else { continue };
        for step in serde_yaml::from_str::<Vec<serde_yaml::Value>>(steps)? {
            if step["path"].as_str().is_some_and(|path| path.ends_with("/capabilities/add/-")) {
                added.push(step["value"].as_str().context("a capability is a name")?.to_owned());
            }
        }
    }
    Ok(added)
}

/// The files below /sys that the takeover's overlay mounts.
fn mounted_by_takeover() -> Result<Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/overlays/takeover/takeover.yaml");
    let daemon_set: serde_yaml::Value = serde_yaml::from_str(&fs::read_to_string(&path)?)?;
    let mounts = &daemon_set["spec"]["template"]["spec"]["containers"][0]["volumeMounts"];
    let paths = mounts.as_sequence().context("no mounts")?.iter().filter_map(|mount| mount["mountPath"].as_str());
    Ok(paths.filter(|path| path.starts_with("/sys/")).map(str::to_owned).collect())
}

/// The agent in a mount namespace of its own, made with a directory to work in; what is `mounted` below /sys can be written.
fn contained(node: &Node, capabilities: &[String], dir: &Path, mounted: &[String]) -> Result<Command> {
    let agent = limited(node, capabilities)?;
    let binary = shunt_binary()?;
    let mut command = node.netns.command("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", AS_CONTAINER, "sh"]);
    command.arg(dir).arg(binary.parent().context("a binary is in a directory")?).arg(mounted.join(" "));
    command.arg(agent.get_program()).args(agent.get_args());
    command.stdin(Stdio::null());
    Ok(command)
}

/// Ends with its owner.
struct Agent(Child);

impl Agent {
    fn start(node: &Node, mut command: Command) -> Result<Self> {
        let log = fs::OpenOptions::new().create(true).append(true).open(node.log_file())?;
        Ok(Self(command.stdout(log.try_clone()?).stderr(log).spawn()?))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_agent_with_the_capabilities_and_mounts_of_the_manifest_does_all_it_has_to() -> Result<()> {
    let mut lab = Lab::build(&PAIR)?;
    lab.node_mut("n1").kill_agent()?;
    lab.node("n1").cleanup()?;
    let capabilities = granted()?;

    let root = tempfile::tempdir()?;
    let container = |lab: &Lab| contained(lab.node("n1"), &capabilities, root.path(), &[]);
    let agent = Agent::start(lab.node("n1"), container(&lab)?)?;
    lab.node("n1").wait_ready()?;
    let effective = fs::read_to_string(format!("/proc/{}/status", agent.0.id()))?;
    let mask = effective.lines().find_map(|line| line.strip_prefix("CapEff:")).context("no CapEff")?.trim().to_owned();
    ensure!(u64::from_str_radix(&mask, 16)?.count_ones() as usize == capabilities.len(), "effective: {mask}");

    let (a, b, c) = (lab.pod("n1", "a")?, lab.pod("n1", "b")?, lab.pod("n2", "c")?);
    let _servers = [serve_pod(&b)?, serve_pod(&c)?];
    let service = Service::create(&lab, "web", 10, &[&b, &c])?;
    for from in [&a.netns, &lab.node("n1").netns] {
        for to in [SocketAddrV4::new(b.address, TARGET), SocketAddrV4::new(c.address, TARGET), service.vip] {
            tcp_answer(from, to)?;
            udp_answer(from, to)?;
        }
    }

    // A second one replaces the programs of the first; what was taken away meanwhile it mends.
    drop(agent);
    let links = lab.node("n1").pin_dir().join("links");
    let gone = fs::read_dir(&links)?.next().context("no link is pinned")??.path();
    fs::remove_file(&gone)?;
    lab.node("n1").netns.ip("link del shunt0")?;
    let _agent = Agent::start(lab.node("n1"), container(&lab)?)?;
    lab.node("n1").wait_ready()?;
    service.set(&lab, &PORTS, &[shunt_lab::cluster::Endpoint::ready(c.address, "n2")])?;
    eventually(Duration::from_secs(10), || {
        let answer = tcp_answer(&a.netns, service.vip)?;
        ensure!(answer.server == "c", "still {}", answer.server);
        tcp_answer(&lab.node("n1").netns, service.vip).map(drop)
    })?;
    ensure!(gone.exists(), "{} was not pinned again", gone.display());
    Ok(())
}

#[test]
fn with_those_of_the_takeovers_overlay_it_takes_a_node_over() -> Result<()> {
    let lab = Lab::wired(&MIXED)?;
    let (n1, flannel) = (lab.node("n1"), FlannelNode::set_up(&lab, "n1")?);
    let (a, b) = (flannel.pod(n1, "a", 10)?, flannel.pod(n1, "b", 11)?);
    let _server = serve(&b.netns, b.address, "b")?;
    let mut capabilities = granted()?;
    capabilities.extend(granted_for_takeover()?);
    let root = tempfile::tempdir()?;
    let mut command = contained(n1, &capabilities, root.path(), &mounted_by_takeover()?)?;
    command.arg("--takeover");
    let _agent = Agent::start(n1, command)?;
    n1.wait_ready()?;
    ensure!(n1.status()?.counts.pods == 2, "{:?}", n1.status()?.counts);
    tcp_answer(&a.netns, SocketAddrV4::new(b.address, TARGET))?;
    let log = fs::read_to_string(n1.log_file())?;
    ensure!(log.contains("the node is taken over") && !log.contains("cannot be written"), "{log}");
    Ok(())
}

#[test]
fn without_any_one_of_them_the_agent_says_which_is_missing() -> Result<()> {
    let mut lab = Lab::build(&PAIR)?;
    lab.node_mut("n1").kill_agent()?;
    lab.node("n1").cleanup()?;
    let capabilities = granted()?;
    for missing in &capabilities {
        let rest: Vec<_> = capabilities.iter().filter(|name| *name != missing).cloned().collect();
        let mut agent = Agent::start(lab.node("n1"), limited(lab.node("n1"), &rest)?)?;
        let ended = eventually(Duration::from_secs(20), || {
            agent.0.try_wait()?.with_context(|| format!("an agent without CAP_{missing} runs on"))
        })?;
        ensure!(!ended.success());
        let log = lab.node("n1").log_tail();
        if !log.contains(&format!("CAP_{missing}")) {
            bail!("CAP_{missing} is missing, and the agent says:\n{log}");
        }
    }
    Ok(())
}
