-- Dead letters, and what has to be done now and then.

-- The places of all, first come first.
CREATE FUNCTION @schema@.letters() RETURNS json
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp AS $$
    SELECT coalesce(json_agg(place), '[]')
    FROM (
        SELECT ctid AS place FROM workitems
        WHERE state = 0 AND carrier IS NULL AND queue = 'taskqueue.dead' ORDER BY seq
    ) found
$$;

-- Those of the chosen ones that are still there.
CREATE FUNCTION @schema@.read_letters(chosen tid[], OUT items json, OUT bodies bytea)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp @few@ AS $$
BEGIN
    SELECT
        json_agg(json_build_array(
            t.seq, t.place, 0, length(t.body), t.id, t.type, t.reference, t.content_type, '', t.properties, t.expired_in,
            t.attempt, t.crashes, t.failures, '', t.inputs, CASE WHEN t.inputs IS NOT NULL THEN (inputs_of(t.inputs, false)).ends END
        )),
        string_agg(t.body, '')
        INTO items, bodies
        FROM (
            SELECT *, ctid AS place FROM workitems w
            WHERE w.ctid = ANY (chosen) AND w.state = 0 AND w.carrier IS NULL AND w.queue = 'taskqueue.dead' ORDER BY w.seq
        ) t;
END
$$;

CREATE FUNCTION @schema@.end_letters(
    ends json, sends json, bodies bytea, lanes json, sender text, told text[]
) RETURNS json
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp @few@ AS $$
DECLARE
    done record;
BEGIN
    done := settle(NULL, NULL, ends, NULL, sends, bodies, lanes, sender);
    IF cardinality(told) > 0 THEN
        PERFORM pg_notify('@name@', queue) FROM unnest(told || done.woken) AS queue;
    END IF;
    RETURN to_json(done.counted);
END
$$;

-- Whether this transaction is the only one that does chores; if so, until its end.  With a transaction's lock, which
-- works through pgbouncer, too: each step is a transaction, and whole.
CREATE FUNCTION @schema@.alone() RETURNS boolean
LANGUAGE sql SET search_path = pg_catalog AS $$
    SELECT pg_try_advisory_xact_lock(hashtext('@name@'), hashtext('maintain'))
$$;

-- Drops up to `most` of the oldest results beyond a number, and of dead letters whose time is over; has that of new ones
-- begin; remembers how long records are to be kept.  Nothing is returned where somebody else is at it.
-- keeps: objects with type, age and most.
CREATE FUNCTION @schema@.tidy(
    results text, results_max bigint, dead_retention double precision, keeps json, most integer,
    OUT dropped integer, OUT letters integer, OUT made integer
)
RETURNS SETOF record
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp @few@ AS $$
DECLARE
    beyond bigint;
BEGIN
    IF NOT alone() THEN
        RETURN;
    END IF;
    PERFORM unwant(NULL);
    PERFORM pg_notify('@name@', queue) FROM unnest(doubts() || (SELECT p.woken FROM promote() p)) AS queue;
    dropped := 0;
    SELECT seq INTO beyond FROM workitems
        WHERE state = 0 AND carrier IS NULL AND queue = tidy.results ORDER BY seq DESC LIMIT 1 OFFSET results_max;
    IF FOUND THEN
        dropped := drop_messages(ARRAY(
            SELECT ctid FROM workitems WHERE state = 0 AND carrier IS NULL AND queue = tidy.results AND seq <= beyond
            ORDER BY seq LIMIT tidy.most FOR UPDATE SKIP LOCKED
        ));
    END IF;
    INSERT INTO unread AS u
        SELECT tidy.results, h.ended FROM history h
        WHERE h.results = tidy.results ORDER BY h.ended DESC, h.seq DESC LIMIT 1 OFFSET greatest(results_max - 1, 0)
        ON CONFLICT (queue) DO UPDATE SET since = excluded.since WHERE u.since < excluded.since;
    letters := drop_messages(ARRAY(
        SELECT ctid FROM workitems WHERE state = 0 AND carrier IS NULL AND queue = 'taskqueue.dead' AND expires <= now()
        ORDER BY seq LIMIT tidy.most FOR UPDATE SKIP LOCKED
    ));
    UPDATE workitems SET expires = now() + make_interval(secs => dead_retention)
        WHERE state = 0 AND carrier IS NULL AND queue = 'taskqueue.dead' AND expires IS NULL;
    DELETE FROM queues q USING queues other  -- of two who were first at once
        WHERE q.name = other.name AND q.priority = other.priority AND q.ctid > other.ctid;
    INSERT INTO keeping AS k
        SELECT * FROM json_to_recordset(keeps) AS said (type text, age double precision, most bigint)
        ON CONFLICT (type) DO UPDATE SET age = excluded.age, most = excluded.most
        WHERE (k.age, k.most) <> (excluded.age, excluded.most);
    made := make_partitions((now() AT TIME ZONE 'UTC')::date, 3);
    RETURN NEXT;
END
$$;

-- The history's partitions for the day `first`, and so many days after it.  A day that is already in the default
-- partition stays there.  How many were made.
CREATE FUNCTION @schema@.make_partitions(first date, days integer) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, @schema@, pg_temp
SET lock_timeout = '200ms' SET TimeZone = 'UTC' AS $$
DECLARE
    day date;
    partition text;
    made integer := 0;
BEGIN
    FOR day IN SELECT first + n FROM generate_series(0, days) AS n LOOP
        partition := 'history_' || to_char(day, 'YYYYMMDD');
        CONTINUE WHEN EXISTS (SELECT FROM pg_class WHERE relname = partition AND relnamespace = '@schema@'::regnamespace);
        BEGIN
            EXECUTE format(
                'CREATE TABLE %I.%I PARTITION OF %I.history FOR VALUES FROM (%L) TO (%L)',
                '@name@', partition, '@name@', day::timestamptz, (day + 1)::timestamptz
            );
            made := made + 1;
        EXCEPTION WHEN check_violation OR lock_not_available OR duplicate_table THEN
            RAISE LOG 'taskqueue: no partition % of the history: %', partition, SQLERRM;
        END;
    END LOOP;
    RETURN made;
END
$$;

SELECT @schema@.make_partitions((now() AT TIME ZONE 'UTC')::date, 3);
