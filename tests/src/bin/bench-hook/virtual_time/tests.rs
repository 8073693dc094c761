use gpu_share::units::Bytes;
use gpufn::audit::cell::{Launch, Load, Wait};

use super::*;

const SECOND: Nanos = Nanos::from_secs(1);

fn mean(seconds: &[f64]) -> f64 {
    seconds.iter().sum::<f64>() / gpufn::figures::number(seconds.len() as u64)
}

fn delivered(containers: &[Container], mode: Mode, seconds: u64) -> Vec<f64> {
    let mut world = World::new(containers, mode, 1);
    world.run_until(Nanos::from_secs(seconds));
    world.seconds().iter().map(|seconds| mean(seconds)).collect()
}

#[test]
fn a_program_alone_gets_what_it_was_set() {
    for micros in [10, 1_000, 20_000] {
        let got = delivered(&[Container::new(30, Load::new(micros, Launch::Kernel))], Mode::Exclusive, 5);
        assert!((got[0] - 30.0).abs() < 1.0, "{micros} µs: {got:?}");
    }
}

#[test]
fn a_whole_gpu_is_used_nearly_whole() {
    for wait in [Wait::Batch, Wait::Never] {
        let load = Load { wait, ..Load::new(1_000, Launch::Kernel) };
        let got = delivered(&[Container::new(100, load)], Mode::Exclusive, 3);
        assert!(got[0] > 98.5, "{wait:?}: {got:?}");
    }
}

#[test]
fn messages_of_a_process_arrive_in_their_order() {
    let mut world = World::idle(&[Container::new(30, Load::new(1_000, Launch::Kernel))], Mode::Exclusive, 1);
    (0..1000).for_each(|number| world.send(0, vec![FromContainer::Free { bytes: Bytes(number) }]));
    let arrive = std::iter::from_fn(|| world.queue.pop()).filter_map(|Reverse(entry)| match entry.event {
        Event::Arrives(0, FromContainer::Free { bytes }) => Some(bytes.0),
        _ => None,
    });
    assert!(arrive.eq(0..1000));
}

#[test]
fn a_long_kernel_of_a_neighbour_is_charged_to_the_neighbour() {
    let containers = [(30, 1_000), (60, 20_000)]
        .map(|(quota, micros)| Container::new(quota, Load::new(micros, Launch::Kernel)));
    let got = delivered(&containers, Mode::Exclusive, 10);
    assert!((got[0] - 30.0).abs() < 1.0 && (got[1] - 60.0).abs() < 1.0, "{got:?}");
}

#[test]
fn rows_run_beside_each_other() {
    let containers =
        [80, 80].map(|quota| Container { sm: 50, ..Container::new(quota, Load::new(1_000, Launch::Kernel)) });
    let got = delivered(&containers, Mode::Mps, 3);
    assert!(got.iter().all(|got| (got - 80.0).abs() < 1.0), "{got:?}");
}

#[test]
fn a_container_that_stops_leaves_its_time_to_others() {
    let container = |ceiling| Container { ceiling, ..Container::new(30, Load::new(1_000, Launch::Kernel)) };
    let mut world = World::new(&[container(100), container(100)], Mode::Exclusive, 1);
    world.change(SECOND, Change::Stop(1));
    world.run_until(Nanos::from_secs(3));
    let seconds = world.seconds();
    assert!(seconds[0][2] > 97.0 && seconds[1][2] < 0.1, "{seconds:?}");
}

#[test]
fn the_same_seed_is_the_same_run() {
    let containers = [Container::new(30, Load::new(100, Launch::Graph))];
    let run = || delivered(&containers, Mode::Exclusive, 2);
    assert!(run().iter().zip(run()).all(|(one, other)| one.to_bits() == other.to_bits()));
}
