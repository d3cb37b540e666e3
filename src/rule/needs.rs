//! What a rule requires of the engine: state on the device, an optimizer, local steps.

/// How the server turns directions d into steps.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum ServerOptimizer {
    /// w -= η d, with the momentum that the user sets (`--momentum`).
    #[default]
    Plain,
    /// Nesterov momentum v. The directions since the last momentum step are summed in p. Every `every` updates:
    /// v = β v + p, the step is d + β v, and p = 0. The other steps are d alone.
    Nesterov {
        /// β.
        beta: f64,
        /// Number of updates from one momentum step to the next.
        every: u64,
    },
    /// AMSGrad with β1, β2 and ε, in this order.
    AmsGrad(f64, f64, f64),
}

/// The local steps of a job. With local steps a worker returns the sum of its directions.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Local {
    /// Largest number of steps per job. 0 and 1 mean one plain gradient (one AdamW step if `adamw` is given).
    pub steps: u32,
    /// Learning rate of the local steps. `None`: the server's rate at the start of the job.
    pub lr: Option<f64>,
    /// μ of the proximal term (μ/2)‖x - x_received‖²; 0 for none.
    pub proximal: f64,
    /// Weight decay of AdamW steps. `None`: the steps are plain SGD.
    pub adamw: Option<f64>,
}

impl Local {
    /// Whether a worker takes local steps and returns the sum of its directions instead of one gradient.
    pub fn walks(&self) -> bool {
        self.steps > 1 || self.adamw.is_some()
    }
}

/// The state that a rule needs on the device, and its other requirements. A sum, a row of a table, a base, a
/// square and a model each have one element per parameter.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Needs {
    /// A running sum s.
    pub sum: bool,
    /// Number of tables with one row per worker, 0 to 2. Each table has its own sum.
    pub tables: usize,
    /// A base that is added to the sum in a step (see [`Step::follow`](super::Step::follow)).
    pub base: bool,
    /// A running square of the gradients per worker.
    pub squares: bool,
    /// An own model per worker.
    pub own: bool,
    /// Arrivals from other workers change a worker's own model too. Used by the memory estimate.
    pub peers: bool,
    /// The rule mixes models. It has no direction, so momentum and weight decay cannot be used with it.
    pub mixes: bool,
    /// Shared weights that the workers write themselves.
    pub live: bool,
    /// Recompute the sum (or the base) from the first table every 4,096 arrivals, against rounding drift:
    /// this factor times the sum of the rows that are not retired. `None`: never.
    pub derived: Option<f64>,
    /// No gradient is ever stale, so momentum can be applied at every update.
    pub synchronous: bool,
    /// Batch losses ([`Arrival::loss`](super::Arrival::loss)). They are some arrivals late.
    pub loss: bool,
    /// Number of gradients per update, if it is larger than one; an estimate is enough. Used by the memory
    /// estimate.
    pub gradients: usize,
    /// How the server turns directions into steps.
    pub optimizer: ServerOptimizer,
    /// The local steps of the workers.
    pub local: Local,
}

impl Needs {
    /// A running sum and nothing else.
    pub fn sum() -> Self {
        Needs { sum: true, ..Needs::default() }
    }

    /// A running sum of `gradients` gradients per update.
    pub fn sum_of(gradients: usize) -> Self {
        Needs { gradients, ..Needs::sum() }
    }

    /// A table of the workers' latest gradients, and their sum.
    pub fn table() -> Self {
        Needs { tables: 1, ..Needs::sum() }
    }
}
