//! Every name that others see: annotations, environment, paths.

/// Annotations on a function.
pub mod annotation {
    /// SM share in percent.
    pub const SM: &str = "gpufn.dev/sm";
    /// Quota floor in percent.
    pub const QUOTA: &str = "gpufn.dev/quota";
    /// Quota ceiling in percent.
    pub const QUOTA_LIMIT: &str = "gpufn.dev/quota-limit";
    /// GPU memory, a Kubernetes quantity.
    pub const MEMORY: &str = "gpufn.dev/memory";
    /// Service level objective, such as `p95<100ms`.
    pub const SLO: &str = "gpufn.dev/slo";
    /// Which scaling is allowed.
    pub const POLICY: &str = "gpufn.dev/policy";
    /// Name of the model's profile.
    pub const MODEL: &str = "gpufn.dev/model";
    /// Largest batch.
    pub const BATCH: &str = "gpufn.dev/batch";
    /// Smallest and largest number of replicas, such as `0..8`.
    pub const REPLICAS: &str = "gpufn.dev/replicas";
    /// Whose requests come first where there are not enough GPUs: `low`, `normal` or `high`.
    pub const PRIORITY: &str = "gpufn.dev/priority";
    /// Written back: the present quota in percent.
    pub const GRANT: &str = "gpufn.dev/grant";
    /// Written back: UUID of the GPU.
    pub const GPU: &str = "gpufn.dev/gpu";
    /// Written back: number of the row on that GPU. Who is in one row runs one after the other.
    pub const ROW: &str = "gpufn.dev/row";
}

/// Labels.
pub mod label {
    /// On a pod: it opts in.
    pub const ENABLED: &str = "gpufn.dev/enabled";
    /// On a node, written back: the most units that one new container could have there.
    pub const MAX_FREE_UNITS: &str = "gpufn.dev/max-free-units";
}

/// Environment of a container that has a share.
pub mod env {
    /// Path of the binding's page.
    pub const PAGE: &str = "GPUFN_PAGE";
    /// Path of the node agent's socket for containers.
    pub const SOCKET: &str = "GPUFN_SOCKET";
    /// The binding's name.
    pub const BINDING: &str = "GPUFN_BINDING";
    /// Set where a share is asked for: `strict` refuses to start the function without a binding, `open` only warns.
    pub const POLICY: &str = "GPUFN_POLICY";
    /// Most inferences that the watchdog merges.
    pub const MAX_BATCH_SIZE: &str = "max_batch_size";
    /// Path of the real (or simulated) CUDA driver library.
    pub const DRIVER: &str = "GPUFN_DRIVER";
    /// Path of the real (or simulated) management library.
    pub const NVML: &str = "GPUFN_NVML";
    /// Folder of the hook library, put first in the function's `LD_LIBRARY_PATH`.
    pub const HOOK: &str = "GPUFN_HOOK";
    /// What keeps a process to its SM share: `mps` (as without it) or `green`, green contexts.
    pub const SM_BY: &str = "GPUFN_SM_BY";
    /// SM share of a client of NVIDIA's multi-process service, in percent.
    pub const MPS_PERCENTAGE: &str = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE";
    /// Which GPUs a CUDA program sees.
    pub const VISIBLE_DEVICES: &str = "CUDA_VISIBLE_DEVICES";
    /// Which GPUs NVIDIA's container toolkit puts into a container.
    pub const NVIDIA_VISIBLE_DEVICES: &str = "NVIDIA_VISIBLE_DEVICES";
}

/// The extended resource that the node agent gives to the kubelet.
pub const RESOURCE: &str = "gpufn.dev/gpu";

/// Dynamic resource allocation: the other way in which Kubernetes can hand out GPUs.
pub mod dra {
    /// The driver, and the device class of its GPUs.
    pub const DRIVER: &str = "gpu.gpufn.dev";
    /// Capacity of a device: percent of the GPU's time on all of its multiprocessors.
    pub const COMPUTE: &str = "compute";
    /// Capacity of a device: its memory.
    pub const MEMORY: &str = "memory";
    /// `apiVersion` of a claim's configuration.
    pub const CONFIG_VERSION: &str = "gpufn.dev/v1alpha1";
    /// `kind` of a claim's configuration.
    pub const CONFIG_KIND: &str = "Share";
    /// Taint of a device whose GPU takes no new containers.
    pub const UNHEALTHY: &str = "gpufn.dev/unhealthy";
}

/// Names in the node agent's state folder, `/run/gpufn` on a cluster node.
pub mod state {
    /// The folder on a cluster node.
    pub const FOLDER: &str = "/run/gpufn";
    /// Socket for containers (watchdog and hook).
    pub const SOCKET: &str = "node.sock";
    /// Folder that pods see, with another name of that socket in it: a mount of the folder outlives the socket.
    pub const SOCKETS: &str = "sockets";
    /// Socket for whoever binds and grants; only the agent's user may open it.
    pub const CONTROL_SOCKET: &str = "control.sock";
    /// Folder of the bindings, each in a folder of its own.
    pub const BINDINGS: &str = "bindings";
    /// The page in a binding's folder.
    pub const PAGE: &str = "page";
    /// The ledger's checkpoint.
    pub const LEDGER: &str = "ledger.json";
}
