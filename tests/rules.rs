//! Every rule runs through all tests in this file. A rule needs a row in `ROWS` and one in `LIMITS`.

mod common;

use common::reference::{Scenario, simulate};
use common::{Scratch, centres, centres_at, events, metrics, summary, train_unsaved as train, weights};
use libtest_mimic::{Arguments, Trial};
use stagger::record::Effect;
use std::path::Path;

/// Every rule with all its parameters, for four workers; and its form for one worker, if that form is plain SGD.
const ROWS: &[(&str, Option<&str>)] = &[
    ("sync", Some("sync")),
    ("asgd", Some("asgd")),
    ("waiting:b=3", Some("waiting:b=1")),
    ("random", Some("random")),
    ("random-waiting:b=2", Some("random-waiting:b=1")),
    ("shuffled", Some("shuffled")),
    ("shuffled:once", Some("shuffled:once")),
    ("minibatch:b=3", Some("minibatch:b=1")),
    ("rr", Some("rr")),
    ("staleness", Some("staleness")),
    ("delay-adaptive:form=mishchenko", Some("delay-adaptive")),
    ("delay-adaptive:form=koloskova,tau_c=2", Some("delay-adaptive:form=koloskova")),
    ("delay-adaptive:form=koloskova,tau_c=2,late=drop", Some("delay-adaptive:form=koloskova,late=drop")),
    ("delay-adaptive:form=koloskova,tau_c=1,smoothness=1.5", Some("delay-adaptive:form=koloskova,smoothness=1")),
    ("dude:c=1,init=barrier", Some("dude")),
    ("dude:c=3,init=barrier", Some("dude:c=1")),
    // With `keep-busy` the first reply only fills the table, as in the source of the rule: it takes one
    // gradient more than SGD.
    ("dude:c=1,init=keep-busy", None),
    ("dude:c=2,init=zero", Some("dude:init=zero")),
    ("mifa:available=0.5", Some("mifa")),
    ("ca2fl:b=2", Some("ca2fl:b=1")),
    ("ace", Some("ace")),
    ("aced:max_age=4", Some("aced")),
    ("rescaled:speeds=known", Some("rescaled")),
    ("rescaled:speeds=estimated", Some("rescaled:speeds=estimated")),
    ("ksync:k=2", Some("ksync")),
    ("kbatchsync:k=3", Some("kbatchsync")),
    ("kasync:k=2", Some("kasync")),
    ("kbatchasync:k=3", Some("kbatchasync")),
    ("adasync:k0=1", Some("adasync")),
    ("sa-adasync:k0=1", Some("sa-adasync")),
    ("abs:k0=1,u=3,schedule=loss,p=0.5,tau=mean-staleness,beta=0.8", Some("abs:u=1")),
    ("abs:k0=1,u=2,schedule=linear,a=0.1,tau=1", Some("abs:u=1,schedule=linear")),
    ("abs:k0=1,u=1,schedule=geometric,a=0.05,tau=2", Some("abs:u=1,schedule=geometric")),
    ("abs:k0=2,u=2,schedule=step,a=9,tau=0", Some("abs:u=1,schedule=step")),
    ("rennala:s=5", Some("rennala")),
    ("malenia:s=6", Some("malenia")),
    ("ringmaster:r=3,stops=true", Some("ringmaster")),
    ("ringmaster:r=3,stops=false", Some("ringmaster:stops=false")),
    ("ringleader", Some("ringleader")),
    ("hybrid:threshold=step,step=7,horizon=100,flush=mean", Some("hybrid:step=3")),
    ("hybrid:threshold=linear,horizon=60,flush=sum", Some("hybrid:threshold=linear")),
    ("hybrid:threshold=exp,horizon=60,flush=mean", Some("hybrid:threshold=exp")),
    ("hybrid:threshold=sigmoid,horizon=60,steepness=10,flush=mean", Some("hybrid:threshold=sigmoid")),
    ("hybrid:threshold=loss,horizon=60,flush=mean", Some("hybrid:threshold=loss")),
    ("hybrid-cyclic:sync=3,async=5,enter=cancel", Some("hybrid-cyclic")),
    ("hybrid-cyclic:sync=2,async=4,enter=drain", Some("hybrid-cyclic:sync=2,async=2,enter=drain")),
    ("fedbuff:b=3,q=1,exponent=0.5", Some("fedbuff:b=1")),
    ("fedbuff:b=2,q=3,local_lr=0.5,exponent=0.5", None),
    ("fedasync:weighting=constant,alpha=0.6,q=1,mu=0.005", Some("fedasync:alpha=1")),
    ("fedasync:weighting=hinge,alpha=0.8,a=10,b=2,q=3,mu=0.1", None),
    ("fedasync:weighting=poly,alpha=0.6,a=0.5,q=2,mu=0.005", None),
    ("fadas:b=3,q=1,tau_c=1", None),
    ("fadas:b=2,q=2,local_lr=0.5,tau_c=2", None),
    ("dcasgd:lambda=0.04,adaptive=false", Some("dcasgd")),
    // With the default λ_0 = 2 this problem diverges at this rate.
    ("dcasgd:lambda=0.2,adaptive=true,m=0.95", Some("dcasgd:adaptive")),
    ("localsgd:u=3", Some("localsgd:u=1")),
    // The centre and the model of the worker differ even with one worker.
    ("easgd:period=3,alpha=0.2", None),
    ("diloco:h=3,outer_lr=0.7,momentum=0.9,inner=sgd", Some("diloco:h=1,outer_lr=1,momentum=0,inner=sgd")),
    ("diloco:h=4,outer_lr=0.7,momentum=0.9,inner=adamw,decay=0.1", None),
    ("diloco:h=1,outer_lr=0.7,momentum=0.9,inner=adamw,decay=0.1", None),
    ("async-diloco:h=6,outer_lr=0.7,momentum=0.9,inner=sgd", Some("async-diloco:h=1,outer_lr=1,momentum=0,inner=sgd")),
    ("async-diloco:h=4,outer_lr=0.7,momentum=0.9,inner=adamw,decay=0.1", None),
    ("adpsgd", Some("adpsgd")),
    ("adpsgd:graph=ring", Some("adpsgd:graph=ring")),
];

/// Time and x of the first updates on the quadratic with centres 0, 3, -6, speeds 1, 2, 3, x_0 = 2 and
/// learning rate 0.1.
const GOLDEN: &[(&str, &str)] = &[
    ("sync", SYNC),
    ("asgd", PURE),
    ("waiting:b=1", PURE),
    ("kasync:k=1", PURE),
    ("kbatchasync:k=1", PURE),
    ("fedbuff:b=1,exponent=0", PURE),
    ("ringmaster:r=1000", PURE),
    ("dcasgd:lambda=0", PURE),
    ("hybrid:step=300", PURE),
    ("abs:k0=1,u=1,tau=100,schedule=step,a=1000", PURE),
    ("delay-adaptive:tau_c=100", PURE),
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

const PURE: &str = "1:1.8 2:1.62 2:1.72 3:1.558 3:0.758 4:0.6022";
const SYNC: &str = "3:1.7 6:1.43 9:1.187 12:0.9683 15:0.77147 18:0.594323";
const DUDE: &str = "3:1.7 4:1.41 5:1.129667 5:0.859333 6:0.598344 6:0.347356";
const KASYNC: &str = "2:1.95 3:1.4525 4:1.432375 6:1.439137 7:0.994556 8:1.022871";

/// Rule, its limit on that quadratic with learning rate 0.01, the tolerance, and the seconds per update (NaN:
/// not checked). The minimiser is -1; the mean of the centres weighted by frequency is -3/11. Every rule has
/// a row, and its entry in `RULES` says whether it is biased.
const LIMITS: &[(&str, f64, f64, f64)] = &[
    ("sync", -1.0, 1e-3, 3.0),
    ("asgd", -0.2727, 1e-2, 0.5454),
    ("waiting:b=2", 0.0, 1e-2, 1.3333),
    // Random assignment leaves noise of order √η around the minimiser.
    ("random", -1.0, 0.3, f64::NAN),
    ("random-waiting:b=2", -1.0, 0.2, f64::NAN),
    ("shuffled", -1.0, 3e-2, 1.0),
    ("minibatch:b=3", -1.0, 0.2, f64::NAN),
    ("rr", -1.0, 3e-2, 2.0),
    ("staleness", 0.1130, 1e-2, 0.5454),
    ("delay-adaptive", 0.0858, 1e-2, 0.5454),
    ("delay-adaptive:form=koloskova,tau_c=2", 0.1735, 1e-2, 0.5454),
    ("dude", -1.0, 1e-3, 0.5454),
    ("dude:c=2", -1.0, 1e-3, 1.3333),
    ("dude:c=3", -1.0, 1e-3, 3.0),
    ("dude:init=zero", -1.0, 1e-3, 0.5454),
    ("dude --table-dtype bf16", -1.0, 2e-2, 0.5454),
    ("mifa", -1.0, 1e-3, f64::NAN),
    ("ca2fl:b=2", -1.0, 1e-3, 1.3333),
    ("ace", -1.0, 1e-3, 0.5454),
    ("aced:max_age=4", 0.9473, 2e-2, f64::NAN),
    ("rescaled", -0.9973, 1e-2, 0.5454),
    ("rescaled:speeds=estimated", -0.9973, 1e-2, 0.5454),
    // The factors of the rule remove the bias with momentum too.
    ("rescaled --momentum 0.5", -1.0, 3e-2, 0.5454),
    ("ksync:k=2", 1.5, 1e-2, 2.0),
    ("kbatchsync:k=3", 1.0, 1e-2, 2.0),
    ("kasync:k=2", 0.0, 1e-2, 1.3333),
    ("kbatchasync:k=2", -0.2727, 1e-2, 1.0909),
    ("adasync", -0.2727, 1e-2, 0.5454),
    ("sa-adasync", 0.1130, 1e-2, 0.5454),
    ("abs:k0=2,u=1,tau=5,schedule=linear,a=0.00001", 0.0, 1e-2, 1.3333),
    ("rennala:s=4", 0.75, 1e-2, 3.0),
    ("malenia", -1.0, 1e-3, 3.0),
    ("ringmaster:r=2", 0.0, 1e-2, 1.0),
    ("ringleader", -1.0, 1e-3, 1.3333),
    ("hybrid:step=300", -0.2727, 1e-2, f64::NAN),
    ("hybrid-cyclic:sync=3,async=5", -0.7409, 3e-2, f64::NAN),
    ("fedbuff:b=3", -0.1166, 2e-2, f64::NAN),
    ("fedasync", -0.2754, 2e-2, 0.5454),
    ("fadas:b=3", -0.2684, 2e-2, f64::NAN),
    ("dcasgd", -0.2839, 2e-2, 0.5454),
    ("localsgd:u=3", -1.0, 1e-3, 3.0),
    ("easgd:period=3,alpha=0.2", -0.2776, 2e-2, 0.5454),
    ("diloco:h=3,inner=sgd", -1.0, 1e-3, 3.0),
    ("async-diloco:h=6,inner=sgd", -0.2795, 2e-2, f64::NAN),
    ("adpsgd", -0.2747, 2e-2, 0.5454),
];

/// Flags of a run on random vectors.
const MLP: &str = "--dataset clusters --model mlp --batch 4 --backend cpu --eval-every 0 --seed 3";
/// Flags of a run on random images. Generating the images takes ten times as long as the run.
const MLP_ON_IMAGES: &str = "--dataset synthetic --model mlp --batch 4 --backend cpu --eval-every 0 --seed 3";

/// Compares the first updates with a golden trace.
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
        assert!((norm - (x + 1.0)).abs() < 1e-5, "norm {norm}, expected x = {x}");
    }
    assert!((weights(&folder)[0] as f64 - golden[5].1).abs() < 1e-5);
}

/// Seconds per job of each worker in the comparison with the float64 reference.
const SPEEDS: [f64; 4] = [1.0, 1.7, 2.9, 4.3];

/// Centre of worker i's quadratic in five dimensions, which is an odd size.
fn centre(i: usize) -> Vec<f64> {
    (0..5).map(|k| ((i * 7 + k * 3) % 11) as f64 - 4.5).collect()
}

/// A file with the centres of n workers.
fn five_dimensions(n: usize) -> Scratch {
    let line = |i| centre(i).iter().map(f64::to_string).collect::<Vec<_>>().join(",") + "\n";
    centres_at(&(0..n).map(line).collect::<String>())
}

/// Compares time, gradient norm and weights with the float64 reference. `set` gives the scenario the options
/// in `extra`.
fn against_reference(rule: &str, backend: &str, extra: &str, set: impl FnOnce(&mut Scenario)) {
    // The log does not name the neighbours of AD-PSGD. Of two workers each has only one.
    let n = if rule.starts_with("adpsgd") { 2 } else { SPEEDS.len() };
    let updates = 60;
    let file = five_dimensions(n);
    let folder = train(&format!(
        "--rule {rule} --dataset quadratic:{} --delay fixed:1,1.7,2.9,4.3 --init const:2.0 --lr 0.1 --clock virtual --updates {updates} --eval-every 1 --backend {backend} {extra}",
        file.display()
    ));
    let gradient = |i: usize, x: &[f64]| {
        let g: Vec<f64> = x.iter().zip(centre(i)).map(|(x, c)| x - c).collect();
        (0.5 * g.iter().map(|g| g * g).sum::<f64>(), g)
    };
    let mut scenario = Scenario::new(SPEEDS[..n].to_vec(), &gradient, vec![2.0; 5], 0.1, updates, &events(&folder));
    set(&mut scenario);
    let expected = simulate(rule, &scenario);
    let middle: Vec<f64> = (0..5).map(|k| (0..n).map(|i| centre(i)[k]).sum::<f64>() / n as f64).collect();
    let found = metrics(&folder);
    assert_eq!(found.len(), updates);
    for (k, ([update, time, _, norm], (t, x))) in found.iter().zip(&expected).enumerate() {
        let full = x.iter().zip(&middle).map(|(x, c)| (x - c).powi(2)).sum::<f64>().sqrt();
        assert_eq!(*update as usize, k + 1);
        assert!((time - t).abs() < 1e-9, "{rule}: update {k} at {time} instead of {t}");
        assert!((norm - full).abs() < 1e-5 * (1.0 + full), "{rule}: update {k} has norm {norm} instead of {full}");
    }
    for (found, x) in weights(&folder).iter().zip(&expected[updates - 1].1) {
        assert!((*found as f64 - x).abs() < 1e-5 * (1.0 + x.abs()), "{rule}: {found} instead of {x}");
    }
}

/// A run in which incremental sums are recomputed from their tables twice. The weights still follow the
/// reference, which averages its table at every update. The rate is small, so that the weights are still
/// moving at the end.
fn recomputed_sums(rule: &str, backend: &str) {
    let n = if rule.starts_with("adpsgd") { 2 } else { SPEEDS.len() };
    let file = five_dimensions(n);
    let folder = train(&format!(
        "--rule {rule} --dataset quadratic:{} --delay fixed:1,1.7,2.9,4.3 --init const:2.0 --lr 0.0002 --clock virtual --updates 9000 --eval-every 0 --backend {backend}",
        file.display()
    ));
    let gradient = |i: usize, x: &[f64]| (0.0, x.iter().zip(centre(i)).map(|(x, c)| x - c).collect::<Vec<f64>>());
    let scenario = Scenario::new(SPEEDS[..n].to_vec(), &gradient, vec![2.0; 5], 0.0002, 9000, &[]);
    let expected = &simulate(rule, &scenario)[8999].1;
    for (found, x) in weights(&folder).iter().zip(expected) {
        // 9,000 roundings of x add up to about 1e-5.
        assert!((*found as f64 - x).abs() < 1e-4 * (1.0 + x.abs()), "{rule}: {found} instead of {x}");
    }
}

/// n = 1: plain SGD on ½(x - 5)², x_k = 5 - 3·0.9^k from x_0 = 2.
fn one_worker_is_sgd(rule: &str, clock: &str) {
    let file = centres_at("5\n");
    let folder = train(&format!(
        "--rule {rule} --dataset quadratic:{} --init const:2 --lr 0.1 --clock {clock} --updates 20 --backend cpu",
        file.display()
    ));
    let x = weights(&folder)[0] as f64;
    assert!((x - (5.0 - 3.0 * 0.9f64.powi(20))).abs() < 1e-5, "{x}");
}

fn same_bytes(a: &Path, b: &Path) {
    for name in ["events.jsonl", "model.safetensors"] {
        assert!(std::fs::read(a.join(name)).unwrap() == std::fs::read(b.join(name)).unwrap(), "{name} differs");
    }
}

/// Two runs with the same flags have the same bytes.
fn repeats(data: &str, rule: &str, workers: usize) {
    let flags = format!(
        "{data} --rule {rule} --workers {workers} --partition dirichlet:1 --delay exp:1,3 --clock virtual --updates 24"
    );
    same_bytes(&train(&flags), &train(&flags));
}

/// A replay of a wall run's log has the same bytes.
fn wall_then_replay(rule: &str) {
    let flags = format!("{MLP} --rule {rule} --workers 4 --delay fixed:1,2 --time-scale 0.002 --updates 24");
    let wall = train(&format!("{flags} --clock wall"));
    let log = wall.join("events.jsonl");
    same_bytes(&wall, &train(&format!("{flags} --clock replay:{}", log.display())));
}

/// Checks the counts of the summary and the numbers of the log against each other.
fn counts(rule: &str) {
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

/// Checks the mean of x over one common period of the speeds (6 s), long after the start.
fn limit(rule: &str, expected: f64, within: f64, seconds: f64) {
    let file = centres();
    let run = |updates: usize| {
        train(&format!(
            "--rule {rule} --dataset quadratic:{} --delay fixed:1,2,3 --init const:2.0 --lr 0.01 --clock virtual --updates {updates} --eval-every 0 --backend cpu",
            file.display()
        ))
    };
    let name = rule.split([':', ' ']).next().unwrap();
    let entry = stagger::rule::RULES.iter().find(|e| e.name == name).unwrap();
    assert_eq!(entry.cost.biased, (expected + 1.0).abs() > 0.1, "the entry of {name} is wrong about its bias");
    // A period has eleven arrivals, which divide evenly into the updates of most rules. 2640 is a multiple of
    // 2, 3, 4, 6 and 11.
    let folders: Vec<_> = (2640..2651).map(run).collect();
    let x = folders.iter().map(|f| weights(f)[0] as f64).sum::<f64>() / folders.len() as f64;
    assert!((x - expected).abs() < within, "{rule} ends at {x} instead of {expected}");
    let summary = summary(&folders[0]);
    let found = summary["time"].as_f64().unwrap() / summary["updates"].as_f64().unwrap();
    assert!(
        seconds.is_nan() || (found - seconds).abs() < 0.01,
        "{rule} takes {found} s per update instead of {seconds}"
    );
}

/// The hardware decides the order of Hogwild's updates. With a small step and equal objectives, the weights
/// still come near the minimum.
fn hogwild_converges() {
    let file = centres_at("3,1\n3,1\n3,1\n");
    let folder = train(&format!(
        "--rule hogwild --dataset quadratic:{} --lr 0.05 --updates 2000 --backend cpu --eval-every 0",
        file.display()
    ));
    let x = weights(&folder);
    assert!((x[0] - 3.0).abs() < 1e-3 && (x[1] - 1.0).abs() < 1e-3, "{x:?}");
    assert_eq!(summary(&folder)["updates"], 2000);
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
    let suffix = if common::has_wgpu() { "" } else { " (SKIPPED: no WGPU adapter)" };
    let skip = !suffix.is_empty();
    for &(rule, golden) in GOLDEN {
        add(format!("{rule}: golden trace on cpu"), false, Box::new(move || trace(rule, golden, "cpu")));
        add(format!("{rule}: golden trace on wgpu{suffix}"), skip, Box::new(move || trace(rule, golden, "wgpu")));
    }
    for &(rule, expected, within, seconds) in LIMITS {
        add(
            format!("{rule}: limit under unequal speeds and data"),
            false,
            Box::new(move || limit(rule, expected, within, seconds)),
        );
    }
    for &(rule, one) in ROWS {
        add(format!("{rule}: float64 on cpu"), false, Box::new(move || against_reference(rule, "cpu", "", |_| {})));
        add(
            format!("{rule}: float64 on wgpu{suffix}"),
            skip,
            Box::new(move || against_reference(rule, "wgpu", "", |_| {})),
        );
        if let Some(one) = one {
            add(format!("{rule}: one worker is SGD"), false, Box::new(move || one_worker_is_sgd(one, "virtual")));
        }
        for (data, workers) in [(MLP_ON_IMAGES, 4), (MLP, 16)] {
            add(
                format!("{rule}: the same bytes twice, {workers} workers"),
                false,
                Box::new(move || repeats(data, rule, workers)),
            );
        }
        let alone = one.unwrap_or(rule);
        add(format!("{rule}: the same bytes twice, 1 worker"), false, Box::new(move || repeats(MLP, alone, 1)));
        add(format!("{rule}: a wall run replays to the same weights"), false, Box::new(move || wall_then_replay(rule)));
        add(format!("{rule}: arrivals are applied or dropped"), false, Box::new(move || counts(rule)));
    }
    for rule in ["dude:c=1,init=barrier", "ca2fl:b=2", "aced:max_age=4", "adpsgd"] {
        add(format!("{rule}: recomputed sums on cpu"), false, Box::new(move || recomputed_sums(rule, "cpu")));
        add(format!("{rule}: recomputed sums on wgpu{suffix}"), skip, Box::new(move || recomputed_sums(rule, "wgpu")));
    }
    // Momentum, weight decay, clipping and a schedule, with each kind of fold.
    for rule in [
        "asgd",
        "sync",
        "staleness",
        "rescaled:speeds=known",
        "kasync:k=2",
        "dude:c=1,init=barrier",
        "aced:max_age=4",
        "ringleader",
        "hybrid:threshold=step,step=7,horizon=100,flush=mean",
        "fedbuff:b=2,q=3,local_lr=0.5,exponent=0.5",
        "dcasgd:lambda=0.04,adaptive=false",
    ] {
        for backend in ["cpu", "wgpu"] {
            let every = if rule == "sync" { 1 } else { 4 };
            add(
                format!("{rule}: momentum, weight decay, clipping and a schedule in float64 on {backend}{suffix}"),
                backend == "wgpu" && skip,
                Box::new(move || {
                    let flags = "--momentum 0.5 --weight-decay 0.03 --clip 3 --schedule inverse-sqrt:20";
                    against_reference(rule, backend, flags, |s| {
                        (s.momentum, s.momentum_every, s.weight_decay, s.clip) = (0.5, every, 0.03, Some(3.0));
                        s.schedule = &|t| 1.0 / (1.0 + t as f64 / 20.0).sqrt();
                    })
                }),
            );
        }
    }
    for rule in ["fedasync:weighting=constant,alpha=0.6,q=3,mu=0.1", "easgd:period=3,alpha=0.2", "adpsgd"] {
        add(
            format!("{rule}: clipping and a schedule in float64"),
            false,
            Box::new(move || {
                against_reference(rule, "cpu", "--clip 3 --schedule step:7,0.5", |s| {
                    s.clip = Some(3.0);
                    s.schedule = &|t| 0.5f64.powf((t as f64 / 7.0).floor());
                })
            }),
        );
    }
    add("hogwild: one worker is SGD".into(), false, Box::new(|| one_worker_is_sgd("hogwild", "wall")));
    add("hogwild: converges".into(), false, Box::new(hogwild_converges));
    add(
        "every rule has a row and a limit".into(),
        false,
        Box::new(|| {
            let named = |rule: &str| rule.split(':').next().unwrap().to_string();
            for entry in stagger::rule::RULES.iter().filter(|e| e.name != "hogwild") {
                assert!(ROWS.iter().any(|row| named(row.0) == entry.name), "{} has no row", entry.name);
                assert!(LIMITS.iter().any(|row| named(row.0) == entry.name), "{} has no limit", entry.name);
            }
        }),
    );
    libtest_mimic::run(&arguments, trials).exit();
}
