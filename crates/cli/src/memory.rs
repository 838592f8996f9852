//! What the operating system says about memory and the processor.

/// The largest resident set so far, in MiB; `None` where the system does not tell (anything but Linux).
pub(crate) fn peak_rss_mib() -> Option<f64> {
    Some(kib("/proc/self/status", "VmHWM:")? as f64 / 1024.0)
}

/// Bytes of memory of this machine; `None` where the system does not tell (anything but Linux).
pub(crate) fn total_bytes() -> Option<u64> {
    Some(kib("/proc/meminfo", "MemTotal:")? * 1024)
}

/// Bytes that may still be taken without pushing others out; `None` where the system does not tell.
pub(crate) fn available_bytes() -> Option<u64> {
    Some(kib("/proc/meminfo", "MemAvailable:")? * 1024)
}

/// What the processor calls itself; `None` where the system does not tell.
pub(crate) fn processor() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let (_, name) = text.lines().find(|line| line.starts_with("model name"))?.split_once(':')?;
    Some(name.trim().to_owned())
}

/// The number of a line such as `MemTotal:  24 kB`.
fn kib(file: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}
