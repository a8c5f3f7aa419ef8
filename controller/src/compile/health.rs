//! What load balancers are told about Services that keep outside traffic on the node (`healthCheckNodePort`): the data, not the server
//! (`http/health_check.rs` words it, `agent/health_checks.rs` listens).

use crate::model::ObjectName;

/// The state of a Service on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The Service.
    pub service: ObjectName,
    /// Ready endpoints of this node, by address. Healthy if there are any.
    pub local_ready: u32,
    /// None is ready, but some of this node are on their way out and still answer: they are used, and the balancer is told to go.
    pub only_terminating: bool,
}
