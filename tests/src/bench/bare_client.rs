//! A client that does nothing with what it is told: what of a figure is the server's, the network's and TLS's.

use std::{
    path::{Path, PathBuf},
    sync::mpsc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use futures::{AsyncBufReadExt as _, StreamExt as _};
use http_body_util::BodyExt as _;
use hyper::Request;
use kube::{
    Client, Config,
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::runtime::Runtime;

use crate::{netns::Netns, node::Node};

const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
const LISTS: [&str; 3] = ["/api/v1/nodes", "/api/v1/services", SLICES];
const PATIENCE: Duration = Duration::from_secs(10);

/// Where an agent would be, and with its credentials.
#[derive(Debug)]
pub(super) struct BareClient {
    kubeconfig: PathBuf,
    netns: Netns,
}

impl BareClient {
    pub(super) fn of(node: &Node, kubeconfig: &Path) -> Result<Self> {
        Ok(Self { kubeconfig: kubeconfig.to_owned(), netns: Netns::open(node.netns.name())? })
    }

    /// Reads all three lists at once, and says how many bytes they are.
    pub(super) fn read_all(&self) -> Result<usize> {
        self.netns.inside(|| {
            let (runtime, client) = connect(&self.kubeconfig)?;
            runtime.block_on(async {
                let lists = LISTS.map(|path| get(&client, path));
                let sizes = futures::future::join_all(lists).await;
                sizes.into_iter().sum::<Result<usize>>()
            })
        })
    }

    /// Watches EndpointSlices from now on, and notes when each event came.
    pub(super) fn watch(self) -> Result<Watch> {
        let (sender, arrivals) = mpsc::channel();
        let (ready, is_ready) = mpsc::channel();
        let worker = thread::spawn(move || {
            self.netns.inside(|| {
                let (runtime, client) = connect(&self.kubeconfig)?;
                runtime.block_on(async {
                    // Without a version it would begin with all there is.
                    let query = "watch=true&sendInitialEvents=false&resourceVersionMatch=NotOlderThan";
                    let request = Request::get(format!("{SLICES}?{query}")).body(Vec::new())?;
                    let mut lines = client.request_stream(request).await?.lines();
                    // Whoever listens may have left: then this ends too.
                    let _ = ready.send(());
                    while let Some(line) = lines.next().await {
                        line?;
                        if sender.send(Instant::now()).is_err() {
                            break;
                        }
                    }
                    anyhow::Ok(())
                })
            })
        });
        is_ready.recv_timeout(PATIENCE).context("the bare client's watch does not begin")?;
        Ok(Watch { arrivals, worker })
    }
}

/// A watch under way.
#[derive(Debug)]
pub(super) struct Watch {
    arrivals: mpsc::Receiver<Instant>,
    worker: JoinHandle<Result<()>>,
}

impl Watch {
    /// When the next event came.
    pub(super) fn next(&self) -> Result<Instant> {
        self.arrivals.recv_timeout(PATIENCE).context("the bare client hears nothing")
    }

    /// Listens no more, and waits for the end, which the next event brings: one that came before would go unnoticed.
    pub(super) fn end(self, bring_event: impl FnOnce() -> Result<()>) -> Result<()> {
        drop(self.arrivals);
        bring_event()?;
        self.worker.join().map_err(|_| anyhow!("the bare client panicked"))?
    }
}

async fn get(client: &Client, path: &str) -> Result<usize> {
    let mut body = client.send(Request::get(path).body(Body::empty())?).await?.into_body();
    let mut size = 0;
    while let Some(frame) = body.frame().await {
        size += frame?.data_ref().map_or(0, |data| data.len());
    }
    Ok(size)
}

fn connect(kubeconfig: &Path) -> Result<(Runtime, Client)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = runtime.block_on(async {
        let config = Config::from_custom_kubeconfig(Kubeconfig::read_from(kubeconfig)?, &KubeConfigOptions::default()).await?;
        anyhow::Ok(Client::try_from(config)?)
    })?;
    Ok((runtime, client))
}
