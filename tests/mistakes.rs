//! Every wrong input ends with one sentence that names it, and a non-zero exit code.

mod common;

use common::{centres, scratch, stagger, train};

/// Runs `train` with `flags` and checks that it is refused. The error is a single line that contains all `parts`.
fn refused(flags: &[&str], parts: &[&str]) {
    let mut args = vec!["train"];
    args.extend(flags);
    let output = stagger(&args);
    let error = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = error.lines().filter(|l| l.starts_with("stagger: ")).collect();
    assert_eq!(output.status.code(), Some(2), "{flags:?}\n{error}");
    assert_eq!(lines.len(), 1, "{flags:?}\n{error}");
    assert!(!error.contains("panicked"), "{flags:?}\n{error}");
    for part in parts {
        assert!(lines[0].contains(part), "{flags:?}: `{}` lacks `{part}`", lines[0]);
    }
}

#[test]
fn missing_data_is_named() {
    refused(&["--data", "nowhere/at-all"], &["nowhere/at-all", "stagger data fetch"]);
    refused(&["--dataset", "libsvm:nowhere.txt"], &["nowhere.txt"]);
    refused(&["--dataset", "quadratic:nowhere.csv"], &["nowhere.csv"]);
}

#[test]
fn truncated_batch_file_is_named() {
    let folder = scratch("truncated");
    std::fs::write(folder.join("data_batch_1.bin"), vec![0; 1000]).unwrap();
    refused(&["--data", folder.to_str().unwrap()], &["data_batch_1.bin", "1000 bytes", "truncated"]);
}

#[test]
fn wrong_checksum_is_named() {
    let folder = scratch("damaged");
    std::fs::write(folder.join("data_batch_1.bin"), vec![0; 30_730_000]).unwrap();
    refused(&["--data", folder.to_str().unwrap()], &["data_batch_1.bin", "checksum"]);
    let verify = stagger(&["data", "verify", "--data", folder.to_str().unwrap()]);
    assert_eq!(verify.status.code(), Some(2));
}

#[test]
fn cuda_without_a_driver_is_refused() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_stagger"))
        .args(["train", "--dataset", "synthetic", "--backend", "cuda", "--updates", "1", "--out"])
        .arg(scratch("cuda"))
        .env("CUDA_VISIBLE_DEVICES", "")
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("--backend cuda cannot be used here"), "{error}");
    assert!(!error.contains("panicked"), "{error}");
}

#[test]
fn impossible_worker_counts_are_refused() {
    refused(&["--workers", "0"], &["--workers 0"]);
    refused(&["--dataset", "synthetic", "--workers", "10001"], &["--workers 10001", "10000 training samples"]);
    refused(&["--dataset", "synthetic", "--workers", "10000000000"], &["there are only 10000"]);
    let file = centres();
    let dataset = format!("quadratic:{}", file.display());
    refused(&["--dataset", &dataset, "--workers", "5"], &["--workers 5", "3 centres"]);
}

#[test]
fn unknown_rules_and_parameters_out_of_range_are_refused() {
    refused(&["--rule", "sgd"], &["`sgd`", "dude"]);
    refused(&["--dataset", "synthetic", "--rule", "dude:c=9"], &["c=9", "from 1 to 8"]);
    refused(&["--rule", "asgd:b=2"], &["`b`"]);
}

#[test]
fn log_of_another_run_is_refused() {
    let file = centres();
    let flags =
        format!("--dataset quadratic:{} --delay fixed:1,2,3 --clock virtual --updates 6 --backend cpu", file.display());
    let run = train(&format!("{flags} --rule asgd"));
    let log = run.join("events.jsonl");
    let clock = format!("replay:{}", log.display());
    let dataset = format!("quadratic:{}", file.display());
    let out = scratch("other");
    let out = out.to_str().unwrap();
    let base = ["--dataset", &dataset, "--backend", "cpu", "--out", out, "--clock", &clock];
    let with = |extra: &[&'static str]| -> Vec<String> {
        base.iter().map(|s| s.to_string()).chain(extra.iter().map(|s| s.to_string())).collect()
    };
    let check = |extra: &[&'static str], parts: &[&str]| {
        let flags = with(extra);
        refused(&flags.iter().map(String::as_str).collect::<Vec<_>>(), parts);
    };
    check(&["--rule", "sync"], &["another run", "rule"]);
    check(&["--rule", "asgd", "--lr", "0.3"], &["another run", "lr"]);
    // Without a configuration beside the log, the order of arrivals shows that it is another run's.
    let bare = scratch("bare").file("events.jsonl");
    std::fs::copy(&log, &bare).unwrap();
    let clock = format!("replay:{}", bare.display());
    refused(
        &["--dataset", &dataset, "--backend", "cpu", "--out", out, "--clock", &clock, "--rule", "sync"],
        &["another run"],
    );
    std::fs::write(&bare, "{\"seq\":0}\n").unwrap();
    refused(&["--dataset", &dataset, "--backend", "cpu", "--out", out, "--clock", &clock], &["line 1"]);
    refused(&["--dataset", &dataset, "--clock", "replay:nowhere.jsonl", "--backend", "cpu"], &["nowhere.jsonl"]);
}

#[test]
fn unwritable_output_folder_is_named() {
    let file = scratch("file").file("taken");
    std::fs::write(&file, "").unwrap();
    let out = file.join("run");
    let centres = centres();
    let data = format!("quadratic:{}", centres.display());
    refused(&["--dataset", &data, "--backend", "cpu", "--out", out.to_str().unwrap()], &["taken", "--out"]);
}

#[test]
fn mistakes_in_a_configuration_are_named() {
    let file = scratch("config").file("c.toml");
    std::fs::write(&file, "rule = \"asgd\"\nwrokers = 3\n").unwrap();
    let file = file.to_str().unwrap();
    refused(&["--config", file], &["c.toml line 2", "`wrokers`", "did you mean `workers`?"]);
    for (text, parts) in [
        ("rule = \"asgd\"\n\ntime = \"10 s\"\n", ["line 3", "`time` takes a number, without a unit", "10 s"]),
        ("workers = 2\nlr = fast\n", ["line 2", "fast", ""]),
        ("workers = 2\ndelay = \"fixed:1s\"\n", ["line 2", "fixed:1s", ""]),
        ("# a set\ndataset = \"libsvm:nowhere.txt\"\n", ["line 2", "nowhere.txt", "does not exist"]),
        ("data = \"nowhere\"\n", ["line 1", "nowhere", "does not exist"]),
        ("lr = 0.1\nlr = 0.2\n", ["line 2", "duplicate", ""]),
        ("workers = 2\n[compare]\nrules = [\"asgd\"]\n", ["[compare]", "stagger compare", ""]),
    ] {
        std::fs::write(file, text).unwrap();
        refused(&["--config", file], &parts);
    }
    refused(&["--set", "lrr=1"], &["`lrr`", "did you mean `lr`?"]);
    refused(&["--dataset", "synthetic", "--validation", "60000"], &["--validation 60000", "must remain"]);
    refused(&["--config", "nowhere.toml"], &["nowhere.toml"]);
    refused(&["--set", "lr"], &["`lr`"]);
}

#[test]
fn written_configuration_repeats_the_run() {
    let file = centres();
    let first = train(&format!(
        "--rule dude:c=2 --dataset quadratic:{} --delay exp:1,2 --clock virtual --updates 30 --seed 9 --backend cpu",
        file.display()
    ));
    let second = train(&format!("--config {}", first.join("config.toml").display()));
    for name in ["events.jsonl", "metrics.csv", "model.safetensors", "config.toml"] {
        assert!(
            std::fs::read(first.join(name)).unwrap() == std::fs::read(second.join(name)).unwrap(),
            "{name} differs"
        );
    }
}

#[test]
fn unusable_numbers_are_refused() {
    refused(&["--seed", "9223372036854775808"], &["9223372036854775807"]);
    refused(&["--delay", "poisson:1e20"], &["poisson:1e20"]);
    refused(&["--batch", "4611686018427387904"], &["--batch 4611686018427387904"]);
    let shards = ["--dataset", "synthetic", "--partition", "shards:2305843009213693952"];
    refused(&shards, &["shards:2305843009213693952"]);
    refused(&["--dataset", "synthetic", "--regularizer", "l2:0.1"], &["--regularizer"]);
}

#[test]
fn set_parameter_reaches_the_rule_of_the_flag() {
    let flags = ["train", "--dataset", "clusters", "--backend", "cpu", "--clock", "virtual", "--updates", "2"];
    let folder = scratch("set");
    let more = ["--rule", "ringmaster", "--set", "rule.r=3", "--out", folder.to_str().unwrap()];
    assert!(stagger(&[&flags[..], &more].concat()).status.success());
    assert_eq!(common::summary(&folder)["rule"], "ringmaster:r=3");
    refused(&["--rule", "asgd", "--set", "rule.c=2"], &["asgd", "no parameter `c`"]);
}

#[test]
fn existing_run_is_kept_when_its_folder_is_used_again() {
    let place = scratch("kept");
    let folder = place.join("run");
    let flags = "--dataset clusters --backend cpu --clock virtual --checkpoint-every 5 --out";
    let run = |updates: &str| {
        let args: Vec<&str> = ["train", "--updates", updates].into_iter().chain(flags.split(' ')).collect();
        let output = stagger(&[&args[..], &[folder.to_str().unwrap()]].concat());
        let errors = String::from_utf8_lossy(&output.stderr).to_string();
        assert!(output.status.success(), "{errors}");
        errors
    };
    assert!(!run("20").contains("held a run"));
    std::fs::write(folder.join("notes.txt"), "mine").unwrap();
    let before = std::fs::read(folder.join("model.safetensors")).unwrap();
    assert!(run("10").contains("held a run already"));
    let kept = place.join("run.1");
    assert_eq!(std::fs::read(kept.join("model.safetensors")).unwrap(), before);
    assert!(kept.join("checkpoints").is_dir() && folder.join("notes.txt").is_file());
    assert_eq!((&common::summary(&kept)["updates"], &common::summary(&folder)["updates"]), (&20.into(), &10.into()));
}

#[test]
fn negative_number_is_read_as_a_value() {
    refused(&["--lr", "-0.1"], &["--lr -0.1", "at least 0"]);
}

#[test]
fn data_sets_are_verified_and_described() {
    let said = |args: &str| {
        let output = stagger(&args.split(' ').collect::<Vec<_>>());
        assert!(output.status.success(), "{args}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(said("data verify --dataset clusters").contains("clusters: ok, "));
    let parts = said("data describe --dataset synthetic --partition shards:2 --workers 20");
    assert_eq!(parts.lines().count(), 2 + 20, "{parts}");
    let file = centres();
    assert!(said(&format!("data describe --dataset quadratic:{}", file.display())).contains("3 quadratics"));
    let lost =
        stagger(&["data", "fetch", "--url", "http://127.0.0.1:9/x", "--data", scratch("fetch").to_str().unwrap()]);
    assert_eq!(lost.status.code(), Some(1), "a failed download is a failure, not a wrong input");
}

#[test]
fn equal_logits_have_chance_accuracy() {
    let folder =
        train("--dataset synthetic --model logreg --init const:0 --lr 0 --updates 1 --workers 1 --backend cpu");
    let accuracy = common::summary(&folder)["final_test_accuracy"].as_f64().unwrap();
    assert!((accuracy - 0.1).abs() < 1e-6, "{accuracy}");
}

#[test]
fn replay_ends_with_its_log() {
    let file = centres();
    let data = format!("--dataset quadratic:{} --rule asgd --delay fixed:0.1,0.2,0.3 --backend cpu", file.display());
    let first = train(&format!("{data} --clock virtual --time 200"));
    let log = first.join("events.jsonl");
    let replay = train(&format!("{data} --clock replay:{}", log.display()));
    assert!(common::events(&first).len() > 1000);
    assert!(std::fs::read(&log).unwrap() == std::fs::read(replay.join("events.jsonl")).unwrap());
}

#[test]
fn limits_stop_a_run() {
    let file = centres();
    let data =
        format!("--dataset quadratic:{} --rule asgd --delay fixed:1,2,3 --clock virtual --backend cpu", file.display());
    // Arrivals are at 1, 2, 2, 3, 3, 4, 4, … s; the run takes those up to 3.5 s.
    assert_eq!(common::events(&train(&format!("{data} --time 3.5"))).len(), 5);
    // There are three samples, and a gradient uses one: four epochs are twelve gradients.
    assert_eq!(common::events(&train(&format!("{data} --epochs 4"))).len(), 12);
}

#[test]
fn flags_that_a_run_cannot_use_are_refused_with_the_reason() {
    for (flags, parts) in [
        ("--rule fedasync --momentum 0.9", ["--momentum", "mixes models"]),
        ("--rule adpsgd --weight-decay 0.1", ["--weight-decay", "mixes models"]),
        ("--rule diloco --momentum 0.9", ["--momentum", "momentum of its own"]),
        ("--rule hogwild --momentum 0.9", ["--momentum", "write the weights themselves"]),
        ("--rule hogwild --clock virtual", ["--clock", "use --clock wall"]),
        ("--rule asgd --table-dtype bf16", ["--table-dtype", "keeps no table"]),
        ("--rule fedbuff:q=4", ["q=4", "local_lr"]),
        ("--rule shuffled:order=1-1-0", ["order=1-1-0", "each worker once"]),
        ("--rule shuffled:order=2-x-0-1", ["order=2-x-0-1", "each worker once"]),
        ("--rule delay-adaptive:late=drop", ["late", "form=koloskova"]),
        ("--rule abs:tau=5,beta=2", ["beta", "tau=mean-staleness"]),
        ("--rule rescaled:speeds=known", ["speeds=known", "--delay"]),
        ("--rule asgd --schedule sometimes", ["--schedule", "sometimes"]),
        ("--rule asgd --momentum-every 3", ["--momentum-every", "needs --momentum"]),
        ("--rule asgd --clip 0", ["--clip", "above 0"]),
        ("--rule asgd --backend cpu --device-timeline 9", ["--device-timeline", "the CPU has none"]),
        ("--rule asgd --step stacked --clock virtual --device-timeline 9", ["--device-timeline", "--step stacked"]),
        ("--rule asgd --backend cpu --tune-kernels kernels.json", ["--tune-kernels", "on the CPU leave it out"]),
        ("--rule asgd --step stacked", ["--step stacked", "use --clock virtual"]),
        ("--rule diloco --step stacked --clock virtual", ["--step stacked", "steps of their own"]),
        ("--rule asgd --step stacked --clock virtual --threads-per-worker 1", ["--threads-per-worker", "leave it out"]),
        ("--rule asgd --step stacked:0 --clock virtual", ["stacked:0", "stacked:N"]),
        ("--rule asgd --step stacked --clock virtual --batch full", ["--step stacked", "--batch"]),
    ] {
        let flags: Vec<&str> =
            ["--dataset", "synthetic", "--workers", "3"].into_iter().chain(flags.split(' ')).collect();
        refused(&flags, &parts);
    }
}

#[test]
fn every_rule_is_listed_and_described() {
    let text = |args: &[&str]| String::from_utf8(stagger(args).stdout).unwrap();
    let (table, json) = (text(&["rules"]), text(&["rules", "--json"]));
    let list: Vec<serde_json::Value> = serde_json::from_str(&json).unwrap();
    assert_eq!(list.len(), stagger::rule::RULES.len());
    for (entry, described) in stagger::rule::RULES.iter().zip(&list) {
        assert!(table.lines().any(|l| l.starts_with(&format!("{} ", entry.name))), "{}", entry.name);
        assert_eq!(described["name"], entry.name);
        assert_eq!(described["parameters"].as_array().unwrap().len(), entry.keys.len());
        let long = text(&["rules", entry.name]);
        for part in entry.about().chain(entry.keys.iter().map(|k| k.name)).chain([entry.paper]) {
            assert!(long.contains(part), "{}: {part} is missing in {long}", entry.name);
        }
    }
    assert_eq!(stagger(&["rules", "sgd"]).status.code(), Some(2));
    // A closed output is not an error.
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_stagger"))
        .args(["rules", "--json"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
