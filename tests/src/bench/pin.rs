//! Threads on one CPU.

use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

/// The CPU that senders and receivers share: not the first, which takes most interrupts.
pub(crate) fn cpu() -> usize {
    usize::from(std::thread::available_parallelism().is_ok_and(|count| count.get() > 1))
}

/// Pins the calling thread to [`cpu`].
pub(crate) fn here() {
    let mut set = CpuSet::new();
    // A machine that forbids it measures with more noise, not wrongly.
    let _ = set.set(cpu()).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
}
