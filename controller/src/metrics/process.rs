//! The process as everybody's dashboards have it, from /proc/self.

use std::{fs, io};

use nix::{
    sys::resource::{Resource, getrlimit},
    unistd::{SysconfVar, sysconf},
};

use super::exposition::Exposition;

/// What the kernel says of this process.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Process {
    /// User and system.
    cpu_seconds: f64,
    /// Since the machine's start.
    start_seconds: f64,
    virtual_bytes: u64,
    resident_bytes: u64,
}

/// Puts what can be read into a scrape.
pub fn put_into(exposition: &mut Exposition) {
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100) as f64;
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096) as u64;
    let stat = fs::read_to_string("/proc/self/stat").ok();
    if let Some(process) = stat.and_then(|text| parse(&text, per_second, page)) {
        exposition.put(super::PROCESS_CPU, &[], process.cpu_seconds);
        exposition.put(super::PROCESS_VIRTUAL_MEMORY, &[], process.virtual_bytes);
        exposition.put(super::PROCESS_RESIDENT_MEMORY, &[], process.resident_bytes);
        if let Ok(boot) = boot_time() {
            exposition.put(super::PROCESS_START_TIME, &[], boot + process.start_seconds);
        }
    }
    // The directory is open itself while it is read.
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        exposition.put(super::PROCESS_OPEN_FDS, &[], open.count().saturating_sub(1));
    }
    if let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
        exposition.put(super::PROCESS_MAX_FDS, &[], soft);
    }
}

/// Fields of proc_pid_stat(5); the name in parentheses, which may hold anything, is skipped.
fn parse(stat: &str, ticks_per_second: f64, page: u64) -> Option<Process> {
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // The first of them is the third of the line.
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some(Process {
        cpu_seconds: (field(14)? + field(15)?) as f64 / ticks_per_second,
        start_seconds: field(22)? as f64 / ticks_per_second,
        virtual_bytes: field(23)?,
        resident_bytes: field(24)? * page,
    })
}

/// When the machine started, seconds since 1970.
fn boot_time() -> io::Result<f64> {
    let text = fs::read_to_string("/proc/stat")?;
    let line = text.lines().find_map(|line| line.strip_prefix("btime "));
    line.and_then(|seconds| seconds.trim().parse().ok()).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

#[cfg(test)]
mod tests {
    use super::{super::exposition::Format, *};

    #[test]
    fn a_name_with_parentheses_and_spaces_is_skipped() {
        let stat = "42 (a) (b c)) S 1 2 3 4 5 6 7 8 9 10 250 150 0 0 20 0 3 0 12345 1000000 25 18446744073709551615 1";
        let process = Process { cpu_seconds: 4.0, start_seconds: 123.45, virtual_bytes: 1_000_000, resident_bytes: 102_400 };
        assert_eq!(parse(stat, 100.0, 4096), Some(process));
        assert_eq!(parse("42 (a) S 1", 100.0, 4096), None);
        assert_eq!(parse("", 100.0, 4096), None);
    }

    #[test]
    fn this_process_is_measured() {
        let mut exposition = Exposition::default();
        put_into(&mut exposition);
        let text = exposition.text(Format::Plain).unwrap();
        let value = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
            line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
        };
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        let started = value("process_start_time_seconds");
        assert!(started <= now + 1.0 && started > now - 3600.0, "{started} is not shortly before {now}");
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_open_fds") >= 3.0 && value("process_open_fds") <= value("process_max_fds"));
        assert!(value("process_cpu_seconds_total") >= 0.0);
    }
}
