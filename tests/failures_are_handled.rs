//! Promises 6, 7 and 8: a worker that panics, hangs or returns non-finite values is handled as requested,
//! under every clock. No run hangs.

mod common;

use common::{Scratch, events, scratch, stagger, summary};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Trains on three quadratics with these flags. The file of centres lies beside the run, so that the run can
/// be resumed.
fn run(flags: &str) -> (Output, Scratch) {
    let folder = scratch("failing").file("run");
    let centres = folder.with_file_name("centres.csv");
    std::fs::write(&centres, "0\n3\n-6\n").unwrap();
    let dataset = format!("quadratic:{}", centres.display());
    let mut args =
        vec!["train", "--dataset", &dataset, "--init", "const:2.0", "--backend", "cpu", "--delay", "fixed:1,2,3"];
    args.extend(["--out", folder.to_str().unwrap()]);
    args.extend(flags.split_whitespace());
    // In real time a thread may be scheduled late. There are enough updates for every worker to reply.
    let updates = if flags.contains("wall") { "600" } else { "60" };
    for (flag, value) in [("--lr", "0.1"), ("--updates", updates), ("--time-scale", "0.002")] {
        if !flags.contains(flag) {
            args.extend([flag, value]);
        }
    }
    let program =
        Command::new(env!("CARGO_BIN_EXE_stagger")).args(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut program = program.unwrap();
    wait_for_end(&mut program, flags);
    (program.wait_with_output().unwrap(), folder)
}

/// Waits until the program ends; panics after 20 s.
fn wait_for_end(program: &mut Child, flags: &str) {
    let began = Instant::now();
    while program.try_wait().unwrap().is_none() {
        if began.elapsed() > Duration::from_secs(20) {
            program.kill().unwrap();
            panic!("{flags}: the run hangs");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const CLOCKS: [&str; 2] = ["virtual", "wall"];

#[test]
fn panic_of_a_worker_is_handled_by_policy() {
    for clock in CLOCKS {
        let flags = format!("--rule asgd --clock {clock} --inject worker=1,job=3,kind=panic");
        let (output, folder) = run(&flags);
        assert_eq!(output.status.code(), Some(1));
        assert!(error(&output).contains("worker 1 failed in its job 3"), "{}", error(&output));
        // The run was saved when it failed, and it can be resumed.
        let resumed = stagger(&["train", "--resume", folder.to_str().unwrap(), "--on-failure", "restart"]);
        assert!(resumed.status.success(), "{}", error(&resumed));
        assert_eq!(events(&folder).last().unwrap().t, if clock == "wall" { 600 } else { 60 });

        let (output, folder) = run(&format!("{flags} --on-failure drop"));
        assert!(output.status.success(), "{}", error(&output));
        let replies = events(&folder).iter().filter(|event| event.worker == 1).count();
        assert_eq!(replies, 3, "worker 1 completes jobs 0, 1 and 2");
        let failure = &summary(&folder)["failures"][0];
        assert_eq!((failure["worker"].as_u64(), failure["job"].as_u64()), (Some(1), Some(3)));
        assert_eq!(failure["handled"], "dropped");

        let (output, folder) = run(&format!("{flags} --on-failure restart"));
        assert!(output.status.success(), "{}", error(&output));
        assert_eq!(summary(&folder)["failures"][0]["handled"], "restarted");
    }
    // A job that is run again gives the same gradient.
    let weights = |flags: &str| common::weights(&run(flags).1);
    let undisturbed = weights("--rule asgd --clock virtual");
    assert_eq!(
        undisturbed,
        weights("--rule asgd --clock virtual --inject worker=1,job=3,kind=panic --on-failure restart")
    );
    assert_ne!(
        undisturbed,
        weights("--rule asgd --clock virtual --inject worker=1,job=3,kind=panic --on-failure drop")
    );
}

#[test]
fn hang_of_a_worker_is_handled_by_policy() {
    for clock in CLOCKS {
        let flags = format!("--rule asgd --clock {clock} --inject worker=0,job=5,kind=hang --worker-timeout 0.5");
        let (output, _) = run(&flags);
        assert_eq!(output.status.code(), Some(1));
        assert!(error(&output).contains("worker 0 failed in its job 5: no answer for"), "{}", error(&output));
        for policy in ["drop", "restart"] {
            let (output, folder) = run(&format!("{flags} --on-failure {policy}"));
            assert!(output.status.success(), "{}", error(&output));
            assert_eq!(summary(&folder)["failures"][0]["handled"], "dropped");
        }
    }
    let (output, _) = run("--rule asgd --inject worker=0,job=5,kind=hang");
    assert_eq!(output.status.code(), Some(2));
    assert!(error(&output).contains("--worker-timeout"));
}

#[test]
fn same_failure_gives_the_same_run() {
    for kind in ["panic", "hang", "nan", "slow,seconds=7"] {
        let flags = format!(
            "--rule dude --clock virtual --inject worker=2,job=4,kind={kind} --on-failure drop --on-nan skip --worker-timeout 0.5"
        );
        let [a, b] = [run(&flags), run(&flags)].map(|(output, folder)| {
            assert!(output.status.success(), "{kind}: {}", error(&output));
            (std::fs::read(folder.join("events.jsonl")).unwrap(), common::weights(&folder))
        });
        assert!(a == b, "{kind}: the two runs differ");
    }
}

#[test]
fn run_that_dropped_a_worker_can_be_resumed() {
    let flags = "--rule dude --clock virtual --inject worker=2,job=2,kind=panic --on-failure drop";
    let (_, whole) = run(flags);
    let (_, short) = run(&format!("{flags} --time 12"));
    let resumed = stagger(&["train", "--resume", short.to_str().unwrap(), "--updates", "60"]);
    assert!(resumed.status.success(), "{}", error(&resumed));
    assert_eq!(std::fs::read(whole.join("events.jsonl")).unwrap(), std::fs::read(short.join("events.jsonl")).unwrap());
    assert_eq!(common::weights(&whole), common::weights(&short));
}

#[test]
fn every_rule_continues_or_names_the_worker_it_waits_for() {
    let list = stagger(&["rules", "--json"]);
    let rules: Vec<serde_json::Value> = serde_json::from_slice(&list.stdout).unwrap();
    for rule in rules {
        let name = rule["name"].as_str().unwrap();
        let clock = if name == "hogwild" { "wall" } else { "virtual" };
        // Long enough for rules that stall only after many updates.
        let (output, _) = run(&format!(
            "--rule {name} --clock {clock} --inject worker=1,job=2,kind=panic --on-failure drop --updates 3000"
        ));
        let continues = rule["goes_on_without_a_worker"].as_bool().unwrap();
        assert_eq!(output.status.success(), continues, "{name}: {}", error(&output));
        if !continues {
            assert!(error(&output).contains("waits for ever for worker 1"), "{name}: {}", error(&output));
        }
    }
}

#[test]
fn non_finite_gradient_leaves_the_weights_finite() {
    for rule in ["asgd", "dude", "fedbuff:b=2", "fedasync", "easgd", "dcasgd", "fadas", "mifa"] {
        let flags = format!("--rule {rule} --clock virtual --inject worker=1,job=3,kind=nan");
        let (output, folder) = run(&flags);
        assert_eq!(output.status.code(), Some(1), "{rule}");
        assert!(error(&output).contains("the gradient of worker 1"), "{rule}: {}", error(&output));
        let saved = stagger(&["train", "--resume", folder.to_str().unwrap(), "--updates", "61"]);
        assert!(saved.status.success(), "{rule}: {}", error(&saved));
        for policy in ["skip", "clip"] {
            let (output, folder) = run(&format!("{flags} --on-nan {policy}"));
            assert!(output.status.success(), "{rule}: {}", error(&output));
            assert!(
                common::weights(&folder).iter().all(|w| w.is_finite()),
                "{rule} {policy}: the weights are not finite"
            );
            assert_eq!(summary(&folder)["not_finite"], 1, "{rule} {policy}");
            let nulls = events(&folder).iter().filter(|event| event.loss.is_none()).count();
            assert_eq!(nulls, 1, "{rule}: one arrival has a non-finite loss");
        }
    }
}

#[test]
fn diverging_learning_rate_is_reported() {
    let (output, _) = run("--rule asgd --clock virtual --lr 1e30");
    assert_eq!(output.status.code(), Some(1));
    assert!(error(&output).contains("not finite") && error(&output).contains("--lr"), "{}", error(&output));
}

#[test]
fn run_completes_when_its_output_is_closed() {
    // As with `| head`: the pipe is closed when the run prints during an evaluation, while the workers wait.
    for flags in ["--clock wall", "--clock virtual", "--rule sync --clock wall"] {
        let folder = scratch("unread");
        let data = ["--dataset", "clusters", "--backend", "cpu", "--workers", "3", "--updates", "60"];
        let mut program = Command::new(env!("CARGO_BIN_EXE_stagger"))
            .args(["train", "--eval-every", "5", "--checkpoint-every", "20", "--out"])
            .arg(&folder)
            .args(data.into_iter().chain(flags.split(' ')))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop((program.stdout.take(), program.stderr.take()));
        wait_for_end(&mut program, flags);
        assert!(program.wait().unwrap().success(), "{flags}");
        assert_eq!(summary(&folder)["updates"], 60, "{flags}");
    }
}
