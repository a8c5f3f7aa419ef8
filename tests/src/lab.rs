//! A lab: built from a plan, removed without trace.
//!
//! Everything a lab makes can be found from its id: `/run/shunt-lab/ID` (files; locked while its owner lives), namespaces
//! `shl-ID-*`, pins `BPFFS/shl-ID`, cgroups `CGROUP2/shl-ID`. That is what lets a later lab sweep up after a killed owner.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, File, OpenOptions},
    io::Write as _,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, anyhow, bail};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use crate::{
    cluster::Cluster,
    command,
    netns::{self, Netns},
    node::{self, Node},
    plain::{PlainNode, Way},
    pod::Pod,
    topology::{Kind, Topology, node_address, pod_range},
    translation::Translation,
    underlay::{self, Surroundings},
};

/// What names of namespaces, pins and cgroups of all labs start with.
pub const PREFIX: &str = "shl-";
const REGISTRY: &str = "/run/shunt-lab";
const BPFFS: &str = "/sys/fs/bpf";
const KEPT: &str = "kept";
const OWNER: &str = "owner";
/// Names the node that works in the machine's own namespace.
pub(crate) const ON_MACHINE: &str = "on-machine";

/// A standing lab. Dropping it removes it.
#[derive(Debug)]
pub struct Lab {
    id: String,
    dir: PathBuf,
    /// Held while we live: the sign for sweepers that the lab is in use.
    _lock: Flock<File>,
    kept: bool,
    /// The cluster's state directory.
    pub cluster: Cluster,
    /// Nodes with an agent of ours.
    pub nodes: Vec<Node>,
    /// Nodes of the plain kernel.
    pub plain: Vec<PlainNode>,
    /// Hosts on the underlay that are no nodes.
    pub bare: Vec<Netns>,
    /// The switch, the router and the world, if the plan has them.
    pub surroundings: Option<Surroundings>,
}

impl Lab {
    /// Builds it and waits until every agent is healthy.
    ///
    /// # Errors
    /// Something could not be made; what had been made is removed.
    pub fn build(topology: &Topology) -> Result<Self> {
        let mut lab = Self::wired(topology)?;
        lab.start_agents()?;
        Ok(lab)
    }

    /// Builds it with Services translated in a given way, which it makes sure of.
    ///
    /// # Errors
    /// As [`Lab::build`]; or the kernel doesn't offer that way.
    pub fn build_with(topology: &Topology, translation: Translation) -> Result<Self> {
        let mut lab = Self::wired_with(topology, translation)?;
        lab.start_agents()?;
        lab.nodes.iter().try_for_each(|node| translation.check(node))?;
        Ok(lab)
    }

    /// As [`Lab::wired`], with agents that are to translate Services in a given way.
    ///
    /// # Errors
    /// As [`Lab::wired`].
    pub fn wired_with(topology: &Topology, translation: Translation) -> Result<Self> {
        let lab = Self::wired(topology)?;
        for node in &lab.nodes {
            fs::write(node.config_file(), translation.config())?;
        }
        Ok(lab)
    }

    /// Restarts a node's agent to translate in a given way.
    ///
    /// # Errors
    /// It doesn't end in order, doesn't come up, or the kernel doesn't offer that way.
    pub fn switch_translation(&mut self, node: &str, translation: Translation) -> Result<()> {
        let node = self.node_mut(node);
        fs::write(node.config_file(), translation.config())?;
        node.stop_agent()?;
        node.start_agent()?;
        node.wait_ready()?;
        translation.check(node)
    }

    /// Starts every agent of a lab that is only wired, and waits until all are healthy.
    ///
    /// # Errors
    /// One isn't.
    pub fn start_agents(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            node.start_agent()?;
        }
        self.nodes.iter().try_for_each(Node::wait_ready)
    }

    /// Builds it with the cluster's state written, but starts no agent.
    ///
    /// # Errors
    /// Something could not be made; what had been made is removed.
    pub fn wired(topology: &Topology) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("a lab makes network namespaces and loads eBPF programs: it needs root");
        }
        if topology.nodes.iter().any(|spec| spec.kind == Kind::Shunt) {
            node::shunt_binary()?;
        }
        sweep();
        let bpffs = bpffs()?;
        let mut lab = Self::claim()?;
        let cgroups = cgroup2()?.join(lab.name());
        let prefix = format!("{}-", lab.name());

        let mut wired: Vec<(&'static str, Kind, Netns)> = Vec::new();
        for spec in topology.nodes {
            let mut netns = Netns::create(&format!("{prefix}{}", spec.name))?;
            let cgroup = cgroups.join(spec.name);
            fs::create_dir_all(&cgroup).with_context(|| format!("cannot make the cgroup {}", cgroup.display()))?;
            netns.join_cgroup(&cgroup)?;
            wired.push((spec.name, spec.kind, netns));
        }
        let ends: Vec<_> = wired.iter().map(|(name, _, netns)| (*name, netns)).collect();
        let around = cgroups.join("around");
        fs::create_dir_all(&around)?;
        lab.surroundings = underlay::connect(&prefix, &around, topology.fabric, topology.wire, &ends)?;

        for (number, (name, kind, netns)) in (1u8..).zip(wired) {
            let cgroup = cgroups.join(name);
            match kind {
                Kind::Bare => lab.bare.push(netns),
                Kind::Shunt => {
                    lab.cluster.put_node(name, node_address(number), pod_range(number), None)?;
                    lab.nodes.push(Node::new(
                        name,
                        number,
                        netns,
                        &lab.dir,
                        bpffs.join(lab.name()),
                        cgroup,
                        lab.cluster.dir(),
                    )?);
                }
                Kind::PlainVxlan => {
                    let node = PlainNode::new(name, number, netns, Way::Flannel)?;
                    lab.cluster.put_node(name, node_address(number), pod_range(number), node.vtep_mac.as_deref())?;
                    lab.plain.push(node);
                }
                // Another network than ours: no agent hears of them.
                Kind::PlainRoutes => lab.plain.push(PlainNode::new(name, number, netns, Way::Routes)?),
                Kind::PlainMetadata => lab.plain.push(PlainNode::new(name, number, netns, Way::Metadata)?),
            }
        }
        for node in &lab.plain {
            for other in lab.plain.iter().filter(|other| other.number != node.number && other.way == node.way) {
                node.add_peer(other.number, other.vtep_mac.as_deref())?;
            }
            for other in lab.nodes.iter().filter(|_| node.way == Way::Flannel) {
                node.add_peer(other.number, Some(&other.vtep_mac()))?;
            }
        }
        Ok(lab)
    }

    fn claim() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        fs::create_dir_all(REGISTRY)?;
        let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.subsec_nanos());
        for attempt in 0..1000u32 {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let mixed = (std::process::id() ^ now).wrapping_add(count + attempt).wrapping_mul(0x9e37_79b9);
            let id = format!("{:04x}", mixed >> 16);
            let dir = Path::new(REGISTRY).join(&id);
            // Locked before a sweeper can see it.
            let hidden = Path::new(REGISTRY).join(format!(".{id}-{}", std::process::id()));
            DirBuilder::new().create(&hidden).with_context(|| format!("cannot make {}", hidden.display()))?;
            let mut lock = lock(&hidden)?.with_context(|| format!("{} is in use", hidden.display()))?;
            write!(lock, "{}", std::process::id())?;
            if dir.exists() || fs::rename(&hidden, &dir).is_err() {
                fs::remove_dir_all(&hidden)?;
                continue;
            }
            let cluster = Cluster::new(&dir.join("cluster"))?;
            own().insert(id.clone());
            return Ok(Self {
                id,
                dir,
                _lock: lock,
                kept: false,
                cluster,
                nodes: Vec::new(),
                plain: Vec::new(),
                bare: Vec::new(),
                surroundings: None,
            });
        }
        Err(anyhow!("no free lab id below {REGISTRY}"))
    }

    /// Its id: four hexadecimal digits.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What names of all that belongs to it start with.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{PREFIX}{}", self.id)
    }

    /// Its files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The node of a name, which must be one of ours.
    ///
    /// # Panics
    /// There is none: the plan and its user disagree.
    #[must_use]
    pub fn node(&self, name: &str) -> &Node {
        self.nodes.iter().find(|node| node.name == name).unwrap_or_else(|| panic!("no node {name} in this lab"))
    }

    /// As [`Lab::node`], to start and kill its agent.
    ///
    /// # Panics
    /// There is none: the plan and its user disagree.
    pub fn node_mut(&mut self, name: &str) -> &mut Node {
        self.nodes.iter_mut().find(|node| node.name == name).unwrap_or_else(|| panic!("no node {name} in this lab"))
    }

    /// A pod made by the CNI plugin on a node of ours.
    ///
    /// # Errors
    /// The plugin refused.
    pub fn pod(&self, node: &str, name: &str) -> Result<Pod> {
        Pod::add(self.node(node), name)
    }

    /// The outside host.
    ///
    /// # Panics
    /// The plan has none.
    #[must_use]
    pub fn outside(&self) -> &Netns {
        self.surroundings.as_ref().map(|around| &around.outside).unwrap_or_else(|| panic!("this lab has no outside"))
    }

    /// The switch.
    ///
    /// # Panics
    /// The plan has none.
    #[must_use]
    pub fn fabric(&self) -> &Netns {
        self.surroundings.as_ref().map(|around| &around.fabric).unwrap_or_else(|| panic!("this lab has no switch"))
    }

    /// Gives every interface on the switch another MTU.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_underlay_mtu(&self, mtu: u32) -> Result<()> {
        let around = self.surroundings.as_ref().context("this lab has no switch")?;
        let nodes = self.nodes.iter().map(|node| (node.name.as_str(), &node.netns));
        around.set_mtu(nodes, mtu)
    }

    /// Leaves it standing when dropped, until `shunt-lab down`.
    ///
    /// # Errors
    /// The mark could not be written.
    pub fn keep(&mut self) -> Result<()> {
        fs::write(self.dir.join(KEPT), "")?;
        own().remove(&self.id);
        self.kept = true;
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.kept {
            remove(&self.id);
            own().remove(&self.id);
        }
    }
}

/// Labs that this process must remove.
fn own() -> MutexGuard<'static, BTreeSet<String>> {
    static OWN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    OWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes all labs of this process, for a signal handler's thread that ends it next.
pub fn remove_own() {
    let own = own().clone();
    for id in own {
        remove(&id);
    }
}

/// Tries a condition until it holds.
///
/// # Errors
/// It didn't within the time; with the last reason it gave.
pub fn eventually<T>(within: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() > within => return Err(error.context(format!("still so after {within:?}"))),
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// A node's address by its number; a shorthand for tests.
#[must_use]
pub fn address_of(number: u8) -> Ipv4Addr {
    node_address(number)
}

/// The process that built a lab.
#[must_use]
pub fn owner(id: &str) -> Option<u32> {
    fs::read_to_string(Path::new(REGISTRY).join(id).join(OWNER)).ok()?.parse().ok()
}

/// Ids of labs that stand, and whether they are kept.
#[must_use]
pub fn standing() -> Vec<(String, bool)> {
    let Ok(dir) = fs::read_dir(REGISTRY) else { return Vec::new() };
    let mut labs: Vec<_> = dir
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|id| !id.starts_with('.'))
        .map(|id| (id.clone(), Path::new(REGISTRY).join(id).join(KEPT).exists()))
        .collect();
    labs.sort();
    labs
}

/// Removes labs whose owner died before it could.
pub fn sweep() {
    for (id, kept) in standing() {
        // Whoever gets the lock of a lab is alone with it.
        if !kept && matches!(lock(&Path::new(REGISTRY).join(&id)), Ok(Some(_))) {
            remove(&id);
        }
    }
}

/// Removes all that belongs to a lab: processes, pins, namespaces with every link in them, cgroups, files.
pub fn remove(id: &str) {
    let name = format!("{PREFIX}{id}");
    if let Ok(cgroups) = cgroup2() {
        let ours = cgroups.join(&name);
        if fs::write(ours.join("cgroup.kill"), "1").is_ok() {
            let _ = eventually(Duration::from_secs(5), || {
                let events = fs::read_to_string(ours.join("cgroup.events"))?;
                if events.contains("populated 0") { Ok(()) } else { bail!("processes are still dying") }
            });
        }
        remove_cgroups(&ours);
    }
    let dir = Path::new(REGISTRY).join(id);
    if let Ok(node) = fs::read_to_string(dir.join(ON_MACHINE)) {
        // Links and routes outside of our namespaces are not gone with them.
        let mut cleanup = Command::new(node::shunt_binary().unwrap_or_else(|_| "shunt".into()));
        cleanup.arg("cleanup").arg("--pin-dir").arg(Path::new(BPFFS).join(&name).join(&node));
        cleanup.arg("--state-dir").arg(dir.join(&node).join("state")).arg("--run-dir").arg(dir.join(&node).join("run"));
        if let Err(error) = command::run(&mut cleanup) {
            eprintln!("lab {id}: {error:#}");
        }
    }
    let _ = fs::remove_dir_all(Path::new(BPFFS).join(&name));
    for netns in netns::names_with(&format!("{name}-")) {
        let _ = netns::remove(&netns);
    }
    let _ = fs::remove_dir_all(dir);
}

fn remove_cgroups(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroups(&entry.path());
        }
    }
    let _ = fs::remove_dir(dir);
}

fn lock(dir: &Path) -> Result<Option<Flock<File>>> {
    let path = dir.join(OWNER);
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    match Flock::lock(file.with_context(|| format!("cannot open {}", path.display()))?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// The BPF filesystem, mounted if it was not.
fn bpffs() -> Result<PathBuf> {
    let path = PathBuf::from(BPFFS);
    if statfs(&path).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC) {
        return Ok(path);
    }
    command::run(Command::new(command::program("mount".as_ref())).args(["-t", "bpf", "bpf", BPFFS]))
        .context("cannot mount the BPF filesystem")?;
    Ok(path)
}

/// The cgroup v2 hierarchy, wherever this machine mounts it.
pub(crate) fn cgroup2() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let path = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    });
    path.context("no cgroup v2 hierarchy is mounted; mount one with `mount -t cgroup2 none /sys/fs/cgroup`")
}
