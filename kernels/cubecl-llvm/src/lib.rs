//! Stand-in for CubeCL's LLVM back end.
//!
//! `cubecl-cuda` always depends on `cubecl-llvm`, whichever compiler it uses, and the build script of that
//! crate downloads an LLVM archive. stagger compiles its CUDA kernels as CUDA C++ with NVRTC
//! (feature `cuda-cpp`), so it never calls LLVM. This crate provides the names that `cubecl-cuda` uses. It
//! panics with a message if the LLVM path is selected.

use core::ffi::c_char;
use cubecl_core::ir::nvidia::SmArch;
use cubecl_core::prelude::KernelDefinition;
use cubecl_runtime::compiler::CompilationError;
use cubecl_runtime::kernel::BufferIOAttr;

/// The PTX version, which is part of the key of the compilation cache.
pub mod nvptx {
    /// See [`PtxVersion`](ptx_version::PtxVersion).
    pub mod ptx_version {
        use core::fmt;

        /// A PTX version. This build never creates one, because NVRTC chooses its own version.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct PtxVersion(());

        impl PtxVersion {
            /// Always `None`, because only the LLVM path uses the version.
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

/// The features of a device that the LLVM path does not support.
pub mod shared {
    /// See [`restrict_features`](lowered_features::restrict_features).
    pub mod lowered_features {
        use cubecl_core::ir::DeviceProperties;

        /// The target whose features would be restricted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum GpuTarget {
            /// NVIDIA's PTX.
            Nvptx,
        }

        /// Does nothing, because the C++ path supports all features that the device reports.
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

/// The LLVM compiler, which this build does not contain.
#[derive(Clone, Debug)]
pub struct PlironCompiler {
    /// The requested target.
    pub target: LlvmTarget,
}

/// The options of [`PlironCompiler`].
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

/// A compiled module. This build never creates one.
#[derive(Clone, Debug)]
pub struct NvptxModule {
    /// PTX text, NUL-terminated.
    pub ptx: Vec<c_char>,
    /// The kernel's name.
    pub entrypoint: String,
    /// The intermediate representation as text.
    pub ir: String,
    /// Bytes of dynamic shared memory.
    pub shared_memory_size: usize,
    /// How the kernel uses each buffer (input or output).
    pub io: Vec<BufferIOAttr>,
}

/// The result of a compilation.
pub enum PlironArtifact {
    /// PTX.
    NvptxCode(NvptxModule),
    /// Code for another target.
    Other,
}

impl PlironCompiler {
    /// Panics with a message that names the feature to enable.
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
