//! The rehearsal of a rule: it compiles the rule's updates before the clock starts.

use super::State;
use crate::engine::job::{Gradient, Job};
use crate::error::Result;
use crate::rule::{Arrival, Decision, Fold, Rule};
use stagger_kernels::{Buffer, Device, Layout, update};
use std::collections::VecDeque;
use std::sync::Arc;

/// Largest number of arrivals of a rehearsal.
const REHEARSED: usize = 5000;

/// A gradient of zeros, which all arrivals of a rehearsal share.
struct ZeroGradient {
    buffers: Arc<[Buffer]>,
    /// One zero: the loss, and the factor of a clipped gradient.
    loss: Buffer,
    clipped: bool,
}

impl ZeroGradient {
    fn new(device: &Device, layout: &Layout, clipped: bool) -> Self {
        let buffers = layout.segments().iter().map(|s| device.zeros(s.len)).collect();
        ZeroGradient { buffers, loss: device.zeros(1), clipped }
    }

    /// The gradient of a worker, with a new fence.
    fn of(&self, worker: usize, device: &Device) -> Gradient {
        Gradient {
            worker,
            job: 0,
            buffers: self.buffers.clone(),
            factor: self.clipped.then(|| self.loss.clone().into()),
            loss: self.loss.clone(),
            fence: device.fence(),
        }
    }
}

/// Maps the workers of a decision to the `rows` rows (or own models) of the rehearsed state. `worker` is the
/// sender.
fn map_to_rows(decision: &mut Decision, worker: usize, rows: usize) {
    decision.retire.iter_mut().for_each(|j| *j %= rows);
    decision.retire.retain(|j| *j != worker % rows);
    if let Fold::Pair { peer: Some(peer) } = &mut decision.fold {
        *peer = (worker + 1) % rows;
    }
}

impl State {
    /// Compiles the rule's updates before the clock starts.
    ///
    /// Plays the rule with gradients of zeros, as if all jobs took the same time, until the rule has made
    /// some updates. If gradients can be pending (`some_wait`), folds with every number of pending gradients
    /// are played too. The caller throws this state away afterwards. It may have fewer rows than there are
    /// workers.
    ///
    /// Returns the models that unfinished jobs would still hold, with their versions. As long as they exist,
    /// no other allocation takes their memory.
    pub fn rehearse(
        &mut self,
        mut rule: Box<dyn Rule>,
        workers: usize,
        clipped: bool,
        some_wait: bool,
    ) -> Result<VecDeque<(u64, Buffer)>> {
        let rows = self.tables.first().map_or(self.own.len().max(self.squares.len()), Vec::len).max(1);
        let zeros = ZeroGradient::new(&self.device, &self.layout, clipped);
        let job = Job::at(self.snapshot.clone(), 0);
        // The first fold into a sum without a step, and the first one with a step.
        let mut sums: [Option<(Gradient, Decision)>; 2] = [None, None];
        // Jobs (worker, version) in the order in which they end.
        let mut queue: VecDeque<(usize, u64)> = rule.begin(workers).into_iter().map(|i| (i, 0)).collect();
        let mut sent: VecDeque<(u64, Buffer)> = VecDeque::new();
        for arrivals in 0..REHEARSED {
            if arrivals > 4 * workers + 16 && self.version > 2 {
                break;
            }
            let Some((worker, version)) = queue.pop_front() else { break };
            let (t, steps) = (self.version, rule.steps(worker));
            let staleness = t - version;
            let arrival = Arrival { worker, version, t, staleness, time: 0.0, seconds: 1.0, steps, loss: Some(1.0) };
            let mut decision = rule.on_arrival(&arrival);
            map_to_rows(&mut decision, worker, rows);
            let gradient = zeros.of(worker % rows, &self.device);
            if matches!(decision.fold, Fold::Sum { .. }) && some_wait && !clipped {
                sums[decision.step.is_some() as usize].get_or_insert_with(|| (gradient.clone(), decision.clone()));
            }
            self.apply(&gradient, &job, &decision, 0);
            let now = self.version;
            decision.follow(&mut queue, worker, now, workers);
            if sent.back().is_none_or(|(version, _)| *version < now) {
                sent.push_back((now, self.snapshot.weights.clone()));
            }
            // The queue is in the order of versions: no job holds a model that is older than the first job's.
            while sent.front().zip(queue.front()).is_some_and(|((version, _), (_, oldest))| version < oldest) {
                sent.pop_front();
            }
        }
        for (gradient, decision) in sums.iter().flatten() {
            self.rehearse_pending(gradient, &job, decision);
        }
        update::forget_launches();
        self.device.sync()?;
        Ok(sent)
    }

    /// Folds a gradient together with every possible number of pending gradients.
    fn rehearse_pending(&mut self, gradient: &Gradient, job: &Job, decision: &Decision) {
        for count in 1..=self.most_pending {
            self.pending = vec![gradient.clone(); count];
            self.apply(gradient, job, decision, count);
        }
    }
}
