//! The watch with a source that a test plays.

use std::io::Write;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Instant;

use super::*;
use crate::health::Rules;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(20);
/// Faster than in earnest, by the same steps.
const RULES: Rules = Rules {
    strikes: 2,
    clear: 2,
    pause: Nanos::from_millis(20),
    longest_pause: Nanos::from_millis(40),
    lasting: Nanos::from_secs(60),
    calm: Nanos::from_secs(5),
    alert: Nanos::from_millis(5),
    patience: Nanos::from_millis(200),
};

fn gpu(index: u32) -> GpuId {
    GpuId(format!("GPU-{index}"))
}

/// Hands in what the test sends it, and hangs while it sends nothing.
struct Played(Receiver<Report>);

impl Source for Played {
    fn observe(&mut self, _: &[GpuId], desk: &Desk) -> Closed {
        desk.about_to("a played call");
        while let Ok(report) = self.0.recv() {
            match report {
                Report::Closed(closed) => return closed,
                report => drop(desk.report(report)),
            }
        }
        Closed::Blind("the play is over".into())
    }
}

/// A watch of two GPUs, and what it told.
struct Stage {
    script: Sender<Report>,
    news: Receiver<News>,
    _watch: Watch,
}

impl Stage {
    fn new(unproven: &[GpuId], options: Options) -> Self {
        let ((script, lines), (told, news)) = (mpsc::channel(), mpsc::channel());
        let options = Options { rules: RULES, ..options };
        let tell = move |news| drop(told.send(news));
        let watch = Watch::start(Box::new(Played(lines)), vec![gpu(0), gpu(1)], unproven, options, tell);
        Self { script, news, _watch: watch.unwrap() }
    }

    fn play(&self, report: Report) {
        self.script.send(report).unwrap();
    }

    fn probe(&self, index: u32, sound: bool) {
        let answer = if sound { Ok(()) } else { Err("no answer".into()) };
        self.play(Report::Probed(gpu(index), answer));
    }

    fn xid(&self, xid: u64) {
        self.play(Report::Xid { gpu: gpu(0), bus: "0000:51:00".into(), xid });
    }

    fn next(&self) -> News {
        self.news.recv_timeout(PATIENCE).unwrap()
    }

    /// Plays sound answers until a GPU's health is as wanted.
    fn until(&self, index: u32, wanted: impl Fn(&Health) -> bool) {
        let begin = Instant::now();
        loop {
            self.probe(index, true);
            match self.news.recv_timeout(Duration::from_millis(5)) {
                Ok(News::Health(_, health)) if wanted(&health) => return,
                _ => assert!(begin.elapsed() < PATIENCE),
            }
        }
    }
}

#[test]
fn a_fault_makes_one_gpu_unhealthy_and_sound_answers_make_it_healthy_again() {
    let stage = Stage::new(&[], Options::default());
    stage.xid(79);
    let xid = News::Xid { gpu: gpu(0), xid: 79, pid: None, meaning: Meaning::Fault };
    assert_eq!(stage.next(), xid);
    let why = "Xid 79: fell off the bus".into();
    assert_eq!(stage.next(), News::Health(gpu(0), Health::Unhealthy { why }));
    stage.until(0, |health| *health == Health::Healthy);
}

#[test]
fn an_application_s_fault_is_told_and_changes_nothing_and_neither_does_what_is_to_be_ignored() {
    let stage = Stage::new(&[], Options { ignored: vec![74], ..Options::default() });
    for (xid, meaning) in [(31, Meaning::Application), (74, Meaning::Notice), (63, Meaning::Notice)] {
        stage.xid(xid);
        assert_eq!(stage.next(), News::Xid { gpu: gpu(0), xid, pid: None, meaning });
    }
    stage.xid(48);
    assert!(matches!(stage.next(), News::Xid { xid: 48, .. }));
    assert!(matches!(stage.next(), News::Health(_, Health::Unhealthy { .. })));
}

#[test]
fn the_kernel_s_log_names_the_process() {
    let mut log = tempfile::NamedTempFile::new().unwrap();
    let stage = Stage::new(&[], Options { kernel_log: Some(log.path().into()), ..Options::default() });
    writeln!(log, "3,1,2,-;NVRM: Xid (PCI:0000:52:00): 31, pid=6, name=b, another GPU").unwrap();
    writeln!(log, "3,2,3,-;NVRM: Xid (PCI:0000:51:00): 31, pid=4021, name=python3, MMU Fault").unwrap();
    stage.xid(31);
    assert!(matches!(stage.next(), News::Xid { pid: Some(4021), .. }));
    stage.xid(31);
    assert!(matches!(stage.next(), News::Xid { pid: None, .. }), "a line is of one event");
}

#[test]
fn a_call_that_does_not_return_is_told_and_changes_no_gpu() {
    let stage = Stage::new(&[], Options::default());
    stage.probe(1, false);
    assert!(matches!(stage.next(), News::Health(_, Health::Suspect { .. })));
    // From here on the source is silent.
    let why = "a played call has not returned for 0.2 s".into();
    assert_eq!(stage.next(), News::Nvml(Err(why)));
    stage.probe(1, false);
    assert_eq!(stage.next(), News::Nvml(Ok(())));
    assert!(matches!(stage.next(), News::Health(_, Health::Unhealthy { .. })), "it goes on where it was");
}

#[test]
fn without_a_driver_all_gpus_are_unhealthy_but_a_library_that_can_t_be_used_says_nothing_of_them() {
    let stage = Stage::new(&[], Options::default());
    stage.play(Report::Closed(Closed::Blind("no such file".into())));
    assert_eq!(stage.next(), News::Nvml(Err("no such file".into())));
    for _ in 0..RULES.strikes {
        stage.play(Report::Closed(Closed::NoDriver("not loaded".into())));
    }
    let told: Vec<_> = (0..4).map(|_| stage.next()).collect();
    for index in 0..2 {
        let why = "not loaded".to_string();
        assert!(told.contains(&News::Health(gpu(index), Health::Unhealthy { why })), "{told:?}");
    }
}

#[test]
fn a_gpu_that_an_earlier_agent_had_is_healthy_once_it_is_seen() {
    let stage = Stage::new(&[gpu(1)], Options::default());
    stage.until(1, |health| *health == Health::Healthy);
    assert!(stage.news.try_recv().is_err(), "and nothing is told of the other");
}

#[test]
fn a_watch_ends_at_once_also_while_its_source_hangs() {
    let stage = Stage::new(&[], Options::default());
    let begin = Instant::now();
    let Stage { _watch: watch, script, .. } = stage;
    drop(watch);
    assert!(begin.elapsed() < PATIENCE / 2);
    drop(script);
}
