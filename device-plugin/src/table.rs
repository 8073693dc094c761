//! The node's status as a table for people. Pure text, no I/O.

use std::fmt::Write;

use gpu_share::protocol::{BindingStatus, GpuStatus, NodeStatus};
use gpu_share::units::{Area, Bytes, Nanos, Quota, Units};

/// One block per GPU: how it is, what of it is sold and free, and a line per binding.
pub fn render(status: &NodeStatus) -> String {
    let mut text = String::new();
    if let Some(why) = &status.blind {
        // Writing to a String can't fail.
        let _ = writeln!(text, "GPUs can't be asked: {why}. Their health is what was known last.");
    }
    for gpu in &status.gpus {
        let _ = writeln!(text, "GPU {} {} {}: {}", gpu.gpu.index, gpu.gpu.id, gpu.gpu.name, gpu.health);
        let _ = writeln!(text, "  {}", sums(gpu, status.units_per_gpu));
        let header = [
            "BINDING",
            "FUNCTION",
            "SM",
            "FLOOR",
            "GRANT",
            "CEILING",
            "MEMORY",
            "USED",
            "THROTTLED",
            "PROCESSES",
            "FAULTS",
        ];
        let rows: Vec<_> =
            std::iter::once(header.map(String::from)).chain(gpu.bindings.iter().map(row)).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        for row in rows.iter().filter(|_| !gpu.bindings.is_empty()) {
            let cells = row.iter().enumerate().map(|(column, cell)| format!("{cell:<0$}", width(column)));
            let _ = writeln!(text, "  {}", cells.collect::<Vec<_>>().join("  ").trim_end());
        }
    }
    text
}

/// What the bindings of a GPU have together. Quotas are those of their SM shares: 100 % is the whole GPU all of the time.
fn sums(gpu: &GpuStatus, per_gpu: Units) -> String {
    let area = |of: fn(&BindingStatus) -> Quota| {
        let areas = gpu.bindings.iter().map(|b| Area::of_time(b.binding.share.sm, of(b)));
        areas.sum::<Area>().gpus() * 100.0
    };
    let bound: Bytes = gpu.bindings.iter().map(|b| b.binding.share.memory).sum();
    let held: Bytes = gpu.bindings.iter().map(|b| b.memory_used).sum();
    let used: Nanos = gpu.bindings.iter().map(|b| b.used).sum();
    format!(
        "{} of {} units free, {} at most for one; floors {:.0} %, grants {:.0} %; memory {held} held, {bound} bound of {}; {:.3} s used",
        gpu.free_units.0,
        per_gpu.0,
        gpu.largest_fit.0,
        area(|b| b.binding.share.floor),
        area(|b| b.binding.grant),
        gpu.gpu.memory,
        used.secs_f64(),
    )
}

fn row(status: &BindingStatus) -> [String; 11] {
    let binding = &status.binding;
    let (owner, share) = (&binding.owner, &binding.share);
    [
        binding.id.to_string(),
        format!("{}/{}/{}", owner.namespace, owner.function, owner.instance),
        share.sm.to_string(),
        share.floor.to_string(),
        if binding.is_parked() { "parked".into() } else { binding.grant.to_string() },
        share.ceiling.to_string(),
        format!("{} of {}", status.memory_used, share.memory),
        format!("{:.3} s", status.used.secs_f64()),
        format!("{:.3} s", status.throttled.secs_f64()),
        status.processes.len().to_string(),
        status.faults.to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use gpu_share::binding::{GpuId, Owner};
    use gpu_share::ledger::{Gpu, Sharing};
    use gpu_share::protocol::{Bind, Health};
    use gpu_share::share::Share;
    use gpu_share::units::SmShare;

    use super::*;
    use crate::arbiter::Rules;
    use crate::node::Node;

    #[test]
    fn the_table_shows_how_each_gpu_is_and_what_is_bound() {
        let gpu = |index: u32| Gpu {
            id: GpuId(format!("GPU-{index}")),
            index,
            name: "simulated".into(),
            memory: Bytes::gib(16),
            sharing: Sharing::Mps,
        };
        let mut node = Node::new([gpu(0), gpu(1)], Units::PER_GPU, Rules::default());
        let percent = |percent| Quota::from_percent(percent).unwrap();
        let sm = SmShare::from_percent(50).unwrap();
        let share = Share::new(sm, percent(40), percent(100), Bytes::gib(2)).unwrap();
        let owner = Owner {
            namespace: "fn".into(),
            function: "resnet".into(),
            instance: "0".into(),
            ..Owner::default()
        };
        let id = "b-1".to_string().try_into().unwrap();
        node.bind(id, Bind { owner, share }, Nanos::ZERO).unwrap();
        node.set_health(&GpuId("GPU-1".into()), Health::Unhealthy { why: "Xid 79: fell off the bus".into() })
            .unwrap();
        let status = NodeStatus { blind: Some("nvmlInit has not returned".into()), ..node.status("0", 1) };
        let expected = "\
GPUs can't be asked: nvmlInit has not returned. Their health is what was known last.
GPU 0 GPU-0 simulated: healthy
  16 of 20 units free, 12 at most for one; floors 20 %, grants 20 %; memory 0 B held, 2.0 GiB bound of 16.0 GiB; 0.000 s used
  BINDING  FUNCTION     SM    FLOOR  GRANT  CEILING  MEMORY          USED     THROTTLED  PROCESSES  FAULTS
  b-1      fn/resnet/0  50 %  40 %   40 %   100 %    0 B of 2.0 GiB  0.000 s  0.000 s    0          0
GPU 1 GPU-1 simulated: unhealthy (Xid 79: fell off the bus)
  20 of 20 units free, 0 at most for one; floors 0 %, grants 0 %; memory 0 B held, 0 B bound of 16.0 GiB; 0.000 s used
";
        assert_eq!(render(&status), expected);
    }
}
