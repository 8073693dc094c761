//! NVML as a source of reports: Xid events, and what each GPU answers.
//!
//! The only calls to NVML of an agent that has started. Any of them may hang for ever; who listens to the reports notices.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use gpu_share::binding::GpuId;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enums::device::SampleValue;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper::{Device, EventSet, Nvml};

use super::{Closed, Desk, Report, Source};
use crate::pci;

/// Longest wait for an event, so that silence for longer means that a call hangs.
const SLICE: Duration = Duration::from_secs(1);
/// `NVML_FI_DEV_GET_GPU_RECOVERY_ACTION`: what the driver says is to be done for the GPU. Drivers before 565 don't know it.
const RECOVERY_ACTION: FieldId = FieldId(230);
/// NVML's number for an Xid that it does not know.
const UNKNOWN_XID: u64 = 999;

/// The NVML library at a path.
#[derive(Clone, Debug)]
pub(crate) struct NvmlSource {
    path: PathBuf,
}

impl NvmlSource {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }
}

impl Source for NvmlSource {
    /// Opens the library anew each time: after an update of the driver only the new one works.
    fn observe(&mut self, gpus: &[GpuId], desk: &Desk) -> Closed {
        desk.about_to("nvmlInit");
        let nvml = match Nvml::builder().lib_path(self.path.as_os_str()).init() {
            Ok(nvml) => nvml,
            Err(error) => return closed(&error),
        };
        match Session::new(&nvml, gpus, desk).run() {
            Stop::Nvml(error) => closed(&error),
            Stop::Unwanted => Closed::Blind("nobody wants reports".into()),
        }
    }
}

/// Why a session ends.
enum Stop {
    /// The library can't be used any more.
    Nvml(NvmlError),
    /// Nobody wants reports any more.
    Unwanted,
}

impl From<NvmlError> for Stop {
    fn from(error: NvmlError) -> Self {
        Self::Nvml(error)
    }
}

/// Why nothing can be asked any more.
fn closed(error: &NvmlError) -> Closed {
    let why = format!("NVML: {error}");
    match error {
        NvmlError::DriverNotLoaded | NvmlError::GpuLost => Closed::NoDriver(why),
        _ => Closed::Blind(why),
    }
}

/// Whether an error is one of the whole library, and not of one GPU.
fn is_of_the_library(error: &NvmlError) -> bool {
    matches!(
        error,
        NvmlError::Uninitialized
            | NvmlError::DriverNotLoaded
            | NvmlError::LibRmVersionMismatch
            | NvmlError::FailedToLoadSymbol(_)
            | NvmlError::LibloadingError(_)
    )
}

struct Session<'a> {
    nvml: &'a Nvml,
    gpus: &'a [GpuId],
    /// Handles of GPUs that answered last. One that does not is looked for anew: after a reset it may have another.
    devices: BTreeMap<&'a GpuId, Device<'a>>,
    /// PCI addresses, which a GPU that is lost can't tell any more.
    buses: BTreeMap<&'a GpuId, String>,
    desk: &'a Desk,
}

impl<'a> Session<'a> {
    fn new(nvml: &'a Nvml, gpus: &'a [GpuId], desk: &'a Desk) -> Self {
        let bus = |gpu: &'a GpuId| {
            desk.about_to(format_args!("nvmlDeviceGetPciInfo of {gpu}"));
            let info = nvml.device_by_uuid(gpu.0.as_str()).and_then(|device| device.pci_info()).ok()?;
            Some((gpu, pci::without_function(&pci::address(&info.bus_id)).into()))
        };
        let buses = gpus.iter().filter_map(bus).collect();
        Self { nvml, gpus, devices: BTreeMap::new(), buses, desk }
    }

    /// Asks and listens in turn, until that can't go on.
    fn run(mut self) -> Stop {
        let mut set = None;
        loop {
            let heard = self.probe_all().and_then(|()| self.listen_with(set.take()));
            match heard {
                Ok(heard) => set = heard,
                Err(stop) => return stop,
            }
        }
    }

    fn probe_all(&mut self) -> Result<(), Stop> {
        for gpu in self.gpus {
            let answer = match self.probe(gpu) {
                Err(error) if is_of_the_library(&error) => return Err(error.into()),
                Err(error) => Err(format!("NVML: {error}")),
                Ok(answer) => answer,
            };
            self.report(Report::Probed(gpu.clone(), answer))?;
        }
        Ok(())
    }

    /// Listens with `set`, or a new one, until it is time for the next probe; the set, if it can be used again.
    fn listen_with(&self, set: Option<EventSet<'a>>) -> Result<Option<EventSet<'a>>, Stop> {
        let set = match set {
            Some(set) => Ok(set),
            None => self.event_set(),
        };
        let heard = set.map_err(Stop::from).and_then(|set| {
            self.listen(&set)?;
            Ok(Some(set))
        });
        match heard {
            // Of a GPU that is lost a set has no events any more: another one is made without it.
            Err(Stop::Nvml(error)) if !is_of_the_library(&error) => {
                tracing::debug!(%error, "no events from NVML");
                std::thread::park_timeout(self.desk.pause().min(SLICE));
                self.report(Report::Alive).map(|()| None)
            }
            heard => heard,
        }
    }

    fn report(&self, report: Report) -> Result<(), Stop> {
        if self.desk.report(report) { Ok(()) } else { Err(Stop::Unwanted) }
    }

    /// Whether a GPU answers, and whether the driver says that something has to be done for it first.
    fn probe(&mut self, gpu: &'a GpuId) -> Result<Result<(), String>, NvmlError> {
        let device = if let Some(device) = self.devices.remove(gpu) {
            device
        } else {
            self.desk.about_to(format_args!("nvmlDeviceGetHandleByUUID of {gpu}"));
            self.nvml.device_by_uuid(gpu.0.as_str())?
        };
        self.desk.about_to(format_args!("nvmlDeviceGetMemoryInfo of {gpu}"));
        device.memory_info()?;
        self.desk.about_to(format_args!("nvmlDeviceGetFieldValues of {gpu}"));
        let action = recovery_action(&device)?;
        self.devices.insert(gpu, device);
        Ok(match action {
            0 => Ok(()),
            1 => Err("the driver says that the GPU needs a reset".into()),
            2 => Err("the driver says that the node needs a reboot".into()),
            3 => Err("the driver says that programs with peer access must end".into()),
            4 => Err("the driver says that programs must end and the GPU needs a reset".into()),
            other => Err(format!("the driver asks for recovery action {other}")),
        })
    }

    /// A set of the Xid events of all GPUs that have any.
    fn event_set(&self) -> Result<EventSet<'a>, NvmlError> {
        self.desk.about_to("nvmlEventSetCreate");
        let mut set = self.nvml.create_event_set()?;
        for gpu in self.gpus {
            self.desk.about_to(format_args!("nvmlDeviceRegisterEvents of {gpu}"));
            let Ok(device) = self.nvml.device_by_uuid(gpu.0.as_str()) else { continue };
            if device
                .supported_event_types()
                .is_ok_and(|kinds| kinds.contains(EventTypes::CRITICAL_XID_ERROR))
            {
                set = device
                    .register_events(EventTypes::CRITICAL_XID_ERROR, set)
                    .map_err(|error| error.error)?;
            }
        }
        Ok(set)
    }

    /// Reports events until it is time for the next probe.
    fn listen(&self, set: &EventSet<'_>) -> Result<(), Stop> {
        let begin = Instant::now();
        loop {
            let left = self.desk.pause().saturating_sub(begin.elapsed());
            if left.is_zero() {
                return Ok(());
            }
            self.desk.about_to("nvmlEventSetWait");
            let milliseconds = u32::try_from(left.min(SLICE).as_millis()).unwrap_or(u32::MAX).max(1);
            let report = match set.wait(milliseconds) {
                Ok(event) => match (event.event_data, self.gpu_of(&event.device)) {
                    (Some(error), Some(gpu)) => self.xid(gpu, &error),
                    // The probes find out which GPU it was.
                    (_, None) => return Ok(()),
                    (None, Some(_)) => continue,
                },
                Err(NvmlError::Timeout) => Report::Alive,
                Err(error) => return Err(error.into()),
            };
            self.report(report)?;
        }
    }

    fn xid(&self, gpu: &GpuId, error: &XidError) -> Report {
        let xid = match *error {
            XidError::Value(xid) => xid,
            XidError::Unknown => UNKNOWN_XID,
        };
        let bus = self.buses.get(gpu).cloned().unwrap_or_default();
        Report::Xid { gpu: gpu.clone(), bus, xid }
    }

    /// Which GPU an event is of. One that is lost can't say its name: then it is the only one that is.
    fn gpu_of(&self, device: &Device<'_>) -> Option<&'a GpuId> {
        self.desk.about_to("nvmlDeviceGetUUID");
        if let Ok(uuid) = device.uuid() {
            return self.gpus.iter().find(|gpu| gpu.0 == uuid);
        }
        let is_lost =
            |gpu: &&GpuId| matches!(self.nvml.device_by_uuid(gpu.0.as_str()), Err(NvmlError::GpuLost));
        let mut lost = self.gpus.iter().filter(is_lost);
        lost.next().filter(|_| lost.next().is_none())
    }
}

/// What the driver says is to be done, nothing if it does not say.
fn recovery_action(device: &Device<'_>) -> Result<u64, NvmlError> {
    let values = match device.field_values_for(&[RECOVERY_ACTION]) {
        Err(NvmlError::GpuLost) => return Err(NvmlError::GpuLost),
        Err(error) if is_of_the_library(&error) => return Err(error),
        // An older driver.
        Err(_) => return Ok(0),
        Ok(values) => values,
    };
    let value = values.into_iter().next().and_then(Result::ok).and_then(|sample| sample.value.ok());
    Ok(match value {
        Some(SampleValue::U32(action)) => action.into(),
        Some(SampleValue::U64(action)) => action,
        _ => 0,
    })
}
