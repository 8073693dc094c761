//! The environment that a container with a share needs.
//!
//! Owns which variables there are; who sets them in the container is the caller's business.

use std::path::PathBuf;

use gpu_share::binding::Binding;
use gpu_share::ledger::Sharing;
use gpu_share::names::env;
use gpu_share::protocol::Bound;

use crate::mps::client_variables;

/// What is the same for all containers of a node.
#[derive(Clone, Debug)]
pub struct Environment {
    /// Path of the containers' socket.
    pub socket: PathBuf,
    /// Path of the CUDA driver library.
    pub driver: Option<PathBuf>,
    /// Path of the management library.
    pub nvml: PathBuf,
    /// Folder of the hook library.
    pub hook: Option<PathBuf>,
    /// How processes share GPUs.
    pub sharing: Sharing,
    /// Folder of the sockets of NVIDIA's multi-process service, if its daemon runs.
    pub mps: Option<PathBuf>,
    /// Variables that whoever runs the agent adds.
    pub extra: Vec<(String, String)>,
}

impl Environment {
    /// What the container of `binding` gets, whose page is at `page`.
    pub fn bound(&self, binding: Binding, page: PathBuf) -> Bound {
        let text = |path: &PathBuf| path.to_string_lossy().into_owned();
        let mut pairs = vec![
            (env::PAGE, text(&page)),
            (env::SOCKET, text(&self.socket)),
            (env::BINDING, binding.id.to_string()),
            (env::POLICY, "strict".into()),
            (env::NVML, text(&self.nvml)),
            (env::VISIBLE_DEVICES, binding.gpu.to_string()),
        ];
        pairs.extend(self.driver.as_ref().map(|driver| (env::DRIVER, text(driver))));
        pairs.extend(self.hook.as_ref().map(|hook| (env::HOOK, text(hook))));
        if self.sharing == Sharing::Mps {
            pairs.push((env::MPS_PERCENTAGE, binding.share.sm.percent().to_string()));
            pairs.extend(self.mps.iter().flat_map(|pipes| client_variables(pipes, &binding.share)));
        }
        let own = pairs.into_iter().map(|(name, value)| (name.to_string(), value));
        let env = own.chain(self.extra.iter().cloned()).collect();
        Bound { binding, page, socket: self.socket.clone(), env }
    }
}
