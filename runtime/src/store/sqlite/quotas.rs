//! Quotas: charged where effects are committed, so that what counts is what will be done, once.

use std::collections::BTreeMap;

use rusqlite::{Connection, Result};

use super::effects::EffectRow;
use crate::grant::quota::{OverQuota, Quota, Window, begin_ms, window};
use crate::store::now_ms;

/// Whose quota it is.
type Key<'a> = (&'a str, &'a str, &'static str);

/// Charges effects that have a quota, and puts off, refuses or lets expire what is over it.
pub(super) fn charge(connection: &Connection, effects: &mut [EffectRow<'_>]) -> Result<()> {
    let mut charged: BTreeMap<Key<'_>, (Quota, Vec<&mut EffectRow<'_>>)> = BTreeMap::new();
    for effect in effects.iter_mut().filter(|effect| effect.is_pending()) {
        if let Some(quota) = effect.quota {
            // The last one committed knows the terms best.
            let (latest, charged) = charged.entry(effect.quota_key()).or_insert((quota, Vec::new()));
            *latest = quota;
            charged.push(effect);
        }
    }
    let now = window(now_ms());
    for (key, (quota, effects)) in charged {
        charge_one(connection, key, quota, now, effects)?;
    }
    Ok(())
}

fn charge_one(
    connection: &Connection,
    (tenant, plugin, capability): Key<'_>,
    quota: Quota,
    now: Window,
    effects: Vec<&mut EffectRow<'_>>,
) -> Result<()> {
    let select = "SELECT hour, effects FROM quota WHERE tenant = ? AND plugin = ? AND capability = ? AND hour >= ?";
    let mut select = connection.prepare_cached(select)?;
    let charged = select.query_map((tenant, plugin, capability, now), |row| Ok((row.get(0)?, row.get(1)?)))?;
    let charged = charged.collect::<Result<_>>()?;
    let shares = quota.shares(now, &charged, u32::try_from(effects.len()).unwrap_or(u32::MAX));
    let charge = "INSERT INTO quota (tenant, plugin, capability, hour, effects) VALUES (?, ?, ?, ?, ?) \
                  ON CONFLICT DO UPDATE SET effects = effects + excluded.effects";
    let mut charge = connection.prepare_cached(charge)?;
    for (hour, share) in &shares {
        charge.execute((tenant, plugin, capability, hour, share))?;
    }
    let hours = shares.iter().flat_map(|(hour, share)| std::iter::repeat_n(*hour, *share as usize));
    let mut hours = hours.map(Some).chain(std::iter::repeat(None));
    let (mut later, mut never) = (0, 0);
    for effect in effects {
        match hours.next().flatten() {
            Some(hour) if hour == now => {}
            Some(hour) => {
                later += 1;
                effect.put_off(begin_ms(hour), format!("over quota: {} an hour", quota.per_hour));
            }
            None => {
                never += 1;
                let (state, what) = match quota.over {
                    OverQuota::Wait => ("expired", "over quota for three days"),
                    OverQuota::Refuse => ("refused", "over quota"),
                };
                effect.end(state, format!("{what}: {} an hour", quota.per_hour));
            }
        }
    }
    if later + never > 0 {
        tracing::warn!(tenant, plugin, capability, per_hour = quota.per_hour, later, never, "over quota");
    }
    Ok(())
}

/// Forgets the hours that are over.
pub(super) fn prune(connection: &Connection) -> Result<()> {
    connection.execute("DELETE FROM quota WHERE hour < ?", [window(now_ms())]).map(drop)
}
