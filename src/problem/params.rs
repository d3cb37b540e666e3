//! The border between Burn and the flat buffers: parameters as views of a snapshot, gradients as buffers.
//!
//! A snapshot is one flat buffer. Attaching it makes every parameter of a replica a view of a part of it, so a pull copies
//! no byte; Burn never writes a buffer in place that has another owner, and the server holds the snapshot too (I2).

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

/// A buffer seen as a tensor; no byte is copied.
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
        (Device::Cpu, Buffer::Device { .. }) => unreachable!("a device buffer never meets the CPU"),
    }
}

/// The sum of all elements, one float, which is always added up in the same order. Burn's own sum of a whole tensor lets four groups of
/// a GPU's units add to one number as they come, so that its last bits differ from run to run. Dimension by dimension, for to see it as one
/// would copy it where it has room between its rows, as it has or not by whether the device was done with the tensor before it.
pub fn total<const D: usize>(tensor: Tensor<D>) -> Tensor<1> {
    (0..D).rev().fold(tensor, |sums, dimension| sums.sum_dim(dimension)).reshape([1])
}

/// A tensor's floats as a buffer, in row-major order; copies only if they lie otherwise.
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

/// The layout of a module's parameters, in the order in which it visits them.
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

/// First weights of a network, a function of the seed alone and so the same on every backend: uniform within
/// ±sqrt(1 / fan-in) for weights (the default of PyTorch's layers, so that learning rates carry over), one for the scales
/// of normalisation, zero for biases and shifts.
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
            let uniform = Uniform::new(-bound, bound).expect("a range");
            let mut random = keyed([seed, 0x696e6974, k as u64, 0]);
            values.iter_mut().for_each(|v| *v = uniform.sample(&mut random));
        }
    }
    flat
}

/// Makes every parameter of `module` a fresh autodiff leaf that views its segment of `weights`.
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
            // Not `map`, which would draw the random weights that Burn has in store.
            Param::initialized(param.id, Tensor::from_inner(leaf).require_grad())
        }
    }
    module.map(&mut Attach { device, layout, weights, next: 0 })
}

/// Lets go of the weights that `module` was attached to: every parameter becomes one zero, seen as a tensor of its shape.
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

/// Takes the gradient of every parameter, in the layout's order. A missing one is an error: silence would train wrongly.
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
