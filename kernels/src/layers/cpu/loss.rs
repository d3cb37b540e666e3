//! Cross-entropy on the CPU.

/// Returns the mean over the rows of -Σ t log softmax(s z). Writes the derivative with respect to z to
/// `gradient`: s (softmax - t) / B, where B is the number of rows. Each row of the targets t must add up to
/// 1.
pub fn cross_entropy(logits: &[f32], targets: &[f32], classes: usize, scale: f32, gradient: &mut [f32]) -> f32 {
    let batch = (logits.len() / classes) as f32;
    let mut loss = 0.0;
    for ((z, t), d) in logits.chunks(classes).zip(targets.chunks(classes)).zip(gradient.chunks_mut(classes)) {
        let top = z.iter().fold(f32::NEG_INFINITY, |top, z| top.max(scale * z));
        let sum: f32 = z.iter().map(|z| (scale * z - top).exp()).sum();
        for ((d, z), t) in d.iter_mut().zip(z).zip(t) {
            let log = scale * z - top - sum.ln();
            // A class with target 0 adds nothing to the loss, even if its probability is zero
            // (0 · -∞ would be NaN).
            loss -= if *t == 0.0 { 0.0 } else { t * log };
            *d = scale * (log.exp() - t) / batch;
        }
    }
    loss / batch
}
