//! All tenants, as they are at the moment. They come, change and go while others look.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use super::Tenant;

/// Tenants by name, as they were at one moment.
pub type ByName = BTreeMap<String, Arc<Tenant>>;

/// The tenants. Cheap to clone: every clone shows the same ones.
#[derive(Clone, Debug, Default)]
pub struct Tenants(Arc<RwLock<Arc<ByName>>>);

impl Tenants {
    /// These, until others take their place.
    #[must_use]
    pub fn new(tenants: impl IntoIterator<Item = Tenant>) -> Self {
        let all = Self::default();
        drop(all.replace(tenants));
        all
    }

    /// All of them, as they are now.
    #[must_use]
    pub fn now(&self) -> Arc<ByName> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// One of them. Whoever works for it keeps what is returned until the work is done: it does not change.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<Arc<Tenant>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// From now on, these are the tenants; returns those there were.
    pub fn replace(&self, tenants: impl IntoIterator<Item = Tenant>) -> Arc<ByName> {
        let tenants = tenants.into_iter().map(|tenant| (tenant.name.clone(), Arc::new(tenant))).collect();
        std::mem::replace(&mut *self.0.write().unwrap_or_else(PoisonError::into_inner), Arc::new(tenants))
    }
}
