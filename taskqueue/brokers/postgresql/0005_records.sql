-- What is said of work while it runs, and what is asked about it: see the view `tasks`.

-- Writes down what runs: see `turn`.  Rows that have been moved by others are looked for, as in `settle`.  Those that a
-- handler is about to end in a transaction of its own are not waited for.
CREATE FUNCTION @schema@.report(me bigint, reports json) RETURNS json
LANGUAGE plpgsql SET search_path = pg_catalog, @schema@, pg_temp @by_index@ SET enable_hashjoin = on AS $$
DECLARE
    said json[];
    found bigint[];
    more json[];
BEGIN
    WITH free AS MATERIALIZED (
        SELECT w.ctid AS place, r.running
        FROM json_to_recordset(reports) AS r (place tid, seq bigint, running text)
            JOIN workitems w ON w.ctid = r.place AND w.seq = r.seq
        WHERE w.carrier = me FOR NO KEY UPDATE OF w SKIP LOCKED
    ), written AS (
        UPDATE workitems w SET running = f.running FROM free f WHERE w.ctid = f.place RETURNING w.seq, w.ctid AS place
    )
    SELECT array_agg(json_build_array(seq, place)), array_agg(seq) INTO said, found FROM written;
    IF coalesce(cardinality(found), 0) < json_array_length(reports) THEN
        WITH free AS MATERIALIZED (
            SELECT w.ctid AS place, r.running
            FROM json_to_recordset(reports) AS r (seq bigint, running text) JOIN workitems w ON w.seq = r.seq
            WHERE w.carrier = me AND (found IS NULL OR w.seq <> ALL (found))
            FOR NO KEY UPDATE OF w SKIP LOCKED
        ), written AS (
            UPDATE workitems w SET running = f.running FROM free f WHERE w.ctid = f.place
            RETURNING w.seq, w.ctid AS place
        )
        SELECT array_agg(json_build_array(seq, place)) INTO more FROM written;
    END IF;
    RETURN array_to_json(said || more);
END
$$;

-- The latest life of a workitem; none where there is no such thing.
CREATE FUNCTION @schema@.record(sought text) RETURNS SETOF @schema@.tasks
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp
@by_index@ AS $$
BEGIN
    RETURN QUERY SELECT * FROM live t WHERE t.id = sought ORDER BY t.sent DESC, t.seq DESC LIMIT 1;
    IF NOT FOUND THEN
        RETURN QUERY SELECT * FROM tasks t WHERE t.id = sought ORDER BY t.sent DESC, t.seq DESC LIMIT 1;
    END IF;
END
$$;

-- Work of a reference, of a type, in one of some states (null: of any), the latest that was sent first.
CREATE FUNCTION @schema@.records(about text, kind text, states text[], most integer) RETURNS SETOF @schema@.tasks
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp
SET plan_cache_mode = force_custom_plan AS $$
DECLARE
    span interval := '1 second';
    since timestamptz;
    found past[];
BEGIN
    IF about IS NOT NULL THEN
        RETURN QUERY
            SELECT * FROM tasks t
            WHERE t.reference = about AND (kind IS NULL OR t.type = kind) AND (states IS NULL OR t.state = ANY (states))
            ORDER BY t.sent DESC, t.seq DESC LIMIT most;
        RETURN;
    END IF;
    -- What was sent since some time has ended since then, too, if at all: so looks at a little of the history suffice.
    LOOP
        since := CASE WHEN span < interval '100 days' THEN now() - span ELSE '-infinity' END;
        found := ARRAY(
            SELECT t FROM past t
            WHERE t.ended >= since AND t.sent >= since
                AND (kind IS NULL OR t.type = kind) AND (states IS NULL OR t.state = ANY (states))
            ORDER BY t.sent DESC, t.seq DESC LIMIT most
        );
        EXIT WHEN cardinality(found) >= most OR since = '-infinity';
        span := span * 20;
    END LOOP;
    RETURN QUERY
        SELECT * FROM (
            SELECT * FROM live t
            WHERE (kind IS NULL OR t.type = kind) AND (states IS NULL OR t.state = ANY (states))
            UNION ALL
            SELECT * FROM unnest(found)
        ) t
        ORDER BY t.sent DESC, t.seq DESC LIMIT most;
END
$$;

-- Takes out of its queue for good what waits, is scheduled or blocked; notes that what a carrier has is wanted no more;
-- false where it is over.
CREATE FUNCTION @schema@.cancel(sought text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp @by_index@ AS $$
DECLARE
    withdrawn constant integer := withdraw(ARRAY(
        SELECT w.ctid FROM workitems w
        WHERE w.id = sought AND w.carrier IS NULL AND (w.queue = 'taskqueue' OR starts_with(w.queue, 'worker_'))
        ORDER BY w.seq FOR UPDATE
    ));
BEGIN
    -- Of whatever is there now: it may have been given back, or tried again, since then.
    INSERT INTO unwanted
        SELECT w.id, w.sent FROM workitems w
        WHERE w.id = sought AND (w.queue = 'taskqueue' OR starts_with(w.queue, 'worker_'));
    RETURN FOUND OR withdrawn > 0;
END
$$;

-- Cancels what somebody wants no more and nobody has any more; forgets wishes of what is over.  Returns the numbers of what
-- a carrier has.  What is locked just now is left to the next one: `claim` lends nothing of it.
CREATE FUNCTION @schema@.unwant(me bigint) RETURNS json
LANGUAGE plpgsql SET search_path = pg_catalog, @schema@, pg_temp
@by_index@ SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    PERFORM withdraw(ARRAY(
        SELECT w.place FROM unwanted u, LATERAL (
            SELECT w.ctid AS place FROM workitems w
            WHERE w.id = u.id AND w.sent = u.sent AND w.carrier IS NULL
                AND (w.queue = 'taskqueue' OR starts_with(w.queue, 'worker_'))
            FOR UPDATE SKIP LOCKED
        ) w
    ));
    DELETE FROM unwanted WHERE ctid = ANY (ARRAY(
        SELECT u.ctid FROM unwanted u
        WHERE NOT EXISTS (
            SELECT FROM workitems w
            WHERE w.id = u.id AND w.sent = u.sent AND (w.queue = 'taskqueue' OR starts_with(w.queue, 'worker_')) OFFSET 0
        )
        FOR UPDATE SKIP LOCKED
    ));
    RETURN (
        SELECT json_agg(DISTINCT w.seq) FROM unwanted u, LATERAL (
            SELECT w.seq FROM workitems w
            WHERE w.id = u.id AND w.sent = u.sent AND w.carrier = me
                AND (w.queue = 'taskqueue' OR starts_with(w.queue, 'worker_'))
            OFFSET 0
        ) w
    );
END
$$;

-- How many of a type are neither over nor lent.
CREATE FUNCTION @schema@.pending(kind text) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp @by_index@ AS $$
    SELECT
        (SELECT count(*) FROM workitems WHERE state = 0 AND carrier IS NULL AND queue = 'worker_' || kind)
        + (SELECT count(*) FROM workitems WHERE state = 1 AND queue = 'worker_' || kind)
        + (SELECT count(*) FROM workitems WHERE state = 3 AND queue = 'worker_' || kind)
$$;

-- Withdraws up to `most` of them: those that depend on others of them come first, and so don't fail because of these.
CREATE FUNCTION @schema@.discard(kind text, most integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp @by_index@ AS $$
DECLARE
    place constant text := 'worker_' || kind;
    chosen tid[];
BEGIN
    chosen := ARRAY(
        SELECT ctid FROM workitems WHERE state = 3 AND queue = place
        ORDER BY inputs DESC LIMIT most FOR UPDATE SKIP LOCKED
    );
    IF cardinality(chosen) = 0 THEN
        chosen := ARRAY(SELECT ctid FROM workitems WHERE state = 1 AND queue = place LIMIT most FOR UPDATE SKIP LOCKED);
    END IF;
    IF cardinality(chosen) = 0 THEN
        chosen := ARRAY(
            SELECT ctid FROM workitems WHERE state = 0 AND carrier IS NULL AND queue = place LIMIT most
            FOR UPDATE SKIP LOCKED
        );
    END IF;
    RETURN withdraw(chosen);
END
$$;

-- Those of many that are not over.
CREATE FUNCTION @schema@.alive(sought text[]) RETURNS text[]
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp @by_index@ AS $$
    SELECT ARRAY(
        SELECT DISTINCT id FROM workitems WHERE id = ANY (sought) AND (queue = 'taskqueue' OR starts_with(queue, 'worker_'))
    )
$$;

-- The latest life of those of many of which one is over.
CREATE FUNCTION @schema@.ended(sought text[]) RETURNS SETOF @schema@.tasks
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp @by_index@ AS $$
    SELECT DISTINCT ON (p.id) p.* FROM past p WHERE p.id = ANY (sought) ORDER BY p.id, p.sent DESC, p.seq DESC
$$;

-- When the last record of an end was made; of those after `since`.
CREATE FUNCTION @schema@.latest(since timestamptz) RETURNS timestamptz
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp AS $$
    SELECT max(h.ended) FROM history h WHERE h.ended > since
$$;

-- Nobody but the owner, until somebody is granted something.
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA @schema@ FROM PUBLIC;
