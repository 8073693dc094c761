//! The node's status as a table for people. Pure text, no I/O.

use std::fmt::Write;

use gpu_share::protocol::{BindingStatus, NodeStatus};

/// One block per GPU: what is free, and a line per binding.
pub fn render(status: &NodeStatus) -> String {
    let mut text = String::new();
    for gpu in &status.gpus {
        // Writing to a String can't fail.
        let _ = writeln!(
            text,
            "GPU {} {} {}: {} of {} units free, {} memory",
            gpu.gpu.index, gpu.gpu.id, gpu.gpu.name, gpu.free_units.0, status.units_per_gpu.0, gpu.gpu.memory
        );
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

fn row(status: &BindingStatus) -> [String; 10] {
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
    ]
}
