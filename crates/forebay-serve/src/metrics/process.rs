//! What this process takes of the machine, from /proc.

use std::fs;

/// What this process takes of the machine.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Process {
    pub(crate) resident_bytes: u64,
    pub(crate) cpu_seconds: f64,
    pub(crate) threads: u64,
    pub(crate) open_fds: u64,
}

impl Process {
    /// As it is now; what the system does not say is 0.
    pub(crate) fn now() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // After the name in parentheses: state is field 3, utime and stime are 14 and 15.
        let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let ticks: u64 = after_name.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<u64>().ok()).sum();
        Self {
            resident_bytes: field("VmRSS:").unwrap_or(0) * 1024,
            // USER_HZ is 100 on every Linux that /proc was read on.
            cpu_seconds: ticks as f64 / 100.0,
            threads: field("Threads:").unwrap_or(0),
            open_fds: fs::read_dir("/proc/self/fd").map_or(0, |all| all.count().saturating_sub(1) as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_threads_and_descriptors() {
        let now = Process::now();
        assert!(now.resident_bytes > 100_000 && now.threads >= 1 && now.open_fds >= 3, "{now:?}");
    }
}
