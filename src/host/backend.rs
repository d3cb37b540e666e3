//! Chooses the device. Tests whether each backend works on this machine, and explains the choice in one
//! sentence.

use crate::error::{Error, Result, panic_text};
use cubecl::cuda::CudaDevice;
use stagger_kernels::Device;
use stagger_kernels::cuda::{Card, cuda_card};
use std::panic::catch_unwind;
use std::str::FromStr;
use std::sync::OnceLock;

/// The value of `--backend`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The best backend that works on this machine.
    Auto,
    /// NVIDIA GPUs.
    Cuda,
    /// GPUs with Vulkan, Metal or DirectX 12.
    Wgpu,
    /// The CPU; no GPU.
    Cpu,
}

impl FromStr for Choice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Choice::Auto),
            "cuda" => Ok(Choice::Cuda),
            "wgpu" => Ok(Choice::Wgpu),
            "cpu" => Ok(Choice::Cpu),
            _ => Err(Error::usage(format!("--backend `{text}` is not one of auto, cuda, wgpu, cpu"))),
        }
    }
}

/// A device that works.
pub struct Backend {
    /// The device.
    pub device: Device,
    /// The name of the device, as printed.
    pub name: String,
    /// The driver of the device, as printed.
    pub driver: String,
    /// Memory in bytes, if known: all of a GPU's memory, or the available memory of the host.
    pub memory: Option<u64>,
    /// Which backend was chosen, and why, as one sentence.
    pub why: String,
    /// What executes the kernels.
    pub runs_on: RunsOn,
}

/// What executes a backend's kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunsOn {
    /// The device itself.
    Hardware,
    /// A software driver, on the CPU.
    Software,
    /// Nothing. The null driver of the tests accepts launches and executes none; its device name says so.
    Nothing,
}

impl RunsOn {
    fn caveat(self) -> &'static str {
        match self {
            RunsOn::Hardware => "",
            RunsOn::Software => "; a software adapter: correct, but slow",
            RunsOn::Nothing => "; WARNING: this driver runs no kernel, so every number of this run is meaningless",
        }
    }
}

/// Bytes by which the resident memory of this process grew when it first opened a device.
static DRIVERS: OnceLock<u64> = OnceLock::new();

/// Bytes of this process's memory that the drivers took when a device was first opened. Linux only: 0 on other
/// systems, and before a device is opened.
pub fn drivers() -> u64 {
    DRIVERS.get().copied().unwrap_or(0)
}

/// Opens a backend. May be called more than once: a device is set up once.
///
/// # Errors
///
/// If the chosen backend cannot be used on this machine. The message says why.
pub fn open(choice: Choice) -> Result<Backend> {
    let resident = || kilobytes("/proc/self/status", "VmRSS:").unwrap_or(0);
    let before = resident();
    let opened = open_device(choice);
    DRIVERS.get_or_init(|| resident().saturating_sub(before));
    opened
}

fn open_device(choice: Choice) -> Result<Backend> {
    cores();
    match choice {
        Choice::Cpu => Ok(cpu("as asked for".into())),
        Choice::Cuda => cuda(true)
            .map_err(|why| Error::usage(format!("--backend cuda cannot be used here: {why}; use --backend auto"))),
        Choice::Wgpu => wgpu(true)
            .map_err(|why| Error::usage(format!("--backend wgpu cannot be used here: {why}; use --backend auto"))),
        Choice::Auto => {
            let no_cuda = match cuda(false) {
                Ok(backend) => return Ok(backend),
                Err(why) => why,
            };
            let no_wgpu = match wgpu(false) {
                Ok(backend) => return Ok(backend),
                Err(why) => why,
            };
            Ok(cpu(format!("because there is no CUDA ({no_cuda}) and no WGPU ({no_wgpu})")))
        }
    }
}

fn cpu(why: String) -> Backend {
    let cores = cores();
    Backend {
        device: Device::Cpu,
        name: format!("CPU, {cores} cores"),
        driver: "none".into(),
        memory: system_memory(),
        why: format!("cpu, {why}"),
        runs_on: RunsOn::Hardware,
    }
}

/// Number of cores that this process could use at its start.
pub fn cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    // Read once, because a thread that is pinned later counts only its own core.
    *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, |n| n.get()))
}

/// Whether the system uses transparent huge pages for all large allocations, not only where a program advises
/// it. Linux only: false on other systems.
pub fn huge_pages_for_all() -> bool {
    let setting = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    setting.is_ok_and(|setting| setting.contains("[always]"))
}

/// The name of the processor on Linux; elsewhere the name of the architecture.
pub fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|l| l.strip_prefix("model name")).and_then(|l| l.split_once(':'));
    name.map_or(std::env::consts::ARCH.into(), |(_, name)| name.trim().to_string())
}

impl Backend {
    /// Peak memory in bytes. On the CPU it is the peak of this process (Linux only). On a GPU it is the size of
    /// the device's memory pools, as far as they have grown.
    pub fn memory_taken(&self) -> Option<u64> {
        match &self.device {
            Device::Cpu => kilobytes("/proc/self/status", "VmHWM:"),
            Device::Gpu(gpu) => Some(gpu.reserved()),
        }
    }
}

/// Reads a value in kilobytes from a file below `/proc`, and returns it in bytes. `name` is the beginning of
/// the line.
fn kilobytes(file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(name))?;
    Some(line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()? * 1024)
}

/// CPU time of all threads of this process, in seconds. `None` on systems other than Linux.
pub fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // After the program's name in parentheses, the 12th and 13th fields are the user and system time, in
    // hundredths of a second.
    let mut fields = stat.rsplit(')').next()?.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) / 100.0)
}

/// Available memory of the host, in bytes. `None` on systems other than Linux.
fn system_memory() -> Option<u64> {
    kilobytes("/proc/meminfo", "MemAvailable:")
}

fn cuda(asked: bool) -> std::result::Result<Backend, String> {
    let Card { name, memory, driver } = cuda_card()?;
    let device = started(cubecl::Device::Cuda(CudaDevice::new(0)))?;
    let runs_on = match device.probe() {
        Ok(()) => RunsOn::Hardware,
        Err(_) if asked && name.contains("no GPU") => RunsOn::Nothing,
        Err(e) => return Err(format!("{name}: {e}")),
    };
    let why = format!("cuda on {name}, {}{}", chosen(asked), runs_on.caveat());
    Ok(Backend { device, name, driver, memory: Some(memory), why, runs_on })
}

fn wgpu(asked: bool) -> std::result::Result<Backend, String> {
    use cubecl::wgpu::wgpu::{AdapterInfo, DeviceType};
    use cubecl::wgpu::{AutoGraphicsApi, RuntimeOptions, WgpuDevice, try_init_setup};
    // The runtime can be set up only once per process.
    static ADAPTER: OnceLock<std::result::Result<AdapterInfo, String>> = OnceLock::new();
    let selector = WgpuDevice::default();
    let set_up = || {
        let set_up = || try_init_setup::<AutoGraphicsApi>(&WgpuDevice::default(), RuntimeOptions::default());
        let setup =
            catch_unwind(set_up).map_err(|panic| panic_text(&*panic))?.map_err(|e| format!("no adapter: {e}"))?;
        Ok(setup.adapter.get_info())
    };
    let info = ADAPTER.get_or_init(set_up).clone()?;
    let name = format!("{} ({})", info.name, info.backend);
    if info.device_type == DeviceType::Cpu && !asked {
        return Err(format!("the only adapter is {name}, a software one, which is slower than the CPU backend"));
    }
    let device = started(cubecl::Device::Wgpu(selector))?;
    device.probe().map_err(|e| format!("{name}: {e}"))?;
    let runs_on = if info.device_type == DeviceType::Cpu { RunsOn::Software } else { RunsOn::Hardware };
    let why = format!("wgpu on {name}, {}{}", chosen(asked), runs_on.caveat());
    Ok(Backend { device, name, driver: format!("{} {}", info.driver, info.driver_info), memory: None, why, runs_on })
}

fn chosen(asked: bool) -> &'static str {
    if asked { "as asked for" } else { "the best that works here" }
}

fn started(device: cubecl::Device) -> std::result::Result<Device, String> {
    catch_unwind(|| Device::gpu(device)).map_err(|panic| panic_text(&*panic))
}
