//! The agent's socket against clients of every kind: honest, garbled, oversized, slow, silent, gone.
//!
//! The handler is a fake that answers from constants: nothing here proves what an agent does with a request.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use proptest::prelude::*;
use shunt::{
    attachment::AttachmentKey,
    ending::{Teller, ending},
    socket::{
        claim::{Claim, Holder},
        client::{Client, ClientError},
        protocol::{
            Happening, MAX_LINE, MonitorEvent, Pod, PodAdd, PodAdded, PodAttach, PodCheck, PodDelete, PodGc, PodGcDone,
            Refusal, RefusalReason, Reply, Request, Status, SyncReport,
        },
        server::{self, Handler, Limits},
    },
};
use tokio::{sync::broadcast, task::JoinHandle};

const PATIENCE: Duration = Duration::from_secs(5);

struct Fake {
    events: broadcast::Sender<MonitorEvent>,
    attached: AtomicUsize,
}

impl Handler for Fake {
    async fn status(&self) -> Result<Status, Refusal> {
        tokio::time::sleep(Duration::from_secs(60)).await;
        Err(Refusal::new(RefusalReason::Failed, "never told"))
    }

    async fn ready(&self) -> Result<(), Refusal> {
        Err(Refusal::new(RefusalReason::NotReady, "not synced yet"))
    }

    async fn pods(&self) -> Result<Vec<Pod>, Refusal> {
        Ok(vec![])
    }

    async fn pod_add(&self, _: PodAdd) -> Result<PodAdded, Refusal> {
        panic!("a fault of the agent")
    }

    async fn pod_attach(&self, _: PodAttach) -> Result<(), Refusal> {
        tokio::time::sleep(Duration::from_millis(200)).await;
        self.attached.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    async fn pod_check(&self, _: PodCheck) -> Result<PodAdded, Refusal> {
        Err(Refusal::new(RefusalReason::Unknown, "no such attachment"))
    }

    async fn pod_delete(&self, _: PodDelete) -> Result<(), Refusal> {
        Ok(())
    }

    async fn pod_gc(&self, request: PodGc) -> Result<PodGcDone, Refusal> {
        Ok(PodGcDone { removed: request.valid })
    }

    async fn monitor(&self) -> Result<broadcast::Receiver<MonitorEvent>, Refusal> {
        Ok(self.events.subscribe())
    }
}

struct Agent {
    dir: tempfile::TempDir,
    fake: Arc<Fake>,
    teller: Teller,
    task: JoinHandle<()>,
    runtime: tokio::runtime::Runtime,
}

impl Agent {
    fn new(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fake = Arc::new(Fake { events: broadcast::channel(4).0, attached: AtomicUsize::new(0) });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let holder = Holder { pid: 1, node: "n".to_owned(), pin_dir: PathBuf::new(), state_dir: PathBuf::new() };
        let claim = Claim::take(dir.path(), &holder).unwrap();
        let listener = runtime.block_on(async { claim.listen().unwrap() });
        let handler = fake.clone();
        let (teller, ending) = ending();
        let task = runtime.spawn(async move {
            let _claim = claim;
            server::serve(listener, handler, limits, ending).await;
        });
        Self { dir, fake, teller, task, runtime }
    }

    fn path(&self) -> PathBuf {
        shunt::socket::path(self.dir.path())
    }

    fn client(&self) -> Client {
        Client::connect(&self.path(), PATIENCE).unwrap()
    }

    /// Bytes in, everything that comes back until the server closes.
    fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(self.path()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = stream.write_all(bytes);
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    fn event(&self, what: Happening) {
        let _ = self.fake.events.send(MonitorEvent { unix_ms: 1, what });
    }
}

fn key() -> AttachmentKey {
    AttachmentKey::new("c", "eth0").unwrap()
}

fn synced() -> Happening {
    Happening::Synced(SyncReport { at_unix_ms: 1, duration_us: 2, steps: 3 })
}

#[test]
fn one_connection_carries_many_requests() {
    let agent = Agent::new(Limits::default());
    let mut client = agent.client();
    assert_eq!(client.pods().unwrap(), vec![]);
    let many: Vec<AttachmentKey> = (0..5000).map(|i| AttachmentKey::new(format!("{i:064}"), "eth0").unwrap()).collect();
    let done = client.pod_gc(PodGc { network: "n".to_owned(), valid: many.clone() }).unwrap();
    assert_eq!(done.removed, many);
    let Err(ClientError::Refused(refusal)) = client.ready() else { panic!("not refused") };
    assert_eq!((refusal.reason, refusal.message.as_str()), (RefusalReason::NotReady, "not synced yet"));
    client.pod_delete(PodDelete { attachment: key() }).unwrap();
}

#[test]
fn garbage_is_answered_and_the_connection_goes_on() {
    let agent = Agent::new(Limits::default());
    for garbage in ["\n", "{}\n", "[]\n", "null\n", "{\"request\":\"reboot\"}\n", "{\"request\":\"podAdd\"}\n", "\u{0}\u{1}\n"]
    {
        let replies = agent.raw(format!("{garbage}{{\"request\":\"pods\"}}\n").as_bytes());
        let lines: Vec<&str> = replies.lines().collect();
        assert_eq!(lines.len(), 2, "{garbage:?}: {replies}");
        assert!(lines[0].contains("badRequest") && lines[0].contains("cannot be understood"), "{replies}");
        assert_eq!(lines[1], "{\"ok\":[]}");
    }
    let replies = agent.raw(b"\xff\xfe\n");
    assert!(replies.contains("badRequest"), "{replies}");
    let replies = agent.raw(b"{\"request\":\"pods\"}");
    assert!(replies.contains("cut off"), "{replies}");
    let bad_key = serde_json::json!({ "request": "podDelete", "attachment": { "containerId": "../x", "ifname": "eth0" } });
    let replies = agent.raw(format!("{bad_key}\n").as_bytes());
    assert!(replies.contains("badRequest") && replies.contains("../x"), "{replies}");
    agent.client().pods().unwrap();
}

#[test]
fn a_request_without_end_is_refused() {
    let agent = Agent::new(Limits::default());
    let mut stream = UnixStream::connect(agent.path()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // The server may close before it has taken all of it.
    let _ = stream.write_all(&vec![b'x'; MAX_LINE + 1]);
    let mut reply = String::new();
    let _ = BufReader::new(&stream).read_line(&mut reply);
    assert!(reply.contains("must not be longer"), "{reply}");
    agent.client().pods().unwrap();
}

#[test]
fn a_silent_client_is_let_go() {
    let limits = Limits { clients: 1, read: Duration::from_millis(100), ..Limits::default() };
    let agent = Agent::new(limits);
    let started = Instant::now();
    let _silent = UnixStream::connect(agent.path()).unwrap();
    // The only place is taken by the silent one: the honest one waits for it to be shown out.
    agent.client().pods().unwrap();
    assert!(started.elapsed() < PATIENCE);
}

#[test]
fn what_changes_something_outlives_its_client() {
    let agent = Agent::new(Limits::default());
    let mut stream = UnixStream::connect(agent.path()).unwrap();
    let request = serde_json::to_string(&Request::PodAttach(PodAttach { attachment: key(), netns_cookie: Some(7) })).unwrap();
    writeln!(stream, "{request}").unwrap();
    std::thread::sleep(Duration::from_millis(50));
    drop(stream);
    let deadline = Instant::now() + PATIENCE;
    while agent.fake.attached.load(Ordering::SeqCst) == 0 {
        assert!(Instant::now() < deadline, "dropped with its client");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_fault_of_the_handler_is_told() {
    let agent = Agent::new(Limits::default());
    let add = PodAdd {
        attachment: key(),
        network: "n".to_owned(),
        netns: "/x".into(),
        pod: Default::default(),
        port_mappings: vec![],
    };
    let error = agent.client().pod_add(add).unwrap_err();
    assert!(matches!(&error, ClientError::Refused(refusal) if refusal.reason == RefusalReason::Failed), "{error}");
    agent.client().pods().unwrap();
}

#[test]
fn a_listener_gets_events_and_is_told_what_it_missed() {
    let agent = Agent::new(Limits::default());
    let mut all = agent.client().monitor(false).unwrap();
    let mut drops = agent.client().monitor(true).unwrap();
    agent.event(synced());
    assert_eq!(all.next().unwrap().unwrap().what, synced());
    // More than the channel holds, while the server's tasks may not run: they share no runtime with this loop, so try often.
    let mut lost = None;
    for _ in 0..1000 {
        (0..64).for_each(|_| agent.event(synced()));
        agent.event(Happening::Lost { events: 0 });
        lost = std::iter::from_fn(|| drops.next())
            .map(|event| event.unwrap().what)
            .find(|what| *what != Happening::Lost { events: 0 });
        if lost.is_some() {
            break;
        }
    }
    assert!(matches!(lost, Some(Happening::Lost { events: 1.. })), "{lost:?}");
    drop((all, drops));
    agent.client().pods().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while agent.fake.events.receiver_count() > 0 {
        assert!(Instant::now() < deadline, "a listener that left is still counted");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_listener_that_does_not_read_blocks_nobody() {
    let agent = Agent::new(Limits { write: Duration::from_millis(200), ..Limits::default() });
    let mut deaf = UnixStream::connect(agent.path()).unwrap();
    writeln!(deaf, "{}", serde_json::to_string(&Request::Monitor { drops_only: false }).unwrap()).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while agent.fake.events.receiver_count() == 0 {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(5));
    }
    while agent.fake.events.receiver_count() > 0 {
        agent.event(synced());
        assert!(Instant::now() < deadline, "never shown out");
        std::thread::sleep(Duration::from_micros(20));
    }
    agent.client().pods().unwrap();
}

#[test]
fn a_client_learns_why_nobody_answers() {
    let agent = Agent::new(Limits::default());
    let patience = Duration::from_millis(100);
    let error = Client::connect(&agent.path(), patience).unwrap().status().unwrap_err();
    assert!(matches!(error, ClientError::Timeout { .. }), "{error}");

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let error = Client::connect(&path, patience).unwrap_err();
    assert!(matches!(error, ClientError::Missing(_)), "{error}");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let error = Client::connect(&path, patience).unwrap_err();
    assert!(matches!(error, ClientError::Dead(_)), "{error}");
    std::fs::remove_file(&path).unwrap();

    // A process that accepts nothing: its backlog fills, and then even connecting must not hang.
    let _deaf = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let mut waiting = Vec::new();
    let error = loop {
        match Client::connect(&path, patience) {
            Ok(client) => waiting.push(client),
            Err(error) => break error,
        }
        assert!(waiting.len() < 100_000);
    };
    assert!(matches!(error, ClientError::Timeout { .. }), "{error}");
    std::fs::remove_file(&path).unwrap();

    // Something that is no agent.
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || {
        for answer in ["HTTP/1.1 400 Bad Request\n", "{\"ok\":", ""] {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    for _ in 0..3 {
        let error = Client::connect(&path, PATIENCE).unwrap().pods().unwrap_err();
        assert!(matches!(error, ClientError::Broken { .. }), "{error}");
    }
    server.join().unwrap();
}

proptest! {
    #[test]
    fn no_line_panics(line: Vec<u8>, text in "\\{\"request\":\"[a-zA-Z]{0,12}\"(,\"[a-zA-Z]{0,12}\":(1|null|\"x\"|\\{\\}))?\\}") {
        let _ = serde_json::from_slice::<Request>(&line);
        let _ = serde_json::from_slice::<Reply<Status>>(&line);
        let _ = serde_json::from_slice::<MonitorEvent>(&line);
        let _ = serde_json::from_str::<Request>(&text);
    }
}

#[test]
fn at_the_end_whoever_is_owed_something_gets_it_and_nobody_else_is_waited_for() {
    let agent = Agent::new(Limits::default());
    let mut idle = agent.client();
    idle.pods().unwrap();
    let mut amid_add = agent.client();
    let add = PodAdd {
        attachment: key(),
        network: "n".to_owned(),
        netns: "/run/netns/x".into(),
        pod: shunt::attachment::PodIdentity::default(),
        port_mappings: vec![],
    };
    // Whatever came of the first phase.
    amid_add.pod_add(add).unwrap_err();
    let mut events = agent.client().monitor(false).unwrap();
    agent.teller.tell();
    assert!(events.next().is_none_or(|event| event.is_err()), "a listener is let go");
    // One that asks before its side has heard of the end is answered.
    let is_let_go = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        matches!(idle.pods(), Err(ClientError::Broken { .. }))
    });
    assert!(is_let_go, "an idle client is let go");
    amid_add.pod_attach(PodAttach { attachment: key(), netns_cookie: None }).unwrap();
    agent.runtime.block_on(async { tokio::time::timeout(PATIENCE, agent.task).await }).unwrap().unwrap();
    assert_eq!(agent.fake.attached.load(Ordering::SeqCst), 1);
}
