//! Where each parameter lies in the flat weight buffer.

/// Segments start at multiples of this number of floats (256 bytes). Every backend accepts such a start of a
/// view.
pub const ALIGNMENT: usize = 64;

/// One parameter tensor inside the flat buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The parameter's path in the model, such as `conv1.weight`.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// First float in the flat buffer; a multiple of [`ALIGNMENT`].
    pub start: usize,
    /// Number of floats.
    pub len: usize,
}

/// The order and position of all parameters of a model in the flat buffer.
///
/// Invariant: segments are in the order in which the model visits its parameters. They do not overlap, and
/// the only gaps are for alignment. The content of a gap is never read as a parameter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    segments: Vec<Segment>,
    total: usize,
}

impl Layout {
    /// Appends a parameter.
    pub fn push(&mut self, name: String, shape: Vec<usize>) {
        let len = shape.iter().product();
        self.segments.push(Segment { name, shape, start: self.total, len });
        self.total = (self.total + len).next_multiple_of(ALIGNMENT);
    }

    /// The same buffer as one segment, including the gaps: the layout of an accumulated gradient.
    pub fn flat(&self) -> Layout {
        let mut flat = Layout::default();
        flat.push("flat".into(), vec![self.total]);
        flat
    }

    /// The layout of `replicas` models in one buffer: the first dimension of every parameter is `replicas`
    /// times as long.
    pub fn stacked(&self, replicas: usize) -> Layout {
        let segment = |s: &Segment| {
            let mut shape = s.shape.clone();
            shape[0] *= replicas;
            Segment { name: s.name.clone(), shape, start: replicas * s.start, len: replicas * s.len }
        };
        Layout { segments: self.segments.iter().map(segment).collect(), total: replicas * self.total }
    }

    /// All parameters, in order.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Number of floats in the flat buffer, including the gaps.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Number of scalar parameters (floats without the gaps).
    pub fn parameters(&self) -> usize {
        self.segments.iter().map(|s| s.len).sum()
    }

    /// The widest vector (4, 2 or 1 floats) that divides every segment's length.
    pub fn vector_size(&self) -> usize {
        [4, 2].into_iter().find(|n| self.segments.iter().all(|s| s.len % n == 0)).unwrap_or(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_aligned_and_do_not_overlap() {
        let mut layout = Layout::default();
        layout.push("a".into(), vec![3, 3]);
        layout.push("b".into(), vec![64]);
        layout.push("c".into(), vec![10]);
        let starts: Vec<_> = layout.segments().iter().map(|s| s.start).collect();
        assert_eq!(starts, [0, 64, 128]);
        assert_eq!((layout.total(), layout.parameters(), layout.vector_size()), (192, 83, 1));
        assert_eq!(layout.flat().segments()[0].len, 192);
    }
}
