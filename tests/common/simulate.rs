//! The float64 reference on logistic regression. It shares no code with the program.

use super::reference::{self, Scenario};
use stagger::record::Event;

/// Weight λ of the nonconvex regularizer.
const LAMBDA: f64 = 0.1;

/// A row of the file: its label (1 or -1) and its entries (index from 0, value).
type Row = (f64, Vec<(usize, f64)>);

/// Parses LIBSVM text. Returns the rows and the dimension.
fn parse(text: &str) -> (Vec<Row>, usize) {
    let mut dimension = 0;
    let rows = text
        .lines()
        .map(|line| {
            let mut words = line.split_whitespace();
            let label = if words.next().unwrap().parse::<f64>().unwrap() > 0.0 { 1.0 } else { -1.0 };
            let entries: Vec<(usize, f64)> = words
                .map(|w| w.split_once(':').map(|(i, v)| (i.parse::<usize>().unwrap() - 1, v.parse().unwrap())).unwrap())
                .collect();
            dimension = entries.iter().map(|e| e.0 + 1).fold(dimension, usize::max);
            (label, entries)
        })
        .collect();
    (rows, dimension)
}

/// Gradient of the mean logistic loss over `rows` plus λ Σ x²/(1+x²).
fn gradient(rows: &[Row], x: &[f64], lambda: f64) -> Vec<f64> {
    let mut g: Vec<f64> = x.iter().map(|x| 2.0 * lambda * x / (1.0 + x * x).powi(2)).collect();
    for (b, entries) in rows {
        let z: f64 = entries.iter().map(|(k, v)| v * x[*k]).sum();
        let pull = -b / (1.0 + (b * z).exp()) / rows.len() as f64;
        entries.iter().for_each(|(k, v)| g[*k] += pull * v);
    }
    g
}

/// Simulates a rule with full local gradients from x_0 = 1, where the jobs of the n workers take 1, 2, ..., n
/// seconds. Returns the norm of the full gradient after each update. Random assignments are read from `log`,
/// the program's arrivals.
pub fn simulate(text: &str, n: usize, rule: &str, lr: f64, updates: usize, log: &[Event]) -> Vec<f64> {
    let (rows, d) = parse(text);
    let m = rows.len() / n;
    let local = |i: usize, x: &[f64]| {
        let part = &rows[i * m..(i + 1) * m];
        let margin = |(b, entries): &Row| b * entries.iter().map(|(k, v)| v * x[*k]).sum::<f64>();
        let loss = part.iter().map(|row| (-margin(row)).exp().ln_1p()).sum::<f64>() / m as f64;
        (loss + LAMBDA * x.iter().map(|x| x * x / (1.0 + x * x)).sum::<f64>(), gradient(part, x, LAMBDA))
    };
    let job_seconds = (1..=n).map(|i| i as f64).collect();
    let scenario = Scenario::new(job_seconds, &local, vec![1.0; d], lr, updates, log);
    let norm = |x: &Vec<f64>| {
        let mut full = vec![0.0; d];
        for i in 0..n {
            local(i, x).1.iter().zip(&mut full).for_each(|(g, f)| *f += g / n as f64);
        }
        full.iter().map(|g| g * g).sum::<f64>().sqrt()
    };
    reference::simulate(rule, &scenario).iter().map(|(_, x)| norm(x)).collect()
}
