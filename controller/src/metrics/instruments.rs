//! What is counted as it happens, by whoever makes it happen. Observing never waits.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use super::exposition::Exposition;
use crate::diff::audit::Finding;

/// Requests of the CNI plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CniRequest {
    /// The first phase of an ADD.
    PodAdd,
    /// The second phase of an ADD.
    PodAttach,
    /// CHECK.
    PodCheck,
    /// DEL.
    PodDelete,
    /// GC.
    PodGc,
}

impl CniRequest {
    const ALL: [Self; 5] = [Self::PodAdd, Self::PodAttach, Self::PodCheck, Self::PodDelete, Self::PodGc];

    fn name(self) -> &'static str {
        match self {
            Self::PodAdd => "pod_add",
            Self::PodAttach => "pod_attach",
            Self::PodCheck => "pod_check",
            Self::PodDelete => "pod_delete",
            Self::PodGc => "pod_gc",
        }
    }
}

/// Counters and histograms of one agent.
#[derive(Debug)]
pub struct Instruments {
    started: SystemTime,
    sync_duration: Histogram,
    sync_wait: Histogram,
    sync_failures: AtomicU64,
    sync_steps: AtomicU64,
    /// Milliseconds since 1970, 0 if never.
    last_sync: AtomicU64,
    audits_as_known: AtomicU64,
    audits_different: AtomicU64,
    programming: Histogram,
    sweep_duration: Histogram,
    swept: AtomicU64,
    /// Entries that the last whole sweep left, and those that fit; nothing before it.
    conntrack: Mutex<Option<(u64, u32)>>,
    cni: Mutex<BTreeMap<(CniRequest, &'static str), u64>>,
    cni_duration: [Histogram; CniRequest::ALL.len()],
}

impl Default for Instruments {
    fn default() -> Self {
        // 0.1 ms to 6.5 s; a change takes some tenths of a millisecond, the start with a large cluster some seconds.
        let fast = || Histogram::new(exponential_buckets(0.0001, 2.0, 17));
        Self {
            started: SystemTime::now(),
            sync_duration: fast(),
            sync_wait: fast(),
            sync_failures: AtomicU64::new(0),
            sync_steps: AtomicU64::new(0),
            last_sync: AtomicU64::new(0),
            audits_as_known: AtomicU64::new(0),
            audits_different: AtomicU64::new(0),
            programming: Histogram::new(programming_buckets()),
            sweep_duration: fast(),
            swept: AtomicU64::new(0),
            conntrack: Mutex::new(None),
            cni: Mutex::new(CniRequest::ALL.map(|request| ((request, "ok"), 0)).into()),
            cni_duration: CniRequest::ALL.map(|_| fast()),
        }
    }
}

/// kube-proxy's buckets: 0.25 and 0.5 s, each second up to a minute, then coarser, up to 5 minutes.
fn programming_buckets() -> impl Iterator<Item = f64> {
    let seconds = (1..60).chain((60..120).step_by(5)).chain((120..=300).step_by(30));
    [0.25, 0.5].into_iter().chain(seconds.map(f64::from))
}

impl Instruments {
    /// Cluster state came into force.
    pub fn synced(&self, duration: Duration, steps: u64, at: SystemTime) {
        self.sync_duration.observe(duration.as_secs_f64());
        self.sync_steps.fetch_add(steps, Relaxed);
        let at = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        self.last_sync.store(u64::try_from(at).unwrap_or(u64::MAX), Relaxed);
    }

    /// A change of the cluster state was there this long before anything could be done about it.
    pub fn waited(&self, duration: Duration) {
        self.sync_wait.observe(duration.as_secs_f64());
    }

    /// Cluster state could not be brought into force.
    pub fn sync_failed(&self) {
        self.sync_failures.fetch_add(1, Relaxed);
    }

    /// Maps and host routes were looked over.
    pub fn audited(&self, finding: Finding) {
        match finding {
            Finding::GoesOn => {}
            Finding::AsKnown => {
                self.audits_as_known.fetch_add(1, Relaxed);
            }
            Finding::Differs => {
                self.audits_different.fetch_add(1, Relaxed);
            }
        }
    }

    /// A change that was triggered at `trigger` is in force. What was triggered before our start says nothing of us: it was found, not
    /// followed.
    pub fn programmed(&self, trigger: SystemTime, now: SystemTime) {
        if trigger >= self.started {
            // A clock that is ahead elsewhere makes no negative time.
            self.programming.observe(now.duration_since(trigger).unwrap_or_default().as_secs_f64());
        }
    }

    /// A round of the sweep ended; `left` are the entries that the last whole sweep left, of the `capacity` that fit.
    pub fn swept(&self, duration: Duration, removed: u64, left: u64, capacity: u32) {
        self.sweep_duration.observe(duration.as_secs_f64());
        self.swept.fetch_add(removed, Relaxed);
        *lock(&self.conntrack) = Some((left, capacity));
    }

    /// A request of the CNI plugin was answered; `outcome` is `ok` or the refusal's reason.
    pub fn answered(&self, request: CniRequest, outcome: &'static str, duration: Duration) {
        *lock(&self.cni).entry((request, outcome)).or_default() += 1;
        if let Some(histogram) = self.cni_duration.get(request as usize) {
            histogram.observe(duration.as_secs_f64());
        }
    }

    /// Puts everything into a scrape.
    pub fn put_into(&self, exposition: &mut Exposition) {
        exposition.put(super::SYNC_DURATION, &[], &self.sync_duration);
        exposition.put(super::SYNC_WAIT, &[], &self.sync_wait);
        exposition.put(super::SYNC_FAILURES, &[], self.sync_failures.load(Relaxed));
        exposition.put(super::SYNC_STEPS, &[], self.sync_steps.load(Relaxed));
        exposition.put(super::AUDITS, &["as_known"], self.audits_as_known.load(Relaxed));
        exposition.put(super::AUDITS, &["differs"], self.audits_different.load(Relaxed));
        match self.last_sync.load(Relaxed) {
            0 => {}
            ms => exposition.put(super::SYNC_LAST_SUCCESS, &[], ms as f64 / 1000.0),
        }
        exposition.put(super::NETWORK_PROGRAMMING, &[], &self.programming);
        exposition.put(super::SWEEP_DURATION, &[], &self.sweep_duration);
        exposition.put(super::SWEEP_REMOVED, &[], self.swept.load(Relaxed));
        if let Some((entries, capacity)) = *lock(&self.conntrack) {
            exposition.put(super::MAP_ENTRIES, &["conntrack"], entries);
            exposition.put(super::MAP_CAPACITY, &["conntrack"], capacity);
        }
        for ((request, outcome), count) in &*lock(&self.cni) {
            exposition.put(super::CNI_REQUESTS, &[request.name(), outcome], *count);
        }
        for (request, histogram) in CniRequest::ALL.iter().zip(&self.cni_duration) {
            exposition.put(super::CNI_DURATION, &[request.name()], histogram);
        }
    }
}

/// Nobody panics while holding one; what they count is good either way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::{super::exposition::Format, *};

    fn text(instruments: &Instruments) -> String {
        let mut exposition = Exposition::default();
        instruments.put_into(&mut exposition);
        exposition.text(Format::Plain).unwrap()
    }

    #[test]
    fn programming_has_kube_proxys_buckets() {
        let buckets: Vec<f64> = programming_buckets().collect();
        assert_eq!(buckets.len(), 2 + 59 + 12 + 7);
        assert_eq!(buckets[..4], [0.25, 0.5, 1.0, 2.0]);
        assert_eq!(buckets[59..63], [58.0, 59.0, 60.0, 65.0]);
        assert_eq!(buckets[72..], [115.0, 120.0, 150.0, 180.0, 210.0, 240.0, 270.0, 300.0]);
    }

    #[test]
    fn what_was_triggered_before_our_start_is_not_our_latency() {
        let instruments = Instruments::default();
        let start = instruments.started;
        instruments.programmed(start - Duration::from_secs(1), start + Duration::from_secs(5));
        assert!(text(&instruments).contains("shunt_network_programming_duration_seconds_count 0\n"));
        instruments.programmed(start + Duration::from_secs(1), start + Duration::from_millis(1300));
        instruments.programmed(start + Duration::from_secs(9), start + Duration::from_secs(8));
        let text = text(&instruments);
        assert!(text.contains("shunt_network_programming_duration_seconds_count 2\n"), "{text}");
        assert!(text.contains("shunt_network_programming_duration_seconds_bucket{le=\"0.25\"} 1\n"), "{text}");
        assert!(text.contains("shunt_network_programming_duration_seconds_bucket{le=\"0.5\"} 2\n"), "{text}");
    }

    #[test]
    fn requests_are_told_apart_by_outcome() {
        let instruments = Instruments::default();
        instruments.answered(CniRequest::PodGc, "ok", Duration::from_micros(150));
        instruments.answered(CniRequest::PodAdd, "not_ready", Duration::from_secs(30));
        let text = text(&instruments);
        for line in [
            "shunt_cni_requests_total{request=\"pod_gc\",outcome=\"ok\"} 1",
            "shunt_cni_requests_total{request=\"pod_add\",outcome=\"ok\"} 0",
            "shunt_cni_requests_total{request=\"pod_add\",outcome=\"not_ready\"} 1",
            "shunt_cni_request_duration_seconds_bucket{le=\"0.0001\",request=\"pod_gc\"} 0",
            "shunt_cni_request_duration_seconds_bucket{le=\"0.0002\",request=\"pod_gc\"} 1",
            "shunt_cni_request_duration_seconds_bucket{le=\"+Inf\",request=\"pod_add\"} 1",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line} is not in\n{text}");
        }
    }
}
