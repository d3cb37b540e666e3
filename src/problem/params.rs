//! Conversion between Burn's tensors and flat buffers: parameters are views of a snapshot, gradients become
//! buffers.
//!
//! A snapshot is one flat buffer. Attaching a module to it makes every parameter a view of a part of the
//! buffer, without a copy. The snapshot is never written through a view (I2): Burn writes in place only if a
//! buffer has a single owner, and the server also holds the snapshot.

use crate::error::{Error, Result};
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, Gradients, Shape, Tensor};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeBackend, kernel::into_contiguous};
use burn_flex::{Flex, FlexTensor, Layout as FlexLayout};
use rand_distr::{Distribution, Uniform};
use stagger_datasets::keyed;
use stagger_kernels::{Buffer, Device, Layout};

/// The Burn device of a stagger device, without autodiff.
pub fn burn_device(device: &Device) -> burn::tensor::Device {
    match device {
        Device::Cpu => burn::tensor::Device::flex(),
        Device::Gpu(gpu) => burn::tensor::Device::new(gpu.device.clone()),
    }
}

/// Views a buffer as a tensor, without a copy. The shape has as many elements as the buffer.
pub fn tensor<const D: usize>(device: &Device, buffer: &Buffer, shape: impl Into<Shape>) -> Tensor<D> {
    let shape: Shape = shape.into();
    match (device, buffer) {
        (_, Buffer::Host { bytes, start, .. }) => {
            let strides = FlexLayout::contiguous(shape.clone()).strides().to_vec();
            let layout = FlexLayout::new(shape, strides, *start);
            Tensor::from_primitive::<Flex>(FlexTensor::from_arc(bytes.clone(), layout, DType::F32))
        }
        (Device::Gpu(gpu), Buffer::Device { handle, .. }) => {
            Tensor::from_primitive::<CubeBackend>(CubeTensor::new_contiguous(
                gpu.client.clone(),
                gpu.device.clone(),
                shape,
                handle.as_ref().clone(),
                DType::F32,
            ))
        }
        (Device::Cpu, Buffer::Device { .. }) => unreachable!("a device buffer is never used on the CPU"),
    }
}

/// Sums all elements in a fixed order. Returns one float.
///
/// Burn's own sum of a whole tensor is not deterministic on a GPU: four groups of units add to one number
/// atomically, so the last bits differ between runs. The sum is made dimension by dimension, because flattening
/// the tensor first would copy it if its rows are padded. Whether they are padded depends on whether the device
/// had finished with an earlier tensor.
pub fn total<const D: usize>(tensor: Tensor<D>) -> Tensor<1> {
    (0..D).rev().fold(tensor, |sums, dimension| sums.sum_dim(dimension)).reshape([1])
}

/// Returns a tensor's floats as a buffer in row-major order. Copies only if the tensor is not contiguous.
pub fn buffer<const D: usize>(device: &Device, tensor: Tensor<D>) -> Result<Buffer> {
    let len = tensor.shape().num_elements();
    match device {
        Device::Cpu => {
            let t = tensor.try_into_primitive::<Flex>().map_err(|e| Error::failed(format!("{e:?}")))?.to_contiguous();
            Ok(Buffer::Host { start: t.layout().start_offset(), bytes: t.data_arc(), len })
        }
        Device::Gpu(_) => {
            let t = tensor.try_into_primitive::<CubeBackend>().map_err(|e| Error::failed(format!("{e:?}")))?;
            Ok(Buffer::on_device(into_contiguous(t).handle, len))
        }
    }
}

/// The layout of a module's parameters, in the order in which the module visits them.
pub fn layout_of<M: Module>(module: &M) -> Layout {
    struct Names {
        path: Vec<String>,
        layout: Layout,
    }
    impl ModuleVisitor for Names {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.into());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.layout.push(self.path.join("."), param.lazy_shape().to_vec());
        }
    }
    let mut names = Names { path: Vec::new(), layout: Layout::default() };
    module.visit(&mut names);
    names.layout
}

/// The initial weights of a network. They depend only on the layout and the seed, so they are the same on every
/// backend.
///
/// Weights are uniform in ±sqrt(1 / fan-in). This is the default of PyTorch's layers, so learning rates carry
/// over. Scales of normalisation layers are one. Biases and shifts are zero.
pub fn initial_weights(layout: &Layout, seed: u64) -> Vec<f32> {
    let mut flat = vec![0.0; layout.total()];
    for (k, segment) in layout.segments().iter().enumerate() {
        let values = &mut flat[segment.start..segment.start + segment.len];
        if segment.name.ends_with("gamma") {
            values.fill(1.0);
        } else if segment.shape.len() >= 2 {
            // Convolutions are [out, in, height, width], linear layers [in, out].
            let fan_in: usize =
                if segment.shape.len() == 2 { segment.shape[0] } else { segment.shape[1..].iter().product() };
            let bound = (1.0 / fan_in as f32).sqrt();
            let uniform = Uniform::new(-bound, bound).expect("the bound is positive and finite");
            let mut random = keyed([seed, 0x696e6974, k as u64, 0]);
            values.iter_mut().for_each(|v| *v = uniform.sample(&mut random));
        }
    }
    flat
}

/// Makes every parameter of `module` a new autodiff leaf that is a view of its segment of `weights`.
pub fn attach<M: Module>(module: M, device: &Device, layout: &Layout, weights: &Buffer) -> M {
    struct Attach<'a> {
        device: &'a Device,
        layout: &'a Layout,
        weights: &'a Buffer,
        next: usize,
    }
    impl ModuleMapper for Attach<'_> {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let segment = &self.layout.segments()[self.next];
            self.next += 1;
            let view = self.weights.view(segment.start, segment.len);
            let leaf = tensor::<D>(self.device, &view, segment.shape.clone());
            // `Param::map` would first draw the random weights that Burn initialises lazily.
            Param::initialized(param.id, Tensor::from_inner(leaf).require_grad())
        }
    }
    module.map(&mut Attach { device, layout, weights, next: 0 })
}

/// Releases the weights that `module` is attached to. Every parameter becomes a view of `zero` (one float),
/// expanded to the parameter's shape.
pub fn detach<M: Module>(module: M, device: &Device, layout: &Layout, zero: &Buffer) -> M {
    struct Detach<'a> {
        device: &'a Device,
        layout: &'a Layout,
        zero: &'a Buffer,
        next: usize,
    }
    impl ModuleMapper for Detach<'_> {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let segment = &self.layout.segments()[self.next];
            self.next += 1;
            let zero = tensor::<D>(self.device, self.zero, [1; D]).expand(Shape::from(segment.shape.clone()));
            Param::initialized(param.id, zero)
        }
    }
    module.map(&mut Detach { device, layout, zero, next: 0 })
}

/// Takes the gradient of every parameter out of `gradients`, in the order of the layout.
///
/// # Errors
///
/// If a parameter has no gradient. Training without it would give wrong results.
pub fn gradients<M: Module>(
    module: &M,
    device: &Device,
    layout: &Layout,
    gradients: &mut Gradients,
) -> Result<Vec<Buffer>> {
    struct Collect<'a> {
        device: &'a Device,
        layout: &'a Layout,
        gradients: &'a mut Gradients,
        buffers: Vec<Buffer>,
        error: Option<Error>,
    }
    impl ModuleVisitor for Collect<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let found = match param.val().grad_remove(self.gradients) {
                Some(gradient) => buffer(self.device, gradient),
                None => {
                    let name = &self.layout.segments()[self.buffers.len()].name;
                    Err(Error::failed(format!("the backward pass left no gradient for {name}")))
                }
            };
            match found {
                Ok(buffer) => self.buffers.push(buffer),
                Err(error) => self.error = self.error.take().or(Some(error)),
            }
        }
    }
    let mut collect = Collect { device, layout, gradients, buffers: Vec::new(), error: None };
    module.visit(&mut collect);
    match collect.error {
        None => Ok(collect.buffers),
        Some(error) => Err(error),
    }
}
