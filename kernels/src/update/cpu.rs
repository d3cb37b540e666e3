//! The update as a plain loop: the CPU path, and the reference of the kernel.

use super::{Fold, Incoming, Method, SQUARE_FLOOR, Step, Update};
use crate::device::Buffer;
use crate::nn::for_each_instruction_set;

/// Floats per block of the CPU's loop: they stay in the first-level cache between the passes.
const BLOCK: usize = 4096;

impl Incoming<'_> {
    /// Notes the loss; gives the factor by which the gradient is clipped, if it is.
    fn note(&mut self) -> Option<f32> {
        self.losses.host_mut()[self.slot] = self.loss.host()[0];
        self.factor.map(|f| f.host()[0]).filter(|f| *f != 1.0)
    }

    /// The plain loop: notes the loss, and calls `work(at, g)` with each block of the (clipped) gradient and its place.
    pub(crate) fn on_cpu(&mut self, mut work: impl FnMut(usize, &[f32])) {
        let factor = self.note();
        let mut clipped = [0f32; BLOCK];
        for (segment, gradient) in self.layout.segments().iter().zip(self.buffers) {
            let gradient = gradient.host();
            for (k, g) in gradient.chunks(BLOCK).enumerate() {
                let at = segment.start + k * BLOCK;
                match factor {
                    None => work(at, g),
                    Some(factor) => {
                        clipped.iter_mut().zip(g).for_each(|(c, g)| *c = factor * g);
                        work(at, &clipped[..g.len()]);
                    }
                }
            }
        }
    }
}

impl Update<'_> {
    pub(super) fn on_cpu(self) {
        on_cpu(self)
    }
}

for_each_instruction_set! {
    fn on_cpu(update: Update) = blocks
}

/// Block by block, pass by pass. The same bits whatever the instructions: nothing here is contracted or taken in another order.
#[inline(always)]
fn blocks<const P: usize, const N: usize, const FMA: bool>(update: Update) {
    let Update { mut gradient, weights, mut fold, mut step } = update;
    let factor = gradient.note();
    let (mut direction, mut clipped) = ([0f32; BLOCK], [0f32; BLOCK]);
    for (segment, gradient) in gradient.layout.segments().iter().zip(gradient.buffers) {
        for (k, mut g) in gradient.host().chunks(BLOCK).enumerate() {
            if let Some(factor) = factor {
                clipped.iter_mut().zip(g).for_each(|(c, g)| *c = factor * g);
                g = &clipped[..g.len()];
            }
            block(&mut fold, &mut step, weights, &mut direction[..g.len()], segment.start + k * BLOCK, g);
        }
    }
}

/// One block: all passes over it, while it is near.
#[inline(always)]
fn block(fold: &mut Fold, step: &mut Option<Step>, weights: &Buffer, d: &mut [f32], at: usize, g: &[f32]) {
    {
        {
            let there = at..at + g.len();
            match fold {
                Fold::Nothing => {}
                Fold::Direct { scale } => d.iter_mut().zip(g).for_each(|(d, g)| *d = *scale * g),
                Fold::Sum { sum, scale } => {
                    for ((d, g), s) in d.iter_mut().zip(g).zip(&mut sum.host_mut()[there.clone()]) {
                        *s += *scale * g;
                        *d = *s;
                    }
                }
                Fold::Row { sum, row, mix, scale, forget, retired } => {
                    let s = &mut sum.host_mut()[there.clone()];
                    row.on_cpu(
                        there.clone(),
                        |k, r| {
                            let old = if *forget { 0.0 } else { r };
                            // Stored first, so that the sum holds exactly what the row holds.
                            let new = if *mix == 1.0 { g[k] } else { old + *mix * (g[k] - old) };
                            (new, old)
                        },
                        |k, new, old| s[k] += *scale * (new - old),
                    );
                    for row in retired {
                        row.read_on_cpu(there.clone(), |k, r| s[k] -= *scale * r);
                    }
                    d.copy_from_slice(s);
                }
                Fold::Compensated { sent, lambda, square } => {
                    let (w, x) = (&weights.host()[there.clone()], &sent.host()[there.clone()]);
                    let mut q = square.as_mut().map(|(q, m)| (&mut q.host_mut()[there.clone()], *m));
                    for k in 0..g.len() {
                        let lambda = match &mut q {
                            None => *lambda,
                            Some((q, m)) => {
                                q[k] = *m * q[k] + (1.0 - *m) * g[k] * g[k];
                                *lambda / (q[k] + SQUARE_FLOOR).sqrt()
                            }
                        };
                        d[k] = g[k] + lambda * g[k] * g[k] * (w[k] - x[k]);
                    }
                }
                Fold::Local { proximal, .. } => {
                    d.copy_from_slice(g);
                    if let Some((x, mu)) = proximal {
                        let (w, x) = (&weights.host()[there.clone()], &x.host()[there.clone()]);
                        d.iter_mut().zip(w).zip(x).for_each(|((d, w), x)| *d += *mu * (w - x));
                    }
                }
            }
            let Some(step) = step else { return };
            let w = &weights.host()[there.clone()];
            if step.factor != 1.0 {
                d.iter_mut().for_each(|d| *d *= step.factor);
            }
            if let Some((base, k)) = &mut step.base {
                for (d, b) in d.iter_mut().zip(&mut base.host_mut()[there.clone()]) {
                    let own = *d;
                    *d += *b;
                    *b += *k * own;
                }
            }
            if step.weight_decay != 0.0 && !matches!(step.method, Method::Adam { .. }) {
                d.iter_mut().zip(w).for_each(|(d, w)| *d += step.weight_decay * w);
            }
            match &mut step.method {
                Method::Plain => {}
                Method::HeavyBall { velocity, beta } => {
                    for (d, v) in d.iter_mut().zip(&mut velocity.host_mut()[there.clone()]) {
                        *v = *beta * *v + *d;
                        *d = *v;
                    }
                }
                Method::Nesterov { velocity, beta, pending, turn } => {
                    let v = &mut velocity.host_mut()[there.clone()];
                    let mut p = pending.as_mut().map(|p| &mut p.host_mut()[there.clone()]);
                    for k in 0..g.len() {
                        let gathered = p.as_ref().map_or(0.0, |p| p[k]) + d[k];
                        if *turn {
                            v[k] = *beta * v[k] + gathered;
                            d[k] += *beta * v[k];
                        }
                        if let Some(p) = &mut p {
                            p[k] = if *turn { 0.0 } else { gathered };
                        }
                    }
                }
                Method::Adam { first, second, largest, constants: c } => {
                    let (m, u) = (&mut first.host_mut()[there.clone()], &mut second.host_mut()[there.clone()]);
                    let mut most = largest.as_mut().map(|l| &mut l.host_mut()[there.clone()]);
                    for k in 0..g.len() {
                        m[k] = c.beta1 * m[k] + (1.0 - c.beta1) * d[k];
                        u[k] = c.beta2 * u[k] + (1.0 - c.beta2) * d[k] * d[k];
                        let square = match &mut most {
                            None => u[k],
                            Some(most) => {
                                most[k] = most[k].max(u[k]);
                                most[k]
                            }
                        };
                        d[k] = m[k] / c.correction1 / ((square / c.correction2).sqrt() + c.epsilon)
                            + step.weight_decay * w[k];
                    }
                }
            }
            let fresh = &mut step.fresh.host_mut()[there.clone()];
            fresh.iter_mut().zip(w).zip(&*d).for_each(|((fresh, w), d)| *fresh = w - step.lr * d);
            match fold {
                Fold::Local { sum, .. } => {
                    sum.host_mut()[there].iter_mut().zip(&*d).for_each(|(s, d)| *s += d);
                }
                Fold::Sum { sum, .. } | Fold::Row { sum, .. } if step.keep != 1.0 => {
                    // Emptied, not multiplied by zero: the product of zero and infinity is not zero.
                    for s in &mut sum.host_mut()[there] {
                        *s = if step.keep == 0.0 { 0.0 } else { *s * step.keep };
                    }
                }
                _ => {}
            }
        }
    }
}
