-- Effects that wait for another one of their plan, few rows each: looked for whenever one ends.
CREATE INDEX effect_follows ON effect (invocation_id) WHERE after IS NOT NULL AND state = 'pending';
