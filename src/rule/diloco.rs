//! DiLoCo: all workers take H AdamW steps from the same model; their mean difference goes through Nesterov momentum.
//!
//! ```text
//! worker i:  H AdamW steps of rate η from y = x_t ;  Δ_i = x_t - y
//! server:    after all n answers:  Δ = (1/n) Σ Δ_i ;  v = β v + Δ ;  x_{t+1} = x_t - η_o (Δ + β v) ;  x_{t+1} to all
//! ```
//!
//! H = 500, η_o = 0.7 and β = 0.9 as in the paper. η is --lr (the paper: 4e-4). AdamW has β1 = 0.9,
//! β2 = 0.999, ε = 1e-8 and the weight decay 0.1; `inner=sgd` takes plain SGD steps instead. v begins at 0.
//!
//! Douillard et al. 2023. The evidence is empirical; nothing is proved. Two differences. The moments of AdamW
//! begin at zero in every job (the paper keeps them), because an answer here depends on its job's snapshot
//! alone. And v sums the directions of the steps, without η; the update multiplies v by the current η. This
//! differs from the paper under a --schedule.

use super::support::shared::{OUTER, Outer};
use super::{Arrival, Cost, Decision, Entry, Fold, Needs, Rule, ServerOptimizer, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "diloco",
    summary: "DiLoCo: H local AdamW steps each, then Nesterov momentum on the mean difference",
    paper: "Douillard et al. 2023",
    source: include_str!("diloco.rs"),
    cost: Cost { server: "3", worker: "2", copies: "n", biased: false },
    keys: &OUTER,
    build: |keys, setting| {
        let outer = Outer::new(keys)?;
        Ok(Box::new(DiLoCo { n: setting.workers, outer, answered: 0 }))
    },
};

struct DiLoCo {
    n: usize,
    outer: Outer,
    /// Answers since the last update.
    answered: usize,
}

impl Rule for DiLoCo {
    fn needs(&self) -> Needs {
        let optimizer = ServerOptimizer::Nesterov { beta: self.outer.momentum, every: 1 };
        Needs { local: self.outer.local, optimizer, synchronous: true, ..Needs::sum() }
    }

    fn on_arrival(&mut self, _: &Arrival) -> Decision {
        // Δ += Δ_i/n
        let fold = Decision::fold(Fold::Sum { scale: 1.0 / self.n as f64 });
        self.answered += 1;
        if self.answered < self.n {
            return fold;
        }

        // x -= η_o (Δ + β v) ;  Δ = 0 ; the server's optimizer keeps v
        self.answered = 0;
        fold.step(0.0, Start::Everybody).rated(self.outer.lr)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{arrive, rule};

    #[test]
    fn the_outer_step_has_its_own_rate() {
        let mut rule = rule("diloco:h=2,outer_lr=0.5", 1);
        assert_eq!(rule.needs().local.steps, 2);
        assert_eq!(arrive(&mut *rule, 0, 0, 0).step.unwrap().rate, 0.5);
    }
}
