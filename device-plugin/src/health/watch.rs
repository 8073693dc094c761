//! The thread that takes reports about GPUs, and tells what came of them. It waits for reports, never for NVML: a source
//! that hangs is silent, and silence changes no GPU's health.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::Path;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use gpu_share::binding::GpuId;
use gpu_share::protocol::Health;
use gpu_share::units::Nanos;

use super::desk::{Desk, Notes};
use super::kernel_log::{self, KernelLog};
use super::state::{Monitor, Seen};
use super::xid::{Meaning, describe, meaning};
use super::{Closed, Options, Report, Source};
use crate::clock::monotonic;

/// How long a line of the kernel's log waits for its event; NVML may tell of two only once.
const LINE: Nanos = Nanos::from_secs(10);
/// Lines that wait at most: a storm of Xids must not fill the memory.
const LINES: usize = 1024;

/// What is told of the GPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// A GPU's health is another.
    Health(GpuId, Health),
    /// An Xid, and the process that it is of, if the kernel's log names it.
    Xid { gpu: GpuId, xid: u64, pid: Option<u32>, meaning: Meaning },
    /// Whether NVML answers; if not, why.
    Nvml(Result<(), String>),
}

/// The two threads. Dropped, it ends the watch at once, and the source when its present call returns.
#[derive(Debug)]
pub(crate) struct Watch {
    end: mpsc::Sender<Report>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Watches `gpus` through `source`; `unproven` ones take no bindings before they are seen to be sound.
    pub(crate) fn start(
        source: Box<dyn Source>,
        gpus: Vec<GpuId>,
        unproven: &[GpuId],
        options: Options,
        tell: impl Fn(News) + Send + 'static,
    ) -> io::Result<Self> {
        let now = monotonic();
        let monitors = gpus.iter().map(|gpu| {
            let monitor = if unproven.contains(gpu) {
                Monitor::unproven(options.rules, UNSEEN.into())
            } else {
                Monitor::healthy(options.rules, now)
            };
            (gpu.clone(), monitor)
        });
        let mut judge = Judge::new(monitors.collect(), options);
        let (desk, notes, reports) = Desk::new(judge.pause());
        let end = desk.sender();
        let retry = judge.options.rules.alert.into();
        thread::Builder::new().name("nvml".into()).spawn(move || observe(source, &gpus, &desk, retry))?;
        let watch = move || judge.run(&notes, &reports, &tell);
        let thread = thread::Builder::new().name("health".into()).spawn(watch)?;
        Ok(Self { end, thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // A thread that is gone needs no end.
        let _ = self.end.send(Report::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Why a GPU is not proven.
pub(crate) const UNSEEN: &str = "not seen since the agent started";

/// Opens the source again and again, for as long as somebody wants reports.
fn observe(mut source: Box<dyn Source>, gpus: &[GpuId], desk: &Desk, retry: Duration) {
    loop {
        let closed = source.observe(gpus, desk);
        desk.about_to("wait for the next try");
        if !desk.report(Report::Closed(closed)) {
            return;
        }
        thread::park_timeout(retry);
    }
}

/// What is known of all GPUs.
#[derive(Debug)]
struct Judge {
    options: Options,
    monitors: BTreeMap<GpuId, Monitor>,
    log: Option<KernelLog>,
    /// Lines that wait for their event, and since when.
    lines: VecDeque<(Nanos, kernel_log::Line)>,
    /// What was told last of NVML.
    nvml: Result<(), String>,
}

impl Judge {
    fn new(monitors: BTreeMap<GpuId, Monitor>, options: Options) -> Self {
        let log = options.kernel_log.as_deref().and_then(open_log);
        Self { options, monitors, log, lines: VecDeque::new(), nvml: Ok(()) }
    }

    fn run(&mut self, notes: &Notes, reports: &mpsc::Receiver<Report>, tell: &impl Fn(News)) {
        loop {
            let news = match reports.recv_timeout(self.options.rules.patience.into()) {
                Ok(Report::End) | Err(mpsc::RecvTimeoutError::Disconnected) => return,
                Ok(report) => self.take(report, monotonic()),
                Err(mpsc::RecvTimeoutError::Timeout) => self.hangs(&notes.doing()),
            };
            notes.set_pause(self.pause());
            news.into_iter().for_each(tell);
        }
    }

    /// Time between two probes.
    fn pause(&self) -> Nanos {
        let rules = &self.options.rules;
        let calm = self.monitors.values().all(|monitor| monitor.health() == Health::Healthy);
        if calm { rules.calm } else { rules.alert }
    }

    /// Nothing was heard for longer than a call may take.
    fn hangs(&mut self, call: &str) -> Vec<News> {
        let silent = Err(format!("{call} has not returned for {} s", self.options.rules.patience.secs_f64()));
        self.nvml_is(silent).into_iter().collect()
    }

    fn take(&mut self, report: Report, now: Nanos) -> Vec<News> {
        self.read_log(now);
        let up = if let Report::Closed(Closed::NoDriver(why) | Closed::Blind(why)) = &report {
            Err(why.clone())
        } else {
            Ok(())
        };
        let mut news: Vec<_> = self.nvml_is(up).into_iter().collect();
        match report {
            Report::Alive | Report::Closed(Closed::Blind(_)) | Report::End => {}
            Report::Probed(gpu, Ok(())) => news.extend(self.see(&gpu, Seen::Sound, now)),
            Report::Probed(gpu, Err(why)) => news.extend(self.see(&gpu, Seen::Broken(why), now)),
            Report::Closed(Closed::NoDriver(why)) => {
                let gpus: Vec<_> = self.monitors.keys().cloned().collect();
                for gpu in gpus {
                    news.extend(self.see(&gpu, Seen::Broken(why.clone()), now));
                }
            }
            Report::Xid { gpu, bus, xid } => news.extend(self.xid(&gpu, &bus, xid, now)),
        }
        news
    }

    fn xid(&mut self, gpu: &GpuId, bus: &str, xid: u64, now: Nanos) -> Vec<News> {
        let meaning = if self.options.ignored.contains(&xid) { Meaning::Notice } else { meaning(xid) };
        let pid = self.process(bus, xid);
        let mut news = vec![News::Xid { gpu: gpu.clone(), xid, pid, meaning }];
        let why = format!("Xid {xid}: {}", describe(xid));
        news.extend(match meaning {
            Meaning::Application | Meaning::Notice => None,
            Meaning::Doubt => self.see(gpu, Seen::Doubt(why), now),
            Meaning::Fault => self.see(gpu, Seen::Fault(why), now),
        });
        news
    }

    /// The process that the kernel's log names for an Xid.
    fn process(&mut self, bus: &str, xid: u64) -> Option<u32> {
        let found = self.lines.iter().position(|(_, line)| line.bus == bus && line.xid == xid);
        self.lines.remove(found?)?.1.pid
    }

    fn read_log(&mut self, now: Nanos) {
        self.lines.retain(|(since, _)| now.since(*since) <= LINE);
        let lines = self.log.as_mut().map(KernelLog::xids).unwrap_or_default();
        self.lines.extend(lines.into_iter().map(|line| (now, line)));
        self.lines.drain(..self.lines.len().saturating_sub(LINES));
    }

    fn see(&mut self, gpu: &GpuId, seen: Seen, now: Nanos) -> Option<News> {
        let monitor = self.monitors.get_mut(gpu)?;
        let before = monitor.health();
        monitor.step(seen, now);
        let health = monitor.health();
        (health != before).then(|| News::Health(gpu.clone(), health))
    }

    fn nvml_is(&mut self, up: Result<(), String>) -> Option<News> {
        // One message for a fault that goes on, whatever it is called the second time.
        let changed = up.is_ok() != self.nvml.is_ok();
        self.nvml.clone_from(&up);
        changed.then_some(News::Nvml(up))
    }
}

fn open_log(path: &Path) -> Option<KernelLog> {
    KernelLog::open(path)
        .inspect_err(|error| {
            tracing::info!(path = %path.display(), %error, "kernel log can't be read: no Xid is traced to its process by it");
        })
        .ok()
}

#[cfg(test)]
mod tests;
