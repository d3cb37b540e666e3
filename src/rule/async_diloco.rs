//! Asynchronous DiLoCo with delayed Nesterov momentum (DN) and local steps in proportion to speed (DyLU).
//!
//! ```text
//! worker i:      H_i AdamW steps of rate η from y = x_v ;  Δ_i = x_v - y
//! on Δ_i:        p += Δ_i ;  x -= η_o Δ_i/n ;  x to worker i
//! every n-th:    also  v = β v + p ;  x -= η_o β v/n ;  p = 0   (before x goes to worker i)
//! H_i:           floor(H r_i / max_j r_j), from 1 to H, with r_j the local steps per second of worker j's last job
//! ```
//!
//! A worker takes H steps until its speed is measured. A job of fewer steps takes proportionally less
//! simulated time. H, η_o, β, the AdamW of the workers and the effect of a --schedule are as in `diloco`.
//!
//! Liu et al. 2024 (arXiv 2401.09135). Empirical result: momentum at every arrival of a stale difference
//! hurts; delayed momentum does not. The paper applies the momentum every N differences; here N is the number
//! of workers n.

use super::support::shared::{OUTER, Outer};
use super::{Arrival, Cost, Decision, Entry, Needs, Rule, ServerOptimizer};

pub(super) const ENTRY: Entry = Entry {
    name: "async-diloco",
    summary: "asynchronous DiLoCo: delayed Nesterov momentum, local steps in proportion to speed",
    paper: "Liu et al. 2024",
    source: include_str!("async_diloco.rs"),
    cost: Cost { server: "3", worker: "2", copies: "1", biased: true },
    keys: &OUTER,
    build: |keys, setting| {
        let outer = Outer::new(keys)?;
        let speeds = vec![0.0; setting.workers];
        Ok(Box::new(AsyncDiLoCo { outer, speeds }))
    },
};

struct AsyncDiLoCo {
    outer: Outer,
    /// r: local steps per second of each worker's last job; 0 until measured.
    speeds: Vec<f64>,
}

impl Rule for AsyncDiLoCo {
    fn needs(&self) -> Needs {
        let every = self.speeds.len() as u64;
        let optimizer = ServerOptimizer::Nesterov { beta: self.outer.momentum, every };
        Needs { local: self.outer.local, optimizer, ..Needs::default() }
    }

    fn steps(&self, worker: usize) -> u32 {
        // H_i = floor(H r_i / max_j r_j), from 1 to H
        let h = self.outer.local.steps;
        let speed = self.speeds[worker];
        let fastest = self.speeds.iter().copied().fold(0.0, f64::max);
        let share = if speed > 0.0 { speed / fastest } else { 1.0 };
        // 1e-9: rounding must not take a step from the fastest worker.
        ((h as f64 * share + 1e-9) as u32).clamp(1, h)
    }

    fn on_arrival(&mut self, a: &Arrival) -> Decision {
        self.speeds[a.worker] = if a.seconds > 0.0 { a.steps as f64 / a.seconds } else { 0.0 };
        // x -= η_o Δ_i/n ; the server's optimizer keeps p and v
        Decision::direct().rated(self.outer.lr / self.speeds.len() as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::rule;
    use super::*;

    #[test]
    fn slow_workers_take_fewer_steps() {
        let mut rule = rule("async-diloco:h=12", 2);
        for (worker, seconds) in [(0, 1.0), (1, 3.0)] {
            rule.on_arrival(&Arrival { worker, seconds, steps: 12, ..Arrival::default() });
        }
        assert_eq!([0, 1].map(|worker| rule.steps(worker)), [12, 4]);
    }
}
