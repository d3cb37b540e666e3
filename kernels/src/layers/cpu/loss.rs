//! Cross-entropy on the CPU.

/// Mean over the rows of -Σ t log softmax(s z); `gradient` gets its derivative by z, s (softmax - t) / B.
pub fn cross_entropy(logits: &[f32], targets: &[f32], classes: usize, scale: f32, gradient: &mut [f32]) -> f32 {
    let batch = (logits.len() / classes) as f32;
    let mut loss = 0.0;
    for ((z, t), d) in logits.chunks(classes).zip(targets.chunks(classes)).zip(gradient.chunks_mut(classes)) {
        let top = z.iter().fold(f32::NEG_INFINITY, |top, z| top.max(scale * z));
        let sum: f32 = z.iter().map(|z| (scale * z - top).exp()).sum();
        for ((d, z), t) in d.iter_mut().zip(z).zip(t) {
            let log = scale * z - top - sum.ln();
            // A class that is not meant costs nothing, even if its probability is zero.
            loss -= if *t == 0.0 { 0.0 } else { t * log };
            *d = scale * (log.exp() - t) / batch;
        }
    }
    loss / batch
}
