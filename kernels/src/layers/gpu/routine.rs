//! One CubeK kernel for one matrix product: planned for the shapes of the product, then launched.

use burn_backend::cubecl::dtype_to_storage_type;
use burn_cubecl::CubeDevice;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::TensorBinding;
use cubek::matmul::definition::{
    AvailableVectorSizes, MatmulElems, MatmulGlobalElems, MatmulProblem, MatmulSetupError,
};
use cubek::matmul::multi_level::args::{ConcreteInputsFactory, ConcreteOutputFactory, InputArg, OutputArg, TensorArgs};
use cubek::matmul::multi_level::definition::{BatchMatmulBlueprint, cube_mapping_launch};
use cubek::matmul::multi_level::routines::batch::double_buffering::CyclicDoubleBufferingAlgorithm;
use cubek::matmul::multi_level::routines::batch::double_unit::DoubleUnitAlgorithm;
use cubek::matmul::multi_level::routines::batch::ordered_double_buffering::OrderedDoubleBufferingAlgorithm;
use cubek::matmul::multi_level::routines::batch::simple::SimpleAlgorithm;
use cubek::matmul::multi_level::routines::batch::simple_unit::SimpleUnitAlgorithm;
use cubek::matmul::multi_level::{BatchMatmulRoutine, LaunchInfo};
use cubek::matmul::routine::BlueprintStrategy;
use cubek::std::InputBinding;

/// The CubeK kernels that can compute any product. `Simple` (one stage), `Double` (two stages) and `Ordered`
/// (two stages, ordered on the left factor) use tensor cores. `SimpleUnit` and `DoubleUnit` do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Routine {
    Simple,
    Double,
    Ordered,
    SimpleUnit,
    DoubleUnit,
}

impl Routine {
    pub(super) const ALL: [Routine; 5] =
        [Routine::Simple, Routine::Double, Routine::Ordered, Routine::SimpleUnit, Routine::DoubleUnit];

    /// The name of the kernel in a tuning table.
    pub(super) fn name(self) -> &'static str {
        match self {
            Routine::Simple => "simple",
            Routine::Double => "double",
            Routine::Ordered => "ordered",
            Routine::SimpleUnit => "simple-unit",
            Routine::DoubleUnit => "double-unit",
        }
    }
}

/// Runs `$work`. In it, `$A` is CubeK's type for the routine.
macro_rules! with_routine {
    ($routine:expr, $A:ident => $work:expr) => {
        match $routine {
            Routine::Simple => {
                type $A = SimpleAlgorithm;
                $work
            }
            Routine::Double => {
                type $A = CyclicDoubleBufferingAlgorithm;
                $work
            }
            Routine::Ordered => {
                type $A = OrderedDoubleBufferingAlgorithm;
                $work
            }
            Routine::SimpleUnit => {
                type $A = SimpleUnitAlgorithm;
                $work
            }
            Routine::DoubleUnit => {
                type $A = DoubleUnitAlgorithm;
                $work
            }
        }
    };
}

/// A kernel that is planned for the shapes and strides of one product.
pub(super) struct Choice {
    device: CubeDevice,
    problem: MatmulProblem,
    info: LaunchInfo<BatchMatmulBlueprint>,
    pub(super) routine: Routine,
}

impl Choice {
    /// The kernel to use if nothing was measured: `Simple`, or `SimpleUnit` where the device cannot run it.
    pub(super) fn usual(lhs: &CubeTensor, rhs: &CubeTensor, out: &CubeTensor) -> Option<Self> {
        [Routine::Simple, Routine::SimpleUnit].into_iter().find_map(|routine| Choice::with(routine, lhs, rhs, out))
    }

    /// Plans this routine. Returns `None` if the device cannot run it on these shapes.
    pub(super) fn with(routine: Routine, lhs: &CubeTensor, rhs: &CubeTensor, out: &CubeTensor) -> Option<Self> {
        let (problem, info) = with_routine!(routine, A => Choice::planned::<A>(lhs, rhs, out)).ok()?;
        Some(Choice { device: out.device.clone(), problem, info, routine })
    }

    /// Launches the kernel.
    pub(super) fn run(&self, lhs: CubeTensor, rhs: CubeTensor, out: CubeTensor) {
        with_routine!(self.routine, A => self.launch::<A>(lhs, rhs, out))
    }

    fn planned<A: BatchMatmulRoutine<(), Blueprint = BatchMatmulBlueprint>>(
        lhs: &CubeTensor,
        rhs: &CubeTensor,
        out: &CubeTensor,
    ) -> Result<(MatmulProblem, LaunchInfo<BatchMatmulBlueprint>), MatmulSetupError> {
        let elements = |tensor: &CubeTensor| dtype_to_storage_type(tensor.dtype);
        let size = |tensor: &CubeTensor| tensor.clone().binding().required_address_type(tensor.dtype.size());
        let problem = MatmulProblem::from_shapes_and_strides(
            lhs.meta.shape().clone(),
            rhs.meta.shape().clone(),
            out.meta.shape().clone(),
            lhs.meta.strides().clone(),
            rhs.meta.strides().clone(),
            out.meta.strides().clone(),
            MatmulGlobalElems { lhs: elements(lhs), rhs: elements(rhs), out: elements(out) },
            size(lhs).max(size(rhs)).max(size(out)),
            None,
            None,
        )?;
        let [left, right, result] = [lhs, rhs, out].map(|tensor| tensor.dtype.size());
        let vectors = AvailableVectorSizes::from_type_sizes(&out.client, left, right, result)
            .filter_lhs_with_tensor(&problem.lhs_strides, &problem.lhs_shape, problem.lhs_layout)
            .filter_rhs_with_tensor(&problem.rhs_strides, &problem.rhs_shape, problem.rhs_layout)
            .filter_out_with_tensor(&problem.out_strides, &problem.out_shape)
            .pick_max()?;
        let settings = A::device_settings(&out.client, vectors);
        let blueprint = A::expand_blueprint(&problem, &settings, &BlueprintStrategy::default())?;
        let info = A::prepare(&problem, &settings, blueprint)?;
        Ok((problem, info))
    }

    /// Whether the kernel was planned for a product with these shapes, strides and types on this device.
    pub(super) fn fits(&self, lhs: &CubeTensor, rhs: &CubeTensor, out: &CubeTensor) -> bool {
        let problem = &self.problem;
        *lhs.meta.shape() == problem.lhs_shape
            && *rhs.meta.shape() == problem.rhs_shape
            && *lhs.meta.strides() == problem.lhs_strides
            && *rhs.meta.strides() == problem.rhs_strides
            && *out.meta.strides() == problem.out_strides
            && dtype_to_storage_type(lhs.dtype) == problem.global_dtypes.lhs
            && out.device == self.device
    }

    fn launch<A: BatchMatmulRoutine<(), Blueprint = BatchMatmulBlueprint>>(
        &self,
        lhs: CubeTensor,
        rhs: CubeTensor,
        out: CubeTensor,
    ) where
        InputArg<TensorArgs>: ConcreteInputsFactory<A>,
        OutputArg<TensorArgs>: ConcreteOutputFactory<A>,
    {
        let Choice { problem, info, .. } = self;
        let LaunchInfo { blueprint, dtypes, vector_sizes, .. } = info;
        let client = out.client.clone();
        let factor = |tensor: CubeTensor, elements| InputBinding::new(tensor.binding(), elements);
        let (lhs, rhs) = (factor(lhs, problem.global_dtypes.lhs), factor(rhs, problem.global_dtypes.rhs));
        let out: TensorBinding = out.binding();
        let (globals, created): (MatmulElems, _) = (dtypes.clone(), info.cube_count_plan.resolve());
        A::launch::<TensorArgs>(
            &client,
            info.cube_dim,
            created,
            info.address_type,
            <InputArg<TensorArgs> as ConcreteInputsFactory<A>>::create(
                lhs,
                rhs,
                blueprint,
                problem,
                vector_sizes,
                &globals,
            ),
            <OutputArg<TensorArgs> as ConcreteOutputFactory<A>>::create(
                out,
                blueprint,
                problem,
                vector_sizes,
                &globals,
            ),
            (),
            cube_mapping_launch(&info.cube_count_plan),
            blueprint.clone(),
            dtypes,
            vector_sizes,
        )
        .expect("the kernel was planned for these shapes");
    }
}
