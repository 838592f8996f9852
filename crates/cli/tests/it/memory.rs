//! What the program says about memory, and what it does where there is too little.
#![cfg(target_os = "linux")]

use serde_json::Value;

use crate::support::*;

fn golden(name: &str) -> String {
    format!("{}/../engine/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn parsed(arguments: &[&str]) -> Value {
    let arguments = [arguments, &["--threads", "2", "--json"]].concat();
    serde_json::from_str(&stdout(&std::env::temp_dir(), &arguments)).unwrap()
}

/// The table in `docs/memory.md`; `-- --nocapture` prints it.
#[test]
fn the_expected_peak_is_that_of_the_process() {
    const MIB: f64 = (1 << 20) as f64;
    let models = [("embedded", "embedded".to_owned()), ("sd15", golden("sd15")), ("tiny", golden("tiny"))];
    let cases: [(usize, &str, &[&str]); 20] = [
        (0, "512x512", &[]),
        (1, "512x512", &["--precision", "fast"]),
        (2, "512x512", &["--op", "encode"]),
        (0, "768x512", &["--precision", "fast"]),
        (1, "1024x1024", &[]),
        (2, "1024x768", &[]),
        (0, "512x512", &["--op", "encode"]),
        (1, "1024x512", &["--op", "encode", "--precision", "fast"]),
        (2, "1536x1024", &["--precision", "fast"]),
        (0, "328x520", &[]),
        (1, "1032x1096", &["--precision", "fast"]),
        (2, "520x1032", &[]),
        (0, "768x768", &["--memory-budget", "160MiB"]),
        (1, "1152x1152", &["--memory-budget", "160MiB"]),
        (2, "1024x1024", &["--op", "encode", "--precision", "fast"]),
        (0, "1024x256", &["--op", "encode", "--precision", "fast"]),
        (1, "2048x512", &["--precision", "fast"]),
        (2, "2048x1024", &[]),
        (0, "256x1024", &["--precision", "fast", "--memory-budget", "96MiB"]),
        (1, "1024x1024", &["--op", "encode"]),
    ];
    let mut wrong = Vec::new();
    for (model, size, more) in cases {
        let (name, source) = &models[model];
        let encodes = more.contains(&"encode");
        let others = if encodes { &more[2..] } else { more };
        let half: &[&str] = if encodes { &["--encode"] } else { &[] };
        let plan = parsed(&[&["plan", source, "--size", size], half, others].concat());
        let expected = plan["expected_peak_bytes"].as_u64().unwrap() as f64 / MIB;
        let run = parsed(&[&["bench", "--model", source, "--size", size, "--runs", "1"], more].concat());
        let measured = run["peak_rss_mib"].as_f64().unwrap();
        let line = format!("| {name} | {size} {} | {expected:.0} | {measured:.0} |", more.join(" "));
        eprintln!("{line}");
        if (measured - expected).abs() > (expected * 0.05).max(16.0) {
            wrong.push(line);
        }
    }
    assert!(wrong.is_empty(), "expected and measured MiB differ by more than 16 and 5 %: {wrong:#?}");
}

/// `remote-vae bench --budgets` is what the table of times in `docs/memory.md` comes from.
#[test]
fn the_curve_goes_down_to_the_smallest_budget_with_the_same_bytes() {
    let bench = |more: &[&str]| parsed(&[&["bench", "--size=520x392", "--runs=1"], more].concat());
    let rows = bench(&["--precision=fast", "--budgets"]);
    let rows = rows.as_array().unwrap();
    assert!(rows.len() > 2 && rows[0]["budget_mib"].is_null() && rows[0]["ratio"] == 1.0);
    let mib = |row: &Value, key: &str| row[key].as_f64().unwrap();
    let mut before = f64::INFINITY;
    for row in &rows[1..] {
        let (budget, planned) = (mib(row, "budget_mib"), mib(row, "planned_peak_mib"));
        // What the process holds before any work is a little more when the run begins than when it is planned.
        assert!(row["has_same_bytes"] == true && planned <= budget + 2.0 && budget < before, "{row}");
        before = budget;
    }
    // Beside what another process holds before any work, there is no room for anything below the last.
    let less = format!("--memory-budget={}MiB", before as u64 - 4);
    let (code, message) =
        failure(&std::env::temp_dir(), &["bench", "--size=520x392", "--precision=fast", &less]);
    assert!(code == 1 && message.contains("the smallest that would do is"), "{message}");
    let rows = bench(&["--tiling=diffusers", "--tile-latent-min-size=32", "--budgets"]);
    let rows = rows.as_array().unwrap();
    // Tiles are planned one by one: what lies beside them leaves little to save here.
    assert!(rows.len() > 1 && rows[1..].iter().all(|row| row["has_same_bytes"] == true), "{rows:?}");
    let rows = bench(&["--op=encode", "--budgets=1GiB,500MB"]);
    let budgets: Vec<f64> = rows.as_array().unwrap()[1..].iter().map(|row| mib(row, "budget_mib")).collect();
    assert_eq!(budgets, [1024.0, 500e6 / 1048576.0]);
}

/// In a file system of its own, where the control groups' files say what we want.
#[test]
fn the_default_budget_is_a_share_of_the_control_groups_limit() {
    const LIMIT: u64 = 300 << 20;
    let script = "mount -t tmpfs none /sys/fs/cgroup && mkdir /sys/fs/cgroup/memory && \
        echo $LIMIT > /sys/fs/cgroup/memory.max && echo $LIMIT > /sys/fs/cgroup/memory/memory.limit_in_bytes || exit 77; \
        unset REMOTE_VAE_MEMORY_BUDGET; exec \"$PROGRAM\" plan --json";
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]);
    command.env("LIMIT", LIMIT.to_string()).env("PROGRAM", env!("CARGO_BIN_EXE_remote-vae"));
    let output = match command.output() {
        Ok(output) if output.status.success() => output.stdout,
        other => {
            eprintln!("skipped: cannot mount in a namespace of its own: {other:?}");
            return;
        }
    };
    let plan: Value = serde_json::from_slice(&output).unwrap();
    assert_eq!(plan["memory_budget_bytes"], LIMIT / 5 * 4);
}

/// A control group, removed at the end of the test, however that ends.
struct Group(std::path::PathBuf);

impl Drop for Group {
    fn drop(&mut self) {
        let removed = std::fs::remove_dir(&self.0);
        assert!(removed.is_ok() || std::thread::panicking(), "{}: {removed:?}", self.0.display());
    }
}

/// A process within its budget in a control group with that limit is not killed. `REMOTE_VAE_TEST_CGROUP` names the folder of
/// a control group (version 1 or 2) below which groups with a limit may be made, e.g. of one that systemd delegates.
#[test]
fn a_control_group_with_the_budget_as_its_limit_kills_nobody() {
    let Some(parent) = std::env::var_os("REMOTE_VAE_TEST_CGROUP") else {
        eprintln!("skipped: REMOTE_VAE_TEST_CGROUP names no control group below which others may be made");
        return;
    };
    const BUDGET: u64 = 96 << 20;
    let group = std::path::Path::new(&parent).join(format!("remote-vae-test-{}", std::process::id()));
    std::fs::create_dir(&group).unwrap();
    let Group(group) = &Group(group);
    // Pages of the file system's cache count too, but give way.
    let limit = BUDGET.to_string();
    let version_2 = std::fs::write(group.join("memory.max"), &limit);
    version_2.or_else(|_| std::fs::write(group.join("memory.limit_in_bytes"), &limit)).unwrap();
    let script = "echo $$ > \"$GROUP/cgroup.procs\" && exec \"$PROGRAM\" bench --size 512x512 --runs 1 --threads 2 \
        --memory-budget $BUDGET --json";
    let mut command = std::process::Command::new("sh");
    command.args(["-c", script]).env("GROUP", group).env("BUDGET", &limit);
    let output = command.env("PROGRAM", env!("CARGO_BIN_EXE_remote-vae")).output().unwrap();
    assert!(output.status.success(), "{:?}: {}", output.status, String::from_utf8_lossy(&output.stderr));
}

#[test]
fn memory_that_the_system_refuses_is_an_error_with_a_name() {
    let script = "ulimit -v 1000000; exec \"$0\" bench --size 4096x4096 --runs 1 --threads 2";
    let mut command = std::process::Command::new("sh");
    let output = command.args(["-c", script, env!("CARGO_BIN_EXE_remote-vae")]).output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    if message.contains("memory budget") {
        eprintln!("skipped: this machine's own memory is less than the test asks for");
        return;
    }
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("cannot allocate"), "{message}");
}
