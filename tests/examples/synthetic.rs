//! Writes a made-up cluster: `synthetic DIR NODES SERVICES ENDPOINTS`.

use anyhow::Context as _;
use shunt_lab::synthetic::Cluster;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().context("want DIR NODES SERVICES ENDPOINTS")?;
    let mut number = |what: &str| -> anyhow::Result<u32> {
        let text = arguments.next().with_context(|| format!("{what} is missing; want DIR NODES SERVICES ENDPOINTS"))?;
        text.parse().with_context(|| format!("{what} is {text:?}; want a number"))
    };
    let cluster = Cluster { nodes: number("NODES")?, services: number("SERVICES")?, endpoints: number("ENDPOINTS")? };
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {dir}"))?;
    cluster.write(dir.as_ref()).with_context(|| format!("cannot write to {dir}"))
}
