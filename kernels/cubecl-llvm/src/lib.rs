//! Stand-in for CubeCL's LLVM back end.
//!
//! `cubecl-cuda` depends on `cubecl-llvm` whichever compiler it runs, and that crate's build script downloads an LLVM
//! archive. stagger compiles its CUDA kernels as CUDA C++ through NVRTC (`cuda-cpp`), so nothing of LLVM is ever called:
//! this crate supplies the names that `cubecl-cuda` mentions, and refuses in a sentence if somebody selects the LLVM path.

use core::ffi::c_char;
use cubecl_core::ir::nvidia::SmArch;
use cubecl_core::prelude::KernelDefinition;
use cubecl_runtime::compiler::CompilationError;
use cubecl_runtime::kernel::BufferIOAttr;

/// The PTX version type that keys the compilation cache.
pub mod nvptx {
    /// See [`PtxVersion`](ptx_version::PtxVersion).
    pub mod ptx_version {
        use core::fmt;

        /// A PTX version; none is ever chosen here, because NVRTC picks its own.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct PtxVersion(());

        impl PtxVersion {
            /// No version: the LLVM path, which would read it, is absent.
            pub fn for_driver(_driver: i32) -> Option<Self> {
                None
            }
        }

        impl fmt::Display for PtxVersion {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("ptx")
            }
        }
    }
}

/// What the LLVM path would take away from a device's features.
pub mod shared {
    /// See [`restrict_features`](lowered_features::restrict_features).
    pub mod lowered_features {
        use cubecl_core::ir::DeviceProperties;

        /// The target whose features would be narrowed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum GpuTarget {
            /// NVIDIA's.
            Nvptx,
        }

        /// Nothing to narrow: the C++ path supports what the device advertises.
        pub fn restrict_features(_properties: &mut DeviceProperties, _target: GpuTarget) {}
    }
}

/// The targets of the LLVM path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LlvmTarget {
    /// A CPU.
    Cpu,
    /// NVIDIA's PTX.
    Nvptx,
}

/// The compiler that is not here.
#[derive(Clone, Debug)]
pub struct PlironCompiler {
    /// The target that was asked for.
    pub target: LlvmTarget,
}

/// Its options.
#[derive(Clone, Debug, Default)]
pub struct PlironOptions {
    /// Unused.
    pub arch: Option<()>,
    /// Unused.
    pub sm_arch: Option<SmArch>,
    /// Unused.
    pub ptx_version: Option<nvptx::ptx_version::PtxVersion>,
    /// Unused.
    pub grid_constants: bool,
}

/// A compiled module; none is ever made.
#[derive(Clone, Debug)]
pub struct NvptxModule {
    /// PTX text, NUL-terminated.
    pub ptx: Vec<c_char>,
    /// The kernel's name.
    pub entrypoint: String,
    /// Readable IR.
    pub ir: String,
    /// Bytes of dynamic shared memory.
    pub shared_memory_size: usize,
    /// What the kernel does with each buffer.
    pub io: Vec<BufferIOAttr>,
}

/// What a compilation would give.
pub enum PlironArtifact {
    /// PTX.
    NvptxCode(NvptxModule),
    /// Code for another target.
    Other,
}

impl PlironCompiler {
    /// Always an error that names the way out.
    pub fn compile(
        &mut self,
        _kernel: KernelDefinition,
        _options: &PlironOptions,
    ) -> Result<PlironArtifact, CompilationError> {
        panic!("the LLVM back end of CubeCL is not part of this build: enable cubecl's feature `cuda-cpp`")
    }

    /// The language tag of the LLVM path.
    pub fn lang_tag(&self) -> &'static str {
        "llvm"
    }
}
