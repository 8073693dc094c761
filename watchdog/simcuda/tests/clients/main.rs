//! Real programs on the simulated GPU: each case starts a daemon, and runs itself again as its clients, which use
//! unmodified client libraries (cudarc, nvml-wrapper) on the shared library of this crate.

// The client programs call C interfaces; all handles and pointers are their own and live as long as they are used.
// Programs are test code outside of test functions, where a failure is meant to end the process.
#![allow(unsafe_code, clippy::undocumented_unsafe_blocks)]
#![allow(clippy::unwrap_used, clippy::panic)]

mod programs;
mod rig;

use std::time::Duration;

use rig::{Rig, until};
use simcuda::wire::{self, Reply, Request, Task};

/// How long anything here may take before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(50);

/// Not a test of its own: what the other tests run as their clients.
#[test]
fn client_program() {
    if let Ok(name) = std::env::var(rig::PROGRAM) {
        programs::run(&name);
    }
}

#[test]
fn kernels_that_compute_give_the_right_answer() {
    let rig = Rig::start(&[]);
    assert_eq!(rig.run("compute"), "vector_add 300, saxpy 7, matmul 19 22 43 50");
}

#[test]
fn events_measure_exactly_what_queued_kernels_take() {
    let rig = Rig::start(&[]);
    let milliseconds: f32 = rig.run("twenty_half_milliseconds").parse().unwrap();
    // The first kernel may start a little after the event before it; from then on time is exact.
    assert!((10.0..12.0).contains(&milliseconds), "{milliseconds} ms");
    let milliseconds: f32 = rig.run("between_queued_events").parse().unwrap();
    assert!((milliseconds - 10.0).abs() < 0.001, "{milliseconds} ms");
}

#[test]
fn a_model_takes_what_its_profile_says_for_the_share_of_the_process() {
    let rig = Rig::start(&["--mode", "mps"]);
    let share = [("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "10")];
    let milliseconds: f64 = rig.run_with("inference", &share).parse().unwrap();
    assert!((milliseconds - 126.367).abs() < 0.01, "{milliseconds} ms");
}

#[test]
fn a_cost_table_decides_how_long_kernels_take() {
    let table = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(table.path(), "vector_* 5000000\n").unwrap();
    let rig = Rig::start(&["--costs", table.path().to_str().unwrap()]);
    rig.run("compute");
    let busy = rig.stats()["gpus"][0]["busy_ns"].as_u64().unwrap();
    assert!((5_000_000..6_000_000).contains(&busy), "{busy}");
}

#[test]
fn a_full_card_is_an_error_and_the_program_goes_on() {
    let rig = Rig::start(&["--memory", "1Gi"]);
    assert_eq!(rig.run("out_of_memory"), "2 then fine");
}

#[test]
fn a_context_takes_memory_and_time() {
    let rig = Rig::start(&["--context-memory", "512Mi", "--context-ms", "100"]);
    let answer = rig.run("context");
    let (mebibytes, milliseconds) = answer.split_once(' ').unwrap();
    assert_eq!(mebibytes, "512");
    assert!(milliseconds.parse::<u64>().unwrap() >= 100, "{answer}");
}

#[test]
fn in_exclusive_mode_two_processes_each_get_half() {
    let rig = Rig::start(&["--mode", "exclusive"]);
    let (one, other) = (rig.spawn("saturate", &[]), rig.spawn("saturate", &[]));
    let [a, b] = rig.shares_of([one.pid(), other.pid()]);
    assert!((a - 0.5).abs() < 0.1 && (b - 0.5).abs() < 0.1, "{a} {b}");
}

#[test]
fn in_mps_mode_two_halves_run_at_once_without_slowing_down() {
    let rig = Rig::start(&["--mode", "mps"]);
    let half = [("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "50")];
    let (one, other) = (rig.spawn("saturate", &half), rig.spawn("saturate", &half));
    let [a, b] = rig.shares_of([one.pid(), other.pid()]);
    assert!(a > 0.9 && b > 0.9, "{a} {b}");
}

#[test]
fn in_mps_mode_two_that_do_not_fit_take_turns() {
    let rig = Rig::start(&["--mode", "mps"]);
    let most = [("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "60")];
    let (one, other) = (rig.spawn("saturate", &most), rig.spawn("saturate", &most));
    let [a, b] = rig.shares_of([one.pid(), other.pid()]);
    assert!((a - 0.5).abs() < 0.1 && (b - 0.5).abs() < 0.1, "{a} {b}");
}

#[test]
fn a_killed_client_gives_its_memory_and_its_queue_back() {
    let rig = Rig::start(&[]);
    let client = rig.spawn("hoard", &[]);
    client.wait_for("ready");
    let used = rig.stats()["gpus"][0]["memory_used"].as_u64().unwrap();
    assert_eq!(used, (300 << 20) + (1 << 30));
    let pid = client.pid();
    client.kill();
    until(PATIENCE, "the memory comes back", || rig.stats()["gpus"][0]["memory_used"] == 0);
    let gone = rig.client(pid).unwrap();
    assert_eq!(gone["alive"], false);
    assert_eq!(gone["pending"], 0);
}

#[test]
fn the_management_library_sees_name_memory_and_processes() {
    let rig = Rig::start(&["--gpus", "2"]);
    let client = rig.spawn("hoard", &[]);
    client.wait_for("ready");
    let answer = rig.run("management");
    let expected = format!(
        "2 GPUs, gpufn simulated V100, 17179869184 B, {} with {} B",
        client.pid(),
        (300 << 20) + (1 << 30)
    );
    assert!(answer.starts_with(&expected), "{answer}\n{expected}");
    assert!(answer.ends_with("capability 7.0, driver simulated, idle GPU 0 processes"), "{answer}");
}

#[test]
fn names_are_resolved_by_version() {
    let rig = Rig::start(&[]);
    assert_eq!(
        rig.run("resolve"),
        "v1 v2 twin sync-v1 profiler graphics unknown too-old no-table unsupported"
    );
}

#[test]
fn captured_work_runs_when_its_graph_is_launched() {
    let rig = Rig::start(&[]);
    assert_eq!(rig.run("graph"), "0 before, 2 and 4 after, 3.0 ms");
}

#[test]
fn the_legacy_stream_is_a_barrier_and_host_functions_keep_their_place() {
    let rig = Rig::start(&[]);
    assert_eq!(rig.run("order"), "kernel host barrier, independent first");
}

#[test]
fn pageable_memory_may_change_after_an_asynchronous_copy() {
    let rig = Rig::start(&[]);
    assert_eq!(rig.run("staging"), "1 1 1 1");
}

#[test]
fn the_launch_queue_is_bounded() {
    let rig = Rig::start(&[]);
    let client = rig.spawn("flood", &[]);
    client.wait_for("flooding");
    let pending = || rig.client(client.pid()).and_then(|client| client["pending"].as_u64()).unwrap_or(0);
    until(PATIENCE, "the queue fills", || pending() >= 1000);
    assert!(pending() <= 1024);
}

#[test]
fn a_forked_child_can_not_use_its_parents_context() {
    let rig = Rig::start(&[]);
    assert_eq!(rig.run("fork"), "child 3, parent 0");
}

#[test]
fn when_the_daemon_dies_calls_fail_and_the_program_lives() {
    let mut rig = Rig::start(&[]);
    let client = rig.spawn("lose_the_device", &[]);
    client.wait_for("waiting");
    assert!(rig.terminate().success());
    client.wait_for("sync 46, launch 46, alloc 46");
}

#[test]
fn many_threads_may_use_one_context() {
    let rig = Rig::start(&[]);
    assert_eq!(rig.run("threads"), "8 threads, all sums right");
    let busy = rig.stats()["gpus"][0]["busy_ns"].as_u64().unwrap();
    assert!(busy >= 8 * 50 * 100_000, "{busy}");
}

#[test]
fn every_way_of_taking_memory_is_counted_and_given_back() {
    let rig = Rig::start(&[]);
    assert_eq!(
        rig.run("memory"),
        "malloc 64, pool 64, managed 64, pitch 64, array 64, physical 64, host 0, back 0"
    );
}

#[test]
fn an_illegal_address_breaks_the_context_and_not_the_process() {
    let rig = Rig::start(&[]);
    assert_eq!(rig.run("illegal"), "700 700");
}

#[test]
fn a_client_that_reads_late_still_gets_all_that_it_is_told() {
    use std::io::{Read, Write};
    const MANY: u64 = 1000;
    let rig = Rig::start(&[]);
    let mut stream = std::os::unix::net::UnixStream::connect(rig.socket()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut out = vec![wire::HELLO];
    Request::CreateContext { token: 1, gpu: 0, context: 1, legacy: 2, sm: 100, green: false }
        .encode(&mut out);
    let record = |tag| Request::Submit { gpu: 0, stream: 2, tag, notify: true, task: Task::Record(1) };
    (0..MANY).for_each(|tag| record(tag).encode(&mut out));
    stream.write_all(&out).unwrap();
    let idle = || {
        rig.client(std::process::id()).is_some_and(|client| client["contexts"] == 1 && client["pending"] == 0)
    };
    until(PATIENCE, "all is done", idle);
    let (mut buffer, mut told, mut chunk) = (Vec::new(), 0, [0; 512]);
    while told < MANY {
        let n = stream.read(&mut chunk).unwrap();
        buffer.extend_from_slice(&chunk[..n]);
        while let Some((frame, used)) = wire::split_frame(&buffer).unwrap() {
            if let Reply::Completed { tag, .. } = Reply::decode(frame).unwrap() {
                assert_eq!(tag, told);
                told += 1;
            }
            buffer.drain(..used);
        }
    }
}

#[test]
fn without_a_daemon_there_is_no_device() {
    let rig = Rig::start(&[]);
    let answer = rig.run_with("initialise", &[("SIMCUDA_SOCKET", "/nonexistent/socket")]);
    assert_eq!(answer, "100");
    assert_eq!(rig.run_with("initialise", &[("CUDA_VISIBLE_DEVICES", "")]), "100");
    assert_eq!(rig.run("initialise"), "0");
}

#[test]
fn faults_that_are_ordered_reach_whoever_listens_through_the_management_library() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let rig = Rig::start(&["--gpus", "2", "--kernel-log", log.path().to_str().unwrap()]);
    let listener = rig.spawn("events", &[]);
    listener.wait_for("ready");
    rig.order(r#"{"request":"xid","gpu":1,"xid":13}"#);
    rig.order(r#"{"request":"xid","gpu":0,"xid":31,"pid":4021}"#);
    assert_eq!(listener.answer(), "31 true", "and not the one of another GPU");
    rig.order(r#"{"request":"hang"}"#);
    rig.order(r#"{"request":"xid","gpu":0,"xid":48}"#);
    rig.order(r#"{"request":"lose","gpu":0}"#);
    assert_eq!(rig.stats()["gpus"][0]["lost"], true, "who asks the daemon itself does not hang");
    rig.order(r#"{"request":"resume"}"#);
    assert_eq!(listener.answer(), "48 false", "a lost GPU does not know its name");
    assert_eq!(listener.answer(), "79 false");
    let end = listener.answer();
    assert!(end.contains("fell off the bus") && end.ends_with("; the other true"), "{end}");
    rig.order(r#"{"request":"return","gpu":0}"#);
    assert_eq!(rig.stats()["gpus"][0]["lost"], false);
    assert!(rig.ask(r#"{"request":"lose","gpu":2}"#)["error"].is_string());

    let lines = std::fs::read_to_string(log.path()).unwrap();
    assert!(lines.contains("NVRM: Xid (PCI:0000:51:00): 31, pid=4021, name="), "{lines}");
    assert!(lines.contains("NVRM: Xid (PCI:0000:51:00): 79, pid='<unknown>', name="), "{lines}");
}

#[test]
fn a_termination_signal_removes_the_socket() {
    let mut rig = Rig::start(&[]);
    assert!(rig.socket().exists());
    assert!(rig.terminate().success());
    assert!(!rig.socket().exists());
}

#[test]
fn a_kernel_in_text_form_computes_what_it_says() {
    let rig = Rig::start(&[]);
    assert_eq!(rig.run("interpret"), "[11.0, 22.0, 33.0] [12.0, 24.0, 36.0], counter 5, time alone 0.0");
}

#[test]
fn a_kernel_that_reaches_beyond_its_memory_breaks_the_context_and_not_the_process() {
    let rig = Rig::start(&[]);
    assert_eq!(rig.run("interpret_faults"), "700 700, 716 716, endless 0");
}

#[test]
fn a_stream_waits_for_values_in_memory_and_writes_them() {
    let rig = Rig::start(&[]);
    assert_eq!(rig.run("values"), "waits 600, then 0, wrote 7 8, batch 1 2");
}

#[test]
fn a_pool_keeps_memory_up_to_its_threshold() {
    let rig = Rig::start(&[]);
    assert_eq!(rig.run("pool"), "128/128/128 0/96/96 64/96/96 64/80/80 0/0/0");
}

#[test]
fn physical_memory_is_mapped_piece_by_piece_and_more_than_once() {
    let rig = Rig::start(&[]);
    assert_eq!(rig.run("pieces"), "[1.0, 2.0, 3.0, 4.0] [1.0, 2.0] 1 1");
}

#[test]
fn memory_is_shared_between_processes_and_charged_once() {
    let rig = Rig::start(&[]);
    let exporter = rig.spawn("export", &[]);
    let handles = exporter.answer();
    let before = rig.stats()["gpus"][0]["memory_used"].as_u64().unwrap();
    let answer = rig.run_with("import", &[("SIMCUDA_TEST_HANDLES", &handles)]);
    assert_eq!(answer, "7 9, event 600 0, held 0 MiB, own 1, again 0");
    exporter.kill();
    let during = before - (300 << 20);
    assert_eq!(during, (64 << 20) + (2 << 20));
}

#[test]
fn memory_of_graphs_is_counted_from_the_launch_until_it_is_trimmed() {
    let rig = Rig::start(&[]);
    assert_eq!(rig.run("graph_memory"), "made 0/0, held 64/64, freed 0/64, trimmed 0/0, captured 5, twice 1");
}

#[test]
fn what_a_graph_keeps_is_destroyed_with_the_last_that_needs_it() {
    let rig = Rig::start(&[]);
    assert_eq!(rig.run("user_object"), "refused 1, moved 0, graph gone 0, executable gone 1");
}

#[test]
fn a_graph_that_is_ready_can_be_changed() {
    let rig = Rig::start(&[]);
    assert_eq!(
        rig.run("graph_update"),
        "1.0 ms, 2.0 ms by a node, 3.0 ms by a graph, 910 for another, 0.0 ms disabled"
    );
}

#[test]
fn green_contexts_run_on_their_part_of_the_processors() {
    let rig = Rig::start(&["--mode", "mps"]);
    let answer = rig.run("green");
    let (facts, milliseconds) = answer.rsplit_once(' ').unwrap();
    assert_eq!(facts, "80 = 2 x 20 + 40, context 20, memory 0, 915, milliseconds");
    let quarter = gpu_share::units::SmShare::from_percent(25).unwrap();
    let whole = gpu_share::latency::Profiles::shipped().get("vgg16").unwrap().gpu_time(quarter, 1);
    let nanoseconds = milliseconds.parse::<f64>().unwrap() * 1e6;
    #[allow(clippy::cast_precision_loss)]
    let expected = whole.0 as f64;
    assert!((nanoseconds - expected).abs() < 20_000.0, "{nanoseconds} ns, {expected} ns");
    let (one, other) = (rig.spawn("green_saturate", &[]), rig.spawn("green_saturate", &[]));
    let [a, b] = rig.shares_of([one.pid(), other.pid()]);
    assert!(a > 0.9 && b > 0.9, "{a} {b}");
}

#[test]
fn the_utilisation_of_a_process_is_that_of_whole_sample_periods() {
    let rig = Rig::start(&[]);
    let answer = rig.run("process_utilization");
    let busy: u32 = answer.strip_prefix("true 1 ").unwrap().parse().unwrap();
    // The pause may take longer than asked on a busy machine.
    assert!((20..=55).contains(&busy), "{answer}");
}
