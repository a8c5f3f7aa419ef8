//! What a reader must know of the machine that measured.

use std::{
    env, fs,
    path::Path,
    process::Command,
    time::{Duration, Instant, SystemTime},
};

use k8s_openapi::jiff::Timestamp;

use crate::{command, node};

/// The facts, taken before the first row.
#[derive(Debug)]
pub(crate) struct Facts {
    /// Names and facts.
    pub(crate) list: Vec<(&'static str, String)>,
    /// The command that measured, as one types it in a checkout.
    pub(crate) command: String,
    begin: Instant,
}

impl Default for Facts {
    fn default() -> Self {
        Self { list: Vec::new(), command: String::new(), begin: Instant::now() }
    }
}

impl Facts {
    /// Of this machine and its programs, now; `kube_proxy` is run where rules of kube-proxy are in force, if there is one.
    pub(crate) fn gather(kube_proxy: Option<&Path>) -> Self {
        let own: Vec<_> = env::args().skip(1).collect();
        let shunt = node::shunt_binary().ok().and_then(|shunt| version_of(Command::new(shunt).arg("--version")));
        let list = vec![
            ("date", now()),
            ("processor", format!("{}, {} of it", field("/proc/cpuinfo", "model name"), cores())),
            ("mitigations", mitigations()),
            ("memory", field("/proc/meminfo", "MemTotal")),
            ("kernel", read("/proc/sys/kernel/osrelease")),
            ("BPF JIT", read("/proc/sys/net/core/bpf_jit_enable")),
            ("shunt", shunt.unwrap_or_default()),
            ("checkout", version_of(Command::new("git").args(["describe", "--always", "--dirty"])).unwrap_or_default()),
            ("iptables", version("iptables", "--version")),
            ("nftables", version("nft", "--version")),
            ("iproute2", version("ip", "-V")),
            ("iperf3", version("iperf3", "--version")),
            ("kube-proxy", writer_of_rules(kube_proxy)),
        ];
        let list = list.into_iter().map(|(name, fact)| (name, if fact.is_empty() { "unknown".to_owned() } else { fact }));
        Self { list: list.collect(), command: format!("cargo xtask {}", own.join(" ")), begin: Instant::now() }
    }

    /// How long it took until now, in minutes and seconds.
    pub(crate) fn duration(&self) -> String {
        let seconds = self.begin.elapsed().as_secs();
        format!("{} min {} s", seconds / 60, seconds % 60)
    }
}

/// Who wrote the rules that Services of the rivals go by.
fn writer_of_rules(kube_proxy: Option<&Path>) -> String {
    let Some(program) = kube_proxy else {
        return "none on this machine: rules as Kubernetes 1.36's writes them, by our generator (`tests/src/kube_proxy/`)"
            .to_owned();
    };
    let version = version_of(Command::new(program).arg("--version")).unwrap_or_else(|| "of an unknown version".to_owned());
    format!(
        "{version} ({}) where packets and connections are counted; rules by our generator where starts, changes and takeovers are",
        program.display()
    )
}

fn now() -> String {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or(Duration::ZERO);
    Timestamp::from_second(since.as_secs().cast_signed()).map_or(String::new(), |now| now.to_string())
}

fn cores() -> String {
    let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    format!("{count} {}", if count == 1 { "CPU" } else { "CPUs" })
}

/// What slows calls and returns down, as the kernel tells it.
fn mitigations() -> String {
    let entries = fs::read_dir("/sys/devices/system/cpu/vulnerabilities").into_iter().flatten().flatten();
    let active = entries.filter_map(|entry| {
        let says = fs::read_to_string(entry.path()).ok()?;
        let how = says.trim().strip_prefix("Mitigation: ")?.to_owned();
        Some(format!("{}: {how}", entry.file_name().to_string_lossy()))
    });
    let mut active: Vec<_> = active.collect();
    active.sort();
    if active.is_empty() { "none".to_owned() } else { active.join("; ") }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).map_or(String::new(), |text| text.trim().to_owned())
}

/// The first value of a name in a file of `name : value` lines.
fn field(path: &str, name: &str) -> String {
    let text = read(path);
    let values = text.lines().filter_map(|line| line.split_once(':'));
    values.into_iter().find(|(key, _)| key.trim() == name).map_or(String::new(), |(_, value)| value.trim().to_owned())
}

fn version(program: &str, flag: &str) -> String {
    version_of(Command::new(command::program(program.as_ref())).arg(flag)).unwrap_or_default()
}

/// The first line that a program says of itself.
fn version_of(command: &mut Command) -> Option<String> {
    let output = command::output(command).ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    output.status.success().then(|| text.lines().next().map(|line| line.trim().to_owned()))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_who_wrote_the_rivals_rules() {
        let fact = |program: Option<&Path>| {
            let facts = Facts::gather(program).list;
            facts.into_iter().find(|(name, _)| *name == "kube-proxy").map(|(_, fact)| fact).unwrap_or_default()
        };
        assert!(fact(None).starts_with("none on this machine: rules as Kubernetes 1.36's writes them, by our generator"));
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("kube-proxy");
        std::os::unix::fs::symlink("/bin/echo", &program).unwrap();
        let known = fact(Some(&program));
        assert!(known.contains(" where packets and connections are counted; rules by our generator"), "{known}");
        assert!(known.contains(&program.display().to_string()) && !known.contains("unknown"), "{known}");
        assert!(fact(Some(&dir.path().join("nothing"))).starts_with("of an unknown version"));
    }
}
