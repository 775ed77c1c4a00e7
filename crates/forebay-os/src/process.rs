//! Questions about this process and about others by pid. Pids are for people to read only: they mean
//! nothing across namespaces and are used again, so nothing here decides whether a peer lives.

use std::fs;

use rustix::rand::{GetRandomFlags, getrandom};

use crate::error::retry;

/// The pid of this process, in its own namespace.
#[must_use]
pub fn my_pid() -> u32 {
    std::process::id()
}

/// The effective user of this process: the owner of what it creates.
#[must_use]
pub fn uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The effective group of this process.
#[must_use]
pub fn gid() -> u32 {
    rustix::process::getegid().as_raw()
}

/// The short name of the program that runs as `pid`, if there is one and `/proc` shows it.
#[must_use]
pub fn comm_of(pid: u32) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(&bytes).trim_end().to_owned())
}

/// When `pid` was started, in clock ticks since boot: with the pid it names a process for good.
#[must_use]
pub fn start_time_of(pid: u32) -> Option<u64> {
    let bytes = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    // The name may contain blanks and brackets; the fields are counted from the last bracket.
    // `starttime` is field 22 of proc_pid_stat(5), and the one behind the bracket is field 3.
    let (_, fields) = text.rsplit_once(')')?;
    fields.split_whitespace().nth(22 - 3)?.parse().ok()
}

/// 128 random bits from the kernel, for ids that must not repeat.
///
/// # Panics
/// If the kernel has no random bytes to give, which is documented not to happen once it has booted;
/// an id that is not unique would be worse.
#[must_use]
pub fn random_u128() -> u128 {
    let mut bytes = [0_u8; 16];
    let got = retry(|| getrandom(&mut bytes[..], GetRandomFlags::empty()));
    assert_eq!(got, Ok(bytes.len()), "getrandom gave no 16 bytes");
    u128::from_ne_bytes(bytes)
}

/// The size of a page of this kernel, in bytes.
#[must_use]
pub fn page_size() -> usize {
    rustix::param::page_size()
}

/// The CPUs that this thread may run on, ascending.
#[must_use]
pub fn allowed_cpus() -> Vec<usize> {
    let set = rustix::thread::sched_getaffinity(None).unwrap_or_else(|_| rustix::thread::CpuSet::new());
    (0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect()
}

/// Keeps this thread on one CPU; `None` leaves it as it is. False if it was not to be, and the thread runs where it may.
#[must_use = "a thread that is not pinned still runs"]
pub fn pin(cpu: Option<usize>) -> bool {
    let Some(cpu) = cpu else { return true };
    let mut set = rustix::thread::CpuSet::new();
    if cpu < rustix::thread::CpuSet::MAX_CPU {
        set.set(cpu);
    }
    rustix::thread::sched_setaffinity(None, &set).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_may_run_there_and_nowhere_else() {
        std::thread::spawn(|| {
            let last = *allowed_cpus().last().unwrap();
            assert!(pin(Some(last)) && pin(None));
            assert_eq!(allowed_cpus(), [last]);
            assert!(!pin(Some(usize::MAX)));
        })
        .join()
        .unwrap();
    }

    #[test]
    fn own_process_is_found_by_pid() {
        assert!(comm_of(my_pid()).is_some_and(|name| !name.is_empty()));
        assert!(start_time_of(my_pid()).is_some_and(|ticks| ticks > 0));
    }

    #[test]
    fn a_pid_that_cannot_exist_has_no_name() {
        assert_eq!(comm_of(u32::MAX), None);
        assert_eq!(start_time_of(u32::MAX), None);
    }

    #[test]
    fn random_ids_differ() {
        assert_ne!(random_u128(), random_u128());
    }

    #[test]
    fn page_size_is_a_power_of_two() {
        assert!(page_size().is_power_of_two() && page_size() >= 4096);
    }
}
