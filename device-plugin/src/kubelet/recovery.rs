//! Bindings that containers know of and the ledger does not: its checkpoint was damaged.
//!
//! A page says what its binding may use, but not whose it is. The CDI file of a container does; without a page it has to do.

use gpu_share::binding::Binding;
use gpu_share::protocol::NodeStatus;

use super::inject::Injector;
use crate::control::Handle;
use crate::owner::Reshape;

/// Finds what CDI files tell of the bindings that are `lost`, and gives it back to the ledger; returns what could be.
pub(crate) async fn recover(
    handle: &Handle,
    injector: &Injector,
    status: &NodeStatus,
    lost: impl Fn(&Binding) -> bool,
) -> Vec<Binding> {
    let mut recovered = Vec::new();
    for recorded in injector.recorded().into_iter().filter(|recorded| lost(recorded)) {
        let id = recorded.id.clone();
        let found = match status.binding(&id).map(|one| &one.binding) {
            Some(Binding { share, grant, .. }) => {
                let (owner, share, quota) = (recorded.owner, *share, *grant);
                let reshaped = handle.reshape(id.clone(), Reshape { owner, share, quota }).await;
                reshaped.map(|bound| bound.binding)
            }
            None => handle.restore(recorded.clone()).await.map(|()| recorded),
        };
        match found {
            Ok(binding) => {
                tracing::warn!(binding = %id, "not in the checkpoint, restored from its CDI file");
                recovered.push(binding);
            }
            Err(error) => tracing::warn!(binding = %id, %error, "not restored from its CDI file"),
        }
    }
    recovered
}
