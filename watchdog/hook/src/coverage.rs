//! What the hook does with each of the driver's names that starts work, moves data, or takes memory: `facts/coverage.txt`.
//!
//! It decides nothing at run time but whether an unheard-of name looks like such a one.

/// Parts of names that start work on a GPU, or take memory of one.
const WORK: [&str; 14] = [
    "Launch",
    "Memcpy",
    "Memset",
    "CpyBatch",
    "Alloc",
    "MemCreate",
    "PoolCreate",
    "ArrayCreate",
    "Array3DCreate",
    "CtxCreate",
    "GraphInstantiate",
    "GraphUpload",
    "Prefetch",
    "Decompress",
];

/// Whether `name` looks like one that starts work or takes memory. Host functions run on the CPU, and questions start
/// nothing.
pub(crate) fn looks_like_work(name: &str) -> bool {
    let asks = ["Get", "Set", "AddMem", "AddKernel", "Host", "Attribute", "Granularity"];
    name.starts_with("cu")
        && WORK.iter().any(|part| name.contains(part))
        && !asks.iter().any(|part| name.contains(part))
}

#[cfg(test)]
mod tests;
