//! Matrix products by the library's kernels, each kernel chosen once.
//!
//! To choose a kernel takes the library longer than to launch it, and a step has the same products every time. So each thread keeps what
//! was chosen for its products: the library's own choice, and nothing else is decided here.

use burn_backend::cubecl::dtype_to_storage_type;
use burn_cubecl::CubeDevice;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::TensorBinding;
use cubek::matmul::definition::{
    AvailableVectorSizes, MatmulElems, MatmulGlobalElems, MatmulProblem, MatmulSetupError,
};
use cubek::matmul::multi_level::args::{ConcreteInputsFactory, ConcreteOutputFactory, InputArg, OutputArg, TensorArgs};
use cubek::matmul::multi_level::definition::{BatchMatmulBlueprint, cube_mapping_launch};
use cubek::matmul::multi_level::routines::batch::simple::SimpleAlgorithm;
use cubek::matmul::multi_level::routines::batch::simple_unit::SimpleUnitAlgorithm;
use cubek::matmul::multi_level::{BatchMatmulRoutine, LaunchInfo};
use cubek::matmul::routine::BlueprintStrategy;
use cubek::std::InputBinding;
use std::cell::RefCell;
use std::rc::Rc;

/// A kernel for one pair of shapes.
struct Choice {
    device: CubeDevice,
    problem: MatmulProblem,
    info: LaunchInfo<BatchMatmulBlueprint>,
    /// With tensor cores, or without.
    accelerated: bool,
}

thread_local! {
    /// Few: a step has some eleven to sixty different products.
    static CHOICES: RefCell<Vec<Rc<Choice>>> = const { RefCell::new(Vec::new()) };
}

/// The product of two matrices, or of two batches of them, written to `out`, which is contiguous. A factor may be transposed.
pub(super) fn product(lhs: CubeTensor, rhs: CubeTensor, out: CubeTensor) {
    let known = CHOICES.with_borrow(|all| all.iter().find(|choice| choice.fits(&lhs, &rhs, &out)).cloned());
    let choice = known.unwrap_or_else(|| {
        let choice = Rc::new(Choice::of(&lhs, &rhs, &out));
        CHOICES.with_borrow_mut(|all| all.push(choice.clone()));
        choice
    });
    if choice.accelerated {
        choice.launch::<SimpleAlgorithm>(lhs, rhs, out);
    } else {
        choice.launch::<SimpleUnitAlgorithm>(lhs, rhs, out);
    }
}

impl Choice {
    fn of(lhs: &CubeTensor, rhs: &CubeTensor, out: &CubeTensor) -> Self {
        let choose = || -> Result<Choice, MatmulSetupError> {
            match Choice::with::<SimpleAlgorithm>(lhs, rhs, out, true) {
                Err(MatmulSetupError::Unavailable(_)) => Choice::with::<SimpleUnitAlgorithm>(lhs, rhs, out, false),
                other => other,
            }
        };
        choose().unwrap_or_else(|e| panic!("no kernel for the product of {lhs:?} and {rhs:?}: {e:?}"))
    }

    fn with<A: BatchMatmulRoutine<(), Blueprint = BatchMatmulBlueprint>>(
        lhs: &CubeTensor,
        rhs: &CubeTensor,
        out: &CubeTensor,
        accelerated: bool,
    ) -> Result<Self, MatmulSetupError> {
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
        Ok(Choice { device: out.device.clone(), problem, info, accelerated })
    }

    fn fits(&self, lhs: &CubeTensor, rhs: &CubeTensor, out: &CubeTensor) -> bool {
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
        .expect("a kernel that was launched with these shapes before, or chosen for them");
    }
}
