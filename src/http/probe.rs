//! The probe by which the server knows an orchestrator.

use std::fmt;
use std::sync::Arc;

use crate::overview::Sight;
use crate::status::Status;

/// What the server asks one orchestrator for, without the database. The orchestrator's handle
/// returns it.
#[derive(Clone)]
pub struct HealthProbe {
    pub(super) live: Check,
    pub(super) ready: Check,
    pub(super) status: Arc<dyn Fn() -> Status + Send + Sync>,
    pub(super) look: Arc<dyn Fn() -> Option<Sight> + Send + Sync>,
}

/// A check; its error is the reason why it failed.
pub(super) type Check = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

impl HealthProbe {
    /// Creates a probe. The functions must answer at once and from memory.
    pub(crate) fn new(
        live: impl Fn() -> Result<(), String> + Send + Sync + 'static,
        ready: impl Fn() -> Result<(), String> + Send + Sync + 'static,
        status: impl Fn() -> Status + Send + Sync + 'static,
        look: impl Fn() -> Option<Sight> + Send + Sync + 'static,
    ) -> Self {
        Self { live: Arc::new(live), ready: Arc::new(ready), status: Arc::new(status), look: Arc::new(look) }
    }
}

impl fmt::Debug for HealthProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HealthProbe").field("worker_id", &(self.status)().worker_id).finish_non_exhaustive()
    }
}
