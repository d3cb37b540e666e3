//! Promise 21: known levels and a known order, with their spread. On random vectors in ten classes, so that any machine can look.

mod common;

use common::{summary, train};

fn accuracy(flags: &str, seed: u64) -> f64 {
    let folder = train(&format!(
        "--dataset clusters --clock virtual --backend cpu --threads-per-worker 1 --checkpoint-every 0 --seed {seed} {flags}"
    ));
    100.0 * summary(&folder)["final_test_accuracy"].as_f64().unwrap()
}

/// Mean and standard error.
fn mean(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean, (variance / n).sqrt())
}

#[test]
fn synchronous_sgd_reaches_its_level() {
    let found: Vec<f64> =
        (1..=5).map(|seed| accuracy("--rule sync --workers 4 --lr 0.1 --updates 1500 --eval-every 0", seed)).collect();
    let (mean, error) = mean(&found);
    println!("sync: {mean:.2} +- {error:.2} %");
    assert!((91.0..96.0).contains(&mean), "{mean} +- {error}");
}

/// Where parts are unequal (Dirichlet 0.1) and so are speeds, DuDe leads vanilla ASGD, which leads shuffled, which leads random: the order of
/// the paper's figures in time, but for the two in the middle, which they leave open.
#[test]
fn the_order_of_the_rules_on_unequal_parts() {
    let scene = "--partition dirichlet:0.1 --workers 10 --delay truncnormal:1,5 --time 400 --eval-every 100 --lr 0.02";
    let of = |rule: &str| (1..=5).map(|seed| accuracy(&format!("{scene} --rule {rule}"), seed)).collect::<Vec<f64>>();
    let [dude, asgd, shuffled, random] = ["dude", "asgd", "shuffled", "random"].map(of);
    // Seed by seed: the same weights on the same parts at the same speeds.
    let ahead = |a: &[f64], b: &[f64]| mean(&a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<_>>());
    for (name, (difference, error)) in [
        ("dude - asgd", ahead(&dude, &asgd)),
        ("asgd - shuffled", ahead(&asgd, &shuffled)),
        ("shuffled - random", ahead(&shuffled, &random)),
    ] {
        println!("{name}: {difference:.2} +- {error:.2} points");
        assert!(difference > error, "{name}: {difference} +- {error}");
    }
    let (level, _) = mean(&dude);
    assert!((82.0..92.0).contains(&level), "dude: {level}");
}
