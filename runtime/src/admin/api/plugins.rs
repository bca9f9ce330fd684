//! Plugins: what runs, and what shall.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri};
use serde::Deserialize;
use serde_json::{Value, json};

use super::caller::Caller;
use super::input::{body, wish};
use super::records::time;
use super::{Error, Json, Result};
use crate::admin::Admin;
use crate::registry::{BringError, Unusable};
use crate::sandbox::Version;
use crate::store::{
    Changed, Deployed, FaultSeen, Quarantined, RegistryChange, Source, VersionKept, VersionWish, now_ms,
};
use crate::tenant::{PluginTerms, Tenant};

pub(super) async fn all(State(admin): State<Arc<Admin>>, caller: Caller, uri: Uri) -> Result<Json<Value>> {
    wish("", &uri, &[])?;
    let tenants = admin.live.tenants.now();
    let seen: Vec<_> = tenants.values().filter(|tenant| caller.may_see(&tenant.name)).map(Arc::as_ref).collect();
    listed(&admin, &seen).await
}

pub(super) async fn of_tenant(
    State(admin): State<Arc<Admin>>,
    caller: Caller,
    Path(tenant): Path<String>,
    uri: Uri,
) -> Result<Json<Value>> {
    let tenant = caller.tenant(&admin, &tenant)?;
    wish("", &uri, &[])?;
    listed(&admin, &[tenant.as_ref()]).await
}

async fn listed(admin: &Admin, tenants: &[&Tenant]) -> Result<Json<Value>> {
    let all = Now::of(admin).await?;
    let plugins = tenants.iter().flat_map(|tenant| tenant.plugins.keys().map(|plugin| all.shown(&tenant.name, plugin)));
    Ok(Json(json!({"plugins": plugins.collect::<Vec<_>>()})))
}

pub(super) async fn inspect(
    State(admin): State<Arc<Admin>>,
    caller: Caller,
    Path((tenant, plugin)): Path<(String, String)>,
    uri: Uri,
) -> Result<Json<Value>> {
    let tenant = caller.tenant(&admin, &tenant)?;
    terms(&tenant, &plugin)?;
    wish("", &uri, &[])?;
    let mut shown = Now::of(&admin).await?.shown(&tenant.name, &plugin);
    let versions = admin.store.history(&tenant.name, &plugin).await?;
    let faults = match versions.first() {
        Some(live) => admin.store.last_faults(&tenant.name, &plugin, live.digest, FAULTS_SHOWN).await?,
        None => Vec::new(),
    };
    if let Some(shown) = shown.as_object_mut() {
        let fault = |fault: FaultSeen| json!({"task": fault.task_id, "fault": fault.reason});
        shown.insert("versions".into(), versions.iter().map(version).collect());
        shown.insert("faults".into(), faults.into_iter().map(fault).collect());
    }
    Ok(Json(shown))
}

fn version(kept: &VersionKept) -> Value {
    let VersionKept { digest, since_ms, source, is_own, bytes } = kept;
    json!({"digest": digest.to_string(), "since": time(*since_ms), "source": source, "own": is_own, "bytes": bytes})
}

pub(super) async fn deploy(
    State(admin): State<Arc<Admin>>,
    caller: Caller,
    Path((tenant, plugin)): Path<(String, String)>,
    request: Body,
) -> Result<Json<Value>> {
    let tenant = caller.tenant(&admin, &tenant)?;
    let bytes_max = terms(&tenant, &plugin)?.limits.component.bytes_max;
    let place = admin.uploads.try_take(&caller.id).map_err(|_| {
        let what = "too many others are sending one: try again";
        Error::new(StatusCode::SERVICE_UNAVAILABLE, "body", what)
    })?;
    let wasm = body(request, bytes_max).await?;
    let Some(registry) = admin.live.registry.clone() else {
        let what = "no plugins run here: bring it to the service whose role is intake";
        return Err(Error::new(StatusCode::CONFLICT, "plugin", what));
    };
    let (whose, name) = (tenant.name.clone(), plugin.clone());
    // Whoever asked may go away; what was begun keeps its place until it is done.
    let bring = admin.begun.spawn(async move {
        let brought = registry.bring(&whose, &name, wasm.into(), Source::Api).await;
        drop(place);
        brought
    });
    let brought = bring.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    let (digest, is_news) = brought.map_err(|why| match why {
        BringError::NoPlugin => no_plugin(),
        BringError::Unusable(Unusable::Store(error)) => error.into(),
        BringError::Unusable(why) => Error::new(StatusCode::UNPROCESSABLE_ENTITY, "body", why.to_string()),
    })?;
    tracing::info!(tenant = tenant.name, plugin, %digest, token = caller.id, "a version was brought");
    Ok(Json(json!({"digest": digest.to_string(), "new": is_news})))
}

/// What can be said in the body of a rollback.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct To {
    to: Option<String>,
}

pub(super) async fn roll_back(
    State(admin): State<Arc<Admin>>,
    caller: Caller,
    Path((tenant, plugin)): Path<(String, String)>,
    request: Body,
) -> Result<Json<Value>> {
    let tenant = caller.tenant(&admin, &tenant)?;
    terms(&tenant, &plugin)?;
    let bytes = body(request, SMALL_BYTES_MAX).await?;
    let To { to } = match bytes.is_empty() {
        true => To::default(),
        false => serde_json::from_slice(&bytes)
            .map_err(|error| Error::invalid("body", format!("expected nothing, or {{\"to\": DIGEST}}: {error}")))?,
    };
    let digits = || Error::invalid("to", "expected 8 to 64 hexadecimal digits");
    let to = to.map(|to| VersionWish::new(&to).ok_or_else(digits)).transpose()?;
    let change = RegistryChange::RollBack { tenant: tenant.name.clone(), plugin: plugin.clone(), to };
    let Changed::To(digest) = admin.store.change(change).await? else {
        return Err(Error::new(
            StatusCode::CONFLICT,
            "to",
            "expected a version that was live, found none to go back to",
        ));
    };
    admin.live.wake_plugins();
    tracing::info!(tenant = tenant.name, plugin, %digest, token = caller.id, "a version was gone back to");
    Ok(Json(json!({"digest": digest.to_string()})))
}

pub(super) async fn quarantine(
    State(admin): State<Arc<Admin>>,
    caller: Caller,
    Path((tenant, plugin)): Path<(String, String)>,
) -> Result<Json<Value>> {
    let tenant = caller.tenant(&admin, &tenant)?;
    terms(&tenant, &plugin)?;
    let Some(live) = admin.store.history(&tenant.name, &plugin).await?.into_iter().next() else {
        return Err(Error::new(StatusCode::CONFLICT, "plugin", "expected one that has a live version"));
    };
    let reason = if caller.is_operator() { Quarantined::BY_OPERATOR } else { Quarantined::BY_TENANT };
    let one = Quarantined {
        tenant: tenant.name.clone(),
        plugin: plugin.clone(),
        digest: live.digest,
        reason: reason.into(),
        since_ms: now_ms(),
        probe_ms: None,
        probes: 0,
    };
    // What the operator has ordered, a tenant does not order anew.
    if caller.is_operator() || !is_operators(&admin, &tenant.name, &plugin).await? {
        admin.store.change(RegistryChange::Quarantine(one)).await?;
        admin.live.wake_plugins();
    }
    tracing::info!(tenant = tenant.name, plugin, token = caller.id, "a plugin was quarantined");
    Ok(Json(json!({"quarantined": true})))
}

pub(super) async fn release(
    State(admin): State<Arc<Admin>>,
    caller: Caller,
    Path((tenant, plugin)): Path<(String, String)>,
) -> Result<Json<Value>> {
    let tenant = caller.tenant(&admin, &tenant)?;
    terms(&tenant, &plugin)?;
    let is_by_operator = caller.is_operator();
    let change = RegistryChange::Release { tenant: tenant.name.clone(), plugin: plugin.clone(), is_by_operator };
    let was = admin.store.change(change).await? != Changed::No;
    if !was && !is_by_operator && is_operators(&admin, &tenant.name, &plugin).await? {
        return Err(Error::new(StatusCode::FORBIDDEN, "plugin", "it was quarantined by the operator"));
    }
    admin.live.wake_plugins();
    tracing::info!(tenant = tenant.name, plugin, token = caller.id, "a plugin was released");
    Ok(Json(json!({"quarantined": false, "was": was})))
}

/// Whether the operator has quarantined it.
async fn is_operators(admin: &Admin, tenant: &str, plugin: &str) -> Result<bool> {
    let all = admin.store.quarantined().await?;
    let is_it = |one: &Quarantined| one.tenant == tenant && one.plugin == plugin;
    Ok(all.iter().any(|one| is_it(one) && one.is_by_operator()))
}

fn terms<'a>(tenant: &'a Tenant, plugin: &str) -> Result<&'a PluginTerms> {
    tenant.plugins.get(plugin).ok_or_else(no_plugin)
}

fn no_plugin() -> Error {
    Error::not_found("plugin", "expected the name of a plugin of this tenant")
}

/// What is known of all plugins at one moment.
struct Now {
    deployed: BTreeMap<(String, String), Deployed>,
    quarantined: BTreeMap<(String, String), Quarantined>,
    refused: BTreeMap<String, String>,
    imports: BTreeMap<(String, String), Vec<String>>,
}

impl Now {
    async fn of(admin: &Admin) -> Result<Self> {
        let registry = admin.live.registry.as_ref();
        let imports =
            |(tenant, version): (String, Arc<Version>)| ((tenant, version.name.clone()), version.imports.clone());
        let deployed = admin.store.deployments(0).await?.into_iter();
        let quarantined = admin.store.quarantined().await?.into_iter();
        Ok(Self {
            deployed: deployed.map(|one| ((one.tenant.clone(), one.plugin.clone()), one)).collect(),
            quarantined: quarantined.map(|one| ((one.tenant.clone(), one.plugin.clone()), one)).collect(),
            refused: registry.map(|registry| registry.refused()).unwrap_or_default(),
            imports: registry.into_iter().flat_map(|registry| registry.all()).map(imports).collect(),
        })
    }

    fn shown(&self, tenant: &str, plugin: &str) -> Value {
        let key = (tenant.to_owned(), plugin.to_owned());
        let deployed = self.deployed.get(&key);
        let quarantined = self.quarantined.get(&key).map(|one| {
            json!({"reason": one.reason, "since": time(one.since_ms), "probe": one.probe_ms.map(time), "probes": one.probes})
        });
        json!({
            "tenant": tenant,
            "plugin": plugin,
            "digest": deployed.map(|one| one.digest.to_string()),
            "since": deployed.map(|one| time(one.since_ms)),
            "source": deployed.map(|one| &one.source),
            "own": deployed.map(|one| one.is_own),
            "imports": self.imports.get(&key),
            "refused": self.refused.get(&format!("{tenant}/{plugin}")),
            "quarantined": quarantined,
        })
    }
}

const FAULTS_SHOWN: u32 = 10;
const SMALL_BYTES_MAX: usize = 4 << 10;
