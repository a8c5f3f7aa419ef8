//! Network namespaces by name: made, entered by threads, and handed to child processes.
//!
//! Entered with `setns` only. `ip netns exec` would give the child another `/sys`, without bpffs and cgroups.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, RawFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};
use shunt_common::net::Mac;

use crate::command;

const DIR: &str = "/run/netns";

/// A named network namespace. It stays when this is dropped: the lab removes namespaces by name.
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
    cgroup: Option<File>,
}

impl Netns {
    /// Makes one with its loopback up, and with a congestion control that the kernel has and allows everywhere.
    ///
    /// It would have the machine's, which may be one that paces what it sends by a timer (BBR). A socket that began with such a one keeps
    /// the timer whatever control it is given later (`sk_pacing_status`, net/ipv4/tcp_bbr.c), and a timer is dear to a virtual machine.
    ///
    /// # Errors
    /// It exists already, or we may not.
    pub fn create(name: &str) -> Result<Self> {
        command::run(Command::new(command::program("ip".as_ref())).args(["netns", "add", name]))
            .context("cannot make a network namespace")?;
        let netns = Self::open(name)?;
        netns.ip("link set lo up")?;
        netns.sysctl("ipv4/tcp_congestion_control", "reno")?;
        Ok(netns)
    }

    /// Opens one that exists.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn open(name: &str) -> Result<Self> {
        let path = Path::new(DIR).join(name);
        let file = File::open(&path).with_context(|| format!("cannot open the network namespace {}", path.display()))?;
        Ok(Self { name: name.to_owned(), file, cgroup: None })
    }

    /// The one that this process is in.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn of_this_process() -> Result<Self> {
        let file = File::open("/proc/self/ns/net").context("cannot open our own network namespace")?;
        Ok(Self { name: "this machine".to_owned(), file, cgroup: None })
    }

    /// Makes another whose commands run in the same cgroup.
    ///
    /// # Errors
    /// It exists already, or we may not.
    pub fn create_beside(&self, name: &str) -> Result<Self> {
        let mut netns = Self::create(name)?;
        netns.cgroup = self.cgroup.as_ref().map(File::try_clone).transpose()?;
        Ok(netns)
    }

    /// From now on, commands run in this cgroup too.
    ///
    /// # Errors
    /// The cgroup cannot be joined.
    pub fn join_cgroup(&mut self, dir: &Path) -> Result<()> {
        let procs = dir.join("cgroup.procs");
        let file = OpenOptions::new().write(true).open(&procs).with_context(|| format!("cannot open {}", procs.display()))?;
        self.cgroup = Some(file);
        Ok(())
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its file, as CNI wants it.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new(DIR).join(&self.name)
    }

    /// Calls a function on a thread inside. Sockets made by it stay inside, whoever uses them afterwards.
    pub fn inside<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                if let Err(error) = setns(&self.file, CloneFlags::CLONE_NEWNET) {
                    panic!("cannot enter the network namespace {}: {error}", self.name);
                }
                work()
            });
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A command that will run inside, as a process of the lab.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(command::program(program.as_ref()));
        let netns = self.file.as_raw_fd();
        let cgroup = self.cgroup.as_ref().map(AsRawFd::as_raw_fd);
        // SAFETY: between fork and exec only system calls are made, on descriptors that `self` keeps open in the parent until
        // the child has been spawned (the command cannot outlive a lab whose namespaces it is to enter).
        unsafe { command.pre_exec(move || enter(netns, cgroup)) };
        command
    }

    /// Runs `ip` inside with arguments separated by spaces.
    ///
    /// # Errors
    /// It failed.
    pub fn ip(&self, args: &str) -> Result<String> {
        self.run("ip", args)
    }

    /// Runs any program inside with arguments separated by spaces.
    ///
    /// # Errors
    /// It failed.
    pub fn run(&self, program: &str, args: &str) -> Result<String> {
        command::run(self.command(program).args(args.split_whitespace())).with_context(|| format!("in {}", self.name))
    }

    /// Sets a sysctl below `net/`.
    ///
    /// # Errors
    /// There is none of that name, or the value is refused.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/{key}");
        self.inside(|| fs::write(&path, value)).with_context(|| format!("cannot write {path} in {}", self.name))
    }

    /// The Ethernet address of an interface.
    ///
    /// # Errors
    /// There is none of that name, or it is no Ethernet.
    pub fn mac(&self, interface: &str) -> Result<Mac> {
        let link = self.ip(&format!("-o link show dev {interface}"))?;
        let mac = link.split_whitespace().skip_while(|word| *word != "link/ether").nth(1);
        mac.and_then(|mac| mac.parse().ok()).with_context(|| format!("{interface} in {} has no MAC", self.name))
    }

    /// The index of an interface.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn ifindex(&self, interface: &str) -> Result<u32> {
        self.inside(|| nix::net::if_::if_nametoindex(interface))
            .with_context(|| format!("no interface {interface} in {}", self.name))
    }
}

/// Moves the calling process, between fork and exec.
fn enter(netns: RawFd, cgroup: Option<RawFd>) -> io::Result<()> {
    let check = |outcome: libc::c_long| if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    if let Some(cgroup) = cgroup {
        // SAFETY: a plain system call on a buffer of the stated length.
        check(unsafe { libc::write(cgroup, b"0".as_ptr().cast(), 1) } as libc::c_long)?;
    }
    // SAFETY: plain system calls; the signal set is initialised by `sigemptyset` before it is used.
    unsafe {
        check(libc::c_long::from(libc::setns(netns, libc::CLONE_NEWNET)))?;
        // The lab's binary blocks signals to clean up on them; its children must not inherit that.
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        check(libc::c_long::from(libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut())))
    }
}

/// Names of the namespaces that start with a prefix.
#[must_use]
pub fn names_with(prefix: &str) -> Vec<String> {
    let Ok(dir) = fs::read_dir(DIR) else { return Vec::new() };
    let mut names: Vec<_> = dir
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect();
    names.sort();
    names
}

/// Removes a namespace; what runs inside keeps it alive, without a name.
///
/// # Errors
/// There is none of that name.
pub fn remove(name: &str) -> Result<()> {
    ensure!(name.starts_with(crate::lab::PREFIX), "{name} is no namespace of a lab");
    command::run(Command::new(command::program("ip".as_ref())).args(["netns", "del", name])).map(drop)
}
