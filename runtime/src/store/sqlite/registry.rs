//! Versions, deployments, quarantine and tokens.

use sqlx::sqlite::{SqlitePool, SqliteRow};
use sqlx::{Row, SqliteConnection};

use super::{Result, hash, signed};
use crate::effect::Hash;
use crate::store::now_ms;
use crate::store::rows::{
    Changed, Deployed, Deployment, FaultSeen, Quarantined, RegistryChange, Source, Token, VersionKept, VersionWish,
};

pub(super) async fn apply(connection: &mut SqliteConnection, change: &RegistryChange) -> Result<Changed> {
    match change {
        RegistryChange::Deploy(deployment) => deploy(connection, deployment).await,
        RegistryChange::RollBack { tenant, plugin, to } => roll_back(connection, tenant, plugin, to.as_ref()).await,
        RegistryChange::Quarantine(quarantined) => quarantine(connection, quarantined).await,
        RegistryChange::Release { tenant, plugin } => {
            let delete =
                sqlx::query("DELETE FROM quarantine WHERE tenant = ? AND plugin = ?").bind(tenant).bind(plugin);
            Ok(changed(delete.execute(connection).await?.rows_affected()))
        }
        RegistryChange::Probe { tenant, plugin, digest, next_ms } => {
            let update = sqlx::query(
                "UPDATE quarantine SET probe_ms = ?, probes = probes + 1 \
                 WHERE tenant = ? AND plugin = ? AND digest = ? AND probe_ms <= ?",
            );
            let update = update.bind(next_ms).bind(tenant).bind(plugin).bind(digest.as_bytes().to_vec()).bind(now_ms());
            Ok(changed(update.execute(connection).await?.rows_affected()))
        }
        RegistryChange::AddToken(Token { id, sha256, tenant, created_ms }) => {
            let insert = sqlx::query("INSERT INTO token (id, sha256, tenant, created_ms) VALUES (?, ?, ?, ?)");
            let insert = insert.bind(id).bind(sha256.as_bytes().to_vec()).bind(tenant).bind(created_ms);
            Ok(changed(insert.execute(connection).await?.rows_affected()))
        }
        RegistryChange::RevokeToken { id } => {
            let delete = sqlx::query("DELETE FROM token WHERE id = ?").bind(id);
            Ok(changed(delete.execute(connection).await?.rows_affected()))
        }
    }
}

const fn changed(rows: u64) -> Changed {
    if rows > 0 { Changed::Yes } else { Changed::No }
}

async fn deploy(connection: &mut SqliteConnection, deployment: &Deployment) -> Result<Changed> {
    let Deployment { tenant, plugin, digest, wasm, source, is_own, file } = deployment;
    let digest = digest.as_bytes().to_vec();
    let last =
        "SELECT digest, is_own, file, seq FROM deployment WHERE tenant = ? AND plugin = ? ORDER BY seq DESC LIMIT 1";
    let last = sqlx::query(last).bind(tenant).bind(plugin).fetch_optional(&mut *connection).await?;
    let last: Option<(Vec<u8>, bool, Option<Vec<u8>>)> =
        last.map(|row| Ok::<_, sqlx::Error>((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))).transpose()?;
    // Whoever deploys by another way leaves the file as it was.
    let file = match file {
        Some(file) => Some(file.as_bytes().to_vec()),
        None => last.as_ref().and_then(|(_, _, file)| file.clone()),
    };
    let this = (digest, *is_own, file);
    if last.as_ref() == Some(&this) {
        return Ok(Changed::No);
    }
    let is_known: Option<i64> = sqlx::query_scalar("SELECT bytes FROM version WHERE digest = ?")
        .bind(&this.0)
        .fetch_optional(&mut *connection)
        .await?;
    if is_known.is_none() {
        sqlx::query("INSERT INTO version (digest, wasm, bytes, first_seen_ms) VALUES (?, ?, ?, ?)")
            .bind(&this.0)
            .bind(wasm.as_slice())
            .bind(signed(wasm.len() as u64))
            .bind(now_ms())
            .execute(&mut *connection)
            .await?;
    }
    insert(connection, tenant, plugin, this, *source, None).await?;
    Ok(Changed::Yes)
}

async fn insert(
    connection: &mut SqliteConnection,
    tenant: &str,
    plugin: &str,
    (digest, is_own, file): (Vec<u8>, bool, Option<Vec<u8>>),
    source: Source,
    restores: Option<i64>,
) -> Result<()> {
    // The version that was not run is live no more; should it come back, it gets another chance. What the operator
    // stopped, only the operator starts.
    let release = "DELETE FROM quarantine WHERE tenant = ? AND plugin = ? AND reason <> ?";
    let release = sqlx::query(release).bind(tenant).bind(plugin).bind(Quarantined::BY_OPERATOR.as_bytes());
    release.execute(&mut *connection).await?;
    let insert = sqlx::query(
        "INSERT INTO deployment (tenant, plugin, digest, since_ms, source, is_own, file, restores) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    );
    let insert = insert.bind(tenant).bind(plugin).bind(digest).bind(now_ms()).bind(source.name());
    insert.bind(is_own).bind(file).bind(restores).execute(connection).await?;
    Ok(())
}

/// Back to the version before the live one, or before the one that a rollback went back to already.
async fn roll_back(
    connection: &mut SqliteConnection,
    tenant: &str,
    plugin: &str,
    to: Option<&VersionWish>,
) -> Result<Changed> {
    let query = "SELECT seq, digest, is_own, file, restores FROM deployment WHERE tenant = ? AND plugin = ? \
                 ORDER BY seq DESC";
    let rows = sqlx::query(query).bind(tenant).bind(plugin).fetch_all(&mut *connection).await?;
    let Some(last) = rows.first() else { return Ok(Changed::No) };
    let place = |row: &SqliteRow| Ok::<i64, sqlx::Error>(row.try_get::<Option<i64>, _>(4)?.unwrap_or(row.try_get(0)?));
    let (live, here) = (hash(last, "digest")?, place(last)?);
    let mut target = None;
    for row in &rows {
        let digest = hash(row, "digest")?;
        let is_it = match to {
            Some(wish) => digest.to_string().starts_with(wish.as_str()),
            None => place(row)? < here && digest != live,
        };
        if is_it {
            target = Some((row, digest));
            break;
        }
    }
    let Some((row, digest)) = target else { return Ok(Changed::No) };
    if digest != live {
        let what = (digest.as_bytes().to_vec(), row.try_get(2)?, last.try_get(3)?);
        insert(connection, tenant, plugin, what, Source::Rollback, Some(place(row)?)).await?;
    }
    Ok(Changed::To(digest))
}

async fn quarantine(connection: &mut SqliteConnection, quarantined: &Quarantined) -> Result<Changed> {
    let Quarantined { tenant, plugin, digest, reason, since_ms, probe_ms, probes: _ } = quarantined;
    // Whoever comes second has nothing to add, unless it is about another version; and nothing to what the operator says.
    let insert = sqlx::query(
        "INSERT INTO quarantine (tenant, plugin, digest, reason, since_ms, probe_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6) \
         ON CONFLICT (tenant, plugin) DO UPDATE SET digest = excluded.digest, reason = excluded.reason, \
         since_ms = excluded.since_ms, probe_ms = excluded.probe_ms, probes = 0 \
         WHERE (quarantine.digest <> excluded.digest OR excluded.probe_ms IS NULL) \
           AND (quarantine.reason <> ?7 OR excluded.reason = ?7)",
    );
    let insert = insert.bind(tenant).bind(plugin).bind(digest.as_bytes().to_vec()).bind(reason.as_bytes());
    let insert = insert.bind(since_ms).bind(probe_ms).bind(Quarantined::BY_OPERATOR.as_bytes());
    Ok(changed(insert.execute(connection).await?.rows_affected()))
}

/// Forgets the deployments of long ago, and versions that none speaks of any more.
pub(super) async fn prune(connection: &mut SqliteConnection) -> Result<()> {
    let deployments = sqlx::query(
        "DELETE FROM deployment WHERE seq IN (SELECT seq FROM (SELECT seq, ROW_NUMBER() OVER \
         (PARTITION BY tenant, plugin ORDER BY seq DESC) AS place FROM deployment) WHERE place > ?)",
    );
    deployments.bind(DEPLOYMENTS_KEPT).execute(&mut *connection).await?;
    let versions = "DELETE FROM version WHERE NOT EXISTS (SELECT 1 FROM deployment d WHERE d.digest = version.digest)";
    sqlx::query(versions).execute(connection).await?;
    Ok(())
}

pub(in crate::store) async fn deployments(reader: &SqlitePool, after: i64) -> Result<Vec<Deployed>> {
    let query = "SELECT d.seq, d.tenant, d.plugin, d.digest, d.since_ms, d.source, d.is_own, d.file FROM deployment d \
                 WHERE d.seq > ? AND d.seq = (SELECT MAX(l.seq) FROM deployment l WHERE l.tenant = d.tenant AND \
                 l.plugin = d.plugin) ORDER BY d.seq";
    let rows = sqlx::query(query).bind(after).fetch_all(reader).await?;
    let deployed = |row: &SqliteRow| {
        let file: Option<Vec<u8>> = row.try_get("file")?;
        Ok(Deployed {
            seq: row.try_get("seq")?,
            tenant: row.try_get("tenant")?,
            plugin: row.try_get("plugin")?,
            digest: hash(row, "digest")?,
            since_ms: row.try_get("since_ms")?,
            source: row.try_get("source")?,
            is_own: row.try_get("is_own")?,
            file: file.and_then(|file| Hash::from_slice(&file)),
        })
    };
    rows.iter().map(deployed).collect()
}

pub(in crate::store) async fn history(reader: &SqlitePool, tenant: &str, plugin: &str) -> Result<Vec<VersionKept>> {
    let query = "SELECT d.digest, d.since_ms, d.source, d.is_own, v.bytes FROM deployment d \
                 JOIN version v ON v.digest = d.digest WHERE d.tenant = ? AND d.plugin = ? ORDER BY d.seq DESC";
    let rows = sqlx::query(query).bind(tenant).bind(plugin).fetch_all(reader).await?;
    let kept = |row: &SqliteRow| {
        Ok(VersionKept {
            digest: hash(row, "digest")?,
            since_ms: row.try_get("since_ms")?,
            source: row.try_get("source")?,
            is_own: row.try_get("is_own")?,
            bytes: row.try_get("bytes")?,
        })
    };
    rows.iter().map(kept).collect()
}

pub(in crate::store) async fn wasm(reader: &SqlitePool, digest: Hash) -> Result<Option<Vec<u8>>> {
    let query = sqlx::query_scalar("SELECT wasm FROM version WHERE digest = ?").bind(digest.as_bytes().to_vec());
    query.fetch_optional(reader).await
}

pub(in crate::store) async fn last_faults(
    reader: &SqlitePool,
    tenant: &str,
    plugin: &str,
    digest: Hash,
    limit: u32,
) -> Result<Vec<FaultSeen>> {
    let query = "SELECT e.task_id, i.reason FROM invocation i JOIN event e ON e.id = i.event_id \
                 WHERE i.state = 'faulted' AND i.plugin = ? AND i.digest = ? AND i.tenant = ? \
                 ORDER BY i.id DESC LIMIT 0 + ?";
    let query = sqlx::query(query).bind(plugin).bind(digest.as_bytes().to_vec()).bind(tenant).bind(limit);
    let fault = |row: &SqliteRow| {
        let reason: Vec<u8> = row.try_get("reason")?;
        Ok(FaultSeen { task_id: row.try_get("task_id")?, reason: String::from_utf8_lossy(&reason).into_owned() })
    };
    query.fetch_all(reader).await?.iter().map(fault).collect()
}

pub(in crate::store) async fn quarantined(reader: &SqlitePool) -> Result<Vec<Quarantined>> {
    let query = "SELECT tenant, plugin, digest, reason, since_ms, probe_ms, probes FROM quarantine";
    let rows = sqlx::query(query).fetch_all(reader).await?;
    let quarantined = |row: &SqliteRow| {
        let reason: Vec<u8> = row.try_get("reason")?;
        Ok(Quarantined {
            tenant: row.try_get("tenant")?,
            plugin: row.try_get("plugin")?,
            digest: hash(row, "digest")?,
            reason: String::from_utf8_lossy(&reason).into_owned(),
            since_ms: row.try_get("since_ms")?,
            probe_ms: row.try_get("probe_ms")?,
            probes: row.try_get("probes")?,
        })
    };
    rows.iter().map(quarantined).collect()
}

pub(in crate::store) async fn tokens(reader: &SqlitePool, id: Option<&str>) -> Result<Vec<Token>> {
    let query = "SELECT id, sha256, tenant, created_ms FROM token WHERE ? IS NULL OR id = ? ORDER BY created_ms";
    let rows = sqlx::query(query).bind(id).bind(id).fetch_all(reader).await?;
    let token = |row: &SqliteRow| {
        Ok(Token {
            id: row.try_get("id")?,
            sha256: hash(row, "sha256")?,
            tenant: row.try_get("tenant")?,
            created_ms: row.try_get("created_ms")?,
        })
    };
    rows.iter().map(token).collect()
}

/// For each plugin of each tenant.
const DEPLOYMENTS_KEPT: i64 = 20;
