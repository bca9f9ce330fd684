-- Times are milliseconds since 1970, UTC. Texts that guests or tasks wrote are blobs.

CREATE TABLE event (
    id          INTEGER PRIMARY KEY,
    key         BLOB    NOT NULL UNIQUE,        -- what makes a repeat the same event
    tenant      TEXT    NOT NULL,
    status      TEXT    NOT NULL,
    task_id     TEXT    NOT NULL,
    run_id      INTEGER,
    delivery    BLOB    NOT NULL,               -- the message, JSON: to handle it again
    received_ms INTEGER NOT NULL,
    state       TEXT    NOT NULL CHECK (state IN ('planned', 'deferred', 'dead')),
    reason      BLOB,                           -- why it is deferred or dead
    due_ms      INTEGER,                        -- when a deferred event is handled again
    tries       INTEGER NOT NULL DEFAULT 0      -- how often it was deferred
) STRICT;
CREATE INDEX event_due ON event (tenant, due_ms) WHERE state = 'deferred';
CREATE INDEX event_received ON event (received_ms);

CREATE TABLE invocation (
    id         INTEGER PRIMARY KEY,
    event_id   INTEGER NOT NULL REFERENCES event (id) ON DELETE CASCADE,
    tenant     TEXT    NOT NULL,
    generation INTEGER NOT NULL,                -- 0 for the delivery, then one more for each replay
    identity   TEXT    NOT NULL,
    plugin     TEXT    NOT NULL,
    digest     BLOB    NOT NULL,                -- of the version that ran
    state      TEXT    NOT NULL CHECK (state IN ('done', 'retry', 'failed', 'faulted', 'refused', 'dead')),
    reason     BLOB,
    refusals   BLOB,                            -- what it asked for and did not get, a JSON list
    log        BLOB,                            -- its log lines, a JSON list
    cpu_us     INTEGER NOT NULL,
    memory_max INTEGER NOT NULL,                -- bytes
    due_ms     INTEGER,                         -- when a retry runs
    tries      INTEGER NOT NULL DEFAULT 0,
    UNIQUE (event_id, generation, identity, plugin)
) STRICT;
CREATE INDEX invocation_due ON invocation (tenant, due_ms) WHERE state = 'retry';
-- A tenant's records, page by page.
CREATE INDEX invocation_tenant ON invocation (tenant, id);
CREATE INDEX invocation_faulted ON invocation (plugin, digest) WHERE state = 'faulted';

-- Rows lie in the order in which they were asked for, so that those of one group share their pages whenever they change.
CREATE TABLE effect (
    seq           INTEGER PRIMARY KEY,
    id            BLOB    NOT NULL UNIQUE,
    invocation_id INTEGER NOT NULL REFERENCES invocation (id) ON DELETE CASCADE,
    after         BLOB,                         -- the effect of the same plan that goes to the same recipient before it
    call          BLOB    NOT NULL,             -- the call that asked for it, shared by the copies of one mail
    copy_of       BLOB,                         -- the first copy of the same mail, where the payload is
    tenant        TEXT    NOT NULL,
    plugin        TEXT    NOT NULL,
    destination   TEXT    NOT NULL,             -- sink/account: whom the sink talks to
    recipient     BLOB    NOT NULL,
    payload       BLOB,                         -- the effect, JSON
    created_ms    INTEGER NOT NULL,
    state         TEXT    NOT NULL CHECK (state IN ('pending', 'claimed', 'delivered', 'refused', 'dead', 'expired')),
    reason        BLOB,                         -- the last answer
    due_ms        INTEGER NOT NULL,
    owner         TEXT,                         -- the courier that claimed it
    lease_ms      INTEGER,                      -- until when the claim holds
    attempt       INTEGER NOT NULL DEFAULT 0,   -- the number of the last attempt
    failures      INTEGER NOT NULL DEFAULT 0,   -- attempts that count towards the next wait
    in_doubt      INTEGER NOT NULL DEFAULT 0    -- attempts whose outcome nobody knows
    CHECK ((payload IS NULL) = (copy_of IS NOT NULL))
) STRICT;
CREATE INDEX effect_tenant ON effect (tenant, seq);
CREATE INDEX effect_invocation ON effect (invocation_id);
CREATE INDEX effect_due ON effect (destination, due_ms) WHERE state = 'pending';
CREATE INDEX effect_lease ON effect (destination, lease_ms) WHERE state = 'claimed';
-- What the figures count, few rows each whatever the size of the table.
CREATE INDEX effect_lost ON effect (state) WHERE state IN ('dead', 'expired');
CREATE INDEX effect_in_doubt ON effect (in_doubt) WHERE in_doubt > 0;

-- Effects with what they are about, wherever that is kept.
CREATE VIEW whole_effect AS SELECT effect.*,
    coalesce(payload, (SELECT payload FROM effect first WHERE first.id = effect.copy_of)) AS content FROM effect;

CREATE TABLE attempt (
    effect_seq INTEGER NOT NULL REFERENCES effect (seq) ON DELETE CASCADE,
    number     INTEGER NOT NULL,
    owner      TEXT    NOT NULL,
    started_ms INTEGER NOT NULL,
    ended_ms   INTEGER,
    outcome    TEXT    CHECK (outcome IN ('delivered', 'transient', 'permanent', 'suspended', 'in doubt', 'refused')),
    answer     BLOB,
    PRIMARY KEY (effect_seq, number)
) STRICT, WITHOUT ROWID;

-- How many effects with a quota are due in an hour: what was committed counts, whatever becomes of it.
CREATE TABLE quota (
    tenant     TEXT    NOT NULL,
    plugin     TEXT    NOT NULL,
    capability TEXT    NOT NULL,
    hour       INTEGER NOT NULL,                -- hours since 1970, UTC
    effects    INTEGER NOT NULL,
    PRIMARY KEY (tenant, plugin, capability, hour)
) STRICT, WITHOUT ROWID;

-- Destinations that cannot be talked to until a person mends something; one probe at a time.
CREATE TABLE suspension (
    destination TEXT    NOT NULL PRIMARY KEY,
    reason      BLOB    NOT NULL,
    since_ms    INTEGER NOT NULL,
    probe_ms    INTEGER NOT NULL,               -- when the next probe is due
    probes      INTEGER NOT NULL
) STRICT;

-- Deliveries that are no events.
CREATE TABLE dead_delivery (
    id          INTEGER PRIMARY KEY,
    tenant      TEXT    NOT NULL,
    exchange    TEXT    NOT NULL,
    routing_key TEXT    NOT NULL,
    reason      BLOB    NOT NULL,
    sha256      BLOB    NOT NULL,
    bytes       INTEGER NOT NULL,
    body        BLOB    NOT NULL,               -- at most 1 MiB of it
    received_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX dead_delivery_tenant ON dead_delivery (tenant, id);
CREATE INDEX dead_delivery_received ON dead_delivery (received_ms);

-- The bindings this service made, so that it can take back those no longer configured.
CREATE TABLE binding (
    queue       TEXT NOT NULL,
    exchange    TEXT NOT NULL,
    routing_key TEXT NOT NULL,
    PRIMARY KEY (queue, exchange, routing_key)
) STRICT, WITHOUT ROWID;

-- Versions of plugins, by the SHA-256 of their bytes.
CREATE TABLE version (
    digest        BLOB    NOT NULL PRIMARY KEY,
    wasm          BLOB    NOT NULL,
    bytes         INTEGER NOT NULL,
    first_seen_ms INTEGER NOT NULL
) STRICT;

-- Which version of a tenant's plugin was live from when on; the last one is.
CREATE TABLE deployment (
    seq      INTEGER PRIMARY KEY,
    tenant   TEXT    NOT NULL,
    plugin   TEXT    NOT NULL,
    digest   BLOB    NOT NULL REFERENCES version (digest),
    since_ms INTEGER NOT NULL,
    source   TEXT    NOT NULL CHECK (source IN ('file', 'cli', 'api', 'rollback')),
    is_own   INTEGER NOT NULL,                  -- whether it is the tenant's own rather than the one that all share
    file     BLOB,                              -- what its file held last: only another content of it is news
    restores INTEGER                            -- the deployment that a rollback went back to
) STRICT;
CREATE INDEX deployment_plugin ON deployment (tenant, plugin, seq);
CREATE INDEX deployment_digest ON deployment (digest);

-- Versions that are not run, until another one is live or a person ends it.
CREATE TABLE quarantine (
    tenant   TEXT    NOT NULL,
    plugin   TEXT    NOT NULL,
    digest   BLOB    NOT NULL,
    reason   BLOB    NOT NULL,
    since_ms INTEGER NOT NULL,
    probe_ms INTEGER,                           -- when one call is let through; never, when a person ordered it
    probes   INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant, plugin)
) STRICT, WITHOUT ROWID;

-- Who may ask the admin API; the token itself is nowhere.
CREATE TABLE token (
    id         TEXT    NOT NULL PRIMARY KEY,
    sha256     BLOB    NOT NULL,
    tenant     TEXT,                            -- the operator, when there is none
    created_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
