-- Lanes: the parts into which a worker cuts what it owns of a projection. Who knows nothing of them has one.
ALTER TABLE {workers} ADD COLUMN IF NOT EXISTS lanes INT NOT NULL DEFAULT 1 CHECK (lanes > 0);
ALTER TABLE {checkpoints} ADD COLUMN IF NOT EXISTS lane INT NOT NULL DEFAULT 0 CHECK (lane >= 0);
