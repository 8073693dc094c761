//! The environment that a container with a share needs.
//!
//! Owns which variables there are; who sets them in the container is the caller's business.

use std::path::{Path, PathBuf};

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
            (env::VISIBLE_DEVICES, binding.gpu.to_string()),
        ];
        // By a mere name the hook's loader finds the hook; untold, the hook looks in the folders of drivers.
        if self.nvml.parent().is_some_and(|folder| folder != Path::new("")) {
            pairs.push((env::NVML, text(&self.nvml)));
        }
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

#[cfg(test)]
mod tests {
    use gpu_share::binding::{BindingId, GpuId, Owner};
    use gpu_share::share::Share;
    use gpu_share::units::{Bytes, Quota, SmShare};

    use super::*;

    fn told(nvml: &str, name: &str) -> Option<String> {
        let binding = Binding {
            id: BindingId::try_from("b-1".to_string()).unwrap(),
            owner: Owner::default(),
            gpu: GpuId("GPU-1".into()),
            share: Share::new(SmShare::WHOLE, Quota::WHOLE, Quota::WHOLE, Bytes::gib(1)).unwrap(),
            grant: Quota::WHOLE,
            row: 0,
        };
        let environment = Environment {
            socket: "/run/gpufn/node.sock".into(),
            driver: None,
            nvml: nvml.into(),
            hook: None,
            sharing: Sharing::Exclusive,
            mps: None,
            extra: Vec::new(),
        };
        let Bound { env, .. } = environment.bound(binding, "/run/gpufn/bindings/b-1/page".into());
        env.into_iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    #[test]
    fn a_container_is_told_of_a_management_library_by_its_path_and_never_by_its_name() {
        assert_eq!(told("/usr/lib/libnvidia-ml.so.1", env::NVML).unwrap(), "/usr/lib/libnvidia-ml.so.1");
        assert_eq!(told("libnvidia-ml.so.1", env::NVML), None);
        assert_eq!(told("libnvidia-ml.so.1", env::BINDING).unwrap(), "b-1");
    }
}
