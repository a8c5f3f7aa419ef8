//! Threads on one CPU.

use std::{io, thread};

use anyhow::{Context, Result, anyhow};
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

/// Does something on a thread of its own that, like all that it starts, gives up the CPU only when it has nothing to do or its time is over
/// (SCHED_BATCH, sched(7)). Two that stream to each other on one CPU otherwise have two speeds, one about half of the other: whoever is woken
/// by each piece of data preempts the other or doesn't, as chance has it.
pub(crate) fn in_batches<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let on_thread = || {
        let param = libc::sched_param { sched_priority: 0 };
        // SAFETY: changes the calling thread alone, and reads the parameter, which outlives the call.
        if unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const param) } != 0 {
            return Err(io::Error::last_os_error()).context("the scheduler refuses SCHED_BATCH");
        }
        work()
    };
    thread::scope(|scope| scope.spawn(on_thread).join()).map_err(|_| anyhow!("what ran in batches panicked"))?
}
