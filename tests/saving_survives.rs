//! Promises 10, 11 and 12: whatever happens while a run is saved (a kill, a full disk, a folder that is gone, a signal), what was saved
//! before can be loaded, and a run that goes on from it is the run that was never disturbed.
#![cfg(unix)]

mod common;

use common::{scratch, stagger, train};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// So small a model that a checkpoint is being written most of the time, with a table that takes some writing.
const FLAGS: &str = "--rule dude --dataset clusters --model mlp --workers 8 --delay exp:1,2,3 --clock virtual --backend cpu --batch 4 \
    --checkpoint-every 1 --eval-every 0 --threads-per-worker 1";

fn start(args: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_stagger"))
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([format!("-{name}"), child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

/// Waits until the run has made a checkpoint.
fn wait_for_a_checkpoint(folder: &Path) {
    let began = Instant::now();
    let whole = |folder: &Path| {
        let entries = std::fs::read_dir(folder.join("checkpoints")).into_iter().flatten().flatten();
        entries.filter(|entry| !entry.file_name().to_string_lossy().starts_with('.')).count() > 0
    };
    while !whole(folder) {
        assert!(began.elapsed() < Duration::from_secs(30), "no checkpoint after half a minute");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn two_hundred_kills_while_saving() {
    const UPDATES: &str = "2000";
    let folder = scratch("killed");
    let path = folder.to_str().unwrap();
    let mut begin = vec!["train", "--out", path, "--updates", UPDATES];
    begin.extend(FLAGS.split_whitespace());
    let go_on = ["train", "--resume", path, "--updates", "1000000"];
    let mut random = 12345u64;
    let mut reached = Vec::new();
    for kill in 0..200 {
        let mut child = start(if kill == 0 { &begin } else { &go_on });
        if kill == 0 {
            wait_for_a_checkpoint(&folder);
        }
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        std::thread::sleep(Duration::from_micros(20_000 + (random >> 33) % 80_000));
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        // Not ended by itself: everything that it found could be loaded.
        assert!(output.status.code().is_none() || output.status.success(), "kill {kill}: {text}");
        assert!(!text.contains("passed over"), "kill {kill}: a checkpoint of the final name is whole: {text}");
        reached.push(stagger::engine::checkpoint::newest(&folder).unwrap().manifest.gradients);
    }
    assert!(reached.windows(2).all(|pair| pair[0] <= pair[1]), "nothing is lost: {reached:?}");
    assert!(reached.last() > reached.first(), "the runs go on: {reached:?}");
    // Brought to an end, it is the run that nobody killed.
    let updates = stagger::engine::checkpoint::newest(&folder).unwrap().manifest.updates + 20;
    let output = stagger(&["train", "--resume", path, "--updates", &updates.to_string()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let calm = train(&format!("{FLAGS} --updates {updates}").replace("--checkpoint-every 1", "--checkpoint-every 0"));
    for file in ["events.jsonl", "model.safetensors", "metrics.csv"] {
        assert!(std::fs::read(folder.join(file)).unwrap() == std::fs::read(calm.join(file)).unwrap(), "{file}");
    }
}

#[test]
fn one_signal_saves_and_ends() {
    for name in ["INT", "TERM"] {
        let folder = scratch("signalled");
        let path = folder.to_str().unwrap();
        let mut args = vec!["train", "--out", path, "--updates", "1000000"];
        let flags = FLAGS.replace("--checkpoint-every 1", "--checkpoint-every 100");
        args.extend(flags.split_whitespace());
        let child = start(&args);
        wait_for_a_checkpoint(&folder);
        signal(&child, name);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(String::from_utf8_lossy(&output.stderr).contains("--resume"), "it says how to go on");
        let manifest = stagger::engine::checkpoint::newest(&folder).unwrap().manifest;
        assert_eq!(manifest.gradients as usize, common::events(&folder).len(), "{name}: the state of the last arrival");
        assert_eq!(common::summary(&folder)["interrupted"], true);
        let updates = manifest.updates + 50;
        let resumed = stagger(&["train", "--resume", path, "--updates", &updates.to_string()]);
        assert!(resumed.status.success(), "{}", String::from_utf8_lossy(&resumed.stderr));
        let calm =
            train(&format!("{FLAGS} --updates {updates}").replace("--checkpoint-every 1", "--checkpoint-every 0"));
        assert!(
            std::fs::read(folder.join("events.jsonl")).unwrap() == std::fs::read(calm.join("events.jsonl")).unwrap()
        );
        assert_eq!(common::weights(&folder), common::weights(&calm));
    }
}

#[test]
fn two_signals_end_at_once() {
    let folder = scratch("twice");
    let path = folder.to_str().unwrap();
    let mut args = vec!["train", "--out", path, "--updates", "1000000"];
    args.extend(FLAGS.split_whitespace());
    let child = start(&args);
    wait_for_a_checkpoint(&folder);
    signal(&child, "INT");
    // The first may have ended it already.
    let _ = Command::new("kill").args(["-INT", &child.id().to_string()]).stderr(Stdio::null()).status();
    let began = Instant::now();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(began.elapsed() < Duration::from_secs(5));
    stagger::engine::checkpoint::newest(&folder).unwrap();
}

/// Files longer than this many kilobytes cannot be written: what a full disk does to a checkpoint, and not yet to the logs.
fn with_files_up_to(kilobytes: usize, args: &[&str]) -> std::process::Output {
    let script = format!("ulimit -f {kilobytes}; trap '' XFSZ; exec \"$0\" \"$@\"");
    Command::new("bash").args(["-c", &script, env!("CARGO_BIN_EXE_stagger")]).args(args).output().unwrap()
}

#[test]
fn a_full_disk_while_saving() {
    let folder = scratch("full");
    let path = folder.to_str().unwrap();
    // One checkpoint that fits, then none: with the table the state is larger than a file may be.
    let flags = FLAGS.replace("--checkpoint-every 1", "--checkpoint-every 20");
    let mut args = vec!["train", "--out", path, "--updates", "30"];
    args.extend(flags.split_whitespace());
    assert!(stagger(&args).status.success());
    let before = stagger::engine::checkpoint::newest(&folder).unwrap().manifest.gradients;
    let output = with_files_up_to(200, &["train", "--resume", path, "--updates", "90"]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("a checkpoint cannot be written") && error.contains("the run goes on"), "{error}");
    assert!(!error.contains("panicked"), "{error}");
    assert_eq!(
        stagger::engine::checkpoint::newest(&folder).unwrap().manifest.gradients,
        before,
        "the last one is whole"
    );
    // With room again it goes on as if nothing had been.
    assert!(stagger(&["train", "--resume", path, "--updates", "90"]).status.success());
    let calm = train(&format!("{flags} --updates 90"));
    assert_eq!(common::weights(&folder), common::weights(&calm));
}

#[test]
fn a_place_where_nothing_can_be_written() {
    let folder = scratch("blocked");
    std::fs::write(folder.join("checkpoints"), "a file stands here").unwrap();
    let path = folder.to_str().unwrap();
    let mut args = vec!["train", "--out", path, "--updates", "20"];
    args.extend(FLAGS.split_whitespace());
    let output = stagger(&args);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    // The run came to its end and has its weights; what could not be saved was said.
    assert!(output.status.success() && error.contains("a checkpoint cannot be written"), "{error}");
    assert!(folder.join("model.safetensors").is_file());
    let output = stagger(&["train", "--out", "/proc/nowhere", "--dataset", "clusters", "--updates", "1"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--out"));
}

#[test]
fn a_folder_that_is_removed_meanwhile() {
    let folder = scratch("removed");
    let path = folder.to_str().unwrap();
    let mut args = vec!["train", "--out", path, "--time", "300"];
    args.extend(FLAGS.split_whitespace());
    let child = start(&args);
    wait_for_a_checkpoint(&folder);
    // Until nothing is made there any more.
    while folder.exists() {
        let _ = std::fs::remove_dir_all(&folder);
    }
    let output = child.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("cannot write") && !error.contains("panicked"), "{error}");
}
