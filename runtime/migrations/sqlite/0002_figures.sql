-- What the figures count, few rows each whatever the size of the table.
CREATE INDEX effect_pending ON effect (created_ms) WHERE state IN ('pending', 'claimed');
CREATE INDEX effect_lost ON effect (state) WHERE state IN ('dead', 'expired');
CREATE INDEX effect_in_doubt ON effect (in_doubt) WHERE in_doubt > 0;

-- What pruning looks for.
CREATE INDEX dead_delivery_received ON dead_delivery (received_ms);
