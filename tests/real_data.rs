//! Tests on the real data sets in the folder `STAGGER_DATA`. Without that variable they are skipped.

mod common;

use libtest_mimic::{Arguments, Trial};
use std::path::PathBuf;

fn data() -> PathBuf {
    std::env::var_os("STAGGER_DATA").expect("checked in main").into()
}

fn reads_cifar10() {
    let set = stagger_datasets::cifar10::load(&data()).unwrap();
    assert_eq!((set.train.labels.len(), set.test.labels.len()), (50_000, 10_000));
    for class in 0..10 {
        assert_eq!(set.train.labels.iter().filter(|&&l| l == class).count(), 5000);
        assert_eq!(set.test.labels.iter().filter(|&&l| l == class).count(), 1000);
    }
    let mean = set.train.pixels.iter().map(|&p| p as f64).sum::<f64>() / set.train.pixels.len() as f64 / 255.0;
    let stated = set.mean.iter().map(|&m| m as f64).sum::<f64>() / 3.0;
    assert!((mean - stated).abs() < 1e-3, "the mean is {mean} instead of {stated}");
}

fn learns_cifar10() {
    let flags = format!(
        "--data {} --model mlp --rule dude --workers 4 --partition dirichlet:0.1 --delay truncnormal:1,1 --clock virtual --lr 0.01 --updates 400 --seed 1 --eval-every 0 --backend cpu",
        data().display()
    );
    let (a, b) = (common::train(&flags), common::train(&flags));
    for name in ["events.jsonl", "model.safetensors"] {
        assert!(std::fs::read(a.join(name)).unwrap() == std::fs::read(b.join(name)).unwrap(), "{name} differs");
    }
    let accuracy = common::summary(&a)["final_test_accuracy"].as_f64().unwrap();
    assert!(accuracy > 0.2, "test accuracy {accuracy}, chance is 0.1");
}

fn agrees_on_libsvm() {
    for name in ["w7a.txt", "phishing.txt"] {
        let file = data().join("libsvm").join(name);
        let text = std::fs::read_to_string(&file).unwrap();
        for rule in ["asgd", "dude", "shuffled", "ringleader"] {
            let folder = common::train(&format!(
                "--rule {rule} --dataset libsvm:{} --model logreg --regularizer nonconvex:0.1 --partition blocks --batch full --workers 10 --delay fixed:1,2,3,4,5,6,7,8,9,10 --clock virtual --init const:1.0 --lr 0.05 --updates 300 --eval-every 1 --backend cpu",
                file.display()
            ));
            let found = common::metrics(&folder);
            let expected = common::simulate::simulate(&text, 10, rule, 0.05, 300, &common::events(&folder));
            assert_eq!(found.len(), expected.len());
            for (row, expected) in found.iter().zip(&expected) {
                assert!(
                    (row[3] - expected).abs() < 1e-3 * expected,
                    "{name} {rule} update {}: norm {} instead of {expected}",
                    row[0],
                    row[3]
                );
            }
        }
    }
}

/// Fig. 1 of AsGrad (Islamov et al., 2024), with full local gradients and job times of 1 to 10 s: pure ASGD
/// stalls at the largest gradient norm, random assignment about an order of magnitude lower, shuffled lowest.
/// The floor is the mean norm over the last fifth of 5,000 updates.
fn floors_are_ordered_as_in_asgrad() {
    for name in ["w7a.txt", "phishing.txt"] {
        let file = data().join("libsvm").join(name);
        let floor = |rule: &str| {
            let folder = common::train(&format!(
                "--rule {rule} --dataset libsvm:{} --model logreg --regularizer nonconvex:0.1 --partition blocks --batch full --workers 10 --delay fixed:1,2,3,4,5,6,7,8,9,10 --clock virtual --init const:1.0 --lr 0.02 --updates 5000 --eval-every 10 --backend cpu",
                file.display()
            ));
            let tail: Vec<f64> =
                common::metrics(&folder).iter().filter(|row| row[0] > 4000.0).map(|row| row[3]).collect();
            tail.iter().sum::<f64>() / tail.len() as f64
        };
        let [pure, random, shuffled] = ["asgd", "random", "shuffled"].map(floor);
        println!("{name}: pure {pure:.2e}, random {random:.2e}, shuffled {shuffled:.2e}");
        assert!(
            pure > 5.0 * random && random > 3.0 * shuffled,
            "{name}: floors of pure {pure}, random {random}, shuffled {shuffled}"
        );
    }
}

/// The recipe gives the paper's floors (read from its plots) within a factor of two.
fn recipe_gives_the_floors_of_asgrad() {
    let out = common::scratch("recipe");
    let folder = data();
    let args =
        ["recipe", "run", "asgrad-fig1", "--quick", "--backend", "cpu", "--data", folder.to_str().unwrap(), "--out"];
    let output = common::stagger(&[&args[..], &[out.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(out.join("compare.json")).unwrap();
    let found: serde_json::Value = serde_json::from_str(&text).unwrap();
    let floors = [(0.055, 0.08), (6e-3, 6e-3), (1.3e-3, 1.3e-3), (5e-3, 1.4e-2), (1.7e-3, 1.7e-3), (4.5e-4, 4.5e-4)];
    for (k, (low, high)) in floors.into_iter().enumerate() {
        let row = &found["rows"][k];
        let floor = row["columns"]["its mean at the end"]["mean"].as_f64().unwrap();
        println!("{}: {floor:.2e}", row["rule"]);
        assert!(floor > low / 2.0 && floor < 2.0 * high, "{row}");
    }
}

fn main() {
    let arguments = Arguments::from_args();
    let available = std::env::var_os("STAGGER_DATA").is_some();
    let suffix = if available { "" } else { " (SKIPPED: STAGGER_DATA is not set)" };
    let tests: [(&str, fn()); 5] = [
        ("CIFAR-10 is read completely", reads_cifar10),
        ("a run on CIFAR-10 learns, and repeats its bytes", learns_cifar10),
        ("w7a and phishing equal a float64 simulation", agrees_on_libsvm),
        ("pure ASGD has the highest floor, random a lower one, shuffled the lowest", floors_are_ordered_as_in_asgrad),
        ("recipe asgrad-fig1 gives the paper's floors within a factor of two", recipe_gives_the_floors_of_asgrad),
    ];
    let trials = tests
        .into_iter()
        .map(|(name, test)| {
            Trial::test(format!("{name}{suffix}"), move || {
                test();
                Ok(())
            })
            .with_ignored_flag(!available)
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit();
}
