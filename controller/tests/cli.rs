//! The binary as scripts call it: exit codes, refusals, and what `cleanup` takes and leaves.
//!
//! Nothing is loaded into the kernel here: pins are plain files in a temporary directory, so that a green run doesn't prove
//! that programs and maps go; the lab does. Whatever could touch a network does so in a namespace of its own, and needs root.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    thread,
};

use nix::sched::{CloneFlags, unshare};
use serde_json::Value;
use shunt::socket::claim::{Claim, Holder};

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["run", "state", "pins/links"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        Self(dir)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn holder(&self) -> Holder {
        Holder { pid: 4242, node: "n1".to_owned(), pin_dir: self.path("pins"), state_dir: self.path("state") }
    }

    fn shunt(&self, args: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shunt"));
        command.env_remove("CNI_COMMAND").env_remove("NODE_NAME").env_remove("KUBERNETES_SERVICE_HOST");
        command.arg("--run-dir").arg(self.path("run")).args(args.split_whitespace()).output().unwrap()
    }
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn usage_is_2_and_help_is_0() {
    let place = Place::new();
    for args in [
        "",
        "frobnicate",
        "get",
        "get cats",
        "status -o yaml",
        "get pods -o xml",
        "monitor --all",
        "cleanup everything",
        "agent",
        "agent --node-name n",
        "agent --node-name n --kubeconfig /k --cluster-state /c",
    ] {
        assert_eq!(code(&place.shunt(args)), 2, "{args}");
    }
    for args in ["--help", "--version", "get --help", "status --help"] {
        let output = place.shunt(args);
        assert_eq!(code(&output), 0, "{args}");
        assert!(output.stderr.is_empty() && !output.stdout.is_empty());
    }
    assert!(text(&place.shunt("--version").stdout).starts_with("shunt "));
}

#[test]
fn an_agent_without_a_way_to_the_cluster_says_why() {
    let place = Place::new();
    let output = place.shunt("agent --node-name n");
    let error = text(&output.stderr);
    assert!(code(&output) == 2 && error.contains("--kubeconfig") && error.contains("--cluster-state"), "{error}");
    let output = place.shunt("agent --node-name n --kubeconfig /nonexistent/k");
    let error = text(&output.stderr);
    assert!(code(&output) == 1 && error.contains("/nonexistent/k") && error.contains("cannot be read"), "{error}");
    assert_eq!(names(&place.path("run")), Vec::<String>::new(), "nothing was begun");
}

#[test]
fn without_agent_and_dataplane_everything_says_so() {
    let place = Place::new();
    drop(Claim::take(&place.path("run"), &place.holder()).unwrap());
    for what in ["nodes", "pods", "services", "backends", "routes", "conntrack", "drops"] {
        for format in ["table", "json", "yaml"] {
            let output = place.shunt(&format!("get {what} -o {format}"));
            assert_eq!(code(&output), 1);
            assert!(output.stdout.is_empty(), "nothing that a program could take for an answer");
            let error = text(&output.stderr);
            let pins = place.path("pins").display().to_string();
            assert!(error.contains("no dataplane can be read") && error.contains(&pins), "the dead agent's directory: {error}");
        }
    }
    let output = place.shunt("monitor");
    assert_eq!(code(&output), 1);
    assert!(text(&output.stderr).contains("no agent listens"), "{}", text(&output.stderr));

    let output = place.shunt("status -o json");
    assert_eq!(code(&output), 1);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["healthy"], &report["agent"], &report["dataplane"]), (&false.into(), &Value::Null, &Value::Null));
    assert!(report["reasons"][0].as_str().unwrap().starts_with("agent not running: "), "{report}");
    let output = place.shunt("status");
    assert_eq!(code(&output), 1);
    assert!(text(&output.stdout).contains("UNHEALTHY"));
}

/// In a network namespace that goes with the thread.
fn isolated<T: Send>(work: impl FnOnce() -> T + Send) -> Option<T> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not run: a network namespace needs root");
        return None;
    }
    let enter = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        work()
    };
    Some(thread::scope(|scope| scope.spawn(enter).join().unwrap()))
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn cleanup_takes_what_is_ours_and_leaves_the_rest() {
    isolated(|| {
        let place = Place::new();
        drop(Claim::take(&place.path("run"), &place.holder()).unwrap());
        fs::write(place.path("run/agent.sock"), "").unwrap();
        fs::write(place.path("run/theirs"), "").unwrap();
        fs::write(place.path("state/ipam.json"), "damaged").unwrap();
        let output = place.shunt("cleanup");
        assert_eq!(code(&output), 0, "{}", text(&output.stderr));
        assert_eq!(names(&place.path("run")), ["theirs"]);
        assert!(!place.path("state").exists() && !place.path("pins").exists());
        let again = place.shunt("cleanup --pin-dir /nonexistent/pins --state-dir /nonexistent/state");
        assert_eq!(code(&again), 0, "cleaning twice is no error: {}", text(&again.stderr));
    });
}

#[test]
fn cleanup_is_refused_beside_an_agent() {
    isolated(|| {
        let place = Place::new();
        let _agent = Claim::take(&place.path("run"), &place.holder()).unwrap();
        fs::write(place.path("state/ipam.json"), "{}").unwrap();
        let output = place.shunt("cleanup");
        assert_eq!(code(&output), 1);
        let error = text(&output.stderr);
        assert!(error.contains("another agent is running here (pid 4242)"), "{error}");
        assert!(place.path("state/ipam.json").exists() && place.path("pins").exists());
    });
}
