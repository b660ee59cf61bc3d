-- A runner looks for its checkpoints by their owner: those of past generations, not cleaned up yet, are then not in its way.
CREATE INDEX IF NOT EXISTS {checkpoints_by_owner} ON {checkpoints} (projection, generation, worker_id);
DROP INDEX IF EXISTS "{schema}".{checkpoints_by_projection};
