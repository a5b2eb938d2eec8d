-- What ended, counted by type and hour; and what of it need not be kept any longer.

-- The histogram of `taskqueue.statistics`, a bucket at a time.
CREATE FUNCTION @schema@.bucket(seconds double precision) RETURNS integer
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog AS $$
    SELECT greatest(0, ceil(ln(greatest(seconds, 1e-6) / 1e-6) / ln(1.1::double precision)))::integer
$$;

-- What ended from `since` on and before `until`, of a type (null: of all), counted.
CREATE FUNCTION @schema@.tally(since timestamptz, until timestamptz, kind text) RETURNS TABLE (
    hour timestamptz, type text, succeeded bigint, failed bigint, dead bigint, cancelled bigint, expired bigint,
    waited json, ran json
)
LANGUAGE sql STABLE SET search_path = pg_catalog, @schema@, pg_temp SET TimeZone = 'UTC'
SET plan_cache_mode = force_custom_plan AS $$
    WITH past AS MATERIALIZED (
        SELECT
            date_trunc('hour', h.ended) AS hour, h.type, h.state,
            (runs.first->>3)::double precision - date_part('epoch', h.sent) AS waited,
            (runs.last->>4)::double precision - (runs.last->>3)::double precision AS ran
        FROM history h, LATERAL (  -- json, for jsonb takes no NUL, which a log may have; and the long text read only twice
            SELECT nullif(h.story, '')::json->0->2 AS first, nullif(h.story, '')::json->-1->2 AS last OFFSET 0
        ) AS runs
        WHERE h.ended >= since AND h.ended < until AND (kind IS NULL OR h.type = kind)
    ), counts AS (
        SELECT
            hour, type,
            count(*) FILTER (WHERE state = 'succeeded') AS succeeded,
            count(*) FILTER (WHERE state = 'failed') AS failed,
            count(*) FILTER (WHERE state = 'dead') AS dead,
            count(*) FILTER (WHERE state = 'cancelled') AS cancelled,
            count(*) FILTER (WHERE state = 'expired') AS expired
        FROM past GROUP BY hour, type
    ), waits AS (
        SELECT hour, type, json_object_agg(number, n) AS waited FROM (
            SELECT hour, type, @schema@.bucket(waited) AS number, count(*) AS n
            FROM past WHERE waited IS NOT NULL GROUP BY 1, 2, 3
        ) AS each GROUP BY hour, type
    ), runs AS (
        SELECT hour, type, json_object_agg(number, n) AS ran FROM (
            SELECT hour, type, @schema@.bucket(ran) AS number, count(*) AS n
            FROM past WHERE ran IS NOT NULL GROUP BY 1, 2, 3
        ) AS each GROUP BY hour, type
    )
    SELECT
        c.hour, c.type, c.succeeded, c.failed, c.dead, c.cancelled, c.expired,
        coalesce(w.waited, '{}'), coalesce(r.ran, '{}')
    FROM counts c LEFT JOIN waits w USING (hour, type) LEFT JOIN runs r USING (hour, type)
$$;

-- Makes the statistics of the next hour, once it is over and nobody can add to it any more; null: there is nothing to do.
-- Records and statistics are of one snapshot, and how far they go is said in the same transaction: none is counted twice.
-- A transaction that was open at the end of the hour may commit what ended in it (`ended` is when it began).  It is
-- waited for, up to six hours; until then the hour is counted whenever it is asked for.
CREATE FUNCTION @schema@.roll_up() RETURNS timestamptz
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp SET TimeZone = 'UTC' AS $$
DECLARE
    begun timestamptz;
    waits_for text[];
    now_open text[];
BEGIN
    IF NOT alone() THEN
        RETURN NULL;
    END IF;
    SELECT r.until, r.open INTO begun, waits_for FROM rolled r FOR UPDATE;
    IF now() < begun + interval '1 hour 10 seconds' THEN  -- a transaction is there a moment after its time
        RETURN NULL;
    END IF;
    now_open := ARRAY(
        SELECT DISTINCT l.virtualtransaction FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
        WHERE l.locktype IN ('virtualxid', 'transactionid') AND l.pid IS DISTINCT FROM pg_backend_pid()
            AND coalesce(a.datname, current_database()) = current_database()
    );
    IF waits_for IS NULL THEN
        waits_for := now_open;
        UPDATE rolled SET open = waits_for;
    END IF;
    IF waits_for && now_open AND now() < begun + interval '7 hours' THEN
        RETURN NULL;
    END IF;
    INSERT INTO statistics (hour, type, succeeded, failed, dead, cancelled, expired, waited, ran)
        SELECT * FROM tally(begun, begun + interval '1 hour', NULL);
    UPDATE rolled SET until = begun + interval '1 hour', open = NULL;
    RETURN begun;
END
$$;

-- What ended since the hour of `since`, of a type (null: of all), by type and hour; what is not in the statistics yet, too.
CREATE FUNCTION @schema@.stats(kind text, since timestamptz) RETURNS TABLE (
    hour timestamptz, type text, succeeded bigint, failed bigint, dead bigint, cancelled bigint, expired bigint,
    waited json, ran json
)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp SET TimeZone = 'UTC' AS $$
    SELECT s.hour, s.type, s.succeeded, s.failed, s.dead, s.cancelled, s.expired, s.waited, s.ran FROM statistics s
    WHERE s.hour >= date_trunc('hour', since) AND (kind IS NULL OR s.type = kind)
    UNION ALL
    SELECT t.* FROM rolled r, tally(greatest(r.until, date_trunc('hour', since)), 'infinity', kind) t
    ORDER BY 1, 2
$$;

-- Hours, by type, whose records need not be kept: `dispensable` of `taskqueue.upkeep`.  age, most: of types of which
-- nothing was said.
CREATE FUNCTION @schema@.dispensable(age double precision, most bigint) RETURNS TABLE (
    hour timestamptz, type text, records bigint
)
LANGUAGE sql STABLE SET search_path = pg_catalog, @schema@, pg_temp AS $$
    SELECT counted.hour, counted.type, counted.records
    FROM (
        SELECT
            s.hour, s.type, s.gone, s.succeeded + s.failed + s.dead + s.cancelled + s.expired AS records,
            sum(s.succeeded + s.failed + s.dead + s.cancelled + s.expired) OVER (
                PARTITION BY s.type ORDER BY s.hour DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ) AS later
        FROM statistics s
    ) counted
    LEFT JOIN keeping k ON k.type = counted.type
    WHERE NOT counted.gone AND (
        counted.hour + interval '1 hour' <= now() - make_interval(secs => coalesce(k.age, dispensable.age))
        OR (coalesce(k.most, dispensable.most) > 0 AND counted.later >= coalesce(k.most, dispensable.most))
    )
$$;

-- Whether a result that has to be kept needs one of that day: directly, or others do that need one, which may be of
-- that day themselves.  age, most: as of `dispensable`.
CREATE FUNCTION @schema@.is_promised(day timestamptz, age double precision, most bigint) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, @schema@, pg_temp
@by_index@ SET enable_hashjoin = off SET enable_mergejoin = off AS $$
    WITH RECURSIVE above (id, ended) AS (
        SELECT p.id, p.ended FROM promises p JOIN history h ON h.id = p.needed
            WHERE h.ended >= day AND h.ended < day + interval '1 day'
        UNION
        SELECT p.id, p.ended FROM above a JOIN promises p ON p.needed = a.id
    )
    SELECT EXISTS (
        SELECT FROM above a
        WHERE EXISTS (SELECT FROM dependencies d WHERE d.needed = a.id)
            OR NOT (a.ended >= day AND a.ended < day + interval '1 day') AND NOT EXISTS (
                SELECT FROM history h JOIN statistics s ON s.type = h.type AND s.hour = date_trunc('hour', h.ended)
                WHERE h.id = a.id AND h.ended = a.ended
                    AND (s.gone OR EXISTS (
                        SELECT FROM dispensable(age, most) d WHERE d.hour = s.hour AND d.type = s.type
                    ))
            )
    )
$$;

-- Drops the oldest day of the history of which nothing has to be kept, whole: how many records it had.  Null: there is
-- none, or somebody else is at it.  -1: somebody reads the history, and nobody is kept waiting behind us for long.
CREATE FUNCTION @schema@.drop_day(age double precision, most bigint) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp
SET lock_timeout = '200ms' SET TimeZone = 'UTC' AS $$
DECLARE
    partition text;
    day timestamptz;
    records bigint;
    -- Of what the statistics don't know, for it came too late, nobody knows how long it is to be kept.
    longest timestamptz := now() - make_interval(secs => greatest(age, (SELECT max(k.age) FROM keeping k)));
BEGIN
    IF NOT alone() THEN
        RETURN NULL;
    END IF;
    FOR partition, day IN
        SELECT c.relname, to_date(right(c.relname, 8), 'YYYYMMDD')
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'history'::regclass AND c.relname ~ '^history_[0-9]{8}$' ORDER BY 1
    LOOP
        EXIT WHEN day + interval '1 day' > (SELECT r.until FROM rolled r);
        CONTINUE WHEN EXISTS (
            SELECT FROM statistics s
            WHERE s.hour >= day AND s.hour < day + interval '1 day' AND NOT s.gone
                AND NOT EXISTS (SELECT FROM dispensable(age, most) d WHERE d.hour = s.hour AND d.type = s.type)
        );
        CONTINUE WHEN day + interval '1 day' > longest AND NOT EXISTS (
            SELECT FROM statistics s WHERE s.hour >= day AND s.hour < day + interval '1 day'
        );
        IF NOT nobody_binds() THEN
            RETURN -1;
        END IF;
        CONTINUE WHEN EXISTS (  -- somebody still needs a result of that day
            SELECT FROM dependencies d WHERE d.ended >= day AND d.ended < day + interval '1 day'
        ) OR is_promised(day, age, most);
        BEGIN
            DELETE FROM promises p WHERE p.ended >= day AND p.ended < day + interval '1 day';
            EXECUTE format('DROP TABLE %I.%I', '@name@', partition);
        EXCEPTION WHEN lock_not_available THEN
            RAISE LOG 'taskqueue: % is not dropped yet: somebody reads it', partition;
            RETURN -1;
        END;
        WITH gone AS (
            UPDATE statistics s SET gone = true
            WHERE s.hour >= day AND s.hour < day + interval '1 day' AND NOT s.gone
            RETURNING s.succeeded + s.failed + s.dead + s.cancelled + s.expired AS count
        )
        SELECT coalesce(sum(g.count), 0) INTO records FROM gone g;
        RETURN records;
    END LOOP;
    RETURN NULL;
END
$$;

-- What is to be dropped in small steps, the oldest first: seconds of the hour's begin, type, number of records.
CREATE FUNCTION @schema@.droppable(age double precision, most bigint) RETURNS TABLE (
    hour double precision, type text, records bigint
)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp AS $$
    SELECT date_part('epoch', d.hour), d.type, d.records FROM dispensable(age, most) d ORDER BY d.hour, d.type
$$;

-- Drops the records of a type that ended from `since` on and before `until`, seconds; last: those are all of the hour.
-- Null where somebody else is at it.
CREATE FUNCTION @schema@.drop_records(kind text, since double precision, until double precision, last boolean)
RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp SET TimeZone = 'UTC'
SET plan_cache_mode = force_custom_plan AS $$
DECLARE
    dropped integer;
BEGIN
    IF NOT alone() OR NOT nobody_binds() THEN
        RETURN NULL;
    END IF;
    WITH gone AS (
        DELETE FROM history h
        WHERE h.type = kind AND h.ended >= to_timestamp(since) AND h.ended < to_timestamp(until)
            AND NOT EXISTS (SELECT FROM dependencies d WHERE d.needed = h.id)  -- else it goes with its whole day
            AND NOT EXISTS (SELECT FROM promises p WHERE p.needed = h.id)
        RETURNING h.id, h.ended, h.seq
    ), broken AS (
        DELETE FROM promises p USING gone g WHERE p.id = g.id AND p.ended = g.ended AND p.seq = g.seq
    )
    SELECT count(*) INTO dropped FROM gone;
    IF last THEN
        UPDATE statistics s SET gone = true WHERE s.hour = date_trunc('hour', to_timestamp(since)) AND s.type = kind;
    END IF;
    RETURN dropped;
END
$$;

-- Drops about `most` results whose time is over, unless something still needs them; the records stay.
CREATE FUNCTION @schema@.drop_results(most integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp
@by_index@ SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    dropped integer := 0;
    found integer;
    promised text[];
BEGIN
    IF NOT alone() OR NOT nobody_binds() THEN
        RETURN 0;
    END IF;
    LOOP  -- what is dropped may have promised others, and so on
        WITH first AS MATERIALIZED (
            SELECT h.kept_until, h.seq, h.ended FROM history h
            WHERE h.kept_until <= now() AND (promised IS NULL OR h.id = ANY (promised))
                AND NOT EXISTS (SELECT FROM dependencies d WHERE d.needed = h.id)
                AND NOT EXISTS (SELECT FROM promises p WHERE p.needed = h.id)
            ORDER BY h.kept_until, h.seq LIMIT most FOR UPDATE SKIP LOCKED
        ), gone AS (
            UPDATE history h SET result = NULL, result_type = '', results = NULL, kept_until = NULL
            FROM first f WHERE h.kept_until = f.kept_until AND h.seq = f.seq AND h.ended = f.ended
            RETURNING h.id, h.ended, h.seq
        ), broken AS (
            DELETE FROM promises p USING gone g WHERE p.id = g.id AND p.ended = g.ended AND p.seq = g.seq
            RETURNING p.needed
        )
        SELECT (SELECT count(*) FROM gone), (SELECT array_agg(DISTINCT b.needed) FROM broken b) INTO found, promised;
        dropped := dropped + found;
        EXIT WHEN promised IS NULL OR dropped >= most;
    END LOOP;
    RETURN dropped;
END
$$;

-- Drops statistics that are older than so many seconds; not those of records that are still there.
CREATE FUNCTION @schema@.drop_statistics(age double precision) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp AS $$
BEGIN
    IF alone() THEN
        DELETE FROM statistics s WHERE s.gone AND s.hour < now() - make_interval(secs => age);
    END IF;
END
$$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA @schema@ FROM PUBLIC;
