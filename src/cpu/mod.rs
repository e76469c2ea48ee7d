//! The fused CPU path.
#[derive(Debug, Default)]
pub(crate) struct WorkspacePool;
