//! A watched directory: every way of writing, replacing, breaking and removing files, and what is then in force.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    time::{Duration, Instant},
};

use proptest::prelude::*;
use shunt::{cluster::FileSource, model::Changes};

/// Long enough for everything that is under way.
const QUIET: Duration = Duration::from_millis(150);

fn service(name: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: 10.96.0.1, ports: [{{port: {port}}}]}}\n"
    )
}

fn open(dir: &Path) -> FileSource {
    FileSource::open(dir).expect("the directory is there").0
}

/// Follows until nothing more happens.
async fn settle(source: &mut FileSource) -> Changes {
    let mut all = Changes::default();
    while let Ok(changes) = tokio::time::timeout(QUIET, source.next()).await {
        all.absorb(changes);
    }
    all
}

/// Names and ports of the Services in force.
fn services(source: &FileSource) -> Vec<String> {
    source.model().services().values().map(|service| format!("{}:{}", service.name.name, service.ports[0].port)).collect()
}

fn messages(source: &FileSource) -> Vec<String> {
    source.problems().iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn every_way_of_writing_a_file_takes_effect() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("web.yaml");
    let elsewhere = tempfile::tempdir_in(dir.path().parent().unwrap()).unwrap();
    let mut source = open(dir.path());

    fs::write(&file, service("web", 1)).unwrap();
    settle(&mut source).await;
    assert_eq!(services(&source), ["web:1"], "written in place");

    fs::write(dir.path().join(".web.yaml.tmp"), service("web", 2)).unwrap();
    fs::rename(dir.path().join(".web.yaml.tmp"), &file).unwrap();
    settle(&mut source).await;
    assert_eq!(services(&source), ["web:2"], "renamed over");

    fs::write(elsewhere.path().join("x"), service("web", 3)).unwrap();
    fs::rename(elsewhere.path().join("x"), &file).unwrap();
    settle(&mut source).await;
    assert_eq!(services(&source), ["web:3"], "renamed from elsewhere");

    fs::remove_file(&file).unwrap();
    fs::write(elsewhere.path().join("y"), service("web", 4)).unwrap();
    fs::hard_link(elsewhere.path().join("y"), &file).unwrap();
    settle(&mut source).await;
    assert_eq!(services(&source), ["web:4"], "linked");

    fs::rename(&file, dir.path().join("other.yaml")).unwrap();
    settle(&mut source).await;
    assert_eq!(services(&source), ["web:4"], "under another name");
    assert_eq!(messages(&source), Vec::<String>::new());

    fs::remove_file(dir.path().join("other.yaml")).unwrap();
    settle(&mut source).await;
    assert_eq!(services(&source), Vec::<String>::new(), "deleted");
}

#[tokio::test]
async fn an_editor_that_moves_the_old_file_aside_withdraws_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("web.yaml");
    fs::write(&file, service("web", 1)).unwrap();
    let mut source = open(dir.path());

    fs::write(dir.path().join("4913"), "").unwrap();
    fs::remove_file(dir.path().join("4913")).unwrap();
    fs::rename(&file, dir.path().join("web.yaml~")).unwrap();
    tokio::time::timeout(QUIET, source.next()).await.expect("the file is gone");
    assert_eq!(services(&source), ["web:1"], "it may come back");
    fs::write(&file, service("web", 2)).unwrap();
    fs::remove_file(dir.path().join("web.yaml~")).unwrap();
    let start = Instant::now();
    source.next().await;
    assert_eq!(services(&source), ["web:2"]);
    assert!(start.elapsed() < Duration::from_millis(40), "it is not waited for what was withdrawn");
    assert!(settle(&mut source).await.is_empty());
}

#[tokio::test]
async fn temporary_files_and_directories_are_not_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let mut source = open(dir.path());
    for name in [".web.yaml", "web.yaml~", "web.yaml.swp", "#web.yaml#", "web.tmp", "4913", "README"] {
        fs::write(dir.path().join(name), service("web", 1)).unwrap();
    }
    fs::create_dir(dir.path().join("sub.yaml")).unwrap();
    fs::write(dir.path().join("sub.yaml/web.yaml"), service("web", 1)).unwrap();
    assert!(settle(&mut source).await.is_empty());
    assert_eq!((services(&source), messages(&source)), (vec![], vec![]));
    assert_eq!(services(&open(dir.path())), Vec::<String>::new());
}

#[tokio::test]
async fn a_config_map_mount_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let publish = |version: &str, text: String| {
        fs::create_dir(dir.path().join(version)).unwrap();
        fs::write(dir.path().join(version).join("web.yaml"), text).unwrap();
        symlink(version, dir.path().join("..data_tmp")).unwrap();
        fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
    };
    publish("..v1", service("web", 1));
    symlink("..data/web.yaml", dir.path().join("web.yaml")).unwrap();
    let mut source = open(dir.path());
    assert_eq!(services(&source), ["web:1"]);
    publish("..v2", service("web", 2));
    fs::remove_dir_all(dir.path().join("..v1")).unwrap();
    settle(&mut source).await;
    assert_eq!(services(&source), ["web:2"]);
}

#[tokio::test]
async fn a_directory_may_go_and_come_back() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("state");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("web.yaml"), service("web", 1)).unwrap();
    let mut source = open(&dir);

    fs::rename(&dir, parent.path().join("away")).unwrap();
    source.next().await;
    assert_eq!(services(&source), ["web:1"], "moved away: nothing was deleted");
    assert!(messages(&source)[0].contains("stays in force until it is there again"), "{:?}", messages(&source));

    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("api.yaml"), service("api", 2)).unwrap();
    while services(&source) != ["api:2"] {
        tokio::time::timeout(Duration::from_secs(5), source.next()).await.expect("the new directory is found");
    }
    assert_eq!(messages(&source), Vec::<String>::new());
    fs::write(dir.join("api.yaml"), service("api", 3)).unwrap();
    source.next().await;
    assert_eq!(services(&source), ["api:3"], "and watched");

    fs::remove_dir_all(&dir).unwrap();
    settle(&mut source).await;
    assert_eq!(services(&source), Vec::<String>::new(), "deleted, file by file");
}

#[tokio::test]
async fn more_events_than_the_queue_holds_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut source = open(dir.path());
    let limit: usize = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap().trim().parse().unwrap();
    // Two names in turn, for the kernel joins equal events that follow each other.
    for turn in 0..=limit {
        fs::File::create(dir.path().join(if turn % 2 == 0 { "a.yaml" } else { "b.yaml" })).unwrap();
    }
    fs::write(dir.path().join("web.yaml"), service("web", 1)).unwrap();
    settle(&mut source).await;
    assert_eq!(services(&source), ["web:1"]);
}

#[tokio::test]
async fn what_is_no_text_is_refused_and_takes_nothing_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("web.yaml");
    fs::write(&file, service("web", 1)).unwrap();
    let mut source = open(dir.path());
    let nested = (1..20).fold("a0: &a0 [x, x]\n".to_owned(), |text, i| format!("{text}a{i}: &a{i} [*a{0}, *a{0}]\n", i - 1));
    let oversized = "#".repeat((16 << 20) + 1);
    for (what, bytes, message) in [
        ("not UTF-8", &b"kind: \xff"[..], "web.yaml: is not UTF-8 text (byte 6)"),
        ("too large", oversized.as_bytes(), "web.yaml: is larger than 16 MiB"),
        ("aliases", nested.as_bytes(), "web.yaml: document 1: cannot be read as YAML: repetition limit"),
        ("empty", b"", "web.yaml: is empty; what it gave before stays in force"),
        ("NUL", b"\0\0\0", "web.yaml: document 1: cannot be read as YAML: control characters"),
        ("cut off", b"apiVersion: v1\nkind: Serv", "web.yaml: document 1: metadata.name: is required"),
    ] {
        fs::write(&file, bytes).unwrap();
        settle(&mut source).await;
        assert_eq!(services(&source), ["web:1"], "{what}");
        assert!(messages(&source)[0].starts_with(message), "{what}: {:?}", messages(&source));
    }
    nix::unistd::mkfifo(&dir.path().join("fifo.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::write(&file, service("web", 2)).unwrap();
    settle(&mut source).await;
    assert_eq!((services(&source), messages(&source)), (vec!["web:2".to_owned()], vec![]), "mended");
    assert!(messages(&open(dir.path()))[0].starts_with("fifo.yaml: is not a regular file"));
}

#[tokio::test]
async fn a_file_of_rubbish_costs_little() {
    let dir = tempfile::tempdir().unwrap();
    let mut source = open(dir.path());
    for (what, rubbish, problems) in [
        ("documents", "x\n---\n".repeat(1 << 20), 1001),
        ("empty documents", "---\n".repeat(2 << 20), 0),
        ("flow", "[".repeat(15 << 20), 1),
        ("dashes on a line", "- ".repeat(2 << 20), 1),
        ("one text", "x".repeat(15 << 20), 1),
    ] {
        let start = Instant::now();
        fs::write(dir.path().join("x.yaml"), rubbish).unwrap();
        source.next().await;
        assert_eq!(messages(&source).len(), problems, "{what}");
        // Ten seconds are far more than it takes unoptimised on a busy machine, and far less than anything that grows with the square.
        assert!(start.elapsed() < Duration::from_secs(10), "{what} took {:?}", start.elapsed());
    }
}

#[tokio::test]
async fn a_file_cut_off_anywhere_breaks_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("web.yaml");
    let first = service("web", 1);
    let text = first.clone()
        + "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: web-1\n  labels: {kubernetes.io/service-name: \
           web}\naddressType: IPv4\nports: [{port: 80}]\nendpoints:\n- addresses: [10.244.1.5]\n  conditions: {ready: true}\n";
    let mut source = open(dir.path());
    for cut in 0..text.len() {
        fs::write(&file, &text).unwrap();
        source.next().await;
        fs::write(&file, &text[..cut]).unwrap();
        source.next().await;
        let is_whole = cut >= first.len() || services(&source).iter().any(|service| service.starts_with("web:"));
        assert!(is_whole && services(&source).len() == 1, "cut at {cut}: {:?} {:?}", services(&source), messages(&source));
    }
}

#[tokio::test]
async fn one_change_is_in_force_at_once() {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..200 {
        fs::write(dir.path().join(format!("{i}.yaml")), service(&format!("web-{i}"), 1)).unwrap();
    }
    let mut source = open(dir.path());
    fs::write(dir.path().join("7.yaml"), service("web-7", 2)).unwrap();
    let changes = source.next().await;
    assert_eq!(changes.services.iter().map(ToString::to_string).collect::<Vec<_>>(), ["default/web-7"]);
    assert!(changes.nodes.is_empty());
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_refused() {
    let error = FileSource::open("/nonexistent/state").expect_err("it is not there");
    assert!(error.to_string().contains("/nonexistent/state; create the directory"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_makes_it_panic(parts in proptest::collection::vec(prop_oneof![
        "[ -~\n]{0,20}",
        Just("---\n".to_owned()),
        Just("apiVersion: v1\nkind: Service\n".to_owned()),
        Just("apiVersion: v1\nkind: Node\n".to_owned()),
        Just("apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n".to_owned()),
        Just("metadata: {name: a}\n".to_owned()),
        Just("metadata:\n".to_owned()),
        Just("spec: {clusterIP: 10.0.0.1, ports: [{port: 80}]}\n".to_owned()),
        Just("endpoints: [{addresses: [10.0.0.2]}]\n".to_owned()),
        Just("kind: List\nitems: [{kind: Node}, 1]\n".to_owned()),
        Just("\u{feff}é\u{2028}".to_owned()),
    ], 0..8), extension in prop_oneof![Just("yaml"), Just("json")]) {
        let dir = tempfile::tempdir()?;
        fs::write(dir.path().join(format!("x.{extension}")), parts.concat())?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { open(dir.path()).problems() });
    }
}
