//! Syn(α, β): generated rows with two classes. The data and the true model differ from worker to worker (Li et
//! al., "Federated Optimization in Heterogeneous Networks", 2020; with a scalar label, as in AsGrad, 2024).
//!
//! ```text
//! B_i ~ N(0, β)     v_i[j] ~ N(B_i, 1)     a[j] ~ N(v_i[j], j^-1.2)
//! u_i ~ N(0, α)     c_i, w_i[j] ~ N(u_i, 1)     the label is -1 with probability sigmoid(w_i·a + c_i), else +1
//! ```
//!
//! The second parameter of N is a variance. Block i of the rows belongs to worker i: the partition `blocks`
//! assigns it.

use crate::keyed;
use crate::libsvm::SparseRows;
use rand_distr::{Distribution, Normal, Uniform};

/// Dimension of a row.
pub const DIMENSION: usize = 300;
/// Number of rows per worker.
pub const ROWS: usize = 200;

/// Generates the set for `seed` and `workers` workers. `alpha` and `beta` must be at least 0.
pub fn generate(alpha: f64, beta: f64, workers: usize, seed: u64) -> SparseRows {
    let mut rows = SparseRows { starts: vec![0], dimension: DIMENSION, ..SparseRows::default() };
    let unit = Uniform::new(0.0, 1.0).expect("a range");
    for worker in 0..workers {
        let mut random = keyed([seed, 0x73796e, worker as u64, 0]);
        let mut normal = |mean: f64, variance: f64| {
            Normal::new(mean, variance.sqrt()).expect("a variance of at least 0").sample(&mut random)
        };
        let (b, u) = (normal(0.0, beta), normal(0.0, alpha));
        let v: Vec<f64> = (0..DIMENSION).map(|_| normal(b, 1.0)).collect();
        let w: Vec<f64> = (0..DIMENSION).map(|_| normal(u, 1.0)).collect();
        let c = normal(u, 1.0);
        for row in 0..ROWS {
            let mut random = keyed([seed, 0x73796e, worker as u64, 1 + row as u64]);
            let noise = Normal::new(0.0, 1.0).expect("a positive deviation");
            let a: Vec<f64> =
                (0..DIMENSION).map(|j| v[j] + ((j + 1) as f64).powf(-0.6) * noise.sample(&mut random)).collect();
            let score = a.iter().zip(&w).map(|(a, w)| a * w).sum::<f64>() + c;
            let negative = unit.sample(&mut random) < 1.0 / (1.0 + (-score).exp());
            rows.labels.push(if negative { -1.0 } else { 1.0 });
            rows.columns.extend(0..DIMENSION as u32);
            rows.values.extend(a);
            rows.starts.push(rows.columns.len());
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_larger_beta_makes_workers_more_different() {
        let means = |beta: f64| -> Vec<f64> {
            let rows = generate(1.0, beta, 20, 3);
            assert_eq!((rows.len(), rows.values.len()), (20 * ROWS, 20 * ROWS * DIMENSION));
            rows.values.chunks_exact(ROWS * DIMENSION).map(|w| w.iter().sum::<f64>() / w.len() as f64).collect()
        };
        let spread = |m: Vec<f64>| m.iter().map(|x| x * x).sum::<f64>() / m.len() as f64;
        // The variance of a worker's mean is β plus 1/300, the variance of the mean of v.
        let (none, some) = (spread(means(0.0)), spread(means(1.5)));
        assert!(none < 0.02 && (0.5..4.0).contains(&some), "{none} {some}");
        assert_eq!(generate(1.0, 1.0, 2, 5).labels, generate(1.0, 1.0, 2, 5).labels);
    }
}
