//! Pure asynchronous SGD with waiting: step along the mean of b gradients; their senders wait and go on together.
//! ```text
//! s += g_i / b ;   after b arrivals:  x_{t+1} = x_t - η s ,  s = 0 ,  x_{t+1} to those b
//! ```
//! Islamov, Safaryan, Alistarh 2024 ("AsGrad", Algorithm 3). Proved: the rate of pure ASGD with the noise term divided by b;
//! the floor of order ζ² stays. The paper fixes no b; ours is half the workers.

use super::{Arrival, Cost, Decision, Entry, Fold, Key, Needs, Rule, Start};

pub(super) const ENTRY: Entry = Entry {
    name: "waiting",
    summary: "pure ASGD with waiting: step along the mean of b gradients, their senders wait",
    paper: "Islamov et al. 2024",
    source: include_str!("waiting.rs"),
    cost: Cost { server: "2", worker: "0", copies: "b", biased: true },
    keys: &[Key { name: "b", default: "half the workers", meaning: "gradients per update" }],
    build: |keys, setting| {
        let n = setting.workers;
        Ok(Box::new(Waiting::new(n, keys.count("b", n.div_ceil(2), 1..=n)?)))
    },
};

/// Gathers `b` answers of `n` workers; also K-async.
pub(super) struct Waiting {
    n: usize,
    b: usize,
    senders: Vec<usize>,
}

impl Waiting {
    pub(super) fn new(n: usize, b: usize) -> Self {
        Waiting { n, b, senders: Vec::with_capacity(b) }
    }
}

impl Rule for Waiting {
    fn needs(&self) -> Needs {
        Needs { synchronous: self.b == self.n, ..Needs::sum_of(self.b) }
    }

    fn on_arrival(&mut self, arrival: &Arrival) -> Decision {
        self.senders.push(arrival.worker);
        let fold = Decision::fold(Fold::Sum { scale: 1.0 / self.b as f64 });
        let fires = self.senders.len() == self.b;
        fold.step_if(fires, 0.0, || Start::These(self.senders.drain(..).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Start, tests::*};

    #[test]
    fn those_who_waited_go_on_together() {
        let mut rule = rule("waiting:b=2", 3);
        assert_eq!(arrive(&mut *rule, 2, 0, 0).start, Start::Nobody);
        assert_eq!(arrive(&mut *rule, 0, 0, 0).start, Start::These(vec![2, 0]));
    }
}
