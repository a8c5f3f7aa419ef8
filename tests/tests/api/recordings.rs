//! What a real Kubernetes 1.36 server sent, streamed again: it must end in the maps that the same objects give as files.
//!
//! No lab is needed: the source follows the double within this process, and what is compared is what the maps should hold.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use shunt::{
    cluster::{Origin, Source},
    compile::{Compiler, NodeView, compile, desired::Desired},
    config::SourceOptions,
    problem::Problem,
};
use shunt_common::net::Ip4;
use shunt_lab::api_server::{ApiServer, Expired, Recording, Transport};

use super::has_double;

const RECORDINGS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/kubernetes-1.36");
const SOON: Duration = Duration::from_secs(30);
/// How many live events happen between two comparisons: at some points endpoints are ready, at others they terminate.
const STRIDE: usize = 12;

fn view() -> Result<NodeView> {
    let ip = Ip4::new(172, 30, 0, 11);
    Ok(NodeView {
        name: "n1".into(),
        ip,
        addresses: [ip].into(),
        non_masquerade: BTreeSet::new(),
        subnet: "172.30.0.0/24".parse()?,
        node_port_addresses: shunt::config::NodePortAddresses::Primary,
        node_port: shunt::config::NodePortMode::Snat,
        load_balancer: shunt::config::LoadBalancer::Random,
    })
}

/// What files with these objects come to.
fn from_files(objects: &[serde_json::Value]) -> Result<(Desired, Vec<Problem>)> {
    let dir = tempfile::tempdir()?;
    for (number, object) in objects.iter().enumerate() {
        fs::write(dir.path().join(format!("{number}.yaml")), serde_yaml::to_string(object)?)?;
    }
    let (source, _) = Source::open(&Origin::Files(dir.path().to_owned()))?;
    let (desired, problems) = compile(source.model(), &view()?);
    ensure!(source.problems().is_empty(), "{:?}", source.problems());
    Ok((desired, problems))
}

/// The agent's way with an API server: changes as they come.
struct Follower {
    source: Source,
    compiler: Compiler,
}

impl Follower {
    async fn of(server: &ApiServer, dir: &Path) -> Result<Self> {
        let origin = Origin::of(&SourceOptions::Kubeconfig(server.kubeconfig(dir)?)).await?;
        let (source, _) = Source::open(&origin)?;
        Ok(Self { source, compiler: Compiler::new(view()?) })
    }

    async fn until(&mut self, wanted: &Desired) -> Result<()> {
        let arrived = tokio::time::timeout(SOON, async {
            while !self.source.is_complete() || self.compiler.desired() != wanted {
                let changes = self.source.next().await;
                self.compiler.update(self.source.model(), &changes);
            }
        });
        arrived.await.ok().with_context(|| {
            format!("wanted {wanted:#?}\nbut it is {:#?}\ntrouble: {:?}", self.compiler.desired(), self.source.trouble())
        })
    }
}

#[tokio::test]
async fn a_recorded_stream_ends_in_the_maps_that_files_give() -> Result<()> {
    if !has_double("a recorded stream") {
        return Ok(());
    }
    let recording = Recording::read(RECORDINGS.as_ref())?;
    let server = ApiServer::local(Transport::Tls)?;
    server.begin(&recording);
    let dir = tempfile::tempdir()?;
    let mut follower = Follower::of(&server, dir.path()).await?;
    let (mut done, mut served) = (0, 0);
    while done < recording.len() {
        let then = (done + STRIDE).min(recording.len());
        server.replay(&recording, done, then);
        done = then;
        // Streams end and history is forgotten now and then: what comes out is the same.
        match done / STRIDE % 4 {
            1 => server.end_streams(),
            2 => {
                server.trouble(|trouble| trouble.expired = Expired::AsStatus);
                server.compact();
                server.end_streams();
            }
            _ => {}
        }
        let (wanted, problems) = from_files(&recording.objects(done))?;
        follower.until(&wanted).await.with_context(|| format!("after {done} of {} events", recording.len()))?;
        assert_eq!((follower.source.problems(), follower.compiler.problems()), (vec![], problems));
        served = served.max(wanted.groups.values().map(|group| group.backends.len()).max().unwrap_or_default());
    }
    ensure!(served >= 4, "no Service of the recording ever had its four backends");
    Ok(())
}
