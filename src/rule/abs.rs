//! ABS, adaptive bounded staleness: wait for K workers of U local steps each; whoever is too stale starts again.
//! ```text
//! x_{t+1} = x_t - (η/K) Σ_{i in S} Σ_{u<U} g_i^u ;  K grows by the schedule ;  x_{t+1} to S and to all i with t+1 - v_i > τ_max
//! loss K = K_0 (F_0/F)^p   linear K_0 + at   geometric K_0 (1+a)^t   step K_0 + t/a   mean-staleness τ_max = max(1, βn/K)
//! ```
//! Tan, Zhu, Zhang 2023 (arXiv 2301.08895). Proved: rate O(1/√(TKU)) for nonconvex f. Their formulas of K and τ_max were not
//! available: these schedules are ours (`loss` with p = 1/2 is AdaSync's). K never shrinks; F comes some arrivals late.

use super::support::shared::{Bound, KEYS, Schedule};
use super::{Arrival, Cost, Decision, Entry, Fold, Local, Needs, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "abs",
    summary: "ABS: K workers of U local steps, whoever is staler than the bound restarts",
    paper: "Tan et al. 2023",
    source: include_str!("abs.rs"),
    cost: Cost { server: "2", worker: "0", copies: "K + restarts", biased: true },
    keys: &KEYS,
    build: |keys, setting| {
        let (steps, schedule) = (keys.count("u", 5, 1..=1 << 16)? as u32, Schedule::new(keys, setting)?);
        let began = vec![Some(0); setting.workers];
        Ok(Box::new(Abs { k: schedule.k0, steps, schedule, bound: Bound::new(keys)?, began }))
    },
};

struct Abs {
    k: usize,
    steps: u32,
    schedule: Schedule,
    bound: Bound,
    began: Vec<Option<u64>>, // the version of each running job
}

impl Rule for Abs {
    fn needs(&self) -> Needs {
        Needs { loss: true, local: Local { steps: self.steps, ..Local::default() }, ..Needs::sum() }
    }

    fn on_arrival(&mut self, a: &Arrival) -> Decision {
        self.began[a.worker] = None;
        let (n, fold) = (self.began.len(), Decision::fold(Fold::Sum { scale: 1.0 / self.k as f64 }));
        if self.began.iter().filter(|v| v.is_none()).count() < self.k {
            return fold;
        }
        self.k = self.k.max(self.schedule.k(a.t + 1, a.loss));
        let (now, bound) = (a.t + 1, self.bound.of(n, self.k));
        let (idle, running): (Vec<_>, Vec<_>) = (0..n).partition(|i| self.began[*i].is_none());
        let late: Vec<_> = running.into_iter().filter(|i| self.began[*i].is_some_and(|v| now - v > bound)).collect();
        idle.iter().chain(&late).for_each(|i| self.began[*i] = Some(now));
        fold.step(0.0, Start::These(idle)).restart(late)
    }
}

#[cfg(test)]
#[test]
fn the_stale_restart() {
    let mut rule = super::tests::rule("abs:k0=1,tau=1,schedule=linear,a=0.001", 2);
    let restarts = [0, 1, 2].map(|t| super::tests::arrive(&mut *rule, 0, t, t).restart);
    assert_eq!(restarts, [vec![], vec![1], vec![]]);
}
