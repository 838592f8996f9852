//! What the program says about memory, and what it does where there is too little.
#![cfg(target_os = "linux")]

use std::path::Path;
use std::time::Duration;

use half::f16;
use remote_vae_model::config::ConfigFile;
use remote_vae_model::{autoencoder_kl, random};
use serde_json::Value;

use crate::support::*;

const MIB: f64 = (1 << 20) as f64;

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
        // A bench of a decode wants the whole tensor.
        let plan = if encodes { &plan } else { &plan["tensor"] };
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

/// Clips, and pictures in tiles, whose plan walks through their parts.
#[test]
fn work_in_parts_takes_what_is_expected() {
    let clips = format!("{}/../engine/tests/golden_video", env!("CARGO_MANIFEST_DIR"));
    let [hunyuan, wan] = ["hunyuan", "wan"].map(|name| format!("{clips}/{name}"));
    let (kl, tiny) = (golden("sd15"), golden("tiny"));
    let tiles = ["--tiling", "diffusers", "--tile-sample-min-size", "512"];
    let in_tiles = |more: &[&'static str]| [&tiles[..], more].concat();
    let cases: [(&str, &str, Vec<&str>); 9] = [
        (&kl, "1600x1280", in_tiles(&[])),
        (&kl, "1600x1280", in_tiles(&["--memory-budget", "86MiB"])),
        (&kl, "1600x1280", in_tiles(&["--op", "encode", "--precision", "fast"])),
        (&tiny, "1600x1280", in_tiles(&["--precision", "fast"])),
        (&hunyuan, "512x320", vec!["--frames", "9", "--tiling", "on", "--precision", "fast"]),
        (&hunyuan, "512x448", vec!["--frames", "29", "--tiling", "on"]),
        (&hunyuan, "256x256", vec!["--frames", "41"]),
        (&wan, "512x320", vec!["--frames", "9", "--tiling", "on"]),
        (&wan, "256x256", vec!["--frames", "41", "--op", "encode"]),
    ];
    let mut wrong = Vec::new();
    for (source, size, more) in cases {
        let run = parsed(&[&["bench", "--model", source, "--size", size, "--runs", "0"], &more[..]].concat());
        let [planned, measured] = ["planned_peak_mib", "peak_rss_mib"].map(|key| run[key].as_f64().unwrap());
        let name = Path::new(source).file_name().unwrap().display();
        let line = format!("| {name} | {size} {} | {planned:.0} | {measured:.0} |", more.join(" "));
        eprintln!("{line}");
        if planned + 4.0 < measured || planned - measured > (measured * 0.05).max(16.0) {
            wrong.push(line);
        }
    }
    assert!(wrong.is_empty(), "planned and measured MiB: {wrong:#?}");
}

/// What a server has counted, and what its process held, in MiB, each at its most.
fn peaks(url: &str) -> [f64; 2] {
    let info = http().get(format!("{url}/info")).send().unwrap().text().unwrap();
    let info: Value = serde_json::from_str(&info).unwrap();
    ["planned_peak_bytes", "resident_peak_bytes"].map(|key| info["memory"][key].as_f64().unwrap() / MIB)
}

/// Twenty requests to one server with three models, those of a round at the same time.
#[test]
fn a_servers_expected_peak_is_that_of_its_process() {
    let rounds: [&[(&str, &str, [usize; 2])]; 9] = [
        &[("embedded", "output_type=pil&image_format=png", [64, 64])],
        &[("tiny", "output_type=pt&precision=fast", [65, 47])],
        &[("sd15", "output_type=pt&partial_postprocess=true", [64, 96]), ("embedded", "encode", [512, 384])],
        &[("sd15", "output_type=pil&image_format=jpg&precision=fast", [97, 63])],
        &[
            ("embedded", "output_type=pil&image_format=webp&precision=fast", [72, 88]),
            ("tiny", "encode", [768, 512]),
        ],
        &[
            ("sd15", "output_type=pt", [33, 65]),
            ("tiny", "output_type=pil&image_format=png", [96, 96]),
            ("embedded", "output_type=pt&precision=fast", [64, 40]),
            ("sd15", "encode&precision=fast", [256, 768]),
        ],
        &[
            ("embedded", "output_type=pil&image_format=jpg", [40, 64]),
            ("sd15", "output_type=pt&tiling=diffusers&tile_latent_min_size=32", [64, 64]),
            ("tiny", "encode&precision=fast", [640, 640]),
            ("tiny", "output_type=pt&partial_postprocess=true&precision=fast", [128, 64]),
            ("embedded", "encode&precision=fast", [264, 520]),
        ],
        &[
            ("embedded", "output_type=pil&image_format=png&precision=fast", [31, 33]),
            ("tiny", "output_type=pil&image_format=webp", [48, 80]),
            ("sd15", "output_type=pil&image_format=png", [72, 72]),
        ],
        &[("embedded", "output_type=pt", [112, 112])],
    ];
    assert_eq!(rounds.iter().map(|round| round.len()).sum::<usize>(), 20);
    let models = [format!("sd15={}", golden("sd15")), format!("tiny={}", golden("tiny"))];
    let server = Serving::start(&[
        "--threads",
        "2",
        "--model",
        "embedded=embedded",
        "--model",
        &models[0],
        "--model",
        &models[1],
    ]);
    until_ready(&server.url);
    let ask = |(model, what, [height, width]): (&str, &str, [usize; 2])| {
        let (path, query) = what.strip_prefix("encode").map_or(("decode", what), |query| ("encode", query));
        let channels = if path == "encode" { 3 } else { 4 };
        let shape = format!("shape=1&shape={channels}&shape={height}&shape={width}&dtype=uint8");
        let url = format!("{}/{model}/{path}?{shape}&{query}", server.url);
        let body: Vec<u8> = (0..channels * height * width).map(|index| (index * index / 7) as u8).collect();
        let response = http().post(url).timeout(Duration::from_secs(300)).body(body).send().unwrap();
        assert_eq!(response.status(), 200, "{model} {what}");
        response.bytes().unwrap();
    };
    let tolerance = |planned: f64| (planned * 0.05).max(16.0);
    for round in rounds {
        std::thread::scope(|scope| round.iter().for_each(|request| drop(scope.spawn(|| ask(*request)))));
        let [planned, measured] = peaks(&server.url);
        eprintln!("planned {planned:.0} MiB, measured {measured:.0} MiB");
        // Of work that waits beside other work, not all is in memory.
        assert!(measured <= planned + tolerance(planned), "planned {planned:.0}, measured {measured:.0} MiB");
    }
    // The last, largest request ran alone.
    let [planned, measured] = peaks(&server.url);
    assert!(
        (measured - planned).abs() <= tolerance(planned),
        "planned {planned:.0}, measured {measured:.0} MiB"
    );
}

/// A model like Stable Diffusion's with half as many channels, and random weights in 16 bits: 40 MiB of them.
fn half_as_wide(folder: &std::path::Path) -> String {
    let config = serde_json::json!({
        "_class_name": "AutoencoderKL", "block_out_channels": [64, 128, 256, 256], "layers_per_block": 2,
        "norm_num_groups": 32, "latent_channels": 4, "scaling_factor": 0.18215,
        "down_block_types": vec!["DownEncoderBlock2D"; 4], "up_block_types": vec!["UpDecoderBlock2D"; 4],
    });
    let parsed = ConfigFile::parse(&config.to_string()).unwrap().kl().unwrap();
    let graphs = [autoencoder_kl::decoder(&parsed), autoencoder_kl::encoder(&parsed)];
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for weight in graphs.iter().flat_map(|graph| &graph.weights) {
        let fan_in: usize = weight.shape.iter().skip(1).product();
        let values = random::normal(data.len() as u64, weight.shape.iter().product());
        let begin = data.len();
        data.extend(
            values.iter().flat_map(|value| f16::from_f32(value / (fan_in as f32).sqrt()).to_le_bytes()),
        );
        let entry =
            serde_json::json!({"dtype": "F16", "shape": weight.shape, "data_offsets": [begin, data.len()]});
        header.insert(weight.name.clone(), entry);
    }
    let header = Value::Object(header).to_string();
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    std::fs::write(folder.join("diffusion_pytorch_model.safetensors"), file).unwrap();
    folder.to_str().unwrap().to_owned()
}

/// What is freed goes back to the system: weights that the warm-up held, and those that are then read for each step.
#[test]
fn a_server_keeps_within_a_budget_that_has_no_room_for_weights() {
    const BUDGET: f64 = 100.0;
    let folder = tempfile::tempdir().unwrap();
    let (model, budget) = (half_as_wide(folder.path()), format!("{BUDGET}MiB"));
    let named = format!("half={model}");
    let arguments = ["--model", &named, "--precision", "fast", "--memory-budget", &budget, "--threads", "2"];
    let plan = parsed(&[&["plan", &model, "--size=512x512"], &arguments[2..6]].concat());
    assert!(plan["reads_weights"] == true, "{plan}");
    let server = Serving::start(&arguments);
    until_ready(&server.url);
    for format in ["png", "jpg"] {
        let query =
            format!("shape=1&shape=4&shape=64&shape=64&dtype=uint8&output_type=pil&image_format={format}");
        let answer = http().post(format!("{}/?{query}", server.url)).body(vec![128; 4 << 12]).send().unwrap();
        assert_eq!(answer.status(), 200);
        answer.bytes().unwrap();
        let [planned, measured] = peaks(&server.url);
        eprintln!("planned {planned:.0} MiB, measured {measured:.0} MiB, of {budget}");
        assert!(measured <= BUDGET, "{measured:.1} MiB of {budget}");
    }
    // Work gets what the program itself leaves.
    let info: Value =
        serde_json::from_str(&http().get(format!("{}/info", server.url)).send().unwrap().text().unwrap())
            .unwrap();
    let [idle, work] = [&info["memory"]["idle_bytes"], &info["queue"]["work_budget_bytes"]];
    let taken = BUDGET - work.as_f64().unwrap() / MIB;
    assert!(taken > idle.as_f64().unwrap() / MIB, "{taken:.1} MiB beside work, {info}");
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
    // Tiles have what is left beside each other.
    for row in &rows[1..] {
        let within = mib(row, "planned_peak_mib") <= mib(row, "budget_mib") + 2.0;
        assert!(row["has_same_bytes"] == true && within, "{row}");
    }
    assert!(rows.len() > 2, "{rows:?}");
    let rows = bench(&["--op=encode", "--budgets=1GiB,500MB"]);
    let budgets: Vec<f64> = rows.as_array().unwrap()[1..].iter().map(|row| mib(row, "budget_mib")).collect();
    assert_eq!(budgets, [1024.0, 500e6 / 1048576.0]);
    // Rows are told before the next are measured, and stay where one of them fails.
    let bench = ["bench", "--size=64x64", "--runs=0", "--budgets=1GiB,1MiB"];
    let output = program().args(bench).output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    let firsts = table.lines().map(|line| line.split('|').nth(1).unwrap().trim()).collect::<Vec<_>>();
    assert_eq!((output.status.code(), firsts), (Some(1), vec!["budget MiB", "---", "none", "1024"]));
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
