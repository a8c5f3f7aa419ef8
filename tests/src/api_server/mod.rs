//! An API server double: what an agent sees of a Kubernetes 1.36 API server, and what it sees of one in trouble.
//!
//! It holds objects with versions and uids, and speaks paged lists, watches (from a version, or as streaming lists with their
//! bookmark), label and field selectors, GET, POST, PUT, PATCH and DELETE in JSON, over TLS with bearer tokens or in the clear. It can
//! replay what a real server sent ([`Recording`]), and be slow, broken, forgetful, overloaded or dead ([`Trouble`] and the methods of
//! [`ApiServer`]).
//!
//! A green run against it doesn't prove:
//! - that a real server accepts what is written here: there is no validation, admission, defaulting or RBAC. A Service gets no address,
//!   a field manager means nothing, finalizers hold nothing, and server-side apply is refused;
//! - anything of HTTP/2, compression, protobuf, websockets, aggregated or partial answers, API discovery, priority and fairness,
//!   client certificates, exec plugins or a load balancer in front;
//! - what several API servers do that lag behind each other, or one that serves lists from a stale cache (`resourceVersion=0` is as
//!   fresh here as everything else, and pages are not left out for it);
//! - the pace of etcd: a write is seen at once by all watchers, and a slow watcher is never thrown out;
//! - that times are as a real server's: bookmarks come when a test says so and history is forgotten when it says so.
//!
//! Tests that need none of the trouble but an outage run against a real server too: [`crate::real_api`].

mod list;
mod object;
mod paging;
mod patch;
mod recording;
mod request;
mod resource;
mod selector;
mod serve;
mod status;
mod store;
#[cfg(test)]
mod tests;
mod tls;
mod trouble;
mod watch;
mod write;

use std::{
    collections::BTreeSet,
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::{runtime::Runtime, sync::oneshot};

pub use self::{
    recording::Recording,
    resource::Resource,
    trouble::{Expired, StreamingLists, Trouble},
};
use self::{store::Store, tls::Tls, watch::Piece};
use crate::{
    cluster,
    lab::{Lab, eventually},
    netns::Netns,
    service::SOON,
    topology::OUTSIDE,
};

/// Where a lab's API server listens: on the outside host, a router away from the nodes.
pub const LAB_PORT: u16 = 6443;

/// What is behind one lock: requests are answered in an order.
#[derive(Debug, Default)]
struct State {
    store: Store,
    trouble: Trouble,
    tokens: BTreeSet<String>,
    seen: Vec<Seen>,
}

#[derive(Debug, Default)]
struct Shared(Mutex<State>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that came, whatever became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// As RBAC has it: `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`.
    pub verb: &'static str,
    /// What it was about.
    pub resource: Resource,
    /// The one object that it was about.
    pub name: Option<String>,
    /// Its parameters.
    pub query: String,
}

/// Whether connections are encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// By a certificate of a throw-away authority.
    Tls,
    /// In the clear.
    Plain,
}

/// A server, on a thread of this process. Dropping it takes it down.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    netns: Option<Netns>,
    tls: Option<Tls>,
    runtime: Option<Runtime>,
    serving: Mutex<Option<Serving>>,
    token: Mutex<Token>,
}

#[derive(Debug)]
struct Serving {
    stop: oneshot::Sender<()>,
    stopped: mpsc::Receiver<()>,
}

/// The token of the last kubeconfig, and the file where it is.
#[derive(Debug)]
struct Token {
    generation: u32,
    file: Option<PathBuf>,
}

impl ApiServer {
    /// Starts one on an address of a namespace; of this process's if none is given. Port 0 stands for any that is free.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub fn start(address: SocketAddr, netns: Option<Netns>, transport: Transport) -> Result<Self> {
        let tls = if transport == Transport::Tls { Some(Tls::new(address.ip())?) } else { None };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("api-server")
            .enable_all()
            .build()
            .context("cannot start the API server's thread")?;
        let mut server = Self {
            shared: Arc::default(),
            address,
            netns,
            tls,
            runtime: Some(runtime),
            serving: Mutex::new(None),
            token: Mutex::new(Token { generation: 0, file: None }),
        };
        server.shared.lock().tokens.insert(token(0));
        server.address = server.listen()?;
        Ok(server)
    }

    /// Starts one on the loopback interface of this process.
    ///
    /// # Errors
    /// There is no free port.
    pub fn local(transport: Transport) -> Result<Self> {
        Self::start(SocketAddr::from(([127, 0, 0, 1], 0)), None, transport)
    }

    /// Starts one for a lab with the lab's objects, and lets the agents of all nodes follow it from their next start on.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub fn of_lab(lab: &mut Lab) -> Result<Arc<Self>> {
        let netns = Netns::open(lab.outside().name())?;
        let server = Arc::new(Self::start(SocketAddr::from((OUTSIDE, LAB_PORT)), Some(netns), Transport::Tls)?);
        let kubeconfig = server.kubeconfig(&lab.dir().join("api"))?;
        lab.cluster.attach(server.clone())?;
        lab.nodes.iter_mut().for_each(|node| node.follow_api(&kubeconfig));
        Ok(server)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    fn listen(&self) -> Result<SocketAddr> {
        let bind = || TcpListener::bind(self.address);
        let listener = match &self.netns {
            Some(netns) => netns.inside(bind),
            None => bind(),
        };
        let listener = listener.with_context(|| format!("cannot listen on {}", self.address))?;
        let address = listener.local_addr()?;
        let (stop, stops) = oneshot::channel();
        let (done, stopped) = mpsc::channel();
        let (tls, shared) = (self.tls.as_ref().map(|tls| tls.acceptor.clone()), self.shared.clone());
        let runtime = self.runtime.as_ref().context("the server has ended")?;
        runtime.spawn(async move {
            if let Err(error) = serve::serve(listener, tls, shared, stops).await {
                eprintln!("the API server double at {address} ends: {error}");
            }
            // Whoever waits may be gone.
            let _ = done.send(());
        });
        *self.serving.lock().unwrap_or_else(PoisonError::into_inner) = Some(Serving { stop, stopped });
        Ok(address)
    }

    /// Dies: the listener is closed and every connection breaks. Objects stay.
    pub fn down(&self) {
        let serving = self.serving.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Serving { stop, stopped }) = serving {
            // Errors say that it has ended already.
            let _ = stop.send(());
            let _ = stopped.recv();
        }
    }

    /// Comes back after [`ApiServer::down`].
    ///
    /// # Errors
    /// The address cannot be listened on any more.
    pub fn up(&self) -> Result<()> {
        // The kernel may take a moment to let go of what was closed.
        eventually(SOON, || self.listen().map(drop))
    }

    /// Changes what goes wrong from now on.
    pub fn trouble(&self, change: impl FnOnce(&mut Trouble)) {
        change(&mut self.shared.lock().trouble);
    }

    /// Creates or replaces objects, as if somebody else had written them; nothing is checked. A list's items are taken one by one.
    ///
    /// # Errors
    /// An object is of a kind that is not served.
    pub fn put(&self, object: &Value) -> Result<()> {
        let kind = object["kind"].as_str().unwrap_or_default();
        let resource = Resource::of_kind(kind).with_context(|| format!("{kind:?} is not served"))?;
        self.shared.lock().store.put(resource, object.clone());
        Ok(())
    }

    /// Deletes an object; whether it was there. The namespace is empty for resources that are in none.
    pub fn delete(&self, resource: Resource, namespace: &str, name: &str) -> bool {
        self.shared.lock().store.delete(resource, namespace, name, None).is_some()
    }

    /// An object as it is now.
    #[must_use]
    pub fn get(&self, resource: Resource, namespace: &str, name: &str) -> Option<Value> {
        self.shared.lock().store.get(resource, namespace, name).map(|object| object.value())
    }

    /// All objects of a resource.
    #[must_use]
    pub fn all(&self, resource: Resource) -> Vec<Value> {
        self.shared.lock().store.all(resource).map(|object| object.value()).collect()
    }

    /// Requests since the last call.
    pub fn requests(&self) -> Vec<Seen> {
        std::mem::take(&mut self.shared.lock().seen)
    }

    /// How many streams of a resource are open.
    #[must_use]
    pub fn watchers(&self, resource: Resource) -> usize {
        self.shared.lock().store.watchers.count(resource)
    }

    /// Sends a bookmark on every stream that wants them.
    pub fn bookmark(&self) {
        let mut state = self.shared.lock();
        let version = state.store.version();
        state.store.watchers.bookmark(version);
    }

    /// Forgets history: watches from any version until now are too old.
    pub fn compact(&self) {
        self.shared.lock().store.compact();
    }

    /// Ends all streams in good order, as a server does after a while.
    pub fn end_streams(&self) {
        self.shared.lock().store.watchers.end();
    }

    /// Breaks every stream of a resource in the middle of an event that changes nothing.
    pub fn cut_streams(&self, resource: Resource) {
        let mut state = self.shared.lock();
        let line = state.store.all(resource).next().map(|object| object.event("MODIFIED"));
        let line = line.unwrap_or_else(|| Bytes::from_static(b"{\"type\":\"ADDED\",\"object\":{\"kind\":"));
        state.store.watchers.send(resource, &Piece::Bytes(line.slice(..line.len() / 2)));
        state.store.watchers.send(resource, &Piece::Cut);
    }

    /// Sends a line of any text on every stream of a resource: an event that never happened, or rubbish.
    pub fn send_line(&self, resource: Resource, text: &str) {
        self.shared.lock().store.watchers.send(resource, &Piece::Bytes(Bytes::from(format!("{text}\n"))));
    }

    /// Writes a kubeconfig for a client beside its token and the authority's certificate, and says where.
    ///
    /// # Errors
    /// A file could not be written.
    pub fn kubeconfig(&self, dir: &Path) -> Result<PathBuf> {
        fs::create_dir_all(dir)?;
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let mut cluster = json!({ "server": format!("{scheme}://{}", self.address) });
        if let Some(tls) = &self.tls {
            let authority = dir.join("ca.crt");
            fs::write(&authority, &tls.authority)?;
            cluster["certificate-authority"] = json!(authority);
        }
        let mut current = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        let file = dir.join("token");
        write(&file, &token(current.generation))?;
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "clusters": [{ "name": "lab", "cluster": cluster }],
            "users": [{ "name": "shunt", "user": { "tokenFile": file } }],
            "contexts": [{ "name": "lab", "context": { "cluster": "lab", "user": "shunt" } }],
        });
        current.file = Some(file);
        let path = dir.join("kubeconfig");
        write(&path, &serde_yaml::to_string(&config)?)?;
        Ok(path)
    }

    /// Tokens given out until now are good no more; the next one is not in the file yet. Streams that are open go on.
    pub fn expire_token(&self) {
        let mut current = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        current.generation += 1;
        self.shared.lock().tokens = [token(current.generation)].into();
    }

    /// Puts the good token into the file, as kubelet does it in time.
    ///
    /// # Errors
    /// The file could not be written.
    pub fn rotate_token(&self) -> Result<()> {
        let current = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        let file = current.file.as_ref().context("no kubeconfig was written")?;
        write(file, &token(current.generation))
    }
}

/// Resource, namespace and name of an object; the namespace is empty for resources that are in none.
fn names(object: &Value) -> Result<(Resource, &str, &str)> {
    let metadata = &object["metadata"];
    let resource = object["kind"].as_str().and_then(Resource::of_kind).context("the kind is not served")?;
    let namespace = if resource.is_namespaced() { metadata["namespace"].as_str() } else { None };
    Ok((resource, namespace.unwrap_or_default(), metadata["name"].as_str().unwrap_or_default()))
}

impl cluster::Api for ApiServer {
    fn put(&self, object: &Value) -> Result<()> {
        self.put(object)
    }

    fn get(&self, object: &Value) -> Result<Option<Value>> {
        let (resource, namespace, name) = names(object)?;
        Ok(self.get(resource, namespace, name))
    }

    fn delete(&self, object: &Value) -> Result<()> {
        let (resource, namespace, name) = names(object)?;
        ensure!(self.delete(resource, namespace, name), "there is no {} {namespace}/{name}", resource.kind());
        Ok(())
    }

    fn down(&self) {
        self.down();
    }

    fn up(&self) -> Result<()> {
        self.up()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.down();
        if let Some(runtime) = self.runtime.take() {
            // Whoever drops it may be within another runtime, where waiting is not allowed.
            runtime.shutdown_background();
        }
    }
}

fn token(generation: u32) -> String {
    format!("token-{generation}")
}

/// Appears by rename: who reads it meanwhile gets the old one or the new one.
fn write(path: &Path, text: &str) -> Result<()> {
    let staged = path.with_extension("new");
    fs::write(&staged, text)
        .and_then(|()| fs::rename(&staged, path))
        .with_context(|| format!("cannot write {}", path.display()))
}
