//! Promise 17: a run that goes on for long takes no more memory and gets no slower. `STAGGER_SOAK=1800 cargo test --release --test soak` takes
//! half an hour instead of some seconds.
#![cfg(target_os = "linux")]

mod common;

use common::{events, scratch};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Kilobytes that a process has in memory.
fn resident(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().trim_end_matches(" kB").parse().ok()
}

#[test]
fn sixteen_workers_stay_as_they_are() {
    let seconds: f64 = std::env::var("STAGGER_SOAK").ok().and_then(|s| s.parse().ok()).unwrap_or(15.0);
    let folder = scratch("soak");
    let mut run = Command::new(env!("CARGO_BIN_EXE_stagger"))
        .args([
            "train",
            "--rule",
            "dude",
            "--dataset",
            "clusters",
            "--workers",
            "16",
            "--backend",
            "cpu",
            "--threads-per-worker",
            "1",
        ])
        .args([
            "--delay",
            "exp:0.002",
            "--checkpoint-every",
            "2000",
            "--eval-every",
            "5000",
            "--time",
            &seconds.to_string(),
        ])
        .arg("--out")
        .arg(&folder)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let (began, mut found) = (Instant::now(), Vec::new());
    while run.try_wait().unwrap().is_none() {
        found.extend(resident(run.id()));
        assert!(began.elapsed().as_secs_f64() < 3.0 * seconds + 60.0, "it does not end");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(run.wait().unwrap().success());
    let third = found.len() / 3;
    let most = |part: &[u64]| *part.iter().max().unwrap();
    let (middle, end) = (most(&found[third..2 * third]), most(&found[2 * third..]));
    let times: Vec<f64> = events(&folder).iter().map(|event| event.time).collect();
    // The best of six parts of a third: what else the machine does makes some of them worse, a leak of speed the best, too.
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
    assert!(end as f64 <= 1.05 * middle as f64 + 4096.0, "memory grows from {middle} to {end} kB");
    // The machine is shared with others; a leak of speed would show more over longer.
    assert!(last > 0.6 * first, "from {first} to {last} arrivals a second");
}
