//! Pods as kubelet makes them: a namespace, then the CNI plugin.

use std::{net::Ipv4Addr, process::Output};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::{
    command,
    netns::Netns,
    node::{Node, shunt_binary},
};

/// The CNI version that the lab speaks unless a test says otherwise.
pub const CNI_VERSION: &str = "1.1.0";

/// A pod on a node of ours.
#[derive(Debug)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// The node it is on.
    pub node: String,
    /// Its namespace.
    pub netns: Netns,
    /// Its address.
    pub address: Ipv4Addr,
    /// The sandbox's id, as the runtime names it.
    pub container: String,
    /// What the plugin answered.
    pub result: Value,
}

/// One call of the plugin.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    /// `ADD`, `DEL`, `CHECK`, `GC`, `STATUS` or `VERSION`.
    pub command: &'a str,
    /// `CNI_CONTAINERID`; empty to leave it out, as for `GC` and `STATUS`.
    pub container: &'a str,
    /// `CNI_NETNS`; empty to leave it out.
    pub netns: &'a str,
    /// The pod's name for `CNI_ARGS`.
    pub pod: &'a str,
    /// Merged over the network configuration.
    pub extra: Value,
}

impl Call<'_> {
    /// Calls the plugin of a node, in the node's namespace, as a runtime on it would.
    ///
    /// # Errors
    /// It could not be started.
    pub fn on(&self, node: &Node) -> Result<Output> {
        let mut config = json!({ "cniVersion": CNI_VERSION, "name": "shunt", "type": "shunt", "agentSocket": node.socket() });
        if let (Some(config), Value::Object(extra)) = (config.as_object_mut(), &self.extra) {
            config.extend(extra.clone());
        }
        let mut command = node.netns.command(shunt_binary()?);
        command.env("CNI_COMMAND", self.command).env("CNI_PATH", "/opt/cni/bin");
        for (key, value) in [("CNI_CONTAINERID", self.container), ("CNI_NETNS", self.netns)] {
            if value.is_empty() {
                command.env_remove(key);
            } else {
                command.env(key, value);
            }
        }
        if !self.container.is_empty() {
            command.env("CNI_IFNAME", "eth0");
        }
        if !self.pod.is_empty() {
            let args = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={}", self.pod);
            command.env("CNI_ARGS", args);
        }
        command::run_with_input(&mut command, config.to_string().as_bytes())
    }
}

/// The answer of a call that must succeed.
///
/// # Errors
/// It did not; with the plugin's own words.
pub fn answer(output: &Output) -> Result<Value> {
    if !output.status.success() {
        bail!(
            "the plugin refused: {} {}",
            String::from_utf8_lossy(&output.stdout).trim(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    if output.stdout.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&output.stdout).context("the plugin's answer is no JSON")
}

impl Pod {
    /// Makes one.
    ///
    /// # Errors
    /// The plugin refused.
    pub fn add(node: &Node, name: &str) -> Result<Self> {
        Self::add_with(node, name, Value::Null)
    }

    /// Makes one by a network configuration that says more.
    ///
    /// # Errors
    /// The plugin refused.
    pub fn add_with(node: &Node, name: &str, extra: Value) -> Result<Self> {
        let netns = node.netns.create_beside(&format!("{}-{name}", node.netns.name()))?;
        let container = format!("{}-{name}-sandbox", node.netns.name());
        let path = netns.path().display().to_string();
        let call = Call { command: "ADD", container: &container, netns: &path, pod: name, extra };
        let result = answer(&call.on(node)?).with_context(|| format!("ADD of pod {name} on {}", node.name))?;
        let address = result["ips"][0]["address"].as_str().and_then(|text| text.split('/').next()?.parse().ok());
        let address = address.with_context(|| format!("the answer to ADD has no address: {result}"))?;
        Ok(Self { name: name.to_owned(), node: node.name.clone(), netns, address, container, result })
    }

    /// Removes it, as the runtime does: DEL, then the namespace.
    ///
    /// # Errors
    /// The plugin refused.
    pub fn delete(self, node: &Node) -> Result<()> {
        let path = self.netns.path().display().to_string();
        let call = Call { command: "DEL", container: &self.container, netns: &path, pod: &self.name, extra: Value::Null };
        answer(&call.on(node)?).with_context(|| format!("DEL of pod {}", self.name))?;
        crate::netns::remove(self.netns.name())
    }
}
