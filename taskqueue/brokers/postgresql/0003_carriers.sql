-- What carriers do: a lease for each, and one statement that settles what ended and claims what comes next.
-- The planner is kept from reading whole tables: statistics of a table that is empty now and full then mislead it.

-- Ends deliveries of a carrier, and stores what that implies.  me: null for workitems that are lent to nobody.
-- One that is not the carrier's any more does not count, and nothing is done for it: this is the fence.
CREATE FUNCTION @schema@.settle(me bigint, ends json, releases bigint[], sends json, bodies bytea) RETURNS bigint[]
LANGUAGE plpgsql SET search_path = pg_catalog, @schema@, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    counted bigint[] := '{}';
    released bigint[];
    all_ended boolean := true;
    held constant smallint := CASE WHEN me IS NULL THEN 0 ELSE 2 END;
BEGIN
    IF ends IS NOT NULL THEN
        WITH gone AS (
            DELETE FROM workitems w
            USING json_to_recordset(ends) AS e (
                seq bigint, state text, crashes integer, worker text, error text, result_type text, at integer, size integer
            )
            WHERE w.seq = e.seq AND w.state = held AND w.carrier IS NOT DISTINCT FROM me
            RETURNING w.seq, w.sent, w.attempt, coalesce(e.crashes, w.crashes) AS crashes, w.id, w.type, w.queue, w.reference,
                e.state, e.worker, e.error, e.result_type, e.at, e.size
        ), past AS (
            INSERT INTO history (
                seq, sent, ended, attempt, crashes, state, id, type, queue, reference, worker, error, result_type, result
            )
            SELECT
                seq, sent, now(), attempt, crashes, state, id, type, queue, reference, coalesce(worker, ''),
                coalesce(error, ''), coalesce(result_type, ''), substr(bodies, at + 1, size)
            FROM gone WHERE state IS NOT NULL
        )
        SELECT coalesce(array_agg(seq), '{}') INTO counted FROM gone;
        all_ended := cardinality(counted) = json_array_length(ends);
    END IF;
    IF releases IS NOT NULL THEN
        WITH back AS (
            UPDATE workitems w SET state = 0, carrier = NULL
            WHERE w.seq = ANY (releases) AND w.state = held AND w.carrier IS NOT DISTINCT FROM me
            RETURNING w.seq
        )
        SELECT array_agg(seq) INTO released FROM back;
        counted := counted || released;
    END IF;
    IF sends IS NOT NULL THEN
        IF NOT all_ended THEN
            sends := (SELECT json_agg(s) FROM json_array_elements(sends) s WHERE (s->>'parent')::bigint = ANY (counted));
        END IF;
        IF sends IS NOT NULL THEN
            PERFORM store(sends, bodies);
        END IF;
    END IF;
    RETURN counted;
END
$$;

-- Lends up to `room` workitems of a queue.  after: per priority, the number behind which to begin: so the index entries of
-- what has ended are not gone through again, which vacuum can't remove as long as any old transaction is open.
-- items: a list of arrays; bodies: all of their bodies behind each other; filled: whether there may be more.
CREATE FUNCTION @schema@.claim(me bigint, queue text, room integer, after json, OUT items json[], OUT bodies bytea)
LANGUAGE plpgsql SET search_path = pg_catalog, @schema@, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    lane smallint;
    part json[];
    blob bytea;
BEGIN
    items := '{}';
    bodies := '';
    PERFORM promote();
    FOR lane IN SELECT q.priority FROM queues q WHERE q.name = claim.queue ORDER BY q.priority DESC LOOP
        WITH taken AS (
            UPDATE workitems w SET state = 2, carrier = me
            WHERE w.ctid = ANY (ARRAY(
                SELECT c.ctid FROM workitems c
                WHERE c.state = 0 AND c.queue = claim.queue AND c.priority = lane
                    AND c.seq > coalesce((after->>lane::text)::bigint, 0)
                    AND (c.expires IS NULL OR c.expires > now())
                ORDER BY c.seq LIMIT room FOR UPDATE SKIP LOCKED
            ))
            RETURNING w.*
        )
        SELECT
            array_agg(json_build_array(
                t.seq, t.priority, extract(epoch FROM t.sent), t.id, t.type, t.reference, t.content_type, t.attempt,
                t.crashes, t.failures, t.properties, length(t.body), t.expired_in
            )),
            string_agg(t.body, '')
            INTO part, blob
            FROM (SELECT * FROM taken ORDER BY seq) t;
        IF part IS NOT NULL THEN
            items := items || part;
            bodies := bodies || blob;
            room := room - cardinality(part);
            EXIT WHEN room <= 0;
        END IF;
    END LOOP;
END
$$;

-- Has what is due wait, and what has expired wait for the dispatcher, which makes dead letters of it.
CREATE FUNCTION @schema@.promote() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, @schema@, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off AS $$
BEGIN
    IF EXISTS (SELECT FROM workitems WHERE state = 1 AND due <= now()) THEN
        UPDATE workitems SET state = 0, due = NULL, seq = nextval(pg_get_serial_sequence('@schema@.workitems', 'seq'))
            WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM workitems WHERE state = 1 AND due <= now() ORDER BY due LIMIT 1000
                FOR UPDATE SKIP LOCKED
            ));
    END IF;
    IF EXISTS (SELECT FROM workitems WHERE expires IS NOT NULL AND expires <= now() AND state = 0) THEN
        DELETE FROM workitems WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM workitems
            WHERE expires <= now() AND state = 0 AND (queue IN ('taskqueue.dead', 'taskqueue.dropped') OR is_reply(queue))
            LIMIT 1000 FOR UPDATE SKIP LOCKED
        ));
        INSERT INTO queues VALUES ('taskqueue.dropped', 0) ON CONFLICT DO NOTHING;
        WITH late AS (
            UPDATE workitems
            SET queue = 'taskqueue.dropped', expired_in = queue, expires = NULL, priority = 0,
                seq = nextval(pg_get_serial_sequence('@schema@.workitems', 'seq'))
            WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM workitems WHERE expires <= now() AND state = 0 LIMIT 1000 FOR UPDATE SKIP LOCKED
            ))
            RETURNING *
        )
        INSERT INTO history (
            seq, sent, ended, attempt, crashes, state, id, type, queue, reference, worker, error, result_type
        )
        SELECT seq, sent, now(), attempt, crashes, 'expired', id, type, expired_in, reference, '', 'expired', ''
        FROM late WHERE starts_with(expired_in, 'worker_');
    END IF;
END
$$;

-- Settles and claims: one statement, one commit.  Raises TQ001 where the lease is not this carrier's any more.
-- claims: objects with number, queue, room and after.  lent: a pair of number and items for each of them.
-- due: seconds until the next workitem is due; said where a claim left room.
CREATE FUNCTION @schema@.turn(
    me bigint, my_term integer, ends json, releases bigint[], sends json, bodies bytea, claims json, told text[],
    OUT counted json, OUT lent json, OUT lent_bodies bytea, OUT due double precision
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp AS $$
DECLARE
    want record;
    got record;
    found_all json[] := '{}';
BEGIN
    PERFORM FROM carriers WHERE id = me AND term = my_term FOR SHARE;  -- nobody adopts it meanwhile
    IF NOT FOUND THEN
        RAISE EXCEPTION 'carrier % has lost its lease', me USING ERRCODE = 'TQ001';
    END IF;
    IF ends IS NULL AND releases IS NULL AND sends IS NULL THEN
        -- With the server, a claim may be lost: then it is lent again, and the fence knows.
        PERFORM set_config('synchronous_commit', 'off', true);
    ELSE
        counted := to_json(settle(me, ends, releases, sends, bodies));
    END IF;
    lent_bodies := '';
    IF claims IS NOT NULL THEN
        FOR want IN SELECT * FROM json_to_recordset(claims) AS c (number integer, queue text, room integer, after json)
        LOOP
            got := claim(me, want.queue, want.room, want.after);
            found_all := found_all || json_build_array(want.number, got.items);
            lent_bodies := lent_bodies || got.bodies;
            IF cardinality(got.items) < want.room THEN
                due := (SELECT extract(epoch FROM min(w.due) - now()) FROM workitems w WHERE w.state = 1);
            END IF;
        END LOOP;
    END IF;
    lent := array_to_json(found_all);
    PERFORM pg_notify('@name@', queue) FROM unnest(told) AS queue;
END
$$;

-- A new carrier; the one that it was before, if it was one, is gone.
CREATE FUNCTION @schema@.register(host text, home text, pid integer, since bigint, heartrate double precision, former bigint)
RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp AS $$
DECLARE
    number bigint;
BEGIN
    PERFORM bury(id) FROM carriers WHERE id = former FOR UPDATE;
    INSERT INTO carriers (host, home, pid, since, heartrate) VALUES (host, home, pid, since, heartrate)
        RETURNING id INTO number;
    RETURN number;
END
$$;

-- After the connection was lost: takes up the lease with a new term, so that what is still on its way over the old
-- connection is refused.  Gives back what this carrier was lent and does not know of; says which of `held` is its own.
-- Null: the lease is lost.
CREATE FUNCTION @schema@.resume(me bigint, my_term integer, held bigint[]) RETURNS bigint[]
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp AS $$
BEGIN
    UPDATE carriers SET term = my_term, renewed = now() WHERE id = me AND term < my_term;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    UPDATE workitems SET state = 0, carrier = NULL WHERE state = 2 AND carrier = me AND seq <> ALL (held);
    RETURN ARRAY(SELECT seq FROM workitems WHERE seq = ANY (held) AND state = 2 AND carrier = me);
END
$$;

-- False: the lease is lost.
CREATE FUNCTION @schema@.renew(me bigint, my_term integer) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);  -- see `dead_carriers` for what a crash of the server means
    UPDATE carriers SET renewed = now() WHERE id = me AND term = my_term;
    RETURN FOUND;
END
$$;

-- Gives everything back that a carrier had, and forgets it.
CREATE FUNCTION @schema@.bury(dead bigint) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, @schema@, pg_temp AS $$
    UPDATE workitems SET state = 0, carrier = NULL WHERE state = 2 AND carrier = dead;
    DELETE FROM carriers WHERE id = dead
$$;

CREATE FUNCTION @schema@.leave(me bigint, my_term integer) RETURNS void
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
        SELECT id, host, pid FROM carriers
        WHERE id <> me AND (
            id = ANY (known_dead)
            OR greatest(renewed, pg_postmaster_start_time()) < now() - make_interval(secs => 2 * heartrate)
        )
        ORDER BY id FOR UPDATE SKIP LOCKED
    LOOP
        PERFORM bury(dead.id);
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
