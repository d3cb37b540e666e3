//! DiLoCo: all workers take H AdamW steps from the same model; the mean of their differences goes through Nesterov momentum.
//!
//! ```text
//! worker: H AdamW steps of rate η from y = x_t, Δ_i = x_t - y     server: Δ = (1/n) Σ Δ_i ;  v = β v + Δ ;  x -= η_o (Δ + β v)
//! ```
//!
//! Douillard et al. 2023. Empirical; nothing is proved for it. H = 500, η_o = 0.7, β = 0.9 as there; η is --lr (there 4e-4). The
//! inner moments begin at zero in every job (theirs go on), since here a job's answer depends on its snapshot alone. v gathers
//! sums of directions and is multiplied by today's η, which differs from theirs under a --schedule.

use super::support::shared::{OUTER, Outer};
use super::{Arrival, Cost, Decision, Entry, Fold, Needs, Rule, ServerOptimizer, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "diloco",
    summary: "DiLoCo: H local AdamW steps each, then Nesterov momentum on the mean difference",
    paper: "Douillard et al. 2023",
    source: include_str!("diloco.rs"),
    cost: Cost { server: "3", worker: "2", copies: "n", biased: false },
    keys: &OUTER,
    build: |keys, setting| Ok(Box::new(DiLoCo { n: setting.workers, outer: Outer::new(keys)?, answered: 0 })),
};

struct DiLoCo {
    n: usize,
    outer: Outer,
    answered: usize,
}

impl Rule for DiLoCo {
    fn needs(&self) -> Needs {
        let optimizer = ServerOptimizer::Nesterov { beta: self.outer.momentum, every: 1 };
        Needs { local: self.outer.local, optimizer, synchronous: true, ..Needs::sum() }
    }

    fn on_arrival(&mut self, _: &Arrival) -> Decision {
        self.answered = (self.answered + 1) % self.n;
        let fold = Decision::fold(Fold::Sum { scale: 1.0 / self.n as f64 });
        if self.answered > 0 { fold } else { fold.step(0.0, Start::Everybody).rated(self.outer.lr) }
    }
}

#[cfg(test)]
#[test]
fn the_outer_step_has_its_own_rate() {
    let mut rule = super::tests::rule("diloco:h=2,outer_lr=0.5", 1);
    assert_eq!((rule.needs().local.steps, super::tests::arrive(&mut *rule, 0, 0, 0).step.unwrap().rate), (2, 0.5));
}
