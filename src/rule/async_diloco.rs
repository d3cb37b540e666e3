//! Asynchronous DiLoCo with delayed Nesterov momentum and local steps in proportion to speed (DN + DyLU).
//!
//! ```text
//! on Δ_i:  p += Δ_i ;  x -= η_o Δ_i/N ;   every N-th:  v = β v + p ;  x -= η_o β v/N ;  p = 0 ;      x to i
//! H_i = floor(H s_i^-1 / max_j s_j^-1), at least 1, with s_j the measured time per local step
//! ```
//!
//! Liu et al. 2024 (arXiv 2401.09135). Empirical: momentum at every arrival of stale differences hurts, delayed it does not.
//! N is the number of workers. Speeds are those of each worker's last job; a job of fewer steps takes proportionally less
//! simulated time. H, η_o, β, the inner AdamW and what a --schedule does as in `diloco`.

use super::support::shared::{OUTER, Outer};
use super::{Arrival, Cost, Decision, Entry, Needs, Rule, ServerOptimizer};

pub(super) const ENTRY: Entry = Entry {
    name: "async-diloco",
    summary: "asynchronous DiLoCo: delayed Nesterov momentum, local steps by speed",
    paper: "Liu et al. 2024",
    source: include_str!("async_diloco.rs"),
    cost: Cost { server: "3", worker: "2", copies: "1", biased: true },
    keys: &OUTER,
    build: |keys, setting| Ok(Box::new(AsyncDiLoCo { outer: Outer::new(keys)?, speeds: vec![0.0; setting.workers] })),
};

struct AsyncDiLoCo {
    outer: Outer,
    speeds: Vec<f64>, // local steps per second; 0 until measured
}

impl Rule for AsyncDiLoCo {
    fn needs(&self) -> Needs {
        let optimizer = ServerOptimizer::Nesterov { beta: self.outer.momentum, every: self.speeds.len() as u64 };
        Needs { local: self.outer.local, optimizer, ..Needs::default() }
    }

    fn steps(&self, worker: usize) -> u32 {
        let (h, most) = (self.outer.local.steps, self.speeds.iter().copied().fold(0.0, f64::max));
        let share = if self.speeds[worker] > 0.0 { self.speeds[worker] / most } else { 1.0 };
        // A hair above, so that rounding does not take a step from the fastest.
        ((h as f64 * share + 1e-9) as u32).clamp(1, h)
    }

    fn on_arrival(&mut self, a: &Arrival) -> Decision {
        self.speeds[a.worker] = if a.seconds > 0.0 { a.steps as f64 / a.seconds } else { 0.0 };
        Decision::direct().rated(self.outer.lr / self.speeds.len() as f64)
    }
}

#[cfg(test)]
#[test]
fn slow_workers_take_fewer_steps() {
    let mut rule = super::tests::rule("async-diloco:h=12", 2);
    for (worker, seconds) in [(0, 1.0), (1, 3.0)] {
        rule.on_arrival(&Arrival { worker, seconds, steps: 12, ..Arrival::default() });
    }
    assert_eq!([0, 1].map(|i| rule.steps(i)), [12, 4]);
}
