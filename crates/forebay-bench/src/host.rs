//! The machine: what it is, which two cores are used, and whether it is quiet enough to believe what it says.

use std::fs;

use forebay_os::{host, process};
use serde::Serialize;

/// What the figures were measured on.
#[derive(Debug, Clone, Serialize)]
pub struct Host {
    /// The processor's own name.
    pub cpu: String,
    /// How many there are for this process.
    pub cores: usize,
    /// Kernel release.
    pub kernel: String,
    /// Frequency governor, if the kernel shows one.
    pub governor: Option<String>,
    /// Page size, bytes.
    pub page_bytes: usize,
    /// Transparent huge pages in shared memory, as the kernel says it.
    pub shmem_huge: Option<String>,
    /// Core of the producer and of the first consumer.
    pub pinned: Option<(usize, usize)>,
    /// Version of forebay, and the commit if it was built from one.
    pub version: String,
}

impl Host {
    /// Looks around, and chooses two cores that are not two threads of one.
    #[must_use]
    pub fn look(version: &str) -> Self {
        let cores = process::allowed_cpus();
        Self {
            cpu: cpu_name(),
            cores: cores.len(),
            kernel: host::kernel_release(),
            governor: line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            page_bytes: process::page_size(),
            shmem_huge: line("/sys/kernel/mm/transparent_hugepage/shmem_enabled"),
            pinned: two_cores(&cores),
            version: version.to_owned(),
        }
    }
}

fn line(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn cpu_name() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let found = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    found.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

/// The first core, and the first that shares no execution units with it.
fn two_cores(cores: &[usize]) -> Option<(usize, usize)> {
    let &first = cores.first()?;
    let siblings = |cpu: usize| line(&format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"));
    let own = siblings(first);
    let apart = |&&cpu: &&usize| cpu != first && (own.is_none() || siblings(cpu) != own);
    let second = cores.iter().find(apart).or_else(|| cores.iter().find(|&&cpu| cpu != first))?;
    Some((first, *second))
}

/// What the machine did meanwhile, so that one can say how noisy it was.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Watch {
    steal: u64,
    total: u64,
    load: f64,
}

impl Watch {
    pub(crate) fn start() -> Self {
        let (steal, total) = cpu_times();
        let load = line("/proc/loadavg").and_then(|text| text.split(' ').next()?.parse().ok()).unwrap_or(0.0);
        Self { steal, total, load }
    }

    /// What speaks against the figures taken since: one sentence each. `floors` are the same floor at the beginning and at the
    /// end, ns.
    pub(crate) fn doubts(&self, cores: usize, floors: (u64, u64)) -> Vec<String> {
        let mut doubts = Vec::new();
        if cores < 2 {
            doubts.push("there is one core: producer and consumer take turns on it".to_owned());
        }
        if self.load > 0.3 * cores as f64 {
            doubts.push(format!("the load was {:.1} on {cores} cores before it began", self.load));
        }
        let (steal, total) = cpu_times();
        let stolen = 100.0 * (steal - self.steal) as f64 / (total - self.total).max(1) as f64;
        if stolen > 1.0 {
            doubts.push(format!("the hypervisor took {stolen:.1} % of the time"));
        }
        let (low, high) = (floors.0.min(floors.1), floors.0.max(floors.1));
        if high as f64 > 1.25 * low.max(1) as f64 {
            doubts.push(format!("a cache line took {} ns at the beginning and {} ns at the end", floors.0, floors.1));
        }
        doubts
    }
}

/// Stolen and all jiffies of all cores.
fn cpu_times() -> (u64, u64) {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields: Vec<u64> =
        stat.lines().next().unwrap_or("").split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    (fields.get(7).copied().unwrap_or(0), fields.iter().take(8).sum())
}
