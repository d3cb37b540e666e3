//! Picks the device: asks each backend whether it really works here, with a sentence for every answer.

use crate::error::{Error, Result, panic_text};
use cubecl::cuda::CudaDevice;
use stagger_kernels::Device;
use stagger_kernels::cuda::{Card, cuda_card};
use std::panic::catch_unwind;
use std::str::FromStr;
use std::sync::OnceLock;

/// What `--backend` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The best that works here.
    Auto,
    /// NVIDIA's.
    Cuda,
    /// Vulkan, Metal, DirectX 12.
    Wgpu,
    /// No GPU.
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
    /// Its name, for people.
    pub name: String,
    /// Its driver, for people.
    pub driver: String,
    /// Bytes of its memory, where known.
    pub memory: Option<u64>,
    /// Which was chosen and why.
    pub why: String,
    /// What computes there.
    pub runs_on: RunsOn,
}

/// What computes a backend's kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunsOn {
    /// The device of that name.
    Hardware,
    /// A driver, on the processor.
    Software,
    /// Nothing: the null driver of the tests takes launches and says so in its name.
    Nothing,
}

impl RunsOn {
    fn caveat(self) -> &'static str {
        match self {
            RunsOn::Hardware => "",
            RunsOn::Software => "; a software adapter: right, but slow",
            RunsOn::Nothing => "; WARNING: this driver runs no kernel, so every number of this run is meaningless",
        }
    }
}

/// Bytes that this process took when it first opened a device.
static DRIVERS: OnceLock<u64> = OnceLock::new();

/// What the drivers take in this process that were asked for a device (Linux; 0 elsewhere, and before one was opened).
pub fn drivers() -> u64 {
    DRIVERS.get().copied().unwrap_or(0)
}

/// Opens what was asked for, or says why it cannot be had. May be called again: a device is set up once.
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

/// Cores that this process could use when it began.
pub fn cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    // Asked once: threads that are bound to a core later would count that one alone.
    *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, |n| n.get()))
}

/// Whether the system gives huge pages to whoever asks for much memory, and not only where it is advised to (Linux).
pub fn huge_pages_for_all() -> bool {
    let setting = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    setting.is_ok_and(|setting| setting.contains("[always]"))
}

/// The processor's name, where the system tells it.
pub fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|l| l.strip_prefix("model name")).and_then(|l| l.split_once(':'));
    name.map_or(std::env::consts::ARCH.into(), |(_, name)| name.trim().to_string())
}

impl Backend {
    /// The most bytes that were taken so far: of this process on the CPU (Linux; unknown elsewhere), of the device's pools on a GPU.
    pub fn memory_taken(&self) -> Option<u64> {
        match &self.device {
            Device::Cpu => kilobytes("/proc/self/status", "VmHWM:"),
            Device::Gpu(gpu) => Some(gpu.reserved()),
        }
    }
}

/// A line of a file of the system's that gives kilobytes, in bytes.
fn kilobytes(file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(name))?;
    Some(line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()? * 1024)
}

/// Seconds that this process's threads have computed, where the system tells (Linux).
pub fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // Behind the program's name in brackets; user and system time are the 12th and 13th, in hundredths of a second.
    let mut fields = stat.rsplit(')').next()?.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) / 100.0)
}

/// Bytes of memory that are free now (Linux; unknown elsewhere).
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
    // The runtime can be set up only once.
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
        return Err(format!("the only adapter is {name}, a software one, which is slower than the plain CPU"));
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
