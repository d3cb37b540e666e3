//! The battery: every rule goes through every test here by one row of `ROWS`.

mod common;

use common::{centres, events, metrics, summary, train, weights};
use libtest_mimic::{Arguments, Trial};
use stagger::record::Effect;

/// A rule, and its golden trace: time and x of the first updates on the quadratic with centres 0, 3, -6, speeds 1, 2, 3,
/// x_0 = 2 and learning rate 0.1.
const ROWS: &[(&str, &str)] = &[
    ("sync", SYNC),
    ("asgd", "1:1.8 2:1.62 2:1.72 3:1.558 3:0.758 4:0.6022"),
    ("delay-adaptive", "1:1.8 2:1.62 2:1.72 3:1.558 3:0.958 4:0.8022"),
    ("staleness", "1:1.8 2:1.62 2:1.67 3:1.508 3:1.308 4:1.1572"),
    ("ringmaster:r=2", "1:1.8 2:1.62 3:1.458 4:1.3122 5:1.18098 6:1.062882"),
    ("ringmaster:r=2,stops=false", "1:1.8 2:1.62 3:1.458 4:1.3122 5:1.18098 6:1.062882"),
    ("rescaled", "1:1.9 2:1.805 2:1.905 3:1.81475 3:0.61475 4:0.524012"),
    ("dude", DUDE),
    ("ace", DUDE),
    ("aced:max_age=100", DUDE),
    ("dude:c=2", "3:1.7 5:1.42 6:1.159333 7:0.916689 9:0.69891 10:0.506412"),
    ("dude:c=3", SYNC),
    ("mifa:available=1", SYNC),
    ("ca2fl:b=3", SYNC),
    ("ksync:k=2", "2:1.95 4:1.905 6:1.8645 8:1.82805 10:1.795245 12:1.765721"),
    ("ksync:k=3", SYNC),
    ("kbatchsync:k=3", "2:1.9 4:1.81 6:1.729 8:1.6561 10:1.59049 12:1.531441"),
    ("kasync:k=2", KASYNC),
    ("waiting:b=2", KASYNC),
    ("kasync:k=3", SYNC),
    ("kbatchasync:k=2", "2:1.8 3:1.76 4:1.272 5:1.2684 6:1.29138 7:0.83996"),
    ("rennala:s=4", "3:1.875 6:1.7625 9:1.66125 12:1.570125 15:1.488112 18:1.414301"),
    ("malenia", SYNC),
    ("malenia:s=3", SYNC),
    ("ringleader", "3:1.7 4:1.4 4:1.1 6:0.865 7:0.631667 8:0.398333"),
    ("hybrid:threshold=step,step=4,flush=mean", "1:1.8 2:1.62 2:1.72 3:1.239 4:1.217 6:1.194567"),
    ("shuffled:order=2-0-1", "1:1.8 2:1.9 3:1.71 3:0.91 5:1.039 6:0.9351"),
    ("localsgd:u=1", SYNC),
];

const SYNC: &str = "3:1.7 6:1.43 9:1.187 12:0.9683 15:0.77147 18:0.594323";
const DUDE: &str = "3:1.7 4:1.41 5:1.129667 5:0.859333 6:0.598344 6:0.347356";
const KASYNC: &str = "2:1.95 3:1.4525 4:1.432375 6:1.439137 7:0.994556 8:1.022871";

/// Rules without a trace of their own in the literature's example; they take part in everything else.
const MORE: &[&str] = &["dude:init=keep-busy", "dude:init=zero", "dude:c=2,init=keep-busy"];

const MLP: &str = "--dataset synthetic --model mlp --batch 8 --backend cpu --eval-every 0 --seed 3";

fn trace(rule: &str, golden: &str, backend: &str) {
    let file = centres();
    let folder = train(&format!(
        "--rule {rule} --dataset quadratic:{} --delay fixed:1,2,3 --init const:2.0 --lr 0.1 --clock virtual --updates 6 --eval-every 1 --backend {backend}",
        file.display()
    ));
    let golden: Vec<(f64, f64)> = golden
        .split(' ')
        .map(|entry| entry.split_once(':').map(|(t, x)| (t.parse().unwrap(), x.parse().unwrap())).unwrap())
        .collect();
    let found = metrics(&folder);
    assert_eq!(found.len(), golden.len());
    for ([_, time, _, norm], (t, x)) in found.iter().zip(&golden) {
        // The minimiser is -1, so the gradient's norm is |x + 1|.
        assert_eq!(time, t);
        assert!((norm - (x + 1.0)).abs() < 1e-5, "{norm} {x}");
    }
    assert!((weights(&folder)[0] as f64 - golden[5].1).abs() < 1e-5);
}

/// n = 1: plain SGD on ½(x - 5)², x_k = 5 - 3·0.9^k from x_0 = 2.
fn one_worker_is_sgd(rule: &str) {
    // Keys that count workers have only one to count.
    let rule = rule.replace("c=2", "c=1").replace("c=3", "c=1");
    let file = common::scratch("one").join("centre.csv");
    std::fs::write(&file, "5\n").unwrap();
    let folder = train(&format!(
        "--rule {rule} --dataset quadratic:{} --init const:2 --lr 0.1 --clock virtual --updates 20 --backend cpu",
        file.display()
    ));
    let x = weights(&folder)[0] as f64;
    assert!((x - (5.0 - 3.0 * 0.9f64.powi(20))).abs() < 1e-5, "{x}");
}

fn repeats(rule: &str, workers: usize) {
    let rule = if workers == 1 { rule.replace("c=2", "c=1").replace("c=3", "c=1") } else { rule.into() };
    let flags = format!(
        "{MLP} --rule {rule} --workers {workers} --partition dirichlet:1 --delay exp:1,3 --clock virtual --updates 30"
    );
    let (a, b) = (train(&flags), train(&flags));
    for name in ["events.jsonl", "model.safetensors"] {
        assert!(std::fs::read(a.join(name)).unwrap() == std::fs::read(b.join(name)).unwrap(), "{name} differs");
    }
}

fn wall_then_replay(rule: &str) {
    let flags = format!("{MLP} --rule {rule} --workers 4 --delay fixed:1,2 --time-scale 0.002 --updates 30");
    let wall = train(&format!("{flags} --clock wall"));
    let log = wall.join("events.jsonl");
    let replay = train(&format!("{flags} --clock replay:{}", log.display()));
    assert!(std::fs::read(&log).unwrap() == std::fs::read(replay.join("events.jsonl")).unwrap());
    assert_eq!(events(&wall).len(), events(&replay).len());
    assert!(
        std::fs::read(wall.join("model.safetensors")).unwrap()
            == std::fs::read(replay.join("model.safetensors")).unwrap()
    );
}

fn books(rule: &str) {
    let folder = train(&format!("{MLP} --rule {rule} --workers 5 --delay pareto:0.1,1.5 --clock virtual --updates 25"));
    let (events, summary) = (events(&folder), summary(&folder));
    let count = |effect: Effect| events.iter().filter(|e| e.effect == effect).count() as u64;
    assert_eq!(summary["gradients"], events.len() as u64);
    assert_eq!(summary["updates"], count(Effect::Step));
    assert_eq!(summary["dropped"], count(Effect::Drop));
    let mut t = 0;
    for (k, event) in events.iter().enumerate() {
        assert_eq!((event.seq, event.staleness), (k as u64, t - event.version));
        t += (event.effect == Effect::Step) as u64;
        assert_eq!(event.t, t);
    }
}

fn main() {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    let mut add = |name: String, skip: bool, test: Box<dyn FnOnce() + Send>| {
        trials.push(
            Trial::test(name, move || {
                test();
                Ok(())
            })
            .with_ignored_flag(skip),
        );
    };
    let without = if common::has_wgpu() { "" } else { " (SKIPPED: no WGPU adapter)" };
    for &(rule, golden) in ROWS {
        add(format!("{rule}: golden trace on cpu"), false, Box::new(move || trace(rule, golden, "cpu")));
        add(
            format!("{rule}: golden trace on wgpu{without}"),
            !without.is_empty(),
            Box::new(move || trace(rule, golden, "wgpu")),
        );
    }
    for rule in ROWS.iter().map(|row| row.0).chain(MORE.iter().copied()) {
        // With `keep-busy` the first answer only fills the table (as its source has it), which is one gradient more than SGD.
        if !rule.contains("keep-busy") {
            add(format!("{rule}: one worker is SGD"), false, Box::new(move || one_worker_is_sgd(rule)));
        }
        for workers in [1, 4, 16] {
            add(
                format!("{rule}: the same bytes twice, {workers} workers"),
                false,
                Box::new(move || repeats(rule, workers)),
            );
        }
        add(format!("{rule}: a wall run replays to the same weights"), false, Box::new(move || wall_then_replay(rule)));
        add(format!("{rule}: arrivals are applied or dropped"), false, Box::new(move || books(rule)));
    }
    libtest_mimic::run(&arguments, trials).exit();
}
