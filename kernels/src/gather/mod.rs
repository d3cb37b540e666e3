//! Draws a batch from the training set on the device: chooses rows, normalises, crops, flips.
//!
//! The device holds one copy of the set, as u8 (four pixels per 32-bit word). The row at position j of batch
//! k of worker i is a function of (seed, i, k, j): the worker goes through a pseudo-random permutation of its
//! part, a new one in every epoch. The permutation is computed and never stored. Crops and flips are drawn in
//! the same way.

mod kernel;

use self::kernel::{Plan, draw_kernel, gather_kernel};
use crate::device::{Buffer, Device, WeightCopy};
use crate::launch::launch_bound;
use crate::random::{self, Purpose, half_bits, mix, permute};
use crate::scratch::Scratch;
use cubecl::bytes::Bytes;
use cubecl::prelude::*;
use cubecl::server::Handle;
use std::sync::Arc;

/// The shape of a set of images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ImageShape {
    /// Number of colour planes: 3 for RGB.
    pub channels: usize,
    /// Height and width of the square image, in pixels.
    pub side: usize,
    /// Number of labels.
    pub classes: usize,
}

impl ImageShape {
    /// Number of values of one image: channels · side². The u8 image has as many bytes.
    pub fn pixels(&self) -> usize {
        self.channels * self.side * self.side
    }
}

/// A set of images on a device.
#[derive(Clone)]
pub struct Images {
    shape: ImageShape,
    count: usize,
    /// The mean of each channel, then the inverse of each standard deviation, for pixel values scaled to 0..=1.
    scale: [f32; 6],
    store: Store,
}

#[derive(Clone)]
struct DeviceStore {
    pixels: Handle,
    labels: Handle,
    scale: Handle,
}

#[derive(Clone)]
enum Store {
    Host { pixels: Arc<Vec<u8>>, labels: Arc<Vec<u8>> },
    Device(Box<DeviceStore>),
}

/// The part of the set that belongs to one worker, on the device.
#[derive(Clone)]
pub struct Part {
    rows: Rows,
    len: usize,
    order_key: u32,
    augment_key: u32,
}

#[derive(Clone)]
enum Rows {
    Host(Arc<Vec<u32>>),
    Device(Handle),
}

/// Augmentation of a training image, in addition to normalising.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Augment {
    /// Width in pixels of the border added before a random crop. Its pixels are zero after normalising, which
    /// is the mean colour.
    pub pad: usize,
    /// Mirrors the image left to right with probability 1/2.
    pub flip: bool,
}

impl Augment {
    /// No augmentation.
    pub const NONE: Augment = Augment { pad: 0, flip: false };
}

/// Which samples a batch contains.
pub enum Draw<'a> {
    /// Batch `job` of a worker's part, in the worker's pseudo-random order.
    Batch {
        /// The part.
        part: &'a Part,
        /// Number k of the job, from 0.
        job: u64,
        /// Augmentation of each image.
        augment: Augment,
    },
    /// Rows `first..first + size` of the set, in order and without augmentation.
    InOrder {
        /// The first row.
        first: usize,
    },
}

impl Images {
    /// Uploads a set. `pixels` has the shape \[images, channels, side, side], `labels` the shape \[images\].
    /// `mean` and `std` are those of each channel, for pixel values scaled to 0..=1.
    pub fn new(
        device: &Device,
        shape: ImageShape,
        pixels: Vec<u8>,
        labels: Vec<u8>,
        mean: [f32; 3],
        std: [f32; 3],
    ) -> Self {
        assert_eq!(pixels.len(), labels.len() * shape.pixels(), "one label per image");
        assert!(shape.channels <= 3 && shape.pixels().is_multiple_of(4), "images are packed four pixels to a word");
        let scale = [mean[0], mean[1], mean[2], 1.0 / std[0], 1.0 / std[1], 1.0 / std[2]];
        let count = labels.len();
        let store = match device {
            Device::Cpu => Store::Host { pixels: Arc::new(pixels), labels: Arc::new(labels) },
            Device::Gpu(gpu) => {
                let labels: Vec<u32> = labels.iter().map(|&l| l as u32).collect();
                Store::Device(Box::new(DeviceStore {
                    pixels: gpu.client.create(Bytes::from_bytes_vec(pixels)),
                    labels: gpu.client.create(Bytes::from_elems(labels)),
                    scale: gpu.client.create(Bytes::from_elems(scale.to_vec())),
                }))
            }
        };
        Images { shape, count, scale, store }
    }

    /// The shape of each image.
    pub fn shape(&self) -> ImageShape {
        self.shape
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Draws `size` samples. Returns normalised images [size, side, side, channels] and one-hot targets
    /// [size, classes]. On a GPU the same launch also copies the weights of `pull`, if given.
    pub fn draw(&self, device: &Device, draw: Draw, size: usize, pull: Option<WeightCopy>) -> (Buffer, Buffer) {
        let (x, target) = match device {
            Device::Cpu => return self.on_cpu(&[draw], size),
            Device::Gpu(_) => self.batch(device, size),
        };
        self.draw_into(device, draw, size, 0, &x, &target, pull);
        (x, target)
    }

    /// Makes several draws of `size` samples each, one after another in the same two buffers.
    pub fn draw_together(&self, device: &Device, draws: Vec<Draw>, size: usize) -> (Buffer, Buffer) {
        if matches!(device, Device::Cpu) {
            return self.on_cpu(&draws, size);
        }
        let (x, target) = self.batch(device, draws.len() * size);
        for (k, draw) in draws.into_iter().enumerate() {
            self.draw_into(device, draw, size, k * size, &x, &target, None);
        }
        (x, target)
    }

    /// Uninitialised buffers for the images and the targets of a batch of `size` samples.
    pub fn batch(&self, device: &Device, size: usize) -> (Buffer, Buffer) {
        (device.uninitialised(size * self.shape.pixels()), device.uninitialised(size * self.shape.classes))
    }

    fn plan(&self, draw: &Draw, size: usize) -> Plan {
        let plan = Plan { shape: self.shape, shuffled: true, augment: Augment::NONE, pulls: false };
        match draw {
            Draw::Batch { augment, .. } => Plan { augment: *augment, ..plan },
            Draw::InOrder { first } => {
                assert!(first + size <= self.count, "rows in order must lie inside the set");
                Plan { shuffled: false, ..plan }
            }
        }
    }

    /// The same as [`Images::draw`] on a GPU, into existing buffers, starting at sample `first` of them.
    #[allow(clippy::too_many_arguments)]
    pub fn draw_into(
        &self,
        device: &Device,
        draw: Draw,
        size: usize,
        first: usize,
        x: &Buffer,
        target: &Buffer,
        pull: Option<WeightCopy>,
    ) {
        let (mut plan, at) = (self.plan(&draw, size), Place::of(&draw, size));
        plan.pulls = pull.is_some();
        let vectors = pull.as_ref().map_or(0, |pull| pull.to.len() / 4);
        let (Device::Gpu(gpu), Store::Device(store)) = (device, &self.store) else {
            unreachable!("a draw must use the device that holds the set");
        };
        let rows = match &draw {
            Draw::Batch { part: Part { rows: Rows::Device(rows), .. }, .. } => rows.clone(),
            _ => gpu.unused(),
        };
        let samples = target.len() / self.shape.classes;
        assert!(
            x.len() == samples * self.shape.pixels() && first + size <= samples,
            "the buffers must hold whole samples, and the draw must fit in them"
        );
        let cubes = cubes((size * self.shape.pixels().max(self.shape.classes)).max(vectors));
        let fence = pull.as_ref().map_or(gpu.unused(), |pull| gpu.fenced(&pull.fence));
        let (from, to) = pull.map_or((gpu.unused(), gpu.unused()), |pull| (pull.from.handle(), pull.to.handle()));
        // SAFETY: the samples lie inside the buffers. In a shuffled draw `rows` has `count` entries,
        // otherwise the kernel does not read it. The two buffers of a weight copy hold the same number of
        // floats, a multiple of four. Without a copy, small unused buffers are bound, which the kernel does
        // not touch.
        unsafe {
            launch_bound!(
                gather_kernel, &gpu.client, cubes, 256, 4;
                (store.pixels.clone(), 4, false),
                (store.labels.clone(), 4, false),
                (store.scale.clone(), 4, false),
                (rows, 4, false),
                (x.handle(), 4, true),
                (target.handle(), 4, true),
                (from, 16, false),
                (fence, 4, false),
                (to, 16, true);
                at.order_key,
                at.augment_key,
                at.epoch,
                at.position,
                at.count,
                half_bits(at.count),
                at.job_low,
                at.job_high,
                first as u32,
                size as u32;
                plan
            )
        }
    }

    fn on_cpu(&self, draws: &[Draw], size: usize) -> (Buffer, Buffer) {
        let (values, classes) = (size * self.shape.pixels(), size * self.shape.classes);
        let (mut x, mut target) = (Scratch::zeros(draws.len() * values), Scratch::zeros(draws.len() * classes));
        for ((draw, x), target) in draws.iter().zip(x.chunks_mut(values)).zip(target.chunks_mut(classes)) {
            self.fill(draw, size, x, target);
        }
        (x.into(), target.into())
    }

    /// Writes a draw into `x` and `target`, which must be zero.
    fn fill(&self, draw: &Draw, size: usize, x: &mut [f32], target: &mut [f32]) {
        let (plan, at) = (self.plan(draw, size), Place::of(draw, size));
        let Store::Host { pixels, labels } = &self.store else {
            unreachable!("a draw must use the device that holds the set");
        };
        let ImageShape { side, classes, channels } = self.shape;
        let plane = side * side;
        for (j, image) in x.chunks_exact_mut(self.shape.pixels()).enumerate() {
            let row = match draw {
                Draw::InOrder { first } => first + j,
                Draw::Batch { part: Part { rows: Rows::Host(rows), .. }, .. } => at.row(rows, j as u32) as usize,
                Draw::Batch { .. } => unreachable!("a part on the CPU has its rows in host memory"),
            };
            target[j * classes + labels[row] as usize] = 1.0;
            let source = &pixels[row * self.shape.pixels()..][..self.shape.pixels()];
            let random = mix(mix(mix(at.augment_key, at.job_low), at.job_high), j as u32);
            let (dy, dx, flip) = plan.augment.offsets(random);
            for (k, out) in image.chunks_exact_mut(channels).enumerate() {
                let (y, x) = (k / side, k % side);
                let x = if flip { side - 1 - x } else { x };
                // The offset is 0..=2 pad, and the border takes pad off. A position above or left of the
                // image wraps to a large number.
                let (y, x) = ((y + dy).wrapping_sub(plan.augment.pad), (x + dx).wrapping_sub(plan.augment.pad));
                if y < side && x < side {
                    for (c, out) in out.iter_mut().enumerate() {
                        let value = source[c * plane + y * side + x] as f32 * (1.0 / 255.0);
                        *out = (value - self.scale[c]) * self.scale[3 + c];
                    }
                }
            }
        }
    }
}

impl Part {
    /// The part of worker `worker`: the row numbers `rows` of the set. The order and the augmentation depend
    /// on `seed`.
    pub fn new(device: &Device, rows: Vec<u32>, seed: u64, worker: usize) -> Self {
        let len = rows.len();
        let rows = match device {
            Device::Cpu => Rows::Host(Arc::new(rows)),
            Device::Gpu(gpu) => Rows::Device(gpu.client.create(Bytes::from_elems(rows))),
        };
        let order_key = random::key(seed, Purpose::Order, worker);
        let augment_key = random::key(seed, Purpose::Augment, worker);
        Part { rows, len, order_key, augment_key }
    }

    /// Returns the row numbers of batch `job` as floats [size], which are exact below 2^24.
    pub fn draw(&self, device: &Device, job: u64, size: usize) -> Buffer {
        let at = Place::of(&Draw::Batch { part: self, job, augment: Augment::NONE }, size);
        match (device, &self.rows) {
            (Device::Cpu, Rows::Host(rows)) => {
                device.upload((0..size as u32).map(|j| at.row(rows, j) as f32).collect())
            }
            (Device::Gpu(gpu), Rows::Device(rows)) => {
                let handle = gpu.client.empty(4 * size);
                // SAFETY: the lengths are those of the buffers.
                unsafe {
                    draw_kernel::launch_unchecked(
                        &gpu.client,
                        cubes(size),
                        CubeDim::new_1d(256),
                        BufferArg::from_raw_parts(rows.clone(), self.len),
                        BufferArg::from_raw_parts(handle.clone(), size),
                        at.order_key,
                        at.epoch,
                        at.position,
                        at.count,
                        half_bits(at.count),
                    )
                }
                Buffer::on_device(handle, size)
            }
            _ => unreachable!("a draw must use the device that holds the part"),
        }
    }

    /// Number of samples in the part.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the part contains no samples.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Augment {
    /// Derives from 32 random bits: the crop's offset from the top, its offset from the left, and whether to
    /// flip.
    fn offsets(&self, random: u32) -> (usize, usize, bool) {
        let span = 2 * self.pad as u32 + 1;
        let crop = |bits: u32| ((bits * span) >> 12) as usize;
        (crop(random & 0xfff), crop((random >> 12) & 0xfff), self.flip && random >> 31 == 1)
    }
}

/// The number of cubes of 256 units for `len` elements, in two dimensions, because WGPU allows at most 65,535
/// cubes in one.
fn cubes(len: usize) -> CubeCount {
    let count = len.div_ceil(256).max(1) as u32;
    CubeCount::Static(count.min(32_768), count.div_ceil(32_768), 1)
}

/// Where a batch starts in its worker's sequence of samples. The host computes this once per batch.
struct Place {
    order_key: u32,
    augment_key: u32,
    epoch: u32,
    position: u32,
    count: u32,
    job_low: u32,
    job_high: u32,
}

impl Place {
    /// The row of the set at position `j` of the batch.
    fn row(&self, rows: &[u32], j: u32) -> u32 {
        let walked = self.position + j;
        let key = mix(self.order_key, self.epoch.wrapping_add(walked / self.count));
        rows[permute(walked % self.count, self.count, key) as usize]
    }

    fn of(draw: &Draw, size: usize) -> Place {
        match draw {
            Draw::Batch { part, job, .. } => {
                let walked = job * size as u64;
                let count = part.len as u64;
                Place {
                    order_key: part.order_key,
                    augment_key: part.augment_key,
                    epoch: (walked / count) as u32,
                    position: (walked % count) as u32,
                    count: part.len as u32,
                    job_low: *job as u32,
                    job_high: (*job >> 32) as u32,
                }
            }
            Draw::InOrder { first } => Place {
                order_key: 0,
                augment_key: 0,
                epoch: 0,
                position: *first as u32,
                count: 1,
                job_low: 0,
                job_high: 0,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(count: usize) -> Images {
        let shape = ImageShape { channels: 3, side: 4, classes: 2 };
        let pixels = (0..count * shape.pixels()).map(|i| (i / shape.pixels()) as u8).collect();
        let labels = (0..count).map(|i| (i % 2) as u8).collect();
        Images::new(&Device::Cpu, shape, pixels, labels, [0.0; 3], [1.0 / 255.0; 3])
    }

    fn rows_of(images: &Images, part: &Part, job: u64, size: usize) -> Vec<u32> {
        let draw = Draw::Batch { part, job, augment: Augment::NONE };
        let (x, _) = images.draw(&Device::Cpu, draw, size, None);
        x.host().chunks(images.shape().pixels()).map(|image| image[0].round() as u32).collect()
    }

    #[test]
    fn an_epoch_of_batches_holds_every_sample_of_the_part_once() {
        let images = set(40);
        let part = Part::new(&Device::Cpu, (10..22).collect(), 1, 0);
        for epoch in 0..3 {
            let mut rows: Vec<u32> = (0..4).flat_map(|k| rows_of(&images, &part, 4 * epoch + k, 3)).collect();
            rows.sort_unstable();
            assert_eq!(rows, (10..22).collect::<Vec<_>>());
        }
        assert_ne!(rows_of(&images, &part, 0, 12), rows_of(&images, &part, 1, 12), "a new order every epoch");
    }

    #[test]
    fn a_batch_depends_on_seed_worker_and_job_alone() {
        let images = set(40);
        let part = |seed, worker| Part::new(&Device::Cpu, (0..40).collect(), seed, worker);
        let first = rows_of(&images, &part(1, 0), 5, 8);
        rows_of(&images, &part(1, 1), 6, 8);
        assert_eq!(first, rows_of(&images, &part(1, 0), 5, 8));
        assert_ne!(first, rows_of(&images, &part(2, 0), 5, 8));
        assert_ne!(first, rows_of(&images, &part(1, 1), 5, 8));
    }

    #[test]
    fn a_batch_larger_than_the_part_starts_over() {
        let images = set(10);
        let part = Part::new(&Device::Cpu, vec![3, 4, 5], 1, 0);
        let mut rows = rows_of(&images, &part, 0, 6);
        rows.sort_unstable();
        assert_eq!(rows, [3, 3, 4, 4, 5, 5]);
    }

    #[test]
    fn crops_cover_every_offset_and_flips_are_even() {
        let augment = Augment { pad: 4, flip: true };
        let mut seen = [[0u32; 9]; 9];
        let mut flips = 0;
        for i in 0..8100 {
            let (y, x, flip) = augment.offsets(mix(3, i));
            seen[y][x] += 1;
            flips += flip as u32;
        }
        assert!(seen.iter().flatten().all(|&n| (50..160).contains(&n)), "{seen:?}");
        assert!((3800..4300).contains(&flips), "{flips}");
    }
}
