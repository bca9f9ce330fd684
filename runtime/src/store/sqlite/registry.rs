//! Versions, deployments, quarantine and tokens.

use rusqlite::{Connection, OptionalExtension, Result, Row};

use super::{Text, signed};
use crate::effect::Hash;
use crate::store::now_ms;
use crate::store::rows::{
    Changed, Deployed, Deployment, FaultSeen, Quarantined, RegistryChange, Source, Token, VersionKept, VersionWish,
};

pub(super) fn apply(connection: &Connection, change: &RegistryChange) -> Result<Changed> {
    let rows = match change {
        RegistryChange::Deploy(deployment) => return deploy(connection, deployment),
        RegistryChange::RollBack { tenant, plugin, to } => return roll_back(connection, tenant, plugin, to.as_ref()),
        RegistryChange::Quarantine(quarantined) => quarantine(connection, quarantined)?,
        RegistryChange::Release { tenant, plugin, is_by_operator } => {
            let release = "DELETE FROM quarantine WHERE tenant = ? AND plugin = ? AND (? OR reason <> ?)";
            let operator = Quarantined::BY_OPERATOR.as_bytes();
            connection.execute(release, (tenant, plugin, is_by_operator, operator))?
        }
        RegistryChange::Probe { tenant, plugin, digest, next_ms } => {
            let update = "UPDATE quarantine SET probe_ms = ?, probes = probes + 1 \
                          WHERE tenant = ? AND plugin = ? AND digest = ? AND probe_ms <= ?";
            connection.execute(update, (next_ms, tenant, plugin, digest, now_ms()))?
        }
        RegistryChange::AddToken(Token { id, sha256, tenant, created_ms }) => {
            let insert = "INSERT INTO token (id, sha256, tenant, created_ms) VALUES (?, ?, ?, ?)";
            connection.execute(insert, (id, sha256, tenant, created_ms))?
        }
        RegistryChange::RevokeToken { id } => connection.execute("DELETE FROM token WHERE id = ?", [id])?,
    };
    Ok(if rows > 0 { Changed::Yes } else { Changed::No })
}

/// What a deployment makes live: the version, whether it is the tenant's own, and what its file holds.
type Live = (Hash, bool, Option<Hash>);

fn deploy(connection: &Connection, deployment: &Deployment) -> Result<Changed> {
    let Deployment { tenant, plugin, digest, wasm, source, is_own, file } = deployment;
    let last = "SELECT seq, digest, is_own, file FROM deployment WHERE tenant = ? AND plugin = ? \
                ORDER BY seq DESC LIMIT 1";
    let row = |row: &Row<'_>| Ok((row.get(0)?, (row.get(1)?, row.get(2)?, row.get(3)?)));
    let last: Option<(i64, Live)> = connection.query_row(last, (tenant, plugin), row).optional()?;
    // Whoever deploys by another way leaves the file as it was.
    let this = (*digest, *is_own, file.or(last.and_then(|(_, (_, _, file))| file)));
    if let Some((seq, _)) = last.filter(|(_, last)| *last == this) {
        return Ok(Changed::Live { seq, is_news: false });
    }
    let is_known = connection.prepare_cached("SELECT 1 FROM version WHERE digest = ?")?.exists([digest])?;
    if !is_known {
        let insert = "INSERT INTO version (digest, wasm, bytes, first_seen_ms) VALUES (?, ?, ?, ?)";
        connection.execute(insert, (digest, wasm.as_slice(), signed(wasm.len() as u64), now_ms()))?;
    }
    insert(connection, tenant, plugin, this, *source, None)?;
    Ok(Changed::Live { seq: connection.last_insert_rowid(), is_news: true })
}

fn insert(
    connection: &Connection,
    tenant: &str,
    plugin: &str,
    (digest, is_own, file): Live,
    source: Source,
    restores: Option<i64>,
) -> Result<()> {
    // The version that was not run is live no more; should it come back, it gets another chance. What the operator
    // stopped, only the operator starts.
    let release = "DELETE FROM quarantine WHERE tenant = ? AND plugin = ? AND reason <> ?";
    connection.execute(release, (tenant, plugin, Quarantined::BY_OPERATOR.as_bytes()))?;
    let insert = "INSERT INTO deployment (tenant, plugin, digest, since_ms, source, is_own, file, restores) \
                  VALUES (?, ?, ?, ?, ?, ?, ?, ?)";
    let values = (tenant, plugin, digest, now_ms(), source.name(), is_own, file, restores);
    connection.execute(insert, values).map(drop)
}

/// Back to the version before the live one, or before the one that a rollback went back to already.
fn roll_back(connection: &Connection, tenant: &str, plugin: &str, to: Option<&VersionWish>) -> Result<Changed> {
    // The place of what a rollback went back to is where that was deployed.
    let select = "SELECT digest, is_own, file, coalesce(restores, seq) FROM deployment \
                  WHERE tenant = ? AND plugin = ? ORDER BY seq DESC";
    let row = |row: &Row<'_>| Ok(((row.get(0)?, row.get(1)?, row.get(2)?), row.get(3)?));
    let all: Vec<(Live, i64)> = connection.prepare(select)?.query_map((tenant, plugin), row)?.collect::<Result<_>>()?;
    let Some(((live, _, file), here)) = all.first().copied() else { return Ok(Changed::No) };
    let is_it = |((digest, ..), place): &(Live, i64)| match to {
        Some(wish) => digest.to_string().starts_with(wish.as_str()),
        None => *place < here && *digest != live,
    };
    let Some(((digest, is_own, _), place)) = all.into_iter().find(is_it) else { return Ok(Changed::No) };
    if digest != live {
        insert(connection, tenant, plugin, (digest, is_own, file), Source::Rollback, Some(place))?;
    }
    Ok(Changed::To(digest))
}

fn quarantine(connection: &Connection, quarantined: &Quarantined) -> Result<usize> {
    let Quarantined { tenant, plugin, digest, reason, since_ms, probe_ms, probes: _ } = quarantined;
    // Whoever comes second has nothing to add, unless it is about another version; and nothing to what the operator says.
    let insert = "INSERT INTO quarantine (tenant, plugin, digest, reason, since_ms, probe_ms) \
                  VALUES (?1, ?2, ?3, ?4, ?5, ?6) \
                  ON CONFLICT (tenant, plugin) DO UPDATE SET digest = excluded.digest, reason = excluded.reason, \
                  since_ms = excluded.since_ms, probe_ms = excluded.probe_ms, probes = 0 \
                  WHERE (quarantine.digest <> excluded.digest OR excluded.probe_ms IS NULL) \
                    AND (quarantine.reason <> ?7 OR excluded.reason = ?7)";
    let operator = Quarantined::BY_OPERATOR.as_bytes();
    connection.execute(insert, (tenant, plugin, digest, reason.as_bytes(), since_ms, probe_ms, operator))
}

/// Forgets the deployments of long ago, and versions that none speaks of any more.
pub(super) fn prune(connection: &Connection) -> Result<()> {
    let deployments = "DELETE FROM deployment WHERE seq IN (SELECT seq FROM (SELECT seq, ROW_NUMBER() OVER \
                       (PARTITION BY tenant, plugin ORDER BY seq DESC) AS place FROM deployment) WHERE place > ?)";
    connection.execute(deployments, [DEPLOYMENTS_KEPT])?;
    let versions = "DELETE FROM version WHERE NOT EXISTS (SELECT 1 FROM deployment d WHERE d.digest = version.digest)";
    connection.execute(versions, ()).map(drop)
}

pub(in crate::store) fn deployments(connection: &Connection, after: i64) -> Result<Vec<Deployed>> {
    let select = "SELECT d.seq, d.tenant, d.plugin, d.digest, d.since_ms, d.source, d.is_own, d.file FROM deployment d \
                  WHERE d.seq > ? AND d.seq = (SELECT MAX(l.seq) FROM deployment l WHERE l.tenant = d.tenant AND \
                  l.plugin = d.plugin) ORDER BY d.seq";
    let deployed = |row: &Row<'_>| {
        Ok(Deployed {
            seq: row.get("seq")?,
            tenant: row.get("tenant")?,
            plugin: row.get("plugin")?,
            digest: row.get("digest")?,
            since_ms: row.get("since_ms")?,
            source: row.get("source")?,
            is_own: row.get("is_own")?,
            file: row.get("file")?,
        })
    };
    connection.prepare_cached(select)?.query_map([after], deployed)?.collect()
}

pub(in crate::store) fn history(connection: &Connection, tenant: &str, plugin: &str) -> Result<Vec<VersionKept>> {
    let select = "SELECT d.digest, d.since_ms, d.source, d.is_own, v.bytes FROM deployment d \
                  JOIN version v ON v.digest = d.digest WHERE d.tenant = ? AND d.plugin = ? ORDER BY d.seq DESC";
    let kept = |row: &Row<'_>| {
        Ok(VersionKept {
            digest: row.get("digest")?,
            since_ms: row.get("since_ms")?,
            source: row.get("source")?,
            is_own: row.get("is_own")?,
            bytes: row.get("bytes")?,
        })
    };
    connection.prepare_cached(select)?.query_map((tenant, plugin), kept)?.collect()
}

pub(in crate::store) fn wasm(connection: &Connection, digest: Hash) -> Result<Option<Vec<u8>>> {
    connection.query_row("SELECT wasm FROM version WHERE digest = ?", [digest], |row| row.get(0)).optional()
}

pub(in crate::store) fn last_faults(
    connection: &Connection,
    tenant: &str,
    plugin: &str,
    digest: Hash,
    limit: u32,
) -> Result<Vec<FaultSeen>> {
    let select = "SELECT e.task_id, i.reason FROM invocation i JOIN event e ON e.id = i.event_id \
                  WHERE i.state = 'faulted' AND i.plugin = ? AND i.digest = ? AND i.tenant = ? \
                  ORDER BY i.id DESC LIMIT 0 + ?";
    let fault = |row: &Row<'_>| {
        let Text(reason) = row.get("reason")?;
        Ok(FaultSeen { task_id: row.get("task_id")?, reason })
    };
    connection.prepare_cached(select)?.query_map((plugin, digest, tenant, limit), fault)?.collect()
}

pub(in crate::store) fn quarantined(connection: &Connection) -> Result<Vec<Quarantined>> {
    let select = "SELECT tenant, plugin, digest, reason, since_ms, probe_ms, probes FROM quarantine";
    let quarantined = |row: &Row<'_>| {
        let Text(reason) = row.get("reason")?;
        Ok(Quarantined {
            tenant: row.get("tenant")?,
            plugin: row.get("plugin")?,
            digest: row.get("digest")?,
            reason,
            since_ms: row.get("since_ms")?,
            probe_ms: row.get("probe_ms")?,
            probes: row.get("probes")?,
        })
    };
    connection.prepare_cached(select)?.query_map((), quarantined)?.collect()
}

pub(in crate::store) fn tokens(connection: &Connection, id: Option<&str>) -> Result<Vec<Token>> {
    let select = "SELECT id, sha256, tenant, created_ms FROM token WHERE ?1 IS NULL OR id = ?1 ORDER BY created_ms";
    let token = |row: &Row<'_>| {
        Ok(Token {
            id: row.get("id")?,
            sha256: row.get("sha256")?,
            tenant: row.get("tenant")?,
            created_ms: row.get("created_ms")?,
        })
    };
    connection.prepare_cached(select)?.query_map([id], token)?.collect()
}

/// For each plugin of each tenant.
const DEPLOYMENTS_KEPT: i64 = 20;
