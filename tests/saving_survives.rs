//! Promises 10, 11 and 12: after a kill, a full disk, a removed folder or a signal while a run is saved, the
//! checkpoints from before can be loaded. A run that is resumed from them equals a run that was not
//! disturbed.
#![cfg(unix)]

mod common;

use common::{scratch, stagger, train};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A small model, so that a checkpoint is being written most of the time, and a rule with a table, so that
/// writing takes time.
const FLAGS: &str = "--rule dude --dataset clusters --model mlp --workers 8 --delay exp:1,2,3 --clock virtual --backend cpu --batch 4 \
    --checkpoint-every 1 --eval-every 0 --threads-per-worker 1";

/// Starts the program without waiting for its end.
fn start(args: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_stagger"))
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Sends a signal to the program.
fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([format!("-{name}"), child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

/// Waits until the run has made a checkpoint.
fn wait_for_a_checkpoint(folder: &Path) {
    let began = Instant::now();
    let is_there = |folder: &Path| {
        let entries = std::fs::read_dir(folder.join("checkpoints")).into_iter().flatten().flatten();
        entries.filter(|entry| !entry.file_name().to_string_lossy().starts_with('.')).count() > 0
    };
    while !is_there(folder) {
        assert!(began.elapsed() < Duration::from_secs(30), "no checkpoint after 30 s");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn newest_checkpoint_loads_after_each_of_two_hundred_kills() {
    const UPDATES: &str = "2000";
    let folder = scratch("killed");
    let path = folder.to_str().unwrap();
    let mut begin = vec!["train", "--out", path, "--updates", UPDATES];
    begin.extend(FLAGS.split_whitespace());
    let resume = ["train", "--resume", path, "--updates", "1000000"];
    let mut random = 12345u64;
    let mut reached = Vec::new();
    for kill in 0..200 {
        let mut child = start(if kill == 0 { &begin } else { &resume });
        if kill == 0 {
            wait_for_a_checkpoint(&folder);
        }
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        std::thread::sleep(Duration::from_micros(20_000 + (random >> 33) % 80_000));
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        // The program was killed or ended without an error, so it could load the files that it found.
        assert!(output.status.code().is_none() || output.status.success(), "kill {kill}: {text}");
        assert!(!text.contains("passed over"), "kill {kill}: a checkpoint under its final name is damaged: {text}");
        reached.push(stagger::engine::checkpoint::newest(&folder).unwrap().manifest.gradients);
    }
    assert!(reached.windows(2).all(|pair| pair[0] <= pair[1]), "a run went back: {reached:?}");
    assert!(reached.last() > reached.first(), "the runs made no progress: {reached:?}");
    // The completed run equals a run that was not killed.
    let updates = stagger::engine::checkpoint::newest(&folder).unwrap().manifest.updates + 20;
    let output = stagger(&["train", "--resume", path, "--updates", &updates.to_string()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let undisturbed =
        train(&format!("{FLAGS} --updates {updates}").replace("--checkpoint-every 1", "--checkpoint-every 0"));
    for file in ["events.jsonl", "model.safetensors", "metrics.csv"] {
        assert!(
            std::fs::read(folder.join(file)).unwrap() == std::fs::read(undisturbed.join(file)).unwrap(),
            "{file} differs"
        );
    }
}

#[test]
fn one_signal_saves_and_ends_the_run() {
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
        assert!(
            String::from_utf8_lossy(&output.stderr).contains("--resume"),
            "{name}: the output does not name --resume"
        );
        let manifest = stagger::engine::checkpoint::newest(&folder).unwrap().manifest;
        assert_eq!(
            manifest.gradients as usize,
            common::events(&folder).len(),
            "{name}: the checkpoint is not of the last arrival"
        );
        assert_eq!(common::summary(&folder)["interrupted"], true);
        let updates = manifest.updates + 50;
        let resumed = stagger(&["train", "--resume", path, "--updates", &updates.to_string()]);
        assert!(resumed.status.success(), "{}", String::from_utf8_lossy(&resumed.stderr));
        let undisturbed =
            train(&format!("{FLAGS} --updates {updates}").replace("--checkpoint-every 1", "--checkpoint-every 0"));
        assert!(
            std::fs::read(folder.join("events.jsonl")).unwrap()
                == std::fs::read(undisturbed.join("events.jsonl")).unwrap()
        );
        assert_eq!(common::weights(&folder), common::weights(&undisturbed));
    }
}

#[test]
fn two_signals_end_the_run_at_once() {
    let folder = scratch("twice");
    let path = folder.to_str().unwrap();
    let mut args = vec!["train", "--out", path, "--updates", "1000000"];
    args.extend(FLAGS.split_whitespace());
    let child = start(&args);
    wait_for_a_checkpoint(&folder);
    signal(&child, "INT");
    // The first signal may have ended the run already.
    let _ = Command::new("kill").args(["-INT", &child.id().to_string()]).stderr(Stdio::null()).status();
    let began = Instant::now();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(began.elapsed() < Duration::from_secs(5));
    stagger::engine::checkpoint::newest(&folder).unwrap();
}

/// Runs the program with a limit on the size of files. A checkpoint then fails as on a full disk, while the
/// shorter logs do not.
fn with_files_up_to(kilobytes: usize, args: &[&str]) -> std::process::Output {
    let script = format!("ulimit -f {kilobytes}; trap '' XFSZ; exec \"$0\" \"$@\"");
    Command::new("bash").args(["-c", &script, env!("CARGO_BIN_EXE_stagger")]).args(args).output().unwrap()
}

#[test]
fn full_disk_keeps_the_last_checkpoint() {
    let folder = scratch("full");
    let path = folder.to_str().unwrap();
    // The first run saves a checkpoint. In the second run the state, with its table, is larger than the limit.
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
        "the newest checkpoint is not the one from before"
    );
    // Without the limit the run is resumed and equals a run that was not disturbed.
    assert!(stagger(&["train", "--resume", path, "--updates", "90"]).status.success());
    let undisturbed = train(&format!("{flags} --updates 90"));
    assert_eq!(common::weights(&folder), common::weights(&undisturbed));
}

#[test]
fn unwritable_checkpoint_folder_is_reported() {
    let folder = scratch("blocked");
    std::fs::write(folder.join("checkpoints"), "a file stands here").unwrap();
    let path = folder.to_str().unwrap();
    let mut args = vec!["train", "--out", path, "--updates", "20"];
    args.extend(FLAGS.split_whitespace());
    let output = stagger(&args);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    // The run completes and writes its weights. The failed checkpoint is reported.
    assert!(output.status.success() && error.contains("a checkpoint cannot be written"), "{error}");
    assert!(folder.join("model.safetensors").is_file());
    let output = stagger(&["train", "--out", "/proc/nowhere", "--dataset", "clusters", "--updates", "1"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--out"));
}

#[test]
fn removed_folder_ends_the_run_with_an_error() {
    let folder = scratch("removed");
    let path = folder.to_str().unwrap();
    let mut args = vec!["train", "--out", path, "--time", "300"];
    args.extend(FLAGS.split_whitespace());
    let child = start(&args);
    wait_for_a_checkpoint(&folder);
    // The run may create the folder again, so remove it until it stays away.
    while folder.exists() {
        let _ = std::fs::remove_dir_all(&folder);
    }
    let output = child.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("cannot write") && !error.contains("panicked"), "{error}");
}
