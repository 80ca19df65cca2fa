//! Linear attention.

mod estimate;
mod features;
mod gauge;
mod inputs;
mod plan;
mod projection;
mod random;
mod rows;
mod state;
mod unit;

pub use estimate::{Estimate, estimate};
pub use features::{CustomMap, FeatureMap, Side};
pub use inputs::{LinearInputs, LogDecay};
pub use plan::{LinearOptions, LinearPlan, LinearWorkspace};
pub use projection::{Norms, Projection};
pub use state::LinearState;
