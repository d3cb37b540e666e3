//! The CUDA path without a GPU: the real runtime and the real NVRTC on a null driver (`tests/nullcuda/README.md`).

mod common;

use common::Scratch;
use libtest_mimic::{Arguments, Trial};
use stagger::record;
use stagger::record::{Span, Work};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn tool() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/nullcuda/run")
}

fn run(races: bool, flags: &str) -> Output {
    run_on(&[], races, flags).0
}

/// The same on a card that is told how it behaves, with the run's folder.
fn run_on(card: &[(&str, &str)], races: bool, flags: &str) -> (Output, Scratch) {
    let mut command = Command::new(tool());
    command.envs(card.iter().copied());
    if races {
        command.arg("--races");
    }
    let out = common::scratch("nullcuda");
    command
        .arg(env!("CARGO_BIN_EXE_stagger"))
        .args(["train", "--backend", "cuda", "--profile", "--eval-every", "0", "--out"])
        .arg(&out);
    (command.args(flags.split_whitespace()).output().unwrap(), out)
}

/// The number before `word` in what was printed.
fn number_before(text: &str, word: &str) -> f64 {
    let before = text.split(word).next().unwrap_or_else(|| panic!("no `{word}` in {text}"));
    before.split_whitespace().last().unwrap().parse().unwrap()
}

/// The number behind the last `word` in what was printed.
fn number_behind(text: &str, word: &str) -> f64 {
    let behind = text.rsplit(word).next().unwrap_or_else(|| panic!("no `{word}` in {text}"));
    behind.split(';').next().unwrap().trim().parse().unwrap_or_else(|_| panic!("no number behind `{word}` in {text}"))
}

/// Trains, and checks that every kernel compiled, every hand-over is ordered and every arrival cost one launch.
fn sound(flags: &str) {
    let (launches, arrivals) = launched(flags);
    assert_eq!(launches, arrivals, "{flags}");
}

/// The same, where gradients may wait for the next; gives update launches and arrivals.
fn launched(flags: &str) -> (f64, f64) {
    let output = run(true, flags);
    let text = String::from_utf8_lossy(&output.stdout).to_string();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{flags}\n{text}\n{errors}");
    assert!(text.contains("\n0 unordered of "), "{text}");
    let launches = number_before(&text, " update launches for");
    let arrivals = number_before(&text, " gradients (");
    (launches, arrivals)
}

/// One rule for each form that the server's launch takes, and for each way of giving jobs out and up.
const FORMS: &[&str] = &[
    "random",
    "abs:u=2,tau=1",
    "ringleader",
    "malenia",
    "aced:max_age=2",
    "ca2fl:b=2",
    "dcasgd:adaptive",
    "fedbuff:b=3,q=2,local_lr=0.1",
    "fadas:b=2",
    "fedasync:q=2",
    "async-diloco:h=3",
    "easgd",
    "adpsgd",
    "dude --table-dtype bf16",
    "asgd --clip 1 --momentum 0.9 --weight-decay 0.01",
];

/// A write on one stream and a read on another, with and without the wait between them.
fn a_planted_race_is_found() {
    let folder = common::scratch("planted");
    let log = folder.join("log");
    let detector = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/nullcuda/races.py");
    let races = |wait: &str| {
        let text = format!("alloc 0x1 1000 4096 @1\nwrite 0xa 1000 @1\nrecord 0xa 0xe @1\n{wait}read 0xb 1000 @1\n");
        std::fs::write(&log, text).unwrap();
        let output = Command::new("python3").arg(&detector).arg(&log).arg(&folder).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).to_string())
    };
    let (code, text) = races("");
    assert!(code == Some(1) && text.contains("1 unordered of 2"), "{code:?} {text}");
    let (code, text) = races("wait 0xb 0xe @1\n");
    assert!(code == Some(0) && text.contains("0 unordered of 2"), "{code:?} {text}");
}

/// Steps per second.
fn speed(step: &str, workers: usize, updates: usize) -> f64 {
    speed_on(&[], &format!("--rule asgd --step {step} --workers {workers} --updates {updates}"))
}

fn speed_on(card: &[(&str, &str)], flags: &str) -> f64 {
    let (output, _) = run_on(card, false, &format!("--dataset synthetic {flags}"));
    let text = String::from_utf8_lossy(&output.stdout).to_string();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    number_before(&text, " gradients/s")
}

/// What is said of speed holds in one of a few rounds: whatever else runs on the machine only makes a round worse, and passes, while a
/// program that is too slow, or a step that waits for another, is so in all of them.
fn in_some_round(rounds: usize, round: impl FnMut() -> Result<(), String>) {
    let mut failure = String::new();
    for outcome in std::iter::repeat_with(round).take(rounds) {
        match outcome {
            Ok(()) => return,
            Err(why) => failure = why,
        }
        println!("{failure}");
    }
    panic!("{failure}");
}

/// Measures `other` between two measurements of `one`, until it reaches `ratio` times the better of them. What is compared is of one
/// minute: the two cores of a virtual machine lie now near each other, now far apart, and eager steps, which cross from one to the other,
/// are 3,500 or 2,000 a second by that; the best of several minutes would be the near ones' for one and the far ones' for the other.
fn reaches(ratio: f64, one: impl Fn() -> f64, other: impl Fn() -> f64) {
    in_some_round(6, || {
        let (before, beside, after) = (one(), other(), one());
        let said = format!("{beside} steps/s between {before} and {after}");
        println!("{said}");
        if beside >= ratio * before.max(after) {
            Ok(())
        } else {
            Err(format!("{said}: less than {ratio} times as many"))
        }
    });
}

fn eight_are_no_slower() {
    // What is left is noise of a shared machine: a tenth.
    reaches(0.9, || speed("eager", 1, 1500), || speed("eager", 8, 1500));
}

fn a_recorded_step_is_cheap() {
    for workers in [1, 16] {
        reaches(10.0, || speed("eager", 1, 1500), || speed("captured", workers, 30_000));
    }
}

/// A card that takes its time: a recorded step is 60 ms, an eager one 48 kernels of 1.29 ms. So long that what the machine does besides,
/// some milliseconds here and there, says little beside it.
const SLOW: [(&str, &str); 2] = [("NULLCUDA_GRAPH_US", "60000"), ("NULLCUDA_KERNEL_US", "1290")];

/// A worker makes at most 16.7 steps a second there, and eight make no more if each waits for what the others were given meanwhile.
/// (Three times that were measured on threads that did so at times.)
fn streams_overlap() {
    for flags in [
        "--rule asgd",
        "--rule dude:c=1 --clock virtual",
        "--rule asgd --worker-timeout 60",
        "--rule asgd --step eager",
    ] {
        in_some_round(3, || {
            let speed = speed_on(&SLOW, &format!("{flags} --workers 8 --updates 240"));
            let said = format!("{flags}: {speed} steps/s with eight workers, of at most 133.3");
            // More than the card can do no disturbance explains.
            assert!(speed <= 133.4, "{said}");
            if speed >= 66.7 { Ok(()) } else { Err(said) }
        });
    }
}

/// What a run's folder says of the device.
fn device_spans(folder: &Path, workers: usize) -> Vec<Span> {
    record::device_spans(&std::fs::read_to_string(folder.join("device.csv")).unwrap(), workers).unwrap()
}

/// What the device did when, on the same card: as long as it takes, one after another with one worker, beside each other with eight.
fn a_timeline_of_the_device() {
    let timeline = |workers: usize| {
        let flags = format!("--dataset synthetic --rule asgd --workers {workers} --updates 120 --device-timeline 96");
        let (output, folder) = run_on(&SLOW, false, &flags);
        let text = String::from_utf8_lossy(&output.stdout).to_string();
        assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
        let said = text.lines().find_map(|line| line.strip_prefix("folder ")).expect("it says where").trim();
        assert_eq!(Path::new(said), &*folder);
        let spans = device_spans(&folder, workers);
        // Half of them, and more: the host may be held up between an event and its launch.
        let typical = |work| {
            let mut of: Vec<f64> = spans.iter().filter(|s| s.work == work).map(|s| s.ended - s.began).collect();
            of.sort_by(f64::total_cmp);
            (of.len(), 1e3 * of[of.len() / 2])
        };
        let ((gradients, step), (updates, update)) = (typical(Work::Gradient), typical(Work::Update));
        // Updates are noted until the last of the gradients is launched.
        assert!(gradients == 96 && (96 - workers..=96).contains(&updates), "{gradients} steps, {updates} updates");
        (step, update, number_before(&text, " streams at once"))
    };
    // A step is a graph, and the draw before it. A disturbance makes them longer and fewer beside each other, never the contrary.
    let holds = |workers: usize, at_once: std::ops::Range<f64>| {
        in_some_round(3, || {
            let (step, update, streams) = timeline(workers);
            let said =
                format!("{workers} workers: steps of {step} ms, updates of {update} ms, {streams} streams at once");
            assert!(step >= 61.2 && update >= 1.26 && streams < at_once.end, "{said}");
            if step < 62.1 && update < 1.5 && streams >= at_once.start { Ok(()) } else { Err(said) }
        })
    };
    holds(1, 0.98..1.02);
    holds(8, 4.0..8.1);
}

/// A run that goes on keeps the timeline of its beginning, unless another is asked for.
fn a_timeline_is_of_where_a_run_begins() {
    let folder = common::scratch("timeline");
    let name = folder.to_str().unwrap();
    let train = |flags: &str| {
        let output = Command::new(tool())
            .arg(env!("CARGO_BIN_EXE_stagger"))
            .args(["train", "--eval-every", "5"])
            .args(flags.split(' '))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        device_spans(&folder, 2)
    };
    let new = "--backend cuda --dataset synthetic --model mlp --rule asgd --clock virtual --workers 2";
    let jobs = |spans: &[Span]| {
        let of = spans.iter().filter(|s| s.work == Work::Gradient);
        of.map(|s| s.job).fold((u64::MAX, 0), |(a, b), job| (a.min(job), b.max(job)))
    };
    let first = train(&format!("{new} --updates 20 --device-timeline 10 --out {name}"));
    assert_eq!(jobs(&first), (0, 4));
    assert_eq!(train(&format!("--resume {name} --updates 40")), first);
    // The jobs that were on their way when it ended are computed anew.
    let other = train(&format!("--resume {name} --updates 60 --device-timeline 6"));
    assert_eq!(jobs(&other), (20, 22));
}

/// What many units add to one number is added in the order in which they come: such a sum differs from run to run.
fn nothing_is_added_up_as_it_comes() {
    let data = common::scratch("nullcuda-theory");
    let (centres, rows) = (data.join("centres.csv"), data.join("rows.txt"));
    std::fs::write(&centres, "0.5,1,2,3\n1,2,3,4\n-1,0,0.5,2\n").unwrap();
    std::fs::write(&rows, "1 1:1 3:0.5\n-1 2:1\n1 1:0.5 2:2\n-1 3:1\n".repeat(8)).unwrap();
    let (centres, rows) = (centres.display(), rows.display());
    for flags in [
        "--dataset synthetic --model cnn --rule dude:c=1 --clip 1".into(),
        "--dataset synthetic --model cnn --rule asgd --clock virtual --step stacked".into(),
        "--dataset synthetic --model mlp --rule fedbuff:b=2,q=2,local_lr=0.1".into(),
        "--dataset synthetic --model resnet18 --rule asgd".into(),
        format!("--dataset quadratic:{centres} --rule asgd"),
        format!("--dataset libsvm:{rows} --model logreg --regularizer nonconvex:0.1 --batch full --rule asgd"),
        format!("--dataset libsvm:{rows} --model logreg --regularizer l2:0.1 --batch 4 --rule asgd"),
    ] {
        let modules = common::scratch("nullcuda-modules");
        let card = [("NULLCUDA_DUMP", modules.to_str().unwrap())];
        let (output, _) = run_on(&card, false, &format!("{flags} --workers 3 --updates 12"));
        assert!(output.status.success(), "{flags}\n{}", String::from_utf8_lossy(&output.stderr));
        let texts = std::fs::read_dir(&modules).unwrap().map(|e| std::fs::read_to_string(e.unwrap().path()).unwrap());
        let texts: Vec<String> = texts.collect();
        assert!(texts.len() > 8, "{flags}: {} modules", texts.len());
        for text in texts {
            let adds = |line: &&str| {
                let operation = line.split_whitespace().find(|word| !word.starts_with('@')).unwrap_or("");
                (operation.starts_with("atom.") || operation.starts_with("red.")) && operation.contains(".add")
            };
            let entry = || text.lines().find(|line| line.contains(".entry ")).unwrap_or("").to_string();
            assert!(text.lines().find(adds).is_none(), "{flags}: {} in {}", text.lines().find(adds).unwrap(), entry());
        }
    }
}

/// Trains on a card that fails, checks that the run ends with one sentence that has these words, and returns its folder.
fn fails(failure: (&str, &str), flags: &str, words: &[&str]) -> Scratch {
    let folder = common::scratch("nullcuda-fails");
    let train = ["train", "--backend", "cuda", "--dataset", "synthetic", "--out", folder.to_str().unwrap()];
    let output = Command::new(tool())
        .args(["timeout", "60", env!("CARGO_BIN_EXE_stagger")])
        .args(train.into_iter().chain(flags.split(' ')))
        .env(failure.0, failure.1)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).to_string();
    assert_eq!(output.status.code(), Some(1), "{failure:?} {flags}: {text}");
    // Beside it stand notes, evaluations, and what the null driver counted.
    let said: Vec<&str> =
        text.lines().filter(|line| line.starts_with("stagger: ") || line.contains("panicked")).collect();
    let is_one = said.len() == 1 && said[0].starts_with("stagger: ") && words.iter().all(|word| said[0].contains(word));
    assert!(is_one, "{failure:?} {flags}: {text}");
    folder
}

fn a_card_without_memory() {
    for (memory, step) in [("60", "captured"), ("200", "eager")] {
        let flags = format!("--rule asgd --workers 4 --updates 400 --step {step}");
        fails(("NULLCUDA_MEMORY", memory), &flags, &["no memory left", "fewer --workers"]);
    }
}

fn a_lost_card() {
    let lost = |launches: &str, flags: &str| {
        fails(
            ("NULLCUDA_LOST", launches),
            &format!("--rule asgd --workers 4 {flags}"),
            &["the device was lost", "--resume"],
        )
    };
    // While the workers warm up; in the middle of an evaluation, for there is hardly anything else; on the way.
    lost("30", "--updates 4000");
    lost("1500", "--updates 4000 --eval-every 1");
    lost("3000", "--updates 4000 --step eager");
    // What was saved before is there, and the run goes on from it.
    let folder = lost("30000", "--updates 100000 --checkpoint-every 50");
    let saved = std::fs::read_dir(folder.join("checkpoints")).unwrap().flatten();
    let newest = saved.filter_map(|entry| entry.file_name().to_str()?.parse::<u64>().ok()).max().unwrap();
    let resumed = Command::new(tool())
        .args([env!("CARGO_BIN_EXE_stagger"), "train", "--resume", folder.to_str().unwrap()])
        .args(["--updates", &(newest + 100).to_string()])
        .output()
        .unwrap();
    assert!(resumed.status.success(), "{}", String::from_utf8_lossy(&resumed.stderr));
    assert_eq!(common::summary(&folder)["updates"], newest + 100);
}

/// A toolkit with a header that is broken: what includes it does not compile.
fn a_kernel_that_cannot_be_built() {
    let toolkit = common::scratch("toolkit");
    let home = std::env::var("NULLCUDA_HOME").unwrap_or(std::env::var("HOME").unwrap() + "/.cache/nullcuda");
    let include = PathBuf::from(home).join("cuda/nvidia/cu13/include");
    std::fs::create_dir(toolkit.join("include")).unwrap();
    for entry in std::fs::read_dir(include).unwrap().flatten().filter(|e| e.file_name() != "cuda_fp16.h") {
        std::os::unix::fs::symlink(entry.path(), toolkit.join("include").join(entry.file_name())).unwrap();
    }
    std::fs::write(toolkit.join("include/cuda_fp16.h"), "#error \"a toolkit that is broken\"\n").unwrap();
    let words = ["a kernel cannot be built", "a toolkit that is broken", "--backend"];
    let flags = "--rule asgd --workers 2 --updates 20 --precision f16";
    fails(("NULLCUDA_TOOLKIT", toolkit.to_str().unwrap()), flags, &words);
}

fn main() {
    let arguments = Arguments::from_args();
    // NVRTC and the headers come from PyPI, the driver is compiled here.
    let ready = Command::new(tool()).arg("true").output().is_ok_and(|o| o.status.success());
    let without = if ready { "" } else { " (SKIPPED: needs python3 with pip, a C compiler, libxxhash-dev and PyPI)" };
    let trial = |name: &str, test: fn()| {
        Trial::test(format!("{name}{without}"), move || {
            test();
            Ok(())
        })
        .with_ignored_flag(!ready)
    };
    let trials = vec![
        trial("the race detector finds a planted race", a_planted_race_is_found),
        trial("cnn, asgd, 4 workers: compiled, ordered, one launch per arrival", || {
            sound("--dataset synthetic --model cnn --rule asgd --workers 4 --updates 200")
        }),
        trial("cnn, dude, 4 workers: compiled, ordered, one launch per arrival", || {
            sound(
                "--dataset synthetic --model cnn --rule dude:c=1 --workers 4 --updates 200 --clock virtual --delay fixed:1,2,3",
            )
        }),
        trial("with a timeline of the device: compiled, ordered, noted", || {
            for flags in [
                "--rule asgd",
                "--rule asgd --step eager",
                "--rule dude:c=1 --clock virtual",
                "--rule ksync:k=2",
                "--model mlp --rule diloco:h=3 --clock virtual",
            ] {
                let flags = format!("--dataset synthetic {flags} --workers 3 --updates 16 --device-timeline 20");
                let output = run(true, &flags);
                let text = String::from_utf8_lossy(&output.stdout).to_string();
                assert!(output.status.success(), "{flags}\n{text}\n{}", String::from_utf8_lossy(&output.stderr));
                assert!(text.contains("\n0 unordered of ") && text.contains(" streams at once, "), "{flags}\n{text}");
            }
        }),
        trial("a timeline is of where a run begins", a_timeline_is_of_where_a_run_begins),
        trial("cnn, asgd, 4 workers, eager: compiled, ordered, one launch per arrival", || {
            sound("--dataset synthetic --model cnn --rule asgd --workers 4 --updates 40 --step eager")
        }),
        trial("cnn, dude, 4 workers, stacked: compiled, ordered, one launch per arrival", || {
            sound(
                "--dataset synthetic --model cnn --rule dude:c=1 --workers 4 --updates 40 --clock virtual --delay fixed:1,2,3 --step stacked",
            )
        }),
        trial("sync, 4 workers, stacked: one launch folds the four gradients of a step", || {
            let flags =
                "--dataset synthetic --model cnn --rule sync --workers 4 --updates 20 --clock virtual --step stacked";
            assert_eq!(launched(flags), (20.0, 80.0));
        }),
        trial("diloco, 3 workers on threads: compiled, ordered, at most one launch per arrival", || {
            let flags = "--dataset synthetic --model mlp --rule diloco:h=3 --workers 3 --updates 12 --clock virtual";
            let (launches, arrivals) = launched(&format!("{flags} --delay fixed:1,2,3"));
            assert!(arrivals == 36.0 && (12.0..=36.0).contains(&launches), "{launches} launches");
        }),
        trial("cnn in bf16 and f16, 2 workers: compiled, ordered, one launch per arrival", || {
            for precision in ["bf16", "f16"] {
                sound(&format!(
                    "--dataset synthetic --model cnn --rule asgd --workers 2 --updates 20 --precision {precision}"
                ))
            }
        }),
        trial("cnn, shuffled, 3 workers, threads that wait: compiled, ordered, one launch per arrival", || {
            sound("--dataset synthetic --model cnn --rule shuffled --workers 3 --updates 40 --delay fixed:0.001,0.002")
        }),
        trial("cnn, sync, 3 workers: compiled, ordered, one launch folds the three gradients of a step", || {
            let flags = "--dataset synthetic --model cnn --rule sync --workers 3 --updates 20";
            assert_eq!(launched(flags), (20.0, 60.0));
        }),
        trial("resnet18, dude, 4 workers: compiled, ordered, one launch per arrival", || {
            sound("--dataset synthetic --model resnet18 --rule dude:c=1 --workers 4 --updates 40")
        }),
        trial("resnet18, asgd, 4 workers: compiled, ordered, one launch per arrival", || {
            sound("--dataset synthetic --model resnet18 --rule asgd --workers 4 --updates 40")
        }),
        trial("every kind of fold, exchange and optimizer: compiled, ordered, one launch per arrival", || {
            for rule in FORMS {
                let clock = "--clock virtual --delay fixed:1,2,3";
                sound(&format!("--dataset synthetic --model mlp --rule {rule} --workers 3 --updates 12 {clock}"));
            }
            // Whoever has answered waits to be folded with the next.
            let flags = "--dataset synthetic --model mlp --rule ksync:k=2 --workers 3 --updates 12 --clock virtual";
            assert_eq!(launched(&format!("{flags} --delay fixed:1,2,3")), (12.0, 24.0));
        }),
        trial("hogwild: every kernel compiles, whichever way the step is launched", || {
            // Its accesses are unordered by design, so the detector has nothing to say.
            for step in ["eager", "captured"] {
                let flags =
                    format!("--dataset synthetic --model mlp --rule hogwild --workers 3 --updates 12 --step {step}");
                let output = run(false, &flags);
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            }
        }),
        trial("nothing is added up in the order in which it comes", nothing_is_added_up_as_it_comes),
        trial("a card that has less memory than it says: one sentence, no hang", a_card_without_memory),
        trial("a card that is lost: one sentence, no hang, what was saved loads", a_lost_card),
        trial("a kernel that cannot be built: one sentence with the compiler's message", a_kernel_that_cannot_be_built),
        trial("recorded: the pull with its draw, the replay and the update are all there is per step", || {
            let count = |updates: usize| {
                let output = run(
                    false,
                    &format!("--dataset synthetic --rule asgd --workers 2 --step captured --updates {updates}"),
                );
                let text = String::from_utf8_lossy(&output.stderr).to_string();
                assert!(output.status.success(), "{text}");
                let total = |word: &str| number_behind(&text, word);
                (total("graph launches "), total("[nullcuda] launches "))
            };
            let ((graphs_a, launches_a), (graphs_b, launches_b)) = (count(300), count(1300));
            assert_eq!((graphs_b - graphs_a, launches_b - launches_a), (1000.0, 2000.0));
        }),
    ];
    let speeds = vec![
        trial("streams overlap on a card that takes its time", streams_overlap),
        trial("the timeline of a card that takes its time", a_timeline_of_the_device),
        trial("eight workers submit no slower than one", eight_are_no_slower),
        trial(
            "a recorded step costs the host a tenth of an eager one, with one worker and with sixteen",
            a_recorded_step_is_cheap,
        ),
    ];
    libtest_mimic::run(&arguments, trials).exit_if_failed();
    // One at a time and after the others: these measure speed.
    let alone = Arguments { test_threads: Some(1), ..arguments };
    libtest_mimic::run(&alone, speeds).exit();
}
