//! Launches of kernels that each thread creates once and keeps.
//!
//! CubeCL creates a kernel object for every launch, and only then asks whether it has compiled that kernel.
//! To create it, CubeCL copies all properties of the device. On CUDA this copy alone took a third of the time
//! that a launch cost the calling thread. A step launches the same kernels every time, so each thread keeps
//! the kernels that it has launched, and launches them again with other buffers and scalars.
//!
//! Invariant: a kernel depends only on its device, its name with its types, the number of units per cube, and
//! its plan. Lengths and scalars are passed at each launch.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::settings::ExecutionMode;
use cubecl::ir::{AddressType, DeviceProperties, ElemType};
use cubecl::prelude::*;
use cubecl::server::{Handle, KernelArguments, KernelResource};
use cubecl::{InfoBuilder, ScalarBuilder};
use std::any::Any;
use std::cell::RefCell;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// A kernel and its identifier. Outside of a launch, CubeCL creates only kernels that check their indices.
/// [`Launched`] turns off these checks, and the identifier says so.
pub(crate) struct Made {
    id: KernelId,
    kernel: Box<dyn CubeKernel>,
}

/// The identifier of a kernel with its hash, computed once. CubeCL looks up a kernel three times per launch,
/// and would hash the whole identifier each time.
#[derive(Clone, Debug)]
struct Identity {
    id: KernelId,
    hash: u64,
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other) || self.id == other.id
    }
}

impl Eq for Identity {}

impl Hash for Identity {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// The kernel as it is passed to one launch.
struct Launched(Arc<Made>);

impl KernelMetadata for Launched {
    fn name(&self) -> &'static str {
        self.0.kernel.name()
    }

    fn id(&self) -> KernelId {
        self.0.id.clone()
    }

    fn address_type(&self) -> ElemType {
        self.0.kernel.address_type()
    }
}

impl CubeKernel for Launched {
    fn define(&self) -> KernelDefinition {
        let mut definition = self.0.kernel.define();
        definition.settings.execution_mode = ExecutionMode::Unchecked;
        definition
    }
}

/// A kernel that this thread has launched, and what it was created for.
struct Known {
    properties: Arc<DeviceProperties>,
    name: &'static str,
    units: u32,
    plan: Box<dyn Any>,
    made: Arc<Made>,
}

thread_local! {
    /// A short list: a step has about ten to sixty different kernels.
    static KNOWN: RefCell<Vec<Known>> = const { RefCell::new(Vec::new()) };
    static INFO: RefCell<InfoBuilder> = RefCell::default();
}

/// Returns the kernel with this name, number of units per cube and plan. Creates it if this thread has none
/// yet for this device.
pub(crate) fn known<P: PartialEq + Clone + 'static, K: CubeKernel>(
    client: &Client,
    name: &'static str,
    units: u32,
    plan: &P,
    make: impl FnOnce() -> K,
) -> Arc<Made> {
    let find = |all: &mut Vec<Known>| {
        let fits = |known: &&Known| {
            known.name == name
                && known.units == units
                && std::ptr::eq(&*known.properties, client.properties())
                && known.plan.downcast_ref() == Some(plan)
        };
        all.iter().find(fits).map(|known| known.made.clone())
    };
    KNOWN.with_borrow_mut(find).unwrap_or_else(|| {
        let kernel = make();
        let id = kernel.id().mode(ExecutionMode::Unchecked);
        let id = id.clone().info(Identity { hash: id.stable_hash() as u64, id });
        let made = Arc::new(Made { id, kernel: Box::new(kernel) });
        let properties = client.properties_shared();
        KNOWN.with_borrow_mut(|all| {
            all.push(Known { properties, name, units, plan: Box::new(plan.clone()), made: made.clone() })
        });
        made
    })
}

/// A buffer to bind: its handle, the bytes per element, and whether the kernel writes it.
pub(crate) type Bound = (Handle, usize, bool);

/// A tensor that a kernel reads, in f32.
pub(crate) fn read(tensor: &CubeTensor) -> Bound {
    assert_eq!(tensor.dtype, DType::F32, "the kernel reads f32");
    (tensor.handle.clone(), size_of::<f32>(), false)
}

/// A tensor that a kernel writes, in the type for which the kernel is launched.
pub(crate) fn written(tensor: &CubeTensor, dtype: DType) -> Bound {
    assert_eq!(tensor.dtype, dtype, "the kernel writes {dtype:?}");
    (tensor.handle.clone(), dtype.size(), true)
}

/// Launches a kernel. `buffers` and the scalars that `scalars` pushes are in the order of the kernel's
/// parameters.
///
/// # Safety
/// The kernel must stay within the lengths of its buffers.
pub(crate) unsafe fn with(
    client: &Client,
    made: Arc<Made>,
    count: CubeCount,
    buffers: impl IntoIterator<Item = Bound>,
    scalars: impl FnOnce(&mut ScalarBuilder),
) {
    let mut arguments = KernelArguments::new();
    let buffers = buffers.into_iter();
    arguments.resources.reserve(buffers.size_hint().0);
    arguments.declared_io.reserve(buffers.size_hint().0);
    INFO.with_borrow_mut(|info| {
        for (handle, size, written) in buffers {
            info.metadata.register_buffer(handle.size_in_used() / size as u64, AddressType::U32);
            arguments.resources.push(KernelResource::Buffer(handle.binding()));
            arguments.declared_io.push(if written { BufferIOAttr::ReadWrite } else { BufferIOAttr::ReadOnly });
        }
        scalars(&mut info.scalars);
        arguments.info = info.finish(AddressType::U32);
    });
    client.launch(Box::new(Launched(made)), count, arguments);
}

/// An argument with which a kernel is created. Each launch binds a buffer of its own in this place.
pub(crate) fn argument((handle, size, _): &Bound) -> BufferArg {
    // SAFETY: no launch uses this argument, and the handle covers this number of elements.
    unsafe { BufferArg::from_raw_parts(handle.clone(), handle.size_in_used() as usize / size) }
}

/// Launches a kernel over [`Bound`] buffers: `launch_bound!(kernel, client, cubes, units, floats per vector;
/// bound ..; scalars ..; plan ..)`. Each list is in the order of the kernel's parameters. The safety
/// conditions are those of [`with`].
macro_rules! launch_bound {
    ($kernel:ident $(<$type:ty>)?, $client:expr, $cubes:expr, $units:expr $(, $vector:expr)?; $($bound:expr),*; $($scalar:expr),*; $($plan:expr),*) => {{
        let (client, units) = ($client, $units);
        let name = concat!(module_path!(), "::", stringify!($kernel $(<$type>)?));
        let buffers = [$($bound),*];
        let made = $crate::launch::known(client, name, units, &($($plan.clone(),)*), || {
            let mut arguments = buffers.iter().map($crate::launch::argument);
            $kernel::create_dummy_kernel$(::<$type>)?(
                client.properties_shared(),
                client.target_properties_shared(),
                CubeCount::new_single(),
                CubeDim::new_1d(units),
                $($vector,)?
                $({
                    let _ = stringify!($bound);
                    arguments.next().expect("one argument per bound buffer")
                },)*
                $($scalar,)*
                $($plan),*
            )
        });
        $crate::launch::with(client, made, $cubes, buffers, |_scalars| {
            $(_scalars.push($scalar);)*
        })
    }};
}
pub(crate) use launch_bound;

/// Launches a kernel over contiguous tensors: `launch!(kernel, client, cubes, units; read ..; written ..;
/// scalars ..; plan ..)`. Each list is in the order of the kernel's parameters: first the tensors that it
/// reads, then those that it writes, then scalars and plan. The safety conditions are those of [`with`].
macro_rules! launch {
    ($kernel:ident $(<$type:ty>)?, $client:expr, $cubes:expr, $units:expr; $($read:expr),*; $($written:expr),*; $($scalar:expr),*; $($plan:expr),*) => {{
        // The given type, or f32 if none is given.
        let dtype = [$(<$type as burn::tensor::Element>::dtype(),)? burn::tensor::DType::F32][0];
        $crate::launch::launch_bound!(
            $kernel $(<$type>)?, $client, $cubes, $units;
            $($crate::launch::read(&$read),)* $($crate::launch::written(&$written, dtype)),*;
            $($scalar),*;
            $($plan),*
        )
    }};
}
pub(crate) use launch;
