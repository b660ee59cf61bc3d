-- Schemas are looked up first: CREATE SCHEMA IF NOT EXISTS needs the privilege to create even where
-- there is nothing to create.
DO $$ BEGIN
    IF pg_catalog.to_regnamespace('"{schema}"') IS NULL THEN CREATE SCHEMA "{schema}"; END IF;
    IF pg_catalog.to_regnamespace('"{events_schema}"') IS NULL THEN CREATE SCHEMA "{events_schema}"; END IF;
END $$;
-- Tables that another role has created beforehand may have triggers, which run as the role that
-- uses the tables. The orchestrator's own tables must belong to the role that migrates or to one
-- that it is a member of. The tables of the event store may also belong to the owner of their
-- schema or of the database, or to a superuser.
DO $$
DECLARE
    foreign_table RECORD;
BEGIN
    WITH RECURSIVE own_role AS (
        SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolname OPERATOR(pg_catalog.=) current_user
        UNION SELECT m.roleid FROM pg_catalog.pg_auth_members m JOIN own_role ON m.member OPERATOR(pg_catalog.=) own_role.oid
    )
    SELECT c.oid::pg_catalog.regclass AS name, pg_catalog.pg_get_userbyid(c.relowner) AS owner INTO foreign_table
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
    JOIN pg_catalog.pg_roles r ON r.oid OPERATOR(pg_catalog.=) c.relowner
    JOIN pg_catalog.pg_database d ON d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
    WHERE c.relowner OPERATOR(pg_catalog.<>) ALL (SELECT oid FROM own_role)
      AND (c.oid OPERATOR(pg_catalog.=) ANY (ARRAY[{own_tables}]::pg_catalog.oid[])
           OR (c.oid OPERATOR(pg_catalog.=) ANY (ARRAY[pg_catalog.to_regclass('{events}'), pg_catalog.to_regclass('{aggregate_heads}')]::pg_catalog.oid[])
               AND NOT r.rolsuper AND c.relowner OPERATOR(pg_catalog.<>) n.nspowner AND c.relowner OPERATOR(pg_catalog.<>) d.datdba))
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION USING
            ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = pg_catalog.concat('table ', foreign_table.name, ' belongs to role ', foreign_table.owner, ', and the migration runs as ', current_user),
            HINT = 'Its triggers would run as the role that uses it. If this is intended, let a member of its owner migrate, or change its owner; otherwise drop it.';
    END IF;
END $$;
CREATE TABLE IF NOT EXISTS {migrations} (
    number INT PRIMARY KEY,
    -- The lowest schema version whose library works with a schema that has this migration.
    works_from INT NOT NULL,
    hash_probe BIGINT NOT NULL,
    applied_at TIMESTAMPTZ NOT NULL DEFAULT pg_catalog.now()
);
