-- What is said of work while it runs, and what is asked about it: see the view `tasks`.

-- Writes down what runs: see `turn`.  Rows that have been moved by others are looked for, as in `settle`.  Those that a
-- handler is about to end in a transaction of its own are not waited for.
CREATE FUNCTION @schema@.report(me bigint, reports json) RETURNS json
LANGUAGE plpgsql SET search_path = pg_catalog, @schema@, pg_temp SET enable_seqscan = off AS $$
DECLARE
    said json[];
    found bigint[];
    more json[];
BEGIN
    WITH free AS MATERIALIZED (
        SELECT w.ctid AS place, r.running
        FROM json_to_recordset(reports) AS r (place tid, seq bigint, running text)
            JOIN workitems w ON w.ctid = r.place AND w.seq = r.seq
        WHERE w.state = 2 AND w.carrier = me FOR UPDATE OF w SKIP LOCKED
    ), written AS (
        UPDATE workitems w SET running = f.running FROM free f WHERE w.ctid = f.place RETURNING w.seq, w.ctid AS place
    )
    SELECT array_agg(json_build_array(seq, place)), array_agg(seq) INTO said, found FROM written;
    IF coalesce(cardinality(found), 0) < json_array_length(reports) THEN
        WITH free AS MATERIALIZED (
            SELECT w.ctid AS place, r.running
            FROM json_to_recordset(reports) AS r (seq bigint, running text) JOIN workitems w ON w.seq = r.seq
            WHERE w.state = 2 AND w.carrier = me AND (found IS NULL OR w.seq <> ALL (found))
            FOR UPDATE OF w SKIP LOCKED
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
SET enable_seqscan = off AS $$
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

-- Takes out of its queue for good what waits or is scheduled; false where it is too late for that.
CREATE FUNCTION @schema@.cancel(sought text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp SET enable_seqscan = off AS $$
BEGIN
    WITH gone AS (
        DELETE FROM workitems w
        WHERE w.id = sought AND w.state IN (0, 1) AND (w.queue = 'taskqueue' OR starts_with(w.queue, 'worker_'))
        RETURNING w.*
    )
    INSERT INTO history (
        seq, sent, ended, attempt, crashes, priority, state, id, type, queue, reference, sender, worker, error,
        result_type, story, running
    )
    SELECT
        g.seq, g.sent, now(), g.attempt, g.crashes, g.priority, 'cancelled', g.id, g.type, g.queue, g.reference, g.sender,
        '', '', '', g.story, ''
    FROM gone g;
    IF FOUND THEN
        PERFORM pg_notify('@name@', 'taskqueue.ended');
    END IF;
    RETURN FOUND;
END
$$;

-- Nobody but the owner, until somebody is granted something.
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA @schema@ FROM PUBLIC;
