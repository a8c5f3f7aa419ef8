//! The HTTP server by its socket: what it answers, and what it makes of clients that are slow, many or garbled. The site behind it is a
//! stand-in; what the agent says of itself is tested in the lab.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use shunt::{
    ending::{Teller, ending},
    http::{self, Limits, Readiness, Site},
    metrics::exposition::{Exposition, Format},
};
use tokio::{net::TcpListener, runtime::Runtime, task::JoinHandle};

#[derive(Debug, Default)]
struct Fake {
    is_stuck: AtomicBool,
    is_ready: AtomicBool,
    is_slow: AtomicBool,
}

impl Site for Fake {
    async fn alive(&self) -> Result<(), String> {
        if self.is_stuck.load(Relaxed) { Err("it is stuck".to_owned()) } else { Ok(()) }
    }

    async fn ready(&self) -> Readiness {
        let withheld = if self.is_ready.load(Relaxed) { vec![] } else { vec!["no Node n1".to_owned(), "no range".to_owned()] };
        Readiness { withheld, besides: vec!["the API server is away".to_owned()] }
    }

    async fn metrics(&self, format: Format) -> Result<String, String> {
        if self.is_slow.load(Relaxed) {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        Exposition::default().text(format).map_err(|error| error.to_string())
    }
}

struct Server {
    fake: Arc<Fake>,
    address: SocketAddr,
    teller: Teller,
    task: JoinHandle<()>,
    runtime: Runtime,
}

const LIMITS: Limits = Limits {
    connections: 4,
    head: Duration::from_millis(300),
    life: Duration::from_millis(800),
    end: Duration::from_millis(500),
};

fn server(limits: Limits) -> Server {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let fake = Arc::new(Fake::default());
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let (teller, ending) = ending();
    let site = fake.clone();
    let task = runtime.spawn(http::serve(listener, move |request| http::answer(request, site.clone()), limits, ending));
    Server { fake, address, teller, task, runtime }
}

impl Server {
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }

    /// Bytes in, everything that comes back until the server closes.
    fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        // It may close before it has read all.
        let _ = stream.write_all(bytes);
        rest(&mut stream)
    }

    fn get(&self, path: &str, headers: &str) -> String {
        self.raw(format!("GET {path} HTTP/1.1\r\nHost: n1\r\nConnection: close\r\n{headers}\r\n").as_bytes())
    }
}

/// What comes until the server closes, by whichever way.
fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("the server leaves the connection open"),
        _ => String::from_utf8_lossy(&bytes).into_owned(),
    }
}

fn status(answer: &str) -> &str {
    answer.split_once("\r\n").map_or("", |(line, _)| line.strip_prefix("HTTP/1.1 ").unwrap_or(line))
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").unwrap().1
}

#[test]
fn health_and_readiness_are_told_apart() {
    let server = server(Limits::default());
    assert_eq!(status(&server.get("/healthz", "")), "200 OK");
    let unready = server.get("/readyz", "");
    assert_eq!(status(&unready), "503 Service Unavailable");
    assert_eq!(body(&unready), "no Node n1\nno range\nthe API server is away\n");
    server.fake.is_ready.store(true, Relaxed);
    let ready = server.get("/readyz?verbose", "");
    assert_eq!((status(&ready), body(&ready)), ("200 OK", "ok\nthe API server is away\n"));
    server.fake.is_stuck.store(true, Relaxed);
    let stuck = server.get("/healthz", "");
    assert_eq!((status(&stuck), body(&stuck)), ("503 Service Unavailable", "it is stuck\n"));
}

#[test]
fn metrics_come_in_the_format_that_is_asked_for() {
    let server = server(Limits::default());
    let plain = server.get("/metrics", "");
    assert_eq!(status(&plain), "200 OK");
    assert!(plain.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{plain}");
    assert!(plain.contains("# TYPE shunt_dropped_packets_total counter\n"), "{plain}");
    let open = server.get("/metrics", "Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n");
    assert!(open.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"), "{open}");
    assert!(open.contains("# TYPE shunt_dropped_packets counter\n") && open.ends_with("# EOF\n"), "{open}");
}

#[test]
fn everything_else_is_refused() {
    let server = server(Limits::default());
    for path in ["/", "/metrics/", "/healthz/..", "/debug/pprof", "*", "//metrics"] {
        let answer = server.get(path, "");
        assert!(["404 Not Found", "400 Bad Request"].contains(&status(&answer)), "{path}: {answer}");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW"] {
        let answer = server.raw(format!("{method} /metrics HTTP/1.1\r\nHost: n1\r\nConnection: close\r\n\r\n").as_bytes());
        // CONNECT takes an authority, no path.
        assert!(["405 Method Not Allowed", "400 Bad Request"].contains(&status(&answer)), "{method}: {answer}");
    }
    let post = server.raw(b"POST /metrics HTTP/1.1\r\nHost: n1\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc");
    assert!(post.to_lowercase().contains("allow: get, head\r\n"), "{post}");
    let head = server.raw(b"HEAD /metrics HTTP/1.1\r\nHost: n1\r\nConnection: close\r\n\r\n");
    assert_eq!((status(&head), body(&head)), ("200 OK", ""));
}

#[test]
fn garbage_costs_its_own_connection() {
    let server = server(LIMITS);
    let long = [b"GET /".as_slice(), &[b'a'; 100_000], b" HTTP/1.1\r\n\r\n"].concat();
    let many: String = (0..1000).map(|number| format!("X-{number}: 1\r\n")).collect();
    let many = format!("GET /healthz HTTP/1.1\r\n{many}\r\n").into_bytes();
    let lies = b"GET /healthz HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n".to_vec();
    let both = b"GET /healthz HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".to_vec();
    for garbage in [b"\r\n\r\n\r\n".to_vec(), vec![0; 64], vec![0xff; 20_000], b"GET\r\n\r\n".to_vec(), long, many, lies, both]
    {
        let answer = server.raw(&garbage);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 "), "{answer}");
        assert_eq!(status(&server.get("/healthz", "")), "200 OK", "others are served");
    }
}

#[test]
fn who_is_slow_is_let_go() {
    let server = server(LIMITS);
    let start = Instant::now();
    let mut silent = server.connect();
    let mut loris = server.connect();
    loris.write_all(b"GET /healthz HTT").unwrap();
    assert_eq!(rest(&mut silent), "");
    assert!(["", "408 Request Timeout"].contains(&status(&rest(&mut loris))));
    // Neither does a byte now and then buy more time.
    let mut patient = server.connect();
    patient.write_all(b"GET /healthz HTTP/1.1\r\n").unwrap();
    let dripping = Instant::now();
    while patient.write_all(b"X: y\r\n").is_ok() {
        assert!(dripping.elapsed() < Duration::from_secs(5), "it may drip for ever");
        std::thread::sleep(Duration::from_millis(20));
    }
    // Nor do many whole requests.
    let mut eager = server.connect();
    let asking = Instant::now();
    while eager
        .write_all(b"GET /healthz HTTP/1.1\r\nHost: n1\r\n\r\n")
        .and_then(|()| eager.read(&mut [0; 4096]))
        .is_ok_and(|n| n > 0)
    {
        assert!(asking.elapsed() < Duration::from_secs(5), "a connection has no end");
    }
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_crowd_does_not_keep_a_probe_out() {
    let server = server(Limits { head: Duration::from_secs(30), life: Duration::from_secs(60), ..LIMITS });
    let mut crowd: Vec<TcpStream> = (0..20).map(|_| server.connect()).collect();
    assert_eq!(status(&server.get("/healthz", "")), "200 OK");
    assert_eq!(rest(&mut crowd[0]), "", "the oldest made room");
}

#[test]
fn at_the_end_answers_under_way_are_given_and_nobody_new_is_served() {
    let server = server(Limits { head: Duration::from_secs(30), ..LIMITS });
    server.fake.is_slow.store(true, Relaxed);
    let mut asking = server.connect();
    let mut idle = server.connect();
    asking.write_all(b"GET /metrics HTTP/1.1\r\nHost: n1\r\n\r\n").unwrap();
    // Both are with the server, not in its backlog, once a third that came later is answered.
    assert_eq!(status(&server.get("/healthz", "")), "200 OK");
    server.teller.tell();
    assert_eq!(status(&rest(&mut asking)), "200 OK");
    assert_eq!(rest(&mut idle), "");
    server.runtime.block_on(server.task).unwrap();
    assert!(TcpStream::connect(server.address).is_err());
}
