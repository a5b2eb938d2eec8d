-- Workitems that depend on others.
--
-- Whoever ends something tells those who wait for it in the same transaction, in a statement after it was taken out of
-- `workitems` (`tell`).  Whoever sends what depends on something locks that first (FOR KEY SHARE): so either the end waits
-- for the sender, and finds what it sent, or the sender finds the end.
-- Nobody waits for a lock while holding one that somebody else may wait for.  What is locked just now, be it by the
-- transaction of a handler that goes on for long, is passed by, and written down as an ending that is in doubt, or that not
-- all know of; carriers see to these with their next statement (`doubts`).

-- What has become of those of `asked` that are over: nothing is returned of those that are not, and are locked now, so that
-- they can't end before this transaction has.  state NULL: somebody is about to end it, or to try it again.
-- strict: those that never were, or are not kept any more, are an error.
CREATE FUNCTION @schema@.look(asked text[], strict boolean) RETURNS @schema@.endings[]
LANGUAGE plpgsql SET search_path = pg_catalog, @schema@, pg_temp
@by_index@ SET enable_nestloop = off SET enable_hashjoin = on AS $$
DECLARE
    alive constant text[] := ARRAY(
        SELECT w.id FROM workitems w
        WHERE w.id = ANY (asked) AND (w.queue = 'taskqueue' OR starts_with(w.queue, 'worker_'))
        FOR KEY SHARE SKIP LOCKED
    );
    others constant text[] := ARRAY(SELECT unnest(asked) EXCEPT SELECT unnest(alive));
    found endings[];
    unknown text;
BEGIN
    IF cardinality(others) = 0 THEN
        RETURN '{}';
    END IF;
    SELECT
        array_agg(
            CASE
                WHEN l.id IS NOT NULL THEN ROW(o.id, NULL, NULL, NULL, NULL, NULL, NULL, NULL)::endings
                WHEN h.id IS NULL THEN ROW(o.id, '', '', 'succeeded', '', false, false, now())::endings
                ELSE ROW(o.id, h.type, h.task, h.state, h.error, h.kept, h.rooted, h.ended)::endings
            END
        ),
        min(o.id) FILTER (WHERE l.id IS NULL AND h.id IS NULL)
        INTO found, unknown
        FROM unnest(others) AS o (id)
        LEFT JOIN (
            SELECT DISTINCT w.id FROM workitems w
            WHERE w.id = ANY (others) AND (w.queue = 'taskqueue' OR starts_with(w.queue, 'worker_'))
        ) l ON l.id = o.id
        LEFT JOIN (
            SELECT DISTINCT ON (p.id)
                p.id, p.type, p.task, p.state, p.ended,
                CASE WHEN p.state IN ('failed', 'dead') THEN p.error ELSE '' END AS error,
                p.state = 'succeeded' AND p.result IS NOT NULL
                    AND (p.kept_until IS NULL OR p.kept_until > now() OR is_needed(p.id)) AS kept,
                p.state = 'failed' AND p.story LIKE '%,"dependency",null,%' AS rooted
            FROM history p WHERE p.id = ANY (others) ORDER BY p.id, p.ended DESC
        ) h ON h.id = o.id;
    IF strict AND unknown IS NOT NULL THEN
        RAISE EXCEPTION 'no workitem %: it was never sent here, or it is not kept any more', unknown
            USING ERRCODE = 'TQ004', DETAIL = unknown;
    END IF;
    RETURN found;
END
$$;

-- Whether something needs the result of a workitem that has ended: it, and the record, stay.
CREATE FUNCTION @schema@.is_needed(id text) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM @schema@.dependencies d WHERE d.needed = is_needed.id)
        OR EXISTS (SELECT FROM @schema@.promises p WHERE p.needed = is_needed.id)
$$;

-- Who drops results waits for those who have seen them and are about to depend on them, and they for him: see `bind`.
-- False: they take too long.
CREATE FUNCTION @schema@.nobody_binds() RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog SET lock_timeout = '200ms' AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('@name@'), hashtext('bind'));
    RETURN true;
EXCEPTION WHEN lock_not_available THEN
    RETURN false;
END
$$;

-- Stores workitems of which some depend on others: as `store`.  Returns the queues in which there may be something more.
CREATE FUNCTION @schema@.bind(items json, bodies bytea, lanes json, sender text, asked text[]) RETURNS text[]
LANGUAGE plpgsql SET search_path = pg_catalog, @schema@, pg_temp AS $$
DECLARE
    found endings[];
    base bigint;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtext('@name@'), hashtext('bind'));
    found := look(asked, true);  -- before they are stored: they may not depend on those behind them
    base := nextval('dependents');
    PERFORM store(items, bodies, lanes, sender, base);
    INSERT INTO dependencies (dependent, place, needed)
        SELECT base + i.place, a.place, a.id
        FROM json_array_elements(items) WITH ORDINALITY AS i (item, place),
            json_array_elements_text(i.item->'after') WITH ORDINALITY AS a (id, place);
    INSERT INTO endings (id) SELECT f.id FROM unnest(found) f WHERE f.state IS NULL;
    RETURN resolve(ARRAY(SELECT f FROM unnest(found) f WHERE f.state IS NOT NULL));
END
$$;

-- The same for dead letters that depended on others, are stored again, and blocked: what they wait for may be over, or may
-- be on its way again.
CREATE FUNCTION @schema@.bind_again(items json) RETURNS text[]
LANGUAGE plpgsql SET search_path = pg_catalog, @schema@, pg_temp SET enable_nestloop = off SET enable_hashjoin = on AS $$
DECLARE
    numbers constant bigint[] := ARRAY(
        SELECT (i->>'inputs')::bigint FROM json_array_elements(items) i WHERE i->'after' IS NOT NULL
    );
    asked text[];
    found endings[];
BEGIN
    IF cardinality(numbers) = 0 THEN
        RETURN '{}';
    END IF;
    PERFORM pg_advisory_xact_lock_shared(hashtext('@name@'), hashtext('bind'));
    asked := ARRAY(SELECT DISTINCT d.needed FROM dependencies d WHERE d.dependent = ANY (numbers));
    found := look(asked, false);
    UPDATE dependencies d SET state = NULL, ended = NULL, type = NULL, error = NULL
        FROM (
            SELECT a.id, NULL::timestamptz AS ended FROM unnest(alive(asked)) AS a (id)
            UNION ALL
            SELECT f.id, f.ended FROM unnest(found) f WHERE f.state <> 'succeeded' OR f.type <> ''  -- else it is unknown
        ) latest
        WHERE d.dependent = ANY (numbers) AND d.needed = latest.id AND d.ended IS DISTINCT FROM latest.ended;
    INSERT INTO endings (id) SELECT f.id FROM unnest(found) f WHERE f.state IS NULL;
    RETURN recount(numbers) || resolve(ARRAY(SELECT f FROM unnest(found) f WHERE f.state IS NOT NULL));
END
$$;

-- The same for what goes on, and was found to depend on `more` than it did.
CREATE FUNCTION @schema@.bind_more(items json) RETURNS text[]
LANGUAGE plpgsql SET search_path = pg_catalog, @schema@, pg_temp SET enable_nestloop = off SET enable_hashjoin = on AS $$
DECLARE
    numbers constant bigint[] := ARRAY(
        SELECT (i->>'inputs')::bigint FROM json_array_elements(items) i WHERE i->'more' IS NOT NULL
    );
    found endings[];
BEGIN
    IF cardinality(numbers) = 0 THEN
        RETURN '{}';
    END IF;
    PERFORM pg_advisory_xact_lock_shared(hashtext('@name@'), hashtext('bind'));
    found := look(ARRAY(
        SELECT DISTINCT a.id FROM json_array_elements(items) i, json_array_elements_text(i->'more') AS a (id)
    ), false);
    INSERT INTO dependencies (dependent, place, needed)
        SELECT o.dependent, o.last + a.place, a.id
        FROM json_array_elements(items) AS i (item),
            LATERAL (
                SELECT d.dependent, max(d.place) AS last FROM dependencies d
                WHERE d.dependent = (i.item->>'inputs')::bigint GROUP BY d.dependent
            ) o,
            json_array_elements_text(i.item->'more') WITH ORDINALITY AS a (id, place);
    INSERT INTO endings (id) SELECT f.id FROM unnest(found) f WHERE f.state IS NULL;
    RETURN recount(numbers) || resolve(ARRAY(SELECT f FROM unnest(found) f WHERE f.state IS NOT NULL));
END
$$;

-- Notes what the results need of those that have ended just now, and count: see `settle`.  Those that need each other would
-- keep each other for ever, so of these one does not: they can need it only where it was promised before it ended.  One at
-- a time, or two could close a circle; and nobody drops results meanwhile.
CREATE FUNCTION @schema@.promise(ends json, counted bigint[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, @schema@, pg_temp
@by_index@ SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    one record;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtext('@name@'), hashtext('bind'));
    PERFORM pg_advisory_xact_lock(hashtext('@name@'), hashtext('promise'));
    FOR one IN
        SELECT e.* FROM json_to_recordset(ends) AS e (seq bigint, id text, promises text[])
        WHERE e.promises IS NOT NULL AND e.seq = ANY (counted)
    LOOP
        INSERT INTO promises (ended, seq, id, needed)
            WITH RECURSIVE below (first, id) AS (
                SELECT DISTINCT n.id, n.id FROM unnest(one.promises) AS n (id)
                UNION
                SELECT b.first, p.needed FROM below b JOIN promises p ON p.id = b.id
                    WHERE EXISTS (SELECT FROM promises p WHERE p.needed = one.id)
            )
            SELECT statement_timestamp(), one.seq, one.id, b.first
            FROM below b GROUP BY b.first HAVING NOT bool_or(b.id = one.id);
    END LOOP;
END
$$;

-- Raises where work with one of these ids is not over, and keeps others who ask so from sending any of them meanwhile:
-- by locks that are few, whatever the number of ids.
CREATE FUNCTION @schema@.refuse_others(sole text[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, @schema@, pg_temp @by_index@ AS $$
DECLARE
    other text;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('@name@.sole'), number)
        FROM (SELECT DISTINCT hashtext(id) & 63 AS number FROM unnest(sole) AS id ORDER BY 1) AS locks;
    SELECT w.id INTO other FROM workitems w
        WHERE w.id = ANY (sole) AND (w.queue = 'taskqueue' OR starts_with(w.queue, 'worker_')) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'workitem % has not ended', other USING ERRCODE = 'TQ005', DETAIL = other;
    END IF;
END
$$;

-- Tells whoever waits for what is over just now.  Returns the queues in which there may be something because of that.
-- Mostly all of it has succeeded and is of one type: then it takes no statement that is only there for the rest.
-- Whoever calls it sets what is to be set (`@few@`).
CREATE FUNCTION @schema@.tell(finished @schema@.endings[]) RETURNS text[]
LANGUAGE plpgsql AS $$
DECLARE
    edges tid[];
    others boolean;
    type text;
    last_type text;
    ended timestamptz;
    todo @schema@.endings[];
    told text[] := '{}';
BEGIN
    SELECT array_agg(d.place) FILTER (WHERE w.locked), bool_or(w.locked IS NULL), min(o.type), max(o.type), min(o.ended)
        INTO edges, others, type, last_type, ended
        FROM unnest(finished) o, LATERAL (
            SELECT d.ctid AS place, d.dependent FROM dependencies d WHERE d.needed = o.id AND d.state IS NULL OFFSET 0
        ) d LEFT JOIN LATERAL (
            SELECT true AS locked FROM workitems w
            WHERE w.inputs = d.dependent AND w.state = 3 AND o.kept FOR NO KEY UPDATE SKIP LOCKED
        ) w ON true;
    IF edges IS NOT NULL AND type = last_type THEN
        told := count_down(edges, type, 'succeeded', NULL, ended);
    ELSE
        others := others OR edges IS NOT NULL;
    END IF;
    IF others THEN
        SELECT array_agg(o) INTO todo
            FROM unnest(finished) o,
                LATERAL (SELECT FROM dependencies d WHERE d.needed = o.id AND d.state IS NULL LIMIT 1) d;
        IF todo IS NOT NULL THEN
            told := told || resolve(todo);
        END IF;
    END IF;
    RETURN told;
END
$$;

-- The same, once this transaction is over: it is a handler's own, which nobody waits for; and it may see an old snapshot.
CREATE FUNCTION @schema@.tell_later(finished @schema@.endings[]) RETURNS text[]
LANGUAGE plpgsql SET search_path = pg_catalog, @schema@, pg_temp @by_index@ AS $$
BEGIN
    INSERT INTO endings SELECT o.* FROM unnest(finished) o
        WHERE current_setting('transaction_isolation') <> 'read committed'
            OR EXISTS (SELECT FROM dependencies d WHERE d.needed = o.id AND d.state IS NULL);
    RETURN CASE WHEN FOUND THEN '{""}'::text[] ELSE '{}' END;
END
$$;

-- Tells whoever waits for what is over, and then whoever waits for those that fail because of it, and so on.  Those that
-- others are changing just now are told later: see `doubts`.
-- Each LATERAL has an end that keeps the planner from joining in another order: its statistics are of another moment.
CREATE FUNCTION @schema@.resolve(todo @schema@.endings[]) RETURNS text[]
LANGUAGE plpgsql SET search_path = pg_catalog, @schema@, pg_temp @few@ AS $$
DECLARE
    told text[] := '{}';
    next endings[];
    more endings[];
    part record;
    numbers bigint[];
    edges tid[];
    others boolean;
BEGIN
    WHILE cardinality(todo) > 0 LOOP
        next := '{}';
        FOR part IN  -- all that is said of them is the same: mostly there is one part
            SELECT
                t.type, t.task, t.state, t.error, t.kept, t.rooted, t.ended, array_agg(t.id) AS ids,
                CASE WHEN t.rooted THEN t.error WHEN NOT t.kept THEN cause(t) END AS cause
            FROM unnest(todo) t GROUP BY 1, 2, 3, 4, 5, 6, 7, 9
        LOOP
            IF NOT part.kept THEN
                numbers := ARRAY(
                    SELECT DISTINCT w.inputs
                    FROM unnest(part.ids) AS e (id), LATERAL (
                        SELECT d.dependent FROM dependencies d WHERE d.needed = e.id AND d.state IS NULL OFFSET 0
                    ) d, LATERAL (
                        SELECT w.inputs FROM workitems w
                        WHERE w.inputs = d.dependent AND w.state = 3 AND w.failing IS NOT NULL FOR UPDATE SKIP LOCKED
                    ) w
                );
                IF cardinality(numbers) > 0 THEN
                    SELECT told || f.woken, f.finished INTO told, more FROM fail(numbers, part.cause) f;
                    next := next || more;
                END IF;
            END IF;
            SELECT array_agg(d.place) FILTER (WHERE w.locked), bool_or(w.locked IS NULL)
                INTO edges, others
                FROM unnest(part.ids) AS e (id), LATERAL (
                    SELECT d.ctid AS place, d.dependent FROM dependencies d
                    WHERE d.needed = e.id AND d.state IS NULL OFFSET 0
                ) d LEFT JOIN LATERAL (
                    SELECT true AS locked FROM workitems w
                    WHERE w.inputs = d.dependent AND w.state = 3 AND (part.kept OR w.failing IS NULL)
                    FOR NO KEY UPDATE SKIP LOCKED
                ) w ON true;
            IF edges IS NOT NULL THEN
                told := told || count_down(edges, part.type, part.state, part.error, part.ended);
            END IF;
            IF others THEN
                INSERT INTO endings
                    SELECT e.id, part.type, part.task, part.state, part.error, part.kept, part.rooted, part.ended
                    FROM unnest(part.ids) AS e (id), LATERAL (
                        SELECT FROM dependencies d,
                            LATERAL (SELECT FROM workitems w WHERE w.inputs = d.dependent AND w.state = 3 OFFSET 0) w
                        WHERE d.needed = e.id AND d.state IS NULL LIMIT 1
                    ) d;
            END IF;
        END LOOP;
        todo := next;
    END LOOP;
    RETURN told;
END
$$;

-- Why whatever needs its result fails: `taskqueue.depending.cause`.
CREATE FUNCTION @schema@.cause(ending @schema@.endings) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog AS $$
    SELECT concat(
        ending.id, ' of ' || coalesce(nullif(ending.task, ''), nullif(ending.type, '')), ': ', ending.state,
        ': ' || nullif(
            CASE
                WHEN ending.state = 'succeeded' THEN 'no result is kept'
                WHEN ending.state IN ('failed', 'dead') THEN ending.error
            END,
            ''
        )
    )
$$;

-- Ends what is blocked and locked, for what it depends on did not succeed; and tells who waits for its reply.
CREATE FUNCTION @schema@.fail(numbers bigint[], cause text, OUT woken text[], OUT finished @schema@.endings[])
LANGUAGE plpgsql SET search_path = pg_catalog, @schema@, pg_temp
@by_index@ SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    WITH gone AS (
        DELETE FROM workitems w WHERE w.inputs = ANY (numbers) AND w.state = 3 RETURNING w.*
    ), past AS (
        INSERT INTO history (
            seq, sent, ended, attempt, crashes, priority, state, id, type, task, queue, reference, sender, worker, error,
            result_type, story, running
        )
        SELECT
            g.seq, g.sent, statement_timestamp(), g.attempt, g.crashes, g.priority, 'failed', g.id, g.type, g.task, g.queue,
            g.reference, g.sender, '', fail.cause, '',
            CASE WHEN g.story = '' THEN '[' ELSE left(g.story, -1) || ',' END
                || '[' || g.attempt || ',"dependency",null,' || to_json(fail.cause) || ',"",null,[]]]',
            ''
        FROM gone g
    ), replies AS (
        INSERT INTO workitems (queue, id, type, reference, content_type, properties, body)
            SELECT
                r.queue, left(g.id, 200) || '.' || g.attempt, g.type, g.reference, 'application/json',
                json_build_object(
                    'correlation_id', r.correlation_id,
                    'headers', json_build_object(
                        'status', 'failed', 'error', left(fail.cause, 4096), 'traceback', '', 'attempt', g.attempt
                    )
                ), 'null'
            FROM gone g, json_to_record(g.failing::json) AS r (queue text, correlation_id text)
            WHERE NOT is_reply(r.queue) OR EXISTS (SELECT FROM queues q WHERE q.name = r.queue)
        RETURNING queue
    )
    SELECT
        array_agg(ROW(g.id, g.type, g.task, 'failed', fail.cause, false, true, statement_timestamp())::endings),
        ARRAY(SELECT DISTINCT r.queue FROM replies r)
        INTO finished, woken
        FROM gone g;
    PERFORM declare(queue) FROM unnest(woken) AS queue;
    woken := woken || 'taskqueue.ended'::text;
    DELETE FROM dependencies d WHERE d.dependent = ANY (numbers);
END
$$;

-- Notes how something ended that others wait for, who are locked, and has those wait for nothing more that need not.
-- Whoever calls it sets what is to be set (`@few@`).
CREATE FUNCTION @schema@.count_down(edges tid[], type text, state text, error text, ended timestamptz) RETURNS text[]
LANGUAGE plpgsql AS $$
DECLARE
    woken text[];
BEGIN
    WITH counted AS (
        UPDATE dependencies d
        SET type = count_down.type, state = count_down.state, error = count_down.error, ended = count_down.ended
        WHERE d.ctid = ANY (edges) AND d.state IS NULL
        RETURNING d.dependent
    ), fewer AS (
        SELECT c.dependent, count(*)::integer AS by FROM counted c GROUP BY c.dependent ORDER BY c.dependent
    ), changed AS (
        UPDATE workitems w
        SET needs = nullif(w.needs - f.by, 0),
            state = CASE WHEN w.needs > f.by THEN 3 WHEN w.due > now() THEN 1 ELSE 0 END,
            due = CASE WHEN w.needs > f.by OR w.due > now() THEN w.due END,
            seq = CASE WHEN w.needs > f.by THEN w.seq ELSE nextval(pg_get_serial_sequence('@schema@.workitems', 'seq')) END
        FROM fewer f, LATERAL (
            SELECT b.ctid AS place FROM workitems b WHERE b.inputs = f.dependent AND b.state = 3 OFFSET 0
        ) b
        WHERE w.ctid = b.place
        RETURNING w.queue, w.state
    )
    SELECT array_agg(DISTINCT c.queue) INTO woken FROM changed c WHERE c.state = 0;
    RETURN coalesce(woken, '{}');
END
$$;

-- The same from the rows alone, for what is blocked and locked.
CREATE FUNCTION @schema@.recount(numbers bigint[]) RETURNS text[]
LANGUAGE plpgsql SET search_path = pg_catalog, @schema@, pg_temp
@by_index@ SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    woken text[];
BEGIN
    WITH counted AS MATERIALIZED (
        SELECT n.number, (
            SELECT count(*)::integer FROM dependencies d WHERE d.dependent = n.number AND d.state IS NULL
        ) AS needs
        FROM unnest(numbers) AS n (number)
    ), changed AS (
        UPDATE workitems w
        SET needs = nullif(c.needs, 0), state = CASE WHEN c.needs > 0 THEN 3 WHEN w.due > now() THEN 1 ELSE 0 END,
            due = CASE WHEN c.needs > 0 OR w.due > now() THEN w.due END,
            seq = CASE WHEN c.needs > 0 THEN w.seq ELSE nextval(pg_get_serial_sequence('@schema@.workitems', 'seq')) END
        FROM counted c, LATERAL (
            SELECT b.ctid AS place FROM workitems b WHERE b.inputs = c.number AND b.state = 3 OFFSET 0
        ) b
        WHERE w.ctid = b.place
        RETURNING w.queue, w.state
    )
    SELECT array_agg(DISTINCT c.queue) INTO woken FROM changed c WHERE c.state = 0;
    RETURN coalesce(woken, '{}');
END
$$;

-- Sees to the endings that not all know of, or that are in doubt.
CREATE FUNCTION @schema@.doubts() RETURNS text[]
LANGUAGE plpgsql SET search_path = pg_catalog, @schema@, pg_temp AS $$
DECLARE
    taken tid[];
    doubted text[];
    found endings[] := '{}';
    known endings[];
BEGIN
    IF NOT EXISTS (SELECT FROM endings) THEN
        RETURN '{}';
    END IF;
    taken := ARRAY(SELECT e.ctid FROM endings e LIMIT 1000 FOR UPDATE SKIP LOCKED);
    doubted := ARRAY(SELECT DISTINCT e.id FROM endings e WHERE e.ctid = ANY (taken) AND e.state IS NULL);
    IF cardinality(doubted) > 0 THEN
        found := look(doubted, false);
        doubted := ARRAY(SELECT f.id FROM unnest(found) f WHERE f.state IS NULL);
    END IF;
    known := ARRAY(
        SELECT DISTINCT e FROM endings e WHERE e.ctid = ANY (taken) AND e.state IS NOT NULL
        UNION ALL
        SELECT f FROM unnest(found) f WHERE f.state IS NOT NULL
    );
    DELETE FROM endings e WHERE e.ctid = ANY (taken) AND (e.state IS NOT NULL OR e.id <> ALL (doubted));
    RETURN resolve(known);
END
$$;

-- Counts anew what up to `most` that are blocked wait for, in order, from the number `since` on; and has it looked for
-- whether what they wait for is over.  reached: the last of them; NULL: there were none.  mended: of how many that was
-- wrong.  Nothing is returned where somebody else is at it.
CREATE FUNCTION @schema@.mend(since bigint, most integer, OUT reached bigint, OUT mended integer) RETURNS SETOF record
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp @by_index@ AS $$
DECLARE
    numbers bigint[];
    lost text[];
    wrong bigint[];
BEGIN
    IF NOT alone() THEN
        RETURN;
    END IF;
    numbers := ARRAY(
        SELECT w.inputs FROM workitems w WHERE w.state = 3 AND w.inputs > since
        ORDER BY w.inputs LIMIT most FOR NO KEY UPDATE SKIP LOCKED
    );
    SELECT array_agg(DISTINCT d.needed), array_agg(DISTINCT d.dependent) INTO lost, wrong
        FROM unnest(numbers) AS n (number), LATERAL (
            SELECT d.needed, d.dependent FROM dependencies d WHERE d.dependent = n.number AND d.state IS NULL OFFSET 0
        ) d
        WHERE NOT EXISTS (SELECT FROM endings e WHERE e.id = d.needed) AND NOT EXISTS (
            SELECT FROM workitems w
            WHERE w.id = d.needed AND (w.queue = 'taskqueue' OR starts_with(w.queue, 'worker_'))
        );
    INSERT INTO endings (id) SELECT * FROM unnest(lost);
    wrong := wrong || ARRAY(
        SELECT n.number FROM unnest(numbers) AS n (number), LATERAL (
            SELECT w.needs FROM workitems w WHERE w.inputs = n.number AND w.state = 3 OFFSET 0
        ) w
        WHERE w.needs IS DISTINCT FROM (
            SELECT count(*) FROM dependencies d WHERE d.dependent = n.number AND d.state IS NULL
        )
    );
    PERFORM pg_notify('@name@', queue) FROM unnest(recount(wrong) || doubts()) AS queue;
    SELECT max(n), (SELECT count(DISTINCT w) FROM unnest(wrong) w) INTO reached, mended FROM unnest(numbers) n;
    RETURN NEXT;
END
$$;

-- How those have ended that a workitem depends on, in order, as brokers/postgresql/rows.py reads it; and the results that it
-- needs to be done, behind each other.
CREATE TYPE @schema@.needed AS (ends json, results bytea);

-- whole: with all of that, and not with their ids alone.  Whoever calls it sets what is to be set (`@few@`).
CREATE FUNCTION @schema@.inputs_of(number bigint, whole boolean) RETURNS @schema@.needed
LANGUAGE plpgsql STABLE AS $$
DECLARE
    found @schema@.needed;
BEGIN
    IF whole THEN
        SELECT
            json_agg(
                json_build_array(
                    d.needed, d.type, coalesce(d.state, 'succeeded'), d.error, h.result_type, length(h.result), h.story,
                    h.task
                ) ORDER BY d.place
            ),
            coalesce(string_agg(h.result, '' ORDER BY d.place), '')
            INTO found
            FROM dependencies d LEFT JOIN LATERAL (
                SELECT h.task, h.result_type, h.result, CASE WHEN d.state IN ('failed', 'dead') THEN h.story END AS story
                FROM history h WHERE h.id = d.needed AND h.ended = d.ended LIMIT 1
            ) h ON true
            WHERE d.dependent = number;
    ELSE
        SELECT json_agg(json_build_array(d.needed) ORDER BY d.place), '' INTO found
            FROM dependencies d WHERE d.dependent = number;
    END IF;
    RETURN found;
END
$$;

-- Cancels what is not lent, and locked.  How many there were.
CREATE FUNCTION @schema@.withdraw(chosen tid[]) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, @schema@, pg_temp @few@ AS $$
DECLARE
    finished endings[];
    unbound bigint[];
BEGIN
    WITH gone AS (
        DELETE FROM workitems w WHERE w.ctid = ANY (chosen) RETURNING w.*
    ), past AS (
        INSERT INTO history (
            seq, sent, ended, attempt, crashes, priority, state, id, type, task, queue, reference, sender, worker, error,
            result_type, story, running
        )
        SELECT
            g.seq, g.sent, now(), g.attempt, g.crashes, g.priority, 'cancelled', g.id, g.type, g.task, g.queue,
            g.reference, g.sender, '', '', '', g.story, ''
        FROM gone g
    )
    SELECT
        array_agg(ROW(g.id, g.type, g.task, 'cancelled', '', false, false, now())::endings),
        array_agg(g.inputs) FILTER (WHERE g.inputs IS NOT NULL)
        INTO finished, unbound
        FROM gone g;
    IF finished IS NULL THEN
        RETURN 0;
    END IF;
    DELETE FROM dependencies d WHERE d.dependent = ANY (unbound);
    PERFORM pg_notify('@name@', queue) FROM unnest(tell(finished) || 'taskqueue.ended'::text) AS queue;
    RETURN cardinality(finished);
END
$$;

-- Deletes results and dead letters, which are locked.  How many there were.
CREATE FUNCTION @schema@.drop_messages(chosen tid[]) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, @schema@, pg_temp AS $$
DECLARE
    dropped integer;
    unbound bigint[];
BEGIN
    WITH gone AS (
        DELETE FROM workitems w WHERE w.ctid = ANY (chosen) RETURNING w.inputs
    )
    SELECT count(*), array_agg(g.inputs) FILTER (WHERE g.inputs IS NOT NULL) INTO dropped, unbound FROM gone g;
    IF unbound IS NOT NULL THEN
        DELETE FROM dependencies d WHERE d.dependent = ANY (unbound);
    END IF;
    RETURN dropped;
END
$$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA @schema@ FROM PUBLIC;
