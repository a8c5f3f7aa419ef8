//! Agents that follow an API server, in all that can happen to one.
//!
//! ```text
//!   n1 -- pods a (client), b        n2 -- pod c        outside -- the API server
//! ```
//!
//! The server is the double. With `SHUNT_TEST_KUBECONFIG` it is a real one, and tests that need what only the double does on demand say that
//! they are skipped.

mod bad_objects;
mod following;
mod forgetting;
mod full_maps;
mod moving;
mod outages;
mod recordings;
mod refusals;

use std::{
    io::{self, Write as _},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use shunt::{
    kernel::{pins::PinDir, read::ServiceRow, table::Table},
    socket::{client::Client, protocol::Happening},
};
use shunt_common::{
    address::{Address, Prefix, Route},
    maps,
    net::{Ip4, V4},
};
use shunt_lab::{
    api_server::{ApiServer, Resource, Seen},
    cluster::Api,
    lab::{Lab, eventually},
    node::Node,
    real_api::RealApi,
    scene::Scene,
    service::tcp_answer,
    topology::PAIR,
};

/// What is watched by every agent.
const WATCHED: [Resource; 3] = [Resource::Nodes, Resource::Services, Resource::EndpointSlices];

/// An agent tries again with pauses that grow: a server that was away is found again by then.
const PATIENCE: Duration = Duration::from_secs(40);

/// Whether a test goes on that needs what only the double does on demand. Where the server is a real one it says that it is skipped, past
/// what keeps the output of tests that pass.
fn has_double(for_what: &str) -> bool {
    let is_real = RealApi::kubeconfig().is_some();
    if is_real {
        let test = thread::current().name().unwrap_or("a test").to_owned();
        // Nobody is left to be told that this cannot be said.
        let _ = writeln!(io::stderr(), "{test}: SKIPPED with a real server, for it needs {for_what}");
    }
    !is_real
}

/// A lab whose agents have not been started, with a double.
fn lab_with_double() -> Result<(Lab, Arc<ApiServer>)> {
    let mut lab = Lab::wired(&PAIR)?;
    let server = ApiServer::of_lab(&mut lab)?;
    Ok((lab, server))
}

/// As [`lab_with_double`], with a real API server if there is one to test with.
fn lab() -> Result<(Lab, Arc<dyn Api>)> {
    let Some(kubeconfig) = RealApi::kubeconfig() else {
        let (lab, server) = lab_with_double()?;
        return Ok((lab, server));
    };
    let mut lab = Lab::wired(&PAIR)?;
    let server = RealApi::of_lab(&mut lab, &kubeconfig)?;
    Ok((lab, server))
}

/// A lab whose agents follow a double, with `b` behind the Service.
fn scene_with_double() -> Result<(Scene, Arc<ApiServer>)> {
    let (lab, server) = lab_with_double()?;
    Ok((started(lab)?, server))
}

/// As [`scene_with_double`], on a real API server if there is one to test with.
fn scene() -> Result<(Scene, Arc<dyn Api>)> {
    let (lab, server) = lab()?;
    Ok((started(lab)?, server))
}

fn started(mut lab: Lab) -> Result<Scene> {
    lab.start_agents()?;
    Scene::set(lab, &["b"])
}

/// Everything that the kernel holds of the cluster, ids and places in maps included.
#[derive(Debug, PartialEq)]
struct Held {
    epoch: Option<u32>,
    addresses: Vec<(Ip4, Address)>,
    routes: Vec<(Prefix<V4>, Route)>,
    services: Vec<ServiceRow>,
}

impl Held {
    fn of(node: &Node) -> Result<Self> {
        let kernel = node.kernel()?;
        let pins = PinDir::new(node.pin_dir());
        let epoch: Table<u32, u32> = Table::open(&maps::EPOCH, &pins.map(&maps::EPOCH))?;
        let (mut addresses, mut routes, mut services) = (kernel.addresses()?, kernel.routes()?, kernel.services()?);
        addresses.sort_by_key(|(address, _)| address.to_host());
        routes.sort_by_key(|(prefix, _)| format!("{prefix:?}"));
        services.sort_by_key(|row| format!("{:?}", row.key));
        Ok(Self { epoch: epoch.get(&0)?, addresses, routes, services })
    }
}

/// Counts what an agent writes, from now on until it ends.
#[derive(Clone, Debug, Default)]
struct Writes(Arc<Mutex<u64>>);

impl Writes {
    fn of(node: &Node) -> Result<Self> {
        let events = Client::connect(&node.socket(), Duration::from_secs(5))?.monitor(false)?;
        let writes = Self::default();
        let count = writes.clone();
        thread::spawn(move || {
            for event in events.flatten() {
                if let Happening::Synced(report) = event.what {
                    *count.0.lock().unwrap_or_else(PoisonError::into_inner) += report.steps;
                }
            }
        });
        Ok(writes)
    }

    fn count(&self) -> u64 {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until an agent is not healthy for a reason that says something.
fn unhealthy(node: &Node, expected: &str) -> Result<String> {
    eventually(PATIENCE, || {
        let reasons = node.status()?.reasons;
        let found = reasons.iter().find(|reason| reason.contains(expected)).cloned();
        found.with_context(|| format!("no reason of {} says {expected:?}: {reasons:?}", node.name))
    })
}

/// Waits until an agent is healthy after trouble.
fn healthy(node: &Node) -> Result<()> {
    eventually(PATIENCE, || {
        let status = node.status()?;
        ensure!(status.reasons.is_empty() && status.problems.is_empty(), "{:?} {:?}", status.reasons, status.problems);
        Ok(())
    })
}

/// Waits until the Service is answered by one server alone.
fn answered_by(scene: &Scene, name: &str) -> Result<()> {
    eventually(PATIENCE, || {
        for _ in 0..8 {
            let answer = tcp_answer(&scene.a.netns, scene.service.vip)?;
            ensure!(answer.server == name, "{} answers instead of {name}", answer.server);
        }
        Ok(())
    })
}

/// Whether a request is for what the cluster's state is made of, and not for an agent's own Node alone.
fn is_of_cluster(seen: &Seen) -> bool {
    WATCHED.contains(&seen.resource) && !seen.query.contains("fieldSelector")
}

/// Waits until both agents watch everything.
fn watched(server: &ApiServer) -> Result<()> {
    eventually(PATIENCE, || {
        for resource in WATCHED {
            // An agent may look at its own Node apart, for what it announces there.
            let streams = server.watchers(resource);
            ensure!(streams == 2 || resource == Resource::Nodes && streams > 2, "{streams} streams of {}", resource.plural());
        }
        Ok(())
    })
}
