//! What the system says about memory: how much this process may use (the machine's, or less where a control group
//! limits it), and how much it uses. Known on Linux only. What a plan needs is not here but in [`crate::Plan`].

use std::path::{Path, PathBuf};

pub use remote_vae_kernels::allocator::{give_back_freed, keep_one_heap};

/// The memory that this process may use, in bytes: the machine's, or the least limit of its control groups. None where
/// the system does not say.
pub fn limit_bytes() -> Option<u64> {
    limit_below(Path::new("/"))
}

/// The memory that this process plans for where nobody says how much it may hold: 80 % of [`limit_bytes`].
pub fn default_budget() -> Option<u64> {
    limit_bytes().map(|bytes| bytes / 5 * 4)
}

/// Bytes that may still be taken without pushing others out. None where the system does not say.
pub fn available_bytes() -> Option<u64> {
    counted(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
}

/// Bytes of this process that are in memory now. None where the system does not say.
pub fn resident_bytes() -> Option<u64> {
    counted(&std::fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

/// The most bytes of this process that were in memory at one time so far. None where the system does not say.
pub fn peak_resident_bytes() -> Option<u64> {
    counted(&std::fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// The least of the machine's memory and of the limits of the process' control groups, in bytes. `root` is `/` but in
/// tests.
fn limit_below(root: &Path) -> Option<u64> {
    if !cfg!(target_os = "linux") {
        return None;
    }
    let total = counted(&std::fs::read_to_string(root.join("proc/meminfo")).ok()?, "MemTotal:");
    let groups = std::fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let limits = groups.lines().filter_map(|line| group(root, line));
    total.into_iter().chain(limits).min()
}

/// The bytes of a line such as `MemTotal:  24 kB`; these files count in KiB.
fn counted(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The least limit on the way from the group that a line `ID:CONTROLLERS:PATH` names to the top. Version 2 has one
/// line without controllers, version 1 a line for memory. In a container the path may be the host's; its own limit is
/// then at the top.
fn group(root: &Path, line: &str) -> Option<u64> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (controllers, path) = (parts.next()?, parts.next()?);
    let (top, file) = if controllers.is_empty() {
        ("sys/fs/cgroup", "memory.max")
    } else if controllers.split(',').any(|controller| controller == "memory") {
        ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
    } else {
        return None;
    };
    let parts = path.split('/').filter(|part| !part.is_empty() && *part != "..");
    let mut folder: PathBuf = root.join(top);
    let mut folders = vec![folder.clone()];
    for part in parts {
        folder.push(part);
        folders.push(folder.clone());
    }
    // `max`, and version 1's huge number, mean no limit: the first is no number, the second more than any machine has.
    let read = |folder: PathBuf| std::fs::read_to_string(folder.join(file)).ok()?.trim().parse::<u64>().ok();
    folders.into_iter().filter_map(read).min()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// What `limit_below` finds among these files.
    fn found(name: &str, files: &[(&str, &str)]) -> Option<u64> {
        let root = std::env::temp_dir().join(format!("remote-vae-memory-{}-{name}", std::process::id()));
        for (path, text) in files {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let found = limit_below(&root);
        let _ = std::fs::remove_dir_all(&root);
        found
    }

    #[test]
    fn the_least_limit_counts() {
        const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal:        1000 kB\nMemFree:          10 kB\n");
        let v2 = ("proc/self/cgroup", "0::/system/ours\n");
        assert_eq!(found("none", &[]), None);
        assert_eq!(found("machine", &[MEMINFO]), Some(1_024_000));
        let max = ("sys/fs/cgroup/system/ours/memory.max", "max\n");
        assert_eq!(found("max", &[MEMINFO, v2, max]), Some(1_024_000));
        let own = ("sys/fs/cgroup/system/ours/memory.max", "500000\n");
        assert_eq!(found("own", &[MEMINFO, v2, own]), Some(500_000));
        let parent = ("sys/fs/cgroup/system/memory.max", "400000\n");
        assert_eq!(found("parent", &[MEMINFO, v2, own, parent]), Some(400_000));
        let top = ("sys/fs/cgroup/memory.max", "300000\n");
        assert_eq!(found("top", &[MEMINFO, v2, top]), Some(300_000));
        let v1 = ("proc/self/cgroup", "9:cpu,cpuacct:/x\n4:memory:/docker/abc\n");
        let limit = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "200000\n");
        assert_eq!(found("v1", &[MEMINFO, v1, limit]), Some(200_000));
        let unlimited = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(found("v1-unlimited", &[MEMINFO, v1, unlimited]), Some(1_024_000));
    }

    #[test]
    fn this_machine_says() {
        let (limit, now) = (limit_bytes().unwrap(), resident_bytes().unwrap());
        assert!(limit > 1 << 20 && available_bytes().unwrap() > 0);
        assert!(0 < now && now <= peak_resident_bytes().unwrap());
    }
}
