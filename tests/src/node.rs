//! A node with an agent of ours.

use std::{
    fs::{self, File, OpenOptions},
    net::Ipv4Addr,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use shunt::{
    kernel::{pins::PinDir, read::Reader},
    socket::{client::Client, protocol::Status},
};
use shunt_common::verdict::{Counter, DropReason};

use crate::{
    command,
    lab::{ON_MACHINE, cgroup2},
    netns::Netns,
    topology::{derived_mac, node_address, pod_range},
    underlay::UPLINK,
};

const READY_WITHIN: Duration = Duration::from_secs(30);

/// A node. Its agent is a child of this process; pods are made by the CNI plugin that talks to it.
#[derive(Debug)]
pub struct Node {
    /// Its name in the cluster.
    pub name: String,
    /// Its number, from 1.
    pub number: u8,
    /// Its namespace: the host's side of everything.
    pub netns: Netns,
    dir: PathBuf,
    pins: PathBuf,
    cgroup: PathBuf,
    cluster: PathBuf,
    kubeconfig: Option<PathBuf>,
    uplink: String,
    agent: Option<Child>,
}

/// The `shunt` to test: `SHUNT_BIN`, else the one that was built beside us.
///
/// # Errors
/// There is none.
pub fn shunt_binary() -> Result<PathBuf> {
    let built = || -> Option<PathBuf> {
        let me = std::env::current_exe().ok()?;
        me.ancestors().skip(1).take(2).map(|dir| dir.join("shunt")).find(|file| file.is_file())
    };
    let path = std::env::var_os("SHUNT_BIN").map(PathBuf::from).or_else(built);
    let path = path.context("no `shunt` to run: build it with `cargo xtask build` and name it in SHUNT_BIN")?;
    fs::canonicalize(&path).with_context(|| format!("no `shunt` at {}", path.display()))
}

impl Node {
    pub(crate) fn new(
        name: &str,
        number: u8,
        netns: Netns,
        lab: &Path,
        pins: PathBuf,
        cgroup: PathBuf,
        cluster: &Path,
    ) -> Result<Self> {
        let dir = lab.join(name);
        fs::create_dir_all(dir.join("run"))?;
        fs::create_dir_all(dir.join("state"))?;
        fs::create_dir_all(&pins).with_context(|| format!("cannot make the pin directory {}", pins.display()))?;
        Ok(Self {
            name: name.to_owned(),
            number,
            netns,
            pins: pins.join(name),
            dir,
            cgroup,
            cluster: cluster.to_owned(),
            kubeconfig: None,
            uplink: UPLINK.to_owned(),
            agent: None,
        })
    }

    /// Its address on the underlay.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        node_address(self.number)
    }

    /// Its pod range.
    #[must_use]
    pub fn pod_range(&self) -> (Ipv4Addr, u8) {
        pod_range(self.number)
    }

    /// The MAC of its tunnel end.
    #[must_use]
    pub fn vtep_mac(&self) -> String {
        derived_mac(self.address())
    }

    /// The agent's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.join("run/agent.sock")
    }

    /// Where its maps and links are pinned.
    #[must_use]
    pub fn pin_dir(&self) -> &Path {
        &self.pins
    }

    /// What must outlive a reboot of it.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Where its CNI plugins and its runtime keep what they gave, before it is ours.
    #[must_use]
    pub fn cni_state_dir(&self) -> PathBuf {
        self.dir.join("cni")
    }

    /// A configuration file that the agent is given if it exists.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.dir.join("config.yaml")
    }

    /// `shunt agent ...` as this node runs it, with another cluster state if one is named.
    ///
    /// # Errors
    /// There is no `shunt`.
    pub fn agent_command(&self, cluster: Option<&Path>) -> Result<Command> {
        let mut command = self.netns.command(shunt_binary()?);
        command.args(["agent", "--node-name", &self.name, "--underlay", &self.uplink]);
        match (cluster, &self.kubeconfig) {
            (None, Some(kubeconfig)) => command.arg("--kubeconfig").arg(kubeconfig),
            (dir, _) => command.arg("--cluster-state").arg(dir.unwrap_or(&self.cluster)),
        };
        command.arg("--run-dir").arg(self.dir.join("run"));
        command.arg("--state-dir").arg(self.state_dir());
        command.arg("--pin-dir").arg(&self.pins);
        // As on a machine of its own: all processes are below it, and sockets tell by their namespace whose they are.
        command.arg("--cgroup").arg(cgroup2()?);
        if self.cni_state_dir().exists() {
            command.arg("--cni-state-dir").arg(self.cni_state_dir());
        }
        if self.config_file().exists() {
            command.arg("--config").arg(self.config_file());
        }
        // Ctrl-C is for us, who then take everything down in order.
        command.process_group(0).stdin(Stdio::null());
        Ok(command)
    }

    /// From its next start on, the agent takes cluster state from an API server.
    pub fn follow_api(&mut self, kubeconfig: &Path) {
        self.kubeconfig = Some(kubeconfig.to_owned());
    }

    /// Makes the machine's own namespace this node's, with one of its interfaces as underlay.
    ///
    /// # Errors
    /// The namespace cannot be opened.
    pub fn move_to_machine(&mut self, interface: &str) -> Result<()> {
        self.netns = Netns::of_this_process()?;
        self.netns.join_cgroup(&self.cgroup)?;
        interface.clone_into(&mut self.uplink);
        fs::write(self.dir.with_file_name(ON_MACHINE), &self.name)?;
        // Its port may be another's there.
        fs::write(self.config_file(), "httpListen: \"\"\n")?;
        Ok(())
    }

    /// Starts the agent.
    ///
    /// # Errors
    /// It could not be started.
    pub fn start_agent(&mut self) -> Result<()> {
        self.start_agent_on(None)
    }

    /// Starts the agent to take the node over.
    ///
    /// # Errors
    /// It could not be started.
    pub fn start_takeover(&mut self) -> Result<()> {
        let mut command = self.agent_command(None)?;
        command.arg("--takeover");
        self.start(command)
    }

    /// Starts the agent on another cluster state.
    ///
    /// # Errors
    /// It could not be started.
    pub fn start_agent_on(&mut self, cluster: Option<&Path>) -> Result<()> {
        let command = self.agent_command(cluster)?;
        self.start(command)
    }

    /// Starts the agent by a command that differs from [`Node::agent_command`]'s.
    ///
    /// # Errors
    /// It could not be started.
    pub fn start_as(&mut self, command: Command) -> Result<()> {
        self.start(command)
    }

    fn start(&mut self, mut command: Command) -> Result<()> {
        let log = OpenOptions::new().create(true).append(true).open(self.log_file())?;
        command.stdout(log.try_clone()?).stderr(log);
        self.agent = Some(command.spawn().with_context(|| format!("cannot start the agent of {}", self.name))?);
        Ok(())
    }

    /// The agent's process id, if it was started and not killed.
    #[must_use]
    pub fn agent_pid(&self) -> Option<u32> {
        self.agent.as_ref().map(Child::id)
    }

    /// Ends the agent without warning.
    ///
    /// # Errors
    /// It could not be waited for.
    pub fn kill_agent(&mut self) -> Result<()> {
        if let Some(mut agent) = self.agent.take() {
            agent.kill()?;
            agent.wait()?;
        }
        Ok(())
    }

    /// Asks the agent to end and waits for it.
    ///
    /// # Errors
    /// It is not running, didn't end, or not with success.
    pub fn stop_agent(&mut self) -> Result<()> {
        let mut agent = self.agent.take().context("the agent is not running")?;
        let pid = nix::unistd::Pid::from_raw(agent.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        let start = Instant::now();
        loop {
            match agent.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("the agent of {} ended on SIGTERM with {status}", self.name),
                None if start.elapsed() > READY_WITHIN => {
                    agent.kill()?;
                    agent.wait()?;
                    bail!("the agent of {} didn't end on SIGTERM", self.name);
                }
                None => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Waits until the agent says that it is healthy.
    ///
    /// # Errors
    /// It doesn't, with the end of its log.
    pub fn wait_ready(&self) -> Result<()> {
        let start = Instant::now();
        loop {
            let status = self.shunt(&["status"])?;
            if status.status.success() {
                return Ok(());
            }
            if start.elapsed() > READY_WITHIN {
                let said = String::from_utf8_lossy(&status.stderr).trim().to_owned();
                bail!("the agent of {} is not healthy: {said}\nits log ends:\n{}", self.name, self.log_tail());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Runs a `shunt` command against this node's agent.
    ///
    /// # Errors
    /// It could not be started.
    pub fn shunt(&self, args: &[&str]) -> Result<Output> {
        let mut command = self.netns.command(shunt_binary()?);
        command.args(args).arg("--run-dir").arg(self.dir.join("run"));
        command::output(&mut command)
    }

    /// What the agent says of itself, over its socket.
    ///
    /// # Errors
    /// It doesn't answer.
    pub fn status(&self) -> Result<Status> {
        let mut client = Client::connect(&self.socket(), Duration::from_secs(2))?;
        Ok(client.status()?)
    }

    /// Packets dropped for a reason until now.
    ///
    /// # Errors
    /// The pinned counters cannot be read.
    pub fn drops(&self, reason: DropReason) -> Result<u64> {
        let drops = self.kernel()?.drops()?;
        Ok(drops.iter().find(|(known, _)| *known == reason).map_or(0, |(_, count)| *count))
    }

    /// Packets counted until now.
    ///
    /// # Errors
    /// The pinned counters cannot be read.
    pub fn counter(&self, counter: Counter) -> Result<u64> {
        let counters = self.kernel()?.counters()?;
        Ok(counters.iter().find(|(known, _)| *known == counter).map_or(0, |(_, count)| *count))
    }

    /// What the kernel holds of this node, read from its pins.
    ///
    /// # Errors
    /// A pinned map is missing.
    pub fn kernel(&self) -> Result<Reader> {
        Ok(Reader::open(&PinDir::new(&self.pins))?)
    }

    /// `shunt cleanup` of this node.
    ///
    /// # Errors
    /// It could not be started or failed.
    pub fn cleanup(&self) -> Result<String> {
        let mut command = self.netns.command(shunt_binary()?);
        command.arg("cleanup").arg("--run-dir").arg(self.dir.join("run"));
        command.arg("--pin-dir").arg(&self.pins).arg("--state-dir").arg(self.state_dir());
        command::run(&mut command)
    }

    /// `shunt rollback` of this node.
    ///
    /// # Errors
    /// It could not be started or failed.
    pub fn rollback(&self) -> Result<String> {
        command::run(&mut self.rollback_command()?)
    }

    /// The same, not yet run.
    ///
    /// # Errors
    /// There is no `shunt`.
    pub fn rollback_command(&self) -> Result<Command> {
        let mut command = self.netns.command(shunt_binary()?);
        command.arg("rollback").arg("--run-dir").arg(self.dir.join("run"));
        command.arg("--pin-dir").arg(&self.pins).arg("--state-dir").arg(self.state_dir());
        Ok(command)
    }

    /// Where its agent writes its log.
    #[must_use]
    pub fn log_file(&self) -> PathBuf {
        self.dir.join("agent.log")
    }

    /// The last lines of the agent's log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        tail(&self.log_file())
    }

    /// The last lines of what went into an [`output_file`](Self::output_file).
    #[must_use]
    pub fn output_tail(&self, name: &str) -> String {
        tail(&self.dir.join(name))
    }

    /// A file for the output of a program that runs on the node.
    ///
    /// # Errors
    /// It could not be made.
    pub fn output_file(&self, name: &str) -> Result<File> {
        Ok(File::create(self.dir.join(name))?)
    }
}

fn tail(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
