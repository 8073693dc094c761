//! HAMi-core on the same cells, if its library is at hand: a preloaded hook that limits the use of multiprocessors.

use std::path::Path;

use anyhow::Result;
use gpu_share::protocol::Bound;
use gpufn::audit::cell::Container;
use gpufn::audit::measure::Bench;
use gpufn::audit::probe;
use gpufn::audit::stand::Stand;

/// Part of each second that each container got under HAMi-core's limits, percent.
pub(crate) async fn run(
    stand: &Stand,
    bench: &mut Bench<'_>,
    library: &Path,
    containers: &[Container],
    seconds: u32,
) -> Result<Vec<Vec<f64>>> {
    // What its processes share lies in a file for each container.
    let folder = tempfile::tempdir()?;
    let program = |container: &Container, bound: &Bound| {
        let mut command = stand.unhooked(&crate::probe());
        command
            .args(probe::arguments(&container.load))
            .env("LD_PRELOAD", library)
            .env("CUDA_DEVICE_SM_LIMIT", container.quota.to_string())
            .env("CUDA_DEVICE_MEMORY_LIMIT", "3g")
            .env("CUDA_DEVICE_MEMORY_SHARED_CACHE", folder.path().join(bound.binding.id.as_str()))
            .env("LIBCUDA_LOG_LEVEL", "0");
        command
    };
    bench.run_programs(containers, seconds, program).await
}
