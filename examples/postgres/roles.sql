-- The four roles, and every privilege that each of them needs. A test of the library uses exactly
-- these roles. Execute this file as a superuser; the second part can also be executed as
-- shop_migrator, if that role may grant USAGE on the schema. Before PostgreSQL 15, first revoke
-- what PUBLIC has: REVOKE CREATE ON SCHEMA public FROM PUBLIC.
--
-- The migrator creates and upgrades the tables, and owns them. The worker processes events. The
-- appender is the application: it appends events. The operator gives commands: it pauses, resumes
-- and rewinds projections, for example.

-- Before the migration:
CREATE ROLE shop_migrator LOGIN;
CREATE ROLE shop_worker LOGIN;
CREATE ROLE shop_appender LOGIN;
CREATE ROLE shop_operator LOGIN;
GRANT USAGE, CREATE ON SCHEMA public TO shop_migrator;

-- After the migration:
GRANT USAGE ON SCHEMA public TO shop_worker, shop_appender, shop_operator;

-- The worker reads the events and the last value of the sequence of their positions. Without that
-- value, it could not detect that positions are handed out again. It may not change events.
GRANT SELECT ON events TO shop_worker;
GRANT SELECT ON SEQUENCE events_global_position_seq TO shop_worker;
GRANT SELECT ON orchestrator_migrations TO shop_worker;
GRANT SELECT, INSERT, UPDATE ON orchestrator_replica_sets TO shop_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON orchestrator_generations, orchestrator_workers, orchestrator_projections, orchestrator_checkpoints,
              orchestrator_parked, orchestrator_rebuilds TO shop_worker;
-- A worker gives commands itself: it begins a rebuild for a higher version of a projection, and
-- cancels one whose handler writes to other tables.
GRANT SELECT, INSERT, UPDATE ON orchestrator_commands TO shop_worker;
GRANT SELECT, INSERT, DELETE ON orchestrator_discarded TO shop_worker;
-- It also needs the privileges that its handlers need on the read models.

-- The appender may choose neither the position of an event nor its time. An event far above all
-- others would prevent the safe head from passing any hole.
GRANT SELECT ON events TO shop_appender;
GRANT INSERT (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, event_version, payload, trace_id,
              correlation_id, causation_id, metadata) ON events TO shop_appender;
GRANT USAGE ON SEQUENCE events_global_position_seq TO shop_appender;
GRANT SELECT, INSERT, UPDATE ON aggregate_heads TO shop_appender;

-- The operator gives commands by orchestrator_command, which every role may execute by default. It
-- sees what the commands have done. It may write neither their outcome nor the role that has given
-- them, and no other table.
GRANT INSERT (projection, command, arguments, requested_by, reason) ON orchestrator_commands TO shop_operator;
GRANT SELECT ON orchestrator_commands, orchestrator_projections, orchestrator_workers TO shop_operator;
-- To list projections with their positions and errors, rebuilds, and parked aggregates:
GRANT SELECT ON orchestrator_checkpoints, orchestrator_parked, orchestrator_rebuilds TO shop_operator;
GRANT SELECT (global_position, created_at) ON events TO shop_operator;

-- To wait for projections, the appender reads how far they are, and why they do not get on. These
-- are the columns that the library reads. An application that does not wait needs none of this.
GRANT SELECT (id, replica_set, projections, state, started_at, stopped_at, last_heartbeat, session_class, session_pid)
    ON orchestrator_workers TO shop_appender;
GRANT SELECT (name, replica_set, scope, desired_state, desired_by, desired_reason, fault) ON orchestrator_projections TO shop_appender;
GRANT SELECT (projection, keys, position, worker_id, state, error, attempted_at) ON orchestrator_checkpoints TO shop_appender;
GRANT SELECT (projection, command, step, applied_at) ON orchestrator_commands TO shop_appender;
GRANT SELECT (projection, bounded_context, aggregate_type, aggregate_id, position, error, replay_requested_at)
    ON orchestrator_parked TO shop_appender;
