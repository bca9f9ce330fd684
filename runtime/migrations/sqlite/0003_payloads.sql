-- What effects are about is kept beside them: the engine rewrites a row whole whenever a part of it changes, and an effect
-- changes with each attempt.

CREATE TABLE payload (
    effect_seq INTEGER PRIMARY KEY REFERENCES effect_anew (seq) ON DELETE CASCADE,
    content    BLOB    NOT NULL                 -- the effect, JSON
) STRICT;

CREATE TABLE effect_anew (
    seq           INTEGER PRIMARY KEY,
    id            BLOB    NOT NULL UNIQUE,
    invocation_id INTEGER NOT NULL REFERENCES invocation (id) ON DELETE CASCADE,
    after         BLOB,                         -- the effect of the same plan that goes to the same recipient before it
    call          BLOB    NOT NULL,             -- the call that asked for it, shared by the copies of one mail
    copy_of       BLOB,                         -- the first copy of the same mail, which has the payload
    tenant        TEXT    NOT NULL,
    plugin        TEXT    NOT NULL,
    destination   TEXT    NOT NULL,             -- sink/account: whom the sink talks to
    recipient     BLOB    NOT NULL,
    created_ms    INTEGER NOT NULL,
    state         TEXT    NOT NULL CHECK (state IN ('pending', 'claimed', 'delivered', 'refused', 'dead', 'expired')),
    reason        BLOB,                         -- the last answer
    due_ms        INTEGER NOT NULL,
    owner         TEXT,                         -- the courier that claimed it
    lease_ms      INTEGER,                      -- until when the claim holds
    attempt       INTEGER NOT NULL DEFAULT 0,   -- the number of the last attempt
    failures      INTEGER NOT NULL DEFAULT 0,   -- attempts that count towards the next wait
    in_doubt      INTEGER NOT NULL DEFAULT 0    -- attempts whose outcome nobody knows
) STRICT;

CREATE TABLE attempt_anew (
    effect_seq INTEGER NOT NULL REFERENCES effect_anew (seq) ON DELETE CASCADE,
    number     INTEGER NOT NULL,
    owner      TEXT    NOT NULL,
    started_ms INTEGER NOT NULL,
    ended_ms   INTEGER,
    outcome    TEXT    CHECK (outcome IN ('delivered', 'transient', 'permanent', 'suspended', 'in doubt', 'refused')),
    answer     BLOB,
    PRIMARY KEY (effect_seq, number)
) STRICT, WITHOUT ROWID;

INSERT INTO effect_anew
SELECT seq, id, invocation_id, after, call, copy_of, tenant, plugin, destination, recipient, created_ms, state, reason,
    due_ms, owner, lease_ms, attempt, failures, in_doubt FROM effect;
INSERT INTO payload SELECT seq, payload FROM effect WHERE payload IS NOT NULL;
INSERT INTO attempt_anew
SELECT effect_seq, number, owner, started_ms, ended_ms, outcome, answer FROM attempt;

DROP VIEW whole_effect;
DROP TABLE attempt;
DROP TABLE effect;
ALTER TABLE effect_anew RENAME TO effect;
ALTER TABLE attempt_anew RENAME TO attempt;

CREATE INDEX effect_tenant ON effect (tenant, seq);
CREATE INDEX effect_invocation ON effect (invocation_id);
CREATE INDEX effect_due ON effect (destination, due_ms) WHERE state = 'pending';
CREATE INDEX effect_lease ON effect (destination, lease_ms) WHERE state = 'claimed';
-- Effects that wait for another one of their plan, few rows each: looked for whenever one ends.
CREATE INDEX effect_follows ON effect (invocation_id) WHERE after IS NOT NULL AND state = 'pending';
-- What the figures count, few rows each whatever the size of the table.
CREATE INDEX effect_lost ON effect (state) WHERE state IN ('dead', 'expired');
CREATE INDEX effect_in_doubt ON effect (in_doubt) WHERE in_doubt > 0;

-- Effects with what they are about, wherever that is kept.
CREATE VIEW whole_effect AS SELECT effect.*, (
    SELECT content FROM payload
    WHERE effect_seq = coalesce((SELECT first.seq FROM effect first WHERE first.id = effect.copy_of), effect.seq)
) AS content FROM effect;
