//! Asynchronous SGD on logistic regression against a float64 simulation that shares no code with the program.

mod common;

use common::simulate::simulate;
use common::{events, metrics, scratch, train};

/// A small set of two noisy classes, written as LIBSVM text.
fn noisy_classes() -> String {
    let mut state = 12345u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as f64 / (1u64 << 31) as f64
    };
    let mut text = String::new();
    for _ in 0..103 {
        let label = (next() < 0.4) as u8;
        text += if label == 1 { "+1" } else { "-1" };
        for k in 1..=12 {
            if next() < 0.5 {
                text += &format!(" {k}:{:.4}", next() - 0.3 + 0.4 * label as f64);
            }
        }
        text += "\n";
    }
    text
}

#[test]
fn gradient_norms_equal_the_float64_simulation() {
    let file = scratch("libsvm").file("made.txt");
    let text = noisy_classes();
    std::fs::write(&file, &text).unwrap();
    // One rule for each kind of fold and for each way to assign jobs.
    for rule in [
        "asgd",
        "sync",
        "dude",
        "random",
        "shuffled",
        "kasync:k=3",
        "ringleader",
        "malenia:s=7",
        "hybrid:threshold=step,step=50,horizon=1000,flush=mean",
        "abs:k0=1,u=1,schedule=loss,p=0.5,tau=mean-staleness,beta=2",
        "fedbuff:b=2,q=3,local_lr=0.5,exponent=0.5",
        "dcasgd:lambda=2,adaptive=true,m=0.95",
        "ca2fl:b=2",
        "fedasync:weighting=poly,alpha=0.6,a=0.5,q=2,mu=0.1",
    ] {
        let folder = train(&format!(
            "--rule {rule} --dataset libsvm:{} --model logreg --regularizer nonconvex:0.1 --partition blocks --batch full --workers 5 --delay fixed:1,2,3,4,5 --clock virtual --init const:1.0 --lr 0.5 --updates 300 --eval-every 1 --backend cpu",
            file.display()
        ));
        let found = metrics(&folder);
        let expected = simulate(&text, 5, rule, 0.5, 300, &events(&folder));
        assert_eq!(found.len(), expected.len());
        for (row, expected) in found.iter().zip(&expected) {
            // Weights of order 1 in f32 leave an error of about 1e-7 in the gradient.
            assert!(
                (row[3] - expected).abs() < 1e-3 * expected + 1e-6,
                "{rule} update {}: norm {} instead of {expected}",
                row[0],
                row[3]
            );
        }
    }
}
