//! Asynchronous SGD on a logistic regression against a simulation in float64 that shares no code with the program.

mod common;

use common::simulate::simulate;
use common::{metrics, scratch, train};

/// A small set of two noisy classes, written as LIBSVM text.
fn made() -> String {
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
fn the_gradient_norm_per_update_equals_a_float64_simulation() {
    let file = scratch("libsvm").join("made.txt");
    let text = made();
    std::fs::write(&file, &text).unwrap();
    for rule in ["asgd", "dude"] {
        let folder = train(&format!(
            "--rule {rule} --dataset libsvm:{} --model logreg --regularizer nonconvex:0.1 --partition blocks --batch full --workers 5 --delay fixed:1,2,3,4,5 --clock virtual --init const:1.0 --lr 0.5 --updates 300 --eval-every 1 --backend cpu",
            file.display()
        ));
        let found = metrics(&folder);
        let expected = simulate(&text, 5, rule, 0.5, 300);
        assert_eq!(found.len(), expected.len());
        for (row, expected) in found.iter().zip(&expected) {
            assert!((row[3] - expected).abs() < 1e-3 * expected, "{rule} update {}: {} {expected}", row[0], row[3]);
        }
    }
}
