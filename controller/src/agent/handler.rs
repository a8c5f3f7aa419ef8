//! Requests of the socket, each a call on the state.

use std::sync::Arc;

use tokio::sync::{Mutex, broadcast};

use crate::{
    attachment::Pod,
    socket::{
        protocol::{MonitorEvent, PodAdd, PodAdded, PodAttach, PodCheck, PodDelete, PodGc, PodGcDone, Refusal, Status},
        server::Handler,
    },
};

use super::state::State;

/// The state, shared with the loop.
#[derive(Clone)]
pub(super) struct Requests(pub(super) Arc<Mutex<State>>);

impl Handler for Requests {
    async fn status(&self) -> Result<Status, Refusal> {
        Ok(self.0.lock().await.status())
    }

    async fn ready(&self) -> Result<(), Refusal> {
        self.0.lock().await.ready()
    }

    async fn pods(&self) -> Result<Vec<Pod>, Refusal> {
        Ok(self.0.lock().await.pods())
    }

    async fn pod_add(&self, request: PodAdd) -> Result<PodAdded, Refusal> {
        self.0.lock().await.pod_add(&request)
    }

    async fn pod_attach(&self, request: PodAttach) -> Result<(), Refusal> {
        self.0.lock().await.pod_attach(&request.attachment)
    }

    async fn pod_check(&self, request: PodCheck) -> Result<PodAdded, Refusal> {
        self.0.lock().await.pod_check(&request)
    }

    async fn pod_delete(&self, request: PodDelete) -> Result<(), Refusal> {
        self.0.lock().await.pod_delete(&request.attachment)
    }

    async fn pod_gc(&self, request: PodGc) -> Result<PodGcDone, Refusal> {
        self.0.lock().await.pod_gc(&request)
    }

    async fn monitor(&self) -> Result<broadcast::Receiver<MonitorEvent>, Refusal> {
        self.0.lock().await.monitor()
    }
}
