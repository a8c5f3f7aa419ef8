//! What most tests of the agent play with: three pods on two nodes, and a Service.
//!
//! ```text
//!   n1 -- pods a (client), b        n2 -- pod c
//! ```

use anyhow::{Context, Result};

use crate::{
    lab::Lab,
    pod::Pod,
    service::{Service, serve_pod},
    traffic::echo::Server,
};

/// The pods, and the Service `web`.
#[derive(Debug)]
pub struct Scene {
    /// With nodes `n1` and `n2`.
    pub lab: Lab,
    /// The client, on `n1`.
    pub a: Pod,
    /// A server on `n1`.
    pub b: Pod,
    /// A server on `n2`.
    pub c: Pod,
    /// `web`, with some of the servers behind it.
    pub service: Service,
    /// Of `b` and `c`, for as long as this is held.
    pub servers: [[Server; 2]; 2],
}

impl Scene {
    /// Sets it up in a lab whose agents are healthy, with the named pods behind the Service, and waits until that is in force.
    ///
    /// # Errors
    /// Something could not be made, or doesn't come into force.
    pub fn set(lab: Lab, behind: &[&str]) -> Result<Self> {
        let (a, b, c) = (lab.pod("n1", "a")?, lab.pod("n1", "b")?, lab.pod("n2", "c")?);
        let servers = [serve_pod(&b)?, serve_pod(&c)?];
        let named = |name: &&str| [&b, &c].into_iter().find(|pod| pod.name == *name).context("no such server");
        let pods = behind.iter().map(named).collect::<Result<Vec<_>>>()?;
        let service = Service::create(&lab, "web", 210, &pods)?;
        Ok(Self { lab, a, b, c, service, servers })
    }
}
