//! A real API server in a lab: the one of the kubeconfig that `SHUNT_TEST_KUBECONFIG` names.
//!
//! The lab's nodes reach it at the address where a double would be: each connection there is carried on, byte for byte, from this
//! process. So the way to it can be cut, and nothing of the machine's own network has to lead into the lab. What a lab writes is
//! deleted with it: Nodes `n1` and `n2`, and Services and EndpointSlices in `default`. It wants a cluster to spare, whose Service range
//! holds 10.96.0.210 to 10.96.0.220, and credentials that may write these kinds.

use std::{
    fmt, fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context as _, Result};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::{ApiResource, DynamicObject, GroupVersionKind},
};
use serde_json::{Value, json};
use tokio::{net::TcpStream, runtime::Runtime, task::JoinHandle};

use crate::{
    api_server::{LAB_PORT, Resource},
    cluster,
    lab::Lab,
    netns::Netns,
    topology::OUTSIDE,
};

/// Names the kubeconfig.
pub const VARIABLE: &str = "SHUNT_TEST_KUBECONFIG";

/// A real server, and the way to it.
pub struct RealApi {
    runtime: Runtime,
    client: Client,
    netns: Netns,
    /// Host and port, as the kubeconfig has them.
    server: String,
    way: Mutex<Option<JoinHandle<()>>>,
    /// In the order in which it was written.
    written: Mutex<Vec<Value>>,
}

impl fmt::Debug for RealApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RealApi").field("server", &self.server).finish_non_exhaustive()
    }
}

impl RealApi {
    /// The kubeconfig, if there is a real server to test with.
    #[must_use]
    pub fn kubeconfig() -> Option<PathBuf> {
        std::env::var_os(VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from)
    }

    /// Leads a lab's nodes to it and gives it the lab's objects.
    ///
    /// # Errors
    /// It doesn't answer, or refuses an object.
    pub fn of_lab(lab: &mut Lab, kubeconfig: &Path) -> Result<Arc<Self>> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let mut given = Kubeconfig::read_from(kubeconfig).with_context(|| format!("{VARIABLE} {}", kubeconfig.display()))?;
        let (client, server) = runtime.block_on(async {
            let config = Config::from_custom_kubeconfig(given.clone(), &KubeConfigOptions::default()).await?;
            let host = config.cluster_url.host().context("the kubeconfig's server has no host")?.to_owned();
            let port = config.cluster_url.port_u16().unwrap_or(443);
            anyhow::Ok((Client::try_from(config)?, (host, port)))
        })?;
        for cluster in given.clusters.iter_mut().filter_map(|named| named.cluster.as_mut()) {
            cluster.server = Some(format!("https://{OUTSIDE}:{LAB_PORT}"));
            // Its certificate is for the name by which we know it.
            cluster.tls_server_name.get_or_insert(server.0.trim_matches(['[', ']']).to_owned());
        }
        let dir = lab.dir().join("api");
        fs::create_dir_all(&dir)?;
        let path = dir.join("kubeconfig");
        fs::write(&path, serde_yaml::to_string(&given)?)?;

        let api = Self {
            runtime,
            client,
            netns: Netns::open(lab.outside().name())?,
            server: format!("{}:{}", server.0, server.1),
            way: Mutex::new(None),
            written: Mutex::new(Vec::new()),
        };
        let api = Arc::new(api);
        cluster::Api::up(&*api)?;
        lab.cluster.attach(api.clone())?;
        lab.nodes.iter_mut().for_each(|node| node.follow_api(&path));
        Ok(api)
    }

    fn of(&self, object: &Value) -> Result<(Api<DynamicObject>, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let resource = Resource::of_kind(&text(&object["kind"])).context("not a kind of the lab")?;
        let kind = GroupVersionKind::gvk(resource.group(), "v1", resource.kind());
        let described = ApiResource::from_gvk_with_plural(&kind, resource.plural());
        let name = text(&object["metadata"]["name"]);
        Ok(if resource.is_namespaced() {
            (Api::namespaced_with(self.client.clone(), &text(&object["metadata"]["namespace"]), &described), name)
        } else {
            (Api::all_with(self.client.clone(), &described), name)
        })
    }
}

impl cluster::Api for RealApi {
    fn put(&self, object: &Value) -> Result<()> {
        let (api, name) = self.of(object)?;
        lock(&self.written).push(object.clone());
        self.runtime.block_on(async {
            match api.get_opt(&name).await? {
                None => drop(api.create(&PostParams::default(), &serde_json::from_value(object.clone())?).await?),
                Some(_) => drop(api.patch(&name, &PatchParams::default(), &Patch::Merge(object)).await?),
            }
            if object["status"].is_object() {
                let status = json!({ "status": object["status"] });
                api.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await?;
            }
            Ok(())
        })
    }

    fn delete(&self, object: &Value) -> Result<()> {
        let (api, name) = self.of(object)?;
        self.runtime.block_on(api.delete(&name, &DeleteParams::default()))?;
        Ok(())
    }

    fn down(&self) {
        if let Some(way) = lock(&self.way).take() {
            way.abort();
            // An error says that it was aborted.
            let _ = self.runtime.block_on(way);
        }
    }

    fn up(&self) -> Result<()> {
        let listener = self.netns.inside(|| TcpListener::bind(SocketAddr::from((OUTSIDE, LAB_PORT))))?;
        listener.set_nonblocking(true)?;
        let server = self.server.clone();
        let way = self.runtime.spawn(async move {
            if let Err(error) = carry(listener, &server).await {
                eprintln!("no way to the API server {server}: {error}");
            }
        });
        *lock(&self.way) = Some(way);
        Ok(())
    }
}

impl Drop for RealApi {
    fn drop(&mut self) {
        let written = std::mem::take(&mut *lock(&self.written));
        for object in written.iter().rev() {
            // What the server has deleted with another object is gone.
            if let Ok((api, name)) = self.of(object) {
                let _ = self.runtime.block_on(api.delete(&name, &DeleteParams::default()));
            }
        }
        cluster::Api::down(self);
    }
}

/// Carries every connection on, until it is aborted and all of them break.
async fn carry(listener: TcpListener, server: &str) -> Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => {
                let ((mut near, _), server) = (accepted?, server.to_owned());
                connections.spawn(async move {
                    if let Ok(mut far) = TcpStream::connect(server).await {
                        // Whichever end leaves first ends it.
                        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                    }
                });
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
