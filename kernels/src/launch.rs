//! Launches of kernels that are made once.
//!
//! The library makes a kernel anew for every launch of it, to ask afterwards whether it has it compiled, and copies all that it knows of
//! the device on the way: on CUDA that copy alone was a third of what a launch cost the thread that asks for it. A step launches the same
//! kernels every time, so here each thread keeps those that it has launched, and launches them again with other buffers and numbers.
//!
//! Invariant: a kernel is decided by its device, its name with its types, the units of a cube and its plan, and by nothing else. Lengths
//! and numbers are told to it at each launch.

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

/// A kernel, and what the library knows it by. Apart from a launch the library makes only kernels that check their indices; this is one,
/// turned into the same without.
pub(crate) struct Made {
    id: KernelId,
    kernel: Box<dyn CubeKernel>,
}

/// What a kernel is told apart by, hashed once: the library looks each launch's kernel up three times, and hashes all of this each time.
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

/// One launch's share of it.
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

/// A kernel that this thread has launched, and what it was made for.
struct Known {
    properties: Arc<DeviceProperties>,
    name: &'static str,
    units: u32,
    plan: Box<dyn Any>,
    made: Arc<Made>,
}

thread_local! {
    /// Few: a step has some ten to sixty different kernels.
    static KNOWN: RefCell<Vec<Known>> = const { RefCell::new(Vec::new()) };
    static INFO: RefCell<InfoBuilder> = RefCell::default();
}

/// The kernel of this name for cubes of so many units and this plan, made if this thread has none for this device.
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

/// A buffer that is bound: its handle, the bytes of an element, whether it is written.
pub(crate) type Bound = (Handle, usize, bool);

/// What a kernel reads: in f32.
pub(crate) fn read(tensor: &CubeTensor) -> Bound {
    assert_eq!(tensor.dtype, DType::F32, "a kernel over f32");
    (tensor.handle.clone(), size_of::<f32>(), false)
}

/// What a kernel writes: in the type that it was launched for.
pub(crate) fn written(tensor: &CubeTensor, dtype: DType) -> Bound {
    assert_eq!(tensor.dtype, dtype, "a kernel over {dtype:?}");
    (tensor.handle.clone(), dtype.size(), true)
}

/// Launches a kernel over buffers of numbers, in the order of its parameters.
///
/// # Safety
/// The kernel keeps to the buffers' lengths.
pub(crate) unsafe fn with(
    client: &Client,
    made: Arc<Made>,
    count: CubeCount,
    buffers: impl IntoIterator<Item = Bound>,
    numbers: impl FnOnce(&mut ScalarBuilder),
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
        numbers(&mut info.scalars);
        arguments.info = info.finish(AddressType::U32);
    });
    client.launch(Box::new(Launched(made)), count, arguments);
}

/// An argument of which a kernel is made: what is bound at a launch stands in its place.
pub(crate) fn argument((handle, size, _): &Bound) -> BufferArg {
    // SAFETY: nothing is launched with it, and the handle covers as many elements.
    unsafe { BufferArg::from_raw_parts(handle.clone(), handle.size_in_used() as usize / size) }
}

/// Launches a kernel over buffers that are bound: `launch_bound!(kernel, client, cubes, units, floats of a vector; bound ..; numbers ..;
/// plan ..)`, each list in the order of the kernel's parameters. To be called where [`with`] may be.
macro_rules! launch_bound {
    ($kernel:ident $(<$type:ty>)?, $client:expr, $cubes:expr, $units:expr $(, $vector:expr)?; $($bound:expr),*; $($number:expr),*; $($plan:expr),*) => {{
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
                    arguments.next().expect("one for each")
                },)*
                $($number,)*
                $($plan),*
            )
        });
        $crate::launch::with(client, made, $cubes, buffers, |_numbers| {
            $(_numbers.push($number);)*
        })
    }};
}
pub(crate) use launch_bound;

/// Launches a kernel over contiguous tensors: `launch!(kernel, client, cubes, units; read ..; written ..; numbers ..; plan ..)`, each list
/// in the order of the kernel's parameters, which begin with what is read, then what is written. To be called where [`with`] may be.
macro_rules! launch {
    ($kernel:ident $(<$type:ty>)?, $client:expr, $cubes:expr, $units:expr; $($read:expr),*; $($written:expr),*; $($number:expr),*; $($plan:expr),*) => {{
        // The first of these: f32 if no other type is given.
        let dtype = [$(<$type as burn::tensor::Element>::dtype(),)? burn::tensor::DType::F32][0];
        $crate::launch::launch_bound!(
            $kernel $(<$type>)?, $client, $cubes, $units;
            $($crate::launch::read(&$read),)* $($crate::launch::written(&$written, dtype)),*;
            $($number),*;
            $($plan),*
        )
    }};
}
pub(crate) use launch;
