-- What carriers do: a lease for each, and one statement that settles what ended and claims what comes next.

-- What succeeded and has no more to say, in columns: each is one text, with \x1f between the values.  Taken apart in a
-- fourth of the time that objects of JSON take.
CREATE FUNCTION @schema@.succeeded(columns text[]) RETURNS TABLE (
    place tid, seq bigint, worker text, result_type text, story text, results text, timeout double precision, at integer,
    size integer
)
LANGUAGE sql IMMUTABLE AS $$
    SELECT
        s.place::tid, s.seq::bigint, s.worker, s.result_type, s.story, NULLIF(s.results, ''),
        NULLIF(s.timeout, '')::double precision, s.at::integer, s.size::integer
    FROM ROWS FROM (
        pg_catalog.unnest(pg_catalog.string_to_array(columns[1], E'\x1f')),
        pg_catalog.unnest(pg_catalog.string_to_array(columns[2], E'\x1f')),
        pg_catalog.unnest(pg_catalog.string_to_array(columns[3], E'\x1f')),
        pg_catalog.unnest(pg_catalog.string_to_array(columns[4], E'\x1f')),
        pg_catalog.unnest(pg_catalog.string_to_array(columns[5], E'\x1f')),
        pg_catalog.unnest(pg_catalog.string_to_array(columns[6], E'\x1f')),
        pg_catalog.unnest(pg_catalog.string_to_array(columns[7], E'\x1f')),
        pg_catalog.unnest(pg_catalog.string_to_array(columns[8], E'\x1f')),
        pg_catalog.unnest(pg_catalog.string_to_array(columns[9], E'\x1f'))
    ) AS s (place, seq, worker, result_type, story, results, timeout, at, size)
$$;

-- Ends deliveries of a carrier, and stores what that implies.  me: null for workitems that are lent to nobody.
-- One that is not the carrier's any more does not count, and nothing is done for it: this is the fence.
-- place: where the row is, as the claim or the last report said; only VACUUM FULL and the like move rows beside that, and
-- they are looked for then.
-- successes: what `succeeded` takes apart; ends: all else that has ended.
-- state: of what has ended; with a story, all of it is kept; off: nothing.  results: the queue whose readers get the
-- result out of the history.  timeout: seconds that the result is kept.  promises: whose results it needs.  unbinds: what it depends on is of no use any more.
-- sender: who sends what has no other one.  patient: who waits for what has ended is told after this transaction.
-- counted: the numbers of those that count.  woken: the queues in which there may be something because of them.
-- Whoever calls it sets what is to be set (`@few@`).
CREATE FUNCTION @schema@.settle(
    me bigint, successes text[], ends json, releases json, sends json, bodies bytea, lanes json, sender text,
    patient boolean DEFAULT false, OUT counted bigint[], OUT woken text[]
)
LANGUAGE plpgsql AS $$
DECLARE
    found bigint[];
    todo json := ends;
    all_ended boolean;
    wanted constant integer := coalesce(json_array_length(ends), 0)
        + coalesce(cardinality(string_to_array(successes[2], E'\x1f')), 0);
    batch @schema@.endings[];
    finished @schema@.endings[] := '{}';
BEGIN
    counted := '{}';
    WHILE cardinality(counted) < wanted LOOP
        WITH ended AS (
            SELECT
                place, seq, 'succeeded' AS state, NULL::integer AS crashes, worker, NULL::text AS error, result_type, story,
                results, timeout, NULL::boolean AS off, NULL::boolean AS unbinds, at, size
            FROM succeeded(successes)
            UNION ALL
            SELECT * FROM json_to_recordset(todo) AS e (
                place tid, seq bigint, state text, crashes integer, worker text, error text, result_type text, story text,
                results text, timeout double precision, off boolean, unbinds boolean, at integer, size integer
            )
        ), gone AS (
            DELETE FROM workitems w USING ended e
            WHERE w.ctid = e.place AND w.seq = e.seq AND w.carrier IS NOT DISTINCT FROM me
            RETURNING w.seq, w.sent, w.attempt, coalesce(e.crashes, w.crashes) AS crashes, w.priority, w.id, w.type, w.task,
                w.queue, w.reference, w.sender, w.running, w.inputs, e.state, e.worker, e.error, e.result_type, e.story,
                e.results, e.timeout, e.off, e.unbinds, e.at, e.size
        ), past AS (
            INSERT INTO history (
                seq, sent, ended, attempt, crashes, priority, state, id, type, task, queue, reference, sender, worker, error,
                result_type, story, running, results, kept_until, result
            )
            SELECT
                g.seq, g.sent, statement_timestamp(), g.attempt, g.crashes, g.priority, g.state, g.id, g.type, g.task, g.queue,
                g.reference, g.sender, coalesce(g.worker, ''), coalesce(g.error, ''), coalesce(g.result_type, ''),
                coalesce(g.story, ''), CASE WHEN g.story IS NULL THEN '' ELSE g.running END,
                g.results, statement_timestamp() + make_interval(secs => g.timeout), substr(bodies, g.at + 1, g.size)
            FROM gone g
            WHERE g.state IS NOT NULL
                AND (g.off IS NULL OR EXISTS (SELECT FROM promises p WHERE p.needed = g.id))
        ), unbound AS (
            DELETE FROM dependencies d WHERE d.dependent = ANY (ARRAY(SELECT g.inputs FROM gone g WHERE g.unbinds))
        )
        SELECT
            array_agg(seq),
            array_agg(
                ROW(
                    id, type, task, state, error, state = 'succeeded' AND size IS NOT NULL, false, statement_timestamp()
                )::endings
            ) FILTER (WHERE state IS NOT NULL)
            INTO found, batch
            FROM gone;
        counted := counted || found;
        finished := finished || batch;
        EXIT WHEN cardinality(counted) = wanted;
        todo := (
            SELECT json_agg(e || jsonb_build_object('place', w.ctid))
            FROM (
                SELECT to_jsonb(s) || '{"state": "succeeded"}' AS e FROM succeeded(successes) s
                UNION ALL
                SELECT jsonb_array_elements(todo::jsonb)
            ) AS missed JOIN workitems w ON w.seq = (e->>'seq')::bigint
            WHERE w.state = 0 AND w.carrier IS NOT DISTINCT FROM me
        );
        EXIT WHEN todo IS NULL;
        successes := NULL;
    END LOOP;
    all_ended := cardinality(counted) = wanted;
    IF releases IS NOT NULL THEN
        WITH back AS (
            UPDATE workitems w
            SET carrier = NULL, running = '', story = coalesce(r.story, lost(w.story, w.running, w.attempt))
            FROM json_to_recordset(releases) AS r (place tid, seq bigint, story text)
            WHERE w.ctid = r.place AND w.seq = r.seq AND w.carrier IS NOT DISTINCT FROM me
            RETURNING w.seq
        )
        SELECT array_agg(seq) INTO found FROM back;
        counted := counted || found;
        IF coalesce(cardinality(found), 0) < json_array_length(releases) THEN
            WITH back AS (
                UPDATE workitems w
                SET carrier = NULL, running = '', story = lost(w.story, w.running, w.attempt)
                WHERE w.seq = ANY (ARRAY(SELECT r.seq FROM json_to_recordset(releases) AS r (seq bigint)))
                    AND w.state = 0 AND w.carrier IS NOT DISTINCT FROM me AND me IS NOT NULL
                RETURNING w.seq
            )
            SELECT array_agg(seq) INTO found FROM back;
            counted := counted || found;
        END IF;
    END IF;
    IF NOT all_ended THEN
        sends := (SELECT json_agg(s) FROM json_array_elements(sends) s WHERE (s->>'parent')::bigint = ANY (counted));
    END IF;
    IF sends IS NOT NULL THEN
        PERFORM store(sends, bodies, lanes, sender);
    END IF;
    IF ends IS NOT NULL AND strpos(ends::text, '"promises":') > 0 THEN
        PERFORM promise(ends, counted);
    END IF;
    woken := CASE WHEN patient THEN tell_later(finished) ELSE tell(finished) END;
    IF me IS NULL AND sends IS NOT NULL THEN
        woken := woken || bind_again(sends);
    ELSIF sends IS NOT NULL AND strpos(sends::text, '"more":') > 0 THEN
        woken := woken || bind_more(sends);
    END IF;
END
$$;

-- Lends up to `room` workitems of a queue.  after: per priority, the number behind which to begin: so the index entries of
-- what has ended are not gone through again, which vacuum can't remove as long as any old transaction is open.
-- items: a list of arrays, shorter ones of what nothing has happened to yet (see `unpack` in rows.py); bodies: all of their
-- bodies behind each other, each with those of its inputs behind it.  marks: per priority, the last number.
-- wishes: whether there is anything that somebody wants no more.  Whoever calls it sets what is to be set (`@few@`).
CREATE FUNCTION @schema@.claim(
    me bigint, queue text, room integer, after json, wishes boolean,
    OUT items json[], OUT bodies bytea, OUT marks jsonb
)
LANGUAGE plpgsql AS $$
DECLARE
    lane smallint;
    part json[];
    blob bytea;
    whole constant boolean := starts_with(queue, 'worker_');
BEGIN
    items := '{}';
    bodies := '';
    marks := '{}';
    IF NOT is_recorded(queue) THEN
        PERFORM bring(queue, room);
    END IF;
    FOREACH lane IN ARRAY ARRAY(
        SELECT DISTINCT q.priority FROM queues q WHERE q.name = claim.queue ORDER BY q.priority DESC
    ) LOOP
        WITH taken AS (
            UPDATE workitems w SET carrier = me
            WHERE w.ctid = ANY (ARRAY(
                SELECT c.ctid FROM workitems c
                WHERE c.state = 0 AND c.carrier IS NULL AND c.queue = claim.queue AND c.priority = lane
                    AND c.seq > coalesce((after->>lane::text)::bigint, 0)
                    AND (c.expires IS NULL OR c.expires > now())
                    AND NOT (wishes AND EXISTS (SELECT FROM unwanted u WHERE u.id = c.id AND u.sent = c.sent))
                ORDER BY c.seq LIMIT room FOR NO KEY UPDATE SKIP LOCKED
            ))
            RETURNING w.*, w.ctid AS place
        )
        SELECT
            array_agg(
                CASE
                    WHEN t.attempt = 1 AND t.failures = 0 AND t.crashes = 0 AND t.story = '' AND t.inputs IS NULL
                        AND t.expired_in = ''
                    THEN
                        json_build_array(
                            t.seq, t.place, date_part('epoch', t.sent), length(t.body), t.id, t.type, t.reference,
                            t.content_type, t.sender, t.properties
                        )
                    ELSE
                        json_build_array(
                            t.seq, t.place, date_part('epoch', t.sent), length(t.body), t.id, t.type, t.reference,
                            t.content_type, t.sender, t.properties, t.expired_in, t.attempt, t.crashes, t.failures,
                            t.story, t.inputs, (t.needed).ends
                        )
                END
            ),
            string_agg(CASE WHEN t.inputs IS NULL THEN t.body ELSE t.body || (t.needed).results END, '')
            INTO part, blob
            FROM (
                SELECT *, CASE WHEN inputs IS NOT NULL THEN inputs_of(inputs, whole) END AS needed
                FROM taken ORDER BY seq
            ) t;
        IF part IS NOT NULL THEN
            items := items || part;
            bodies := bodies || blob;
            marks := marks || jsonb_build_object(lane, part[cardinality(part)]->0);
            room := room - cardinality(part);
            EXIT WHEN room <= 0;
        END IF;
    END LOOP;
END
$$;

-- Whether there are records of what waits in a queue: of work, not of results and dead letters.  With a search_path of its
-- own it could not become a part of what asks, and would cost 40 us each time.
CREATE FUNCTION @schema@.is_recorded(queue text) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT queue OPERATOR(pg_catalog.=) 'taskqueue' OR pg_catalog.starts_with(queue, 'worker_')
$$;

-- Puts the first results, up to `most`, that wait in the history for the readers of a queue into that queue.
CREATE FUNCTION @schema@.bring(queue text, most integer) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, @schema@, pg_temp
@by_index@ SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    WITH first AS MATERIALIZED (
        SELECT h.ended, h.seq FROM history h
        WHERE h.results = bring.queue
            AND h.ended >= coalesce((SELECT u.since FROM unread u WHERE u.queue = bring.queue), '-infinity')
        ORDER BY h.ended, h.seq LIMIT most FOR UPDATE SKIP LOCKED
    ), taken AS (
        UPDATE history h SET results = NULL FROM first f
        WHERE h.results = bring.queue AND h.ended = f.ended AND h.seq = f.seq
        RETURNING h.*
    )
    INSERT INTO workitems (queue, id, type, reference, content_type, properties, body)
        SELECT
            bring.queue, left(t.id, 200) || '.' || t.attempt, t.type, t.reference, t.result_type,
            json_build_object(
                'correlation_id', t.id,
                'headers', json_build_object('status', t.state, 'attempt', t.attempt, 'worker', t.worker)
            ), t.result
        FROM taken t ORDER BY t.ended, t.seq;
    IF FOUND THEN
        PERFORM declare(queue);
    END IF;
END
$$;

-- When something is due, and whether something has expired.  It becomes a part of the statement that asks.
CREATE FUNCTION @schema@.when_due() RETURNS TABLE (first timestamptz, late boolean)
LANGUAGE sql STABLE AS $$
    SELECT
        (SELECT min(due) FROM @schema@.workitems WHERE state = 1),
        EXISTS (
            SELECT FROM @schema@.workitems
            WHERE expires IS NOT NULL AND expires <= now() AND state IN (0, 3) AND carrier IS NULL
        )
$$;

-- Has what is due wait, and what has expired wait for the dispatcher, which makes dead letters of it.
-- woken: the queues in which there may be something because of that.  next: when something else is due.
-- Whoever calls it sets what is to be set (`@few@`).
CREATE FUNCTION @schema@.promote(OUT woken text[], OUT next timestamptz)
LANGUAGE plpgsql AS $$
DECLARE
    finished @schema@.endings[];
    late boolean;
BEGIN
    woken := '{}';
    SELECT d.first, d.late INTO next, late FROM when_due() d;
    IF next <= now() THEN
        UPDATE workitems SET state = 0, due = NULL, seq = nextval(pg_get_serial_sequence('@schema@.workitems', 'seq'))
            WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM workitems WHERE state = 1 AND due <= now() ORDER BY due LIMIT 1000
                FOR NO KEY UPDATE SKIP LOCKED
            ));
        next := (SELECT d.first FROM when_due() d);
    END IF;
    IF late THEN
        PERFORM drop_messages(ARRAY(
            SELECT ctid FROM workitems
            WHERE expires <= now() AND state = 0 AND carrier IS NULL
                AND (queue IN ('taskqueue.dead', 'taskqueue.dropped') OR is_reply(queue))
            LIMIT 1000 FOR UPDATE SKIP LOCKED
        ));
        PERFORM declare('taskqueue.dropped');
        WITH late AS (
            UPDATE workitems
            SET queue = 'taskqueue.dropped', expired_in = queue, expires = NULL, priority = 0, state = 0, due = NULL,
                needs = NULL, failing = NULL, seq = nextval(pg_get_serial_sequence('@schema@.workitems', 'seq'))
            WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM workitems
                WHERE expires <= now() AND state IN (0, 3) AND carrier IS NULL LIMIT 1000 FOR UPDATE SKIP LOCKED
            ))
            RETURNING *
        ), work AS (
            INSERT INTO history (
                seq, sent, ended, attempt, crashes, priority, state, id, type, task, queue, reference, sender, worker, error,
                result_type, story, running
            )
            SELECT
                seq, sent, now(), attempt, crashes, priority, 'expired', id, type, task, expired_in, reference, sender, '',
                'expired', '', story, ''
            FROM late WHERE is_recorded(expired_in)
            RETURNING id, type, task, ended
        )
        SELECT array_agg(ROW(id, type, task, 'expired', '', false, false, ended)::endings) INTO finished FROM work;
        IF finished IS NOT NULL THEN
            woken := tell(finished);
        END IF;
    END IF;
END
$$;

-- Settles and claims: one statement, one commit.  Raises TQ001 where the lease is not this carrier's any more.
-- claims: objects with number, queue, room and after.  reports: what runs, with what is said of it.
-- answer: a list of JSON, of which each may be null:
--     the numbers of those that count;
--     lent: number, how many were lent, and marks, for each claim;
--     due: seconds until the next workitem is due; said where a claim left room;
--     moved: pairs of the numbers of `reports` and of where their rows are now;
--     woken: the queues in which there may be something because of all that;
--     unwanted: the numbers of what it has and somebody wants no more.
-- items: all that were lent, in this order: the carrier has time to read it when the next statement is on its way.
CREATE FUNCTION @schema@.turn(
    me bigint, my_term bigint, successes text[], ends json, releases json, sends json, bodies bytea, lanes json, sender text,
    claims json, reports json, told text[],
    OUT answer text, OUT items text, OUT lent_bodies bytea
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp @few@ AS $$
DECLARE
    settled record;
    counted bigint[];
    moved json;
    unwanted json;
    want json;
    got record;
    due double precision;
    lent json[] := '{}';
    claimed json[] := '{}';
    woken text[];
    doubted boolean;
    wishes boolean;
    first timestamptz;
    late boolean;
    promoted record;
BEGIN
    PERFORM FROM carriers WHERE id = me AND term = my_term FOR SHARE;  -- nobody adopts it meanwhile
    IF NOT FOUND THEN
        RAISE EXCEPTION 'carrier % has lost its lease', me USING ERRCODE = 'TQ001';
    END IF;
    IF successes IS NULL AND ends IS NULL AND releases IS NULL AND sends IS NULL THEN
        -- A crash of the server may lose a claim: see `resume`.
        PERFORM set_config('synchronous_commit', 'off', true);
    ELSE
        settled := settle(me, successes, ends, releases, sends, bodies, lanes, sender);
        counted := settled.counted;
        woken := settled.woken;
    END IF;
    SELECT EXISTS (SELECT FROM endings), EXISTS (SELECT FROM unwanted), d.first, d.late
        INTO doubted, wishes, first, late
        FROM when_due() d;
    IF doubted THEN
        woken := woken || doubts();
    END IF;
    IF wishes THEN
        unwanted := unwant(me);
    END IF;
    IF reports IS NOT NULL THEN
        moved := report(me, reports);
    END IF;
    lent_bodies := '';
    IF claims IS NOT NULL THEN
        IF doubted OR wishes OR late OR first <= now() THEN  -- what has ended meanwhile may have changed it
            promoted := promote();
            woken := woken || promoted.woken;
            first := promoted.next;
        END IF;
        FOR n IN 0 .. json_array_length(claims) - 1 LOOP
            want := claims->n;
            got := claim(me, want->>'queue', (want->>'room')::integer, want->'after', wishes);
            lent := lent || json_build_array(want->'number', cardinality(got.items), got.marks);
            claimed := claimed || got.items;
            lent_bodies := lent_bodies || got.bodies;
            IF cardinality(got.items) < (want->>'room')::integer THEN
                due := extract(epoch FROM first - now());
            END IF;
        END LOOP;
    END IF;
    answer := json_build_array(counted, lent, due, moved, woken, unwanted);
    items := array_to_json(claimed);
    IF cardinality(told) > 0 THEN
        PERFORM pg_notify('@name@', queue) FROM unnest(told) AS queue;
    END IF;
END
$$;

-- A new carrier; the one that it was before, if it was one, is gone.
CREATE FUNCTION @schema@.register(
    my_term bigint, host text, home text, pid integer, since bigint, heartrate double precision, former bigint
)
RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp AS $$
DECLARE
    number bigint;
BEGIN
    PERFORM bury(id) FROM carriers WHERE id = former FOR UPDATE;
    INSERT INTO carriers (term, host, home, pid, since, heartrate) VALUES (my_term, host, home, pid, since, heartrate)
        RETURNING id INTO number;
    RETURN number;
END
$$;

-- After the connection was lost: takes up the lease with a new term, so that what is still on its way over the old
-- connection is refused.  Gives back what this carrier was lent and does not know of, and takes again what the server
-- forgot in a crash that it had lent, unless somebody else has it now.  Returns those of `held` that are not over: its
-- own, and those of others.  Null: the lease is lost.
-- held: objects with seq and id.  A server that crashed, or was restored, may give a number again to another workitem.
CREATE FUNCTION @schema@.resume(me bigint, my_term bigint, held json) RETURNS json
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp AS $$
BEGIN
    UPDATE carriers SET term = my_term, renewed = now() WHERE id = me AND term < my_term AND term >> 32 = my_term >> 32;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    UPDATE workitems w SET carrier = NULL, running = ''
        WHERE w.carrier = me AND NOT EXISTS (
            SELECT FROM json_to_recordset(held) AS h (seq bigint, id text) WHERE h.seq = w.seq AND h.id = w.id
        );
    UPDATE workitems w SET carrier = me
        FROM json_to_recordset(held) AS h (seq bigint, id text)
        WHERE w.state = 0 AND w.carrier IS NULL AND w.seq = h.seq AND w.id = h.id;
    RETURN (
        SELECT json_build_array(
            coalesce(json_agg(w.seq) FILTER (WHERE w.carrier = me), '[]'),
            coalesce(json_agg(w.seq) FILTER (WHERE w.carrier IS DISTINCT FROM me), '[]')
        )
        FROM workitems w JOIN json_to_recordset(held) AS h (seq bigint, id text) ON h.seq = w.seq AND h.id = w.id
    );
END
$$;

-- False: the lease is lost.
CREATE FUNCTION @schema@.renew(me bigint, my_term bigint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);  -- a crash of the server gives everybody time: see `adopt`
    UPDATE carriers SET renewed = now() WHERE id = me AND term = my_term;
    RETURN FOUND;
END
$$;

-- Gives everything back that a carrier had, and forgets it.  What a handler is about to end in a transaction of its own
-- is left alone until that is over (see `complete`): nobody waits for it, and the carrier, of no use to itself any more,
-- is buried again then.
CREATE FUNCTION @schema@.bury(dead bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, @schema@, pg_temp AS $$
DECLARE
    lent constant tid[] := ARRAY(SELECT ctid FROM workitems WHERE carrier = dead);
    free constant tid[] := ARRAY(
        SELECT ctid FROM workitems WHERE ctid = ANY (lent) AND carrier = dead FOR NO KEY UPDATE SKIP LOCKED
    );
BEGIN
    UPDATE workitems SET carrier = NULL, running = '', story = lost(story, running, attempt)
        WHERE ctid = ANY (free);
    IF cardinality(free) < cardinality(lent) THEN
        UPDATE carriers SET term = -1 WHERE id = dead;
    ELSE
        DELETE FROM carriers WHERE id = dead;
    END IF;
END
$$;

CREATE FUNCTION @schema@.leave(me bigint, my_term bigint) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp AS $$
    SELECT bury(id) FROM carriers WHERE id = me AND term = my_term FOR UPDATE
$$;

-- The other carriers of a host: number, process id, and when that process began.
CREATE FUNCTION @schema@.neighbours(me bigint, my_home text) RETURNS json
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp AS $$
    SELECT coalesce(json_agg(json_build_array(id, pid, since)), '[]') FROM carriers WHERE home = my_home AND id <> me
$$;

-- Buries the carriers that let twice their heartrate pass, and those that somebody on their host says are dead.  While
-- the server was away nobody could renew: that time does not count.  Returns who was buried.
CREATE FUNCTION @schema@.adopt(me bigint, known_dead bigint[]) RETURNS json
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp AS $$
DECLARE
    dead record;
    buried json[] := '{}';
BEGIN
    FOR dead IN
        SELECT id, host, pid, term FROM carriers
        WHERE id <> me AND (
            term = -1
            OR id = ANY (known_dead)
            OR greatest(renewed, pg_postmaster_start_time()) < now() - make_interval(secs => 2 * heartrate)
        )
        ORDER BY id FOR UPDATE SKIP LOCKED
    LOOP
        PERFORM bury(dead.id);
        CONTINUE WHEN dead.term = -1 AND EXISTS (SELECT FROM carriers WHERE id = dead.id);
        buried := buried || json_build_array(dead.id, dead.host, dead.pid);
    END LOOP;
    IF cardinality(buried) = 0 THEN
        PERFORM set_config('synchronous_commit', 'off', true);
    ELSE
        PERFORM pg_notify('@name@', '');
    END IF;
    RETURN array_to_json(buried);
END
$$;
