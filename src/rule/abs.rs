//! ABS (adaptive bounded staleness): wait for K workers of U local steps each; jobs that get too stale restart.
//!
//! ```text
//! worker i:  y = x_v ;  U times  y -= η g_i(y) ;  the answer is G_i, the sum of these U gradients
//! server:    after K answers, from the set of workers S:  x_{t+1} = x_t - (η/K) Σ_{i in S} G_i
//!            then K = max(K, schedule(t+1)), and τ_max follows from the new K
//!            x_{t+1} to S, and to every other worker whose job began at a v with t+1 - v > τ_max: the job restarts
//! schedule:  loss ceil(K_0 (F_0/F)^p)   linear K_0 + floor(a t)   geometric ceil(K_0 (1+a)^t)
//!            step K_0 + floor(t/a)
//! τ_max:     mean-staleness max(1, ceil(β n/K)), or a fixed number of updates
//! ```
//!
//! K is from 1 to n. A worker of S waits until the update. F is the mean batch loss (of each job's last local
//! step) over the last complete block of arrivals: n arrivals per block, at least 8 and at most 64. So F is
//! some arrivals late. F_0 is the first F that an update sees; F_0/F is 1 until then.
//!
//! Tan, Zhu, Zhang 2023 (arXiv 2301.08895). Proved: rate O(1/√(TKU)) for nonconvex f. The paper's formulas
//! for K and τ_max were not available: these schedules are ours (`loss` with p = 1/2 is AdaSync's, rounded
//! up). Here K never shrinks.

use super::support::shared::{Bound, KEYS, KSchedule};
use super::{Arrival, Cost, Decision, Entry, Fold, Local, Needs, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "abs",
    summary: "ABS: wait for K workers of U local steps each; jobs staler than a bound restart",
    paper: "Tan et al. 2023",
    source: include_str!("abs.rs"),
    cost: Cost { server: "2", worker: "0", copies: "K + restarts", biased: true },
    keys: &KEYS,
    build: |keys, setting| {
        let steps = keys.count("u", 5, 1..=1 << 16)? as u32;
        let schedule = KSchedule::new(keys, setting)?;
        let bound = Bound::new(keys)?;
        let began = vec![Some(0); setting.workers];
        Ok(Box::new(Abs { k: schedule.k0, steps, schedule, bound, began }))
    },
};

struct Abs {
    k: usize,
    /// U: local steps per job.
    steps: u32,
    schedule: KSchedule,
    bound: Bound,
    /// The version at which each worker's running job began. `None`: the worker has answered and waits for the update.
    began: Vec<Option<u64>>,
}

impl Rule for Abs {
    fn needs(&self) -> Needs {
        let local = Local { steps: self.steps, ..Local::default() };
        Needs { loss: true, local, ..Needs::sum() }
    }

    fn on_arrival(&mut self, a: &Arrival) -> Decision {
        let n = self.began.len();
        self.began[a.worker] = None;

        // s += G_i / K
        let fold = Decision::fold(Fold::Sum { scale: 1.0 / self.k as f64 });
        let answers = self.began.iter().filter(|version| version.is_none()).count();
        if answers < self.k {
            return fold;
        }

        // K = max(K, schedule(t+1)), and τ_max from the new K
        let now = a.t + 1;
        self.k = self.k.max(self.schedule.k(now, a.loss));
        let bound = self.bound.of(n, self.k);

        // x -= η s ;  x_{t+1} to S, and to every running job with t+1 - v > τ_max
        let idle: Vec<usize> = (0..n).filter(|&i| self.began[i].is_none()).collect();
        let stale: Vec<usize> = (0..n).filter(|&i| self.began[i].is_some_and(|v| now - v > bound)).collect();
        for &worker in idle.iter().chain(&stale) {
            self.began[worker] = Some(now);
        }
        fold.step(0.0, Start::These(idle)).restart(stale)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{arrive, rule};

    #[test]
    fn jobs_beyond_the_bound_restart() {
        let mut rule = rule("abs:k0=1,tau=1,schedule=linear,a=0.001", 2);
        let restarts = [0, 1, 2].map(|t| arrive(&mut *rule, 0, t, t).restart);
        assert_eq!(restarts, [vec![], vec![1], vec![]]);
    }
}
