//! CPU time of the whole machine, by the kernel's accounting: a contender that keeps two cores busy doesn't look equal.

use std::{fs, time::Duration};

use anyhow::{Context, Result};

/// Time that all CPUs together have been busy since the machine started; ticks of 10 ms (proc_stat(5)).
///
/// # Errors
/// `/proc/stat` is not there or not as documented.
pub(crate) fn busy() -> Result<Duration> {
    let text = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    let ticks = busy_ticks(&text).context("/proc/stat does not begin with the times of all CPUs")?;
    Ok(Duration::from_millis(ticks * 1000 / ticks_per_second()))
}

/// All but idle, waiting for a disk, and what another guest of the host took.
fn busy_ticks(text: &str) -> Option<u64> {
    let mut fields = text.lines().next()?.strip_prefix("cpu ")?.split_whitespace().map_while(|field| field.parse::<u64>().ok());
    let [user, nice, system, _idle, _iowait, irq, softirq] = std::array::from_fn(|_| fields.next());
    Some(user? + nice? + system? + irq? + softirq?)
}

/// Of times in `/proc`.
pub(crate) fn ticks_per_second() -> u64 {
    // `_SC_CLK_TCK` is known on every Linux, and 100 on nearly all.
    nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten().map_or(100, i64::cast_unsigned).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_is_not_counted() {
        assert_eq!(busy_ticks("cpu  10 1 20 1000 50 3 4 7 0 0\ncpu0 1 2 3\n"), Some(38));
        assert_eq!(busy_ticks("cpu  10 1\n"), None);
        assert_eq!(busy_ticks(""), None);
        let before = busy().unwrap();
        assert!(busy().unwrap() >= before);
    }
}
