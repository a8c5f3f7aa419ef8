//! Requests of the socket, each a call on the state.

use std::{sync::Arc, time::Instant};

use tokio::sync::{Mutex, broadcast};

use crate::{
    attachment::Pod,
    metrics::instruments::{CniRequest, Instruments},
    socket::{
        protocol::{MonitorEvent, PodAdd, PodAdded, PodAttach, PodCheck, PodDelete, PodGc, PodGcDone, Refusal, Status},
        server::Handler,
    },
};

use super::state::State;

/// The state, shared with the loop.
#[derive(Clone)]
pub(super) struct Requests {
    pub(super) state: Arc<Mutex<State>>,
    pub(super) instruments: Arc<Instruments>,
}

impl Requests {
    /// A request of the plugin, counted and timed.
    async fn counted<T>(&self, request: CniRequest, call: impl FnOnce(&mut State) -> Result<T, Refusal>) -> Result<T, Refusal> {
        let start = Instant::now();
        let outcome = call(&mut *self.state.lock().await);
        let word = outcome.as_ref().err().map_or("ok", |refusal| refusal.reason.name());
        self.instruments.answered(request, word, start.elapsed());
        outcome
    }
}

impl Handler for Requests {
    async fn status(&self) -> Result<Status, Refusal> {
        Ok(self.state.lock().await.status())
    }

    async fn ready(&self) -> Result<(), Refusal> {
        self.state.lock().await.ready()
    }

    async fn pods(&self) -> Result<Vec<Pod>, Refusal> {
        Ok(self.state.lock().await.pods())
    }

    async fn pod_add(&self, request: PodAdd) -> Result<PodAdded, Refusal> {
        self.counted(CniRequest::PodAdd, |state| state.pod_add(&request)).await
    }

    async fn pod_attach(&self, request: PodAttach) -> Result<(), Refusal> {
        self.counted(CniRequest::PodAttach, |state| state.pod_attach(&request)).await
    }

    async fn pod_check(&self, request: PodCheck) -> Result<PodAdded, Refusal> {
        self.counted(CniRequest::PodCheck, |state| state.pod_check(&request)).await
    }

    async fn pod_delete(&self, request: PodDelete) -> Result<(), Refusal> {
        self.counted(CniRequest::PodDelete, |state| state.pod_delete(&request.attachment)).await
    }

    async fn pod_gc(&self, request: PodGc) -> Result<PodGcDone, Refusal> {
        self.counted(CniRequest::PodGc, |state| state.pod_gc(&request)).await
    }

    async fn monitor(&self) -> Result<broadcast::Receiver<MonitorEvent>, Refusal> {
        self.state.lock().await.monitor()
    }
}
