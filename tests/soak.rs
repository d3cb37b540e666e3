//! Promise 17: the memory of a long run does not grow, under either clock, and the run does not get slower.
//! `STAGGER_SOAK=1800 cargo test --release --test soak` takes half an hour instead of some seconds.
#![cfg(target_os = "linux")]

mod common;

use common::{centres_at, events, scratch};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// One run at a time, because two runs make each other slower.
static ALONE: Mutex<()> = Mutex::new(());

/// Resident memory of a process in kB.
fn resident(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().trim_end_matches(" kB").parse().ok()
}

/// Runs DuDe with 16 workers and these flags, for at most `at_most` seconds, and checks that the memory does
/// not grow. Returns the largest memory in the second and in the last third of the run, in kB.
fn memory_of_run(flags: &str, folder: &Path, at_most: f64) -> (u64, u64) {
    let _alone = ALONE.lock();
    let base = "train --rule dude --workers 16 --backend cpu --threads-per-worker 1";
    let mut run = Command::new(env!("CARGO_BIN_EXE_stagger"))
        .args(base.split(' ').chain(flags.split(' ')))
        .arg("--out")
        .arg(folder)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let (began, mut found) = (Instant::now(), Vec::new());
    while run.try_wait().unwrap().is_none() {
        found.extend(resident(run.id()));
        assert!(began.elapsed().as_secs_f64() < at_most, "the run does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(run.wait().unwrap().success());
    let third = found.len() / 3;
    assert!(third > 20, "the run is too short: {} samples of its memory", found.len());
    let most = |part: &[u64]| *part.iter().max().unwrap();
    let (middle, end) = (most(&found[third..2 * third]), most(&found[2 * third..]));
    assert!(end as f64 <= 1.05 * middle as f64 + 4096.0, "memory grows from {middle} to {end} kB");
    (middle, end)
}

/// A day of simulated time, with a classifier and with scalars. The million arrivals of the scalars would
/// show a leak of a few bytes each.
#[test]
fn memory_is_flat_over_a_simulated_day() {
    let centres = centres_at(&(0..16).map(|k| format!("{k}\n")).collect::<String>());
    let scalars =
        format!("quadratic:{} --delay exp:1 --lr 0.01 --checkpoint-every 300000 --eval-every 0", centres.display());
    let images = "clusters --delay exp:6 --checkpoint-every 20000 --eval-every 50000";
    for (problem, least) in [(images, 200_000), (&scalars, 1_300_000)] {
        let folder = scratch("day");
        let (middle, end) = memory_of_run(&format!("--clock virtual --time 86400 --dataset {problem}"), &folder, 600.0);
        let events = events(&folder);
        println!("{} arrivals; {middle} kB, then {end} kB", events.len());
        assert!(events.len() > least && events.last().unwrap().time > 86_000.0);
    }
}

#[test]
fn memory_and_speed_are_flat_with_sixteen_workers() {
    let seconds: f64 = std::env::var("STAGGER_SOAK").ok().and_then(|s| s.parse().ok()).unwrap_or(15.0);
    let folder = scratch("soak");
    let flags =
        format!("--dataset clusters --delay exp:0.002 --checkpoint-every 2000 --eval-every 5000 --time {seconds}");
    let (middle, end) = memory_of_run(&flags, &folder, 3.0 * seconds + 60.0);
    let times: Vec<f64> = events(&folder).iter().map(|event| event.time).collect();
    // The best of six parts of a third. Other load on the machine makes some parts slower; a run that slows
    // down has no fast part.
    let part = seconds / 20.0;
    let rate = |from: f64| {
        let arrivals = |k: usize| {
            let begins = from * seconds + k as f64 * part;
            times.iter().filter(|t| (begins..begins + part).contains(*t)).count()
        };
        (0..6).map(arrivals).max().unwrap() as f64 / part
    };
    let (first, last) = (rate(0.05), rate(0.66));
    println!("{} arrivals; {middle} kB, then {end} kB; {first:.0}/s, then {last:.0}/s", times.len());
    // The tolerance is wide because the machine is shared. A longer test finds a smaller loss of speed.
    assert!(last > 0.6 * first, "the speed falls from {first} to {last} arrivals/s");
}
