-- How workitems come in.  Each function runs with its owner's rights, on its own schema only.

-- Notes down the queues and priorities that are sent to.  optional: only where the queue exists.
CREATE FUNCTION @schema@.know(lanes json) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, @schema@, pg_temp AS $$
    INSERT INTO queues (name, priority)
        SELECT l.queue, l.priority
        FROM json_to_recordset(lanes) AS l (queue text, priority smallint, optional boolean)
        WHERE NOT EXISTS (SELECT FROM queues q WHERE q.name = l.queue AND q.priority = l.priority)
            AND (l.optional IS NOT TRUE OR EXISTS (SELECT FROM queues q WHERE q.name = l.queue))
$$;

-- Stores workitems, their bodies cut out of `bodies`.  Whoever calls it says who is told.
-- lanes: the queues and priorities that occur.  sender: of those that don't say one.  delay, lifetime: seconds from now on.  optional: only where the queue
-- exists.  base: what depends on others gets the number of its inputs from it on, in order; what goes on has one.
CREATE FUNCTION @schema@.store(items json, bodies bytea, lanes json, sender text, base bigint DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, @schema@, pg_temp AS $$
BEGIN
    PERFORM know(lanes);
    INSERT INTO workitems (
        sent, due, expires, attempt, crashes, failures, state, priority, queue, id, type, task, reference, sender,
        content_type, properties, story, inputs, needs, failing, body
    )
        SELECT
            coalesce(to_timestamp(i.sent), now()),
            now() + make_interval(secs => i.delay),
            now() + make_interval(secs => coalesce(i.delay, 0) + i.lifetime),
            coalesce(i.attempt, 1), coalesce(i.crashes, 0), coalesce(i.failures, 0),
            CASE WHEN i.after IS NOT NULL THEN 3 WHEN i.delay IS NULL THEN 0 ELSE 1 END,
            coalesce(i.priority, 0), i.queue, i.id, coalesce(i.type, ''), coalesce(i.task, ''),
            nullif(i.reference, ''), coalesce(i.sender, store.sender), coalesce(i.content_type, ''),
            coalesce(i.properties, ''), coalesce(i.story, ''),
            CASE WHEN i.inputs IS NULL AND i.after IS NOT NULL THEN base + i.place ELSE i.inputs END,
            json_array_length(i.after), i.failing, substr(bodies, i.at + 1, i.size)
        FROM ROWS FROM (json_to_recordset(items) AS (
            sent double precision, delay double precision, lifetime double precision, attempt integer,
            crashes integer, failures integer, priority smallint, queue text, id text, type text, task text,
            reference text, sender text, content_type text, properties text, story text, optional boolean, inputs bigint,
            after json, failing text, at integer, size integer
        )) WITH ORDINALITY AS i (
            sent, delay, lifetime, attempt, crashes, failures, priority, queue, id, type, task, reference, sender,
            content_type, properties, story, optional, inputs, after, failing, at, size, place
        )
        WHERE i.optional IS NOT TRUE OR EXISTS (SELECT FROM queues q WHERE q.name = i.queue)
        ORDER BY i.place;
END
$$;

-- The same for those that have nothing out of the ordinary to be said of: a value of each in every column,
-- empty where there is none.  (A column whose only value is empty has no value at all.)
CREATE FUNCTION @schema@.store_columns(columns text[], bodies bytea, lanes json, sender text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, @schema@, pg_temp AS $$
BEGIN
    PERFORM know(lanes);
    INSERT INTO workitems (
        due, expires, state, priority, queue, id, type, task, reference, sender, content_type, properties, body
    )
        SELECT
            now() + make_interval(secs => nullif(c.delay, '')::double precision),
            now() + make_interval(
                secs => coalesce(nullif(c.delay, ''), '0')::double precision + nullif(c.lifetime, '')::double precision
            ),
            CASE WHEN c.delay <> '' THEN 1 ELSE 0 END, c.priority::smallint, c.queue, c.id, coalesce(c.type, ''),
            coalesce(c.task, ''), nullif(c.reference, ''), store_columns.sender, coalesce(c.content_type, ''),
            coalesce(c.properties, ''), substr(bodies, c.at::integer + 1, c.size::integer)
        FROM ROWS FROM (
            unnest(string_to_array(columns[1], E'\x1f')),
            unnest(string_to_array(columns[2], E'\x1f')),
            unnest(string_to_array(columns[3], E'\x1f')),
            unnest(string_to_array(columns[4], E'\x1f')),
            unnest(string_to_array(columns[5], E'\x1f')),
            unnest(string_to_array(columns[6], E'\x1f')),
            unnest(string_to_array(columns[7], E'\x1f')),
            unnest(string_to_array(columns[8], E'\x1f')),
            unnest(string_to_array(columns[9], E'\x1f')),
            unnest(string_to_array(columns[10], E'\x1f')),
            unnest(string_to_array(columns[11], E'\x1f')),
            unnest(string_to_array(columns[12], E'\x1f'))
        ) WITH ORDINALITY AS c (
            queue, id, type, task, content_type, properties, priority, reference, delay, lifetime, at, size, place
        )
        ORDER BY c.place;
END
$$;

-- Which database this is: what no other one has, but for its standbys.  (A hosted server may keep its own number secret.)
CREATE FUNCTION @schema@.identity() RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog AS $$
DECLARE
    server text := '';
BEGIN
    IF has_function_privilege('pg_control_system()', 'EXECUTE') THEN
        server := (SELECT system_identifier FROM pg_control_system());
    END IF;
    RETURN server || '.' || (SELECT oid FROM pg_database WHERE datname = current_database());
END
$$;

-- What programs of this project send by: `columns`, or else `items`.  told: the queues whose carriers are woken up.  here: the identity of the
-- database that is meant, where the connection is somebody else's.  sole: ids that no other work may have that is not over.
-- asked: what some of them depend on, and does not come earlier in the same transaction; NULL where none depends on any.
CREATE FUNCTION @schema@.put(
    columns text[], items json, bodies bytea, lanes json, sender text, told text[], asked text[] DEFAULT NULL,
    here text DEFAULT NULL, sole text[] DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp AS $$
DECLARE
    woken text[];
BEGIN
    IF here IS NOT NULL AND here <> identity() THEN  -- which takes as long as all the rest
        RAISE EXCEPTION 'database % is not the one that the URL names', current_database() USING ERRCODE = 'TQ003';
    END IF;
    IF sole IS NOT NULL THEN
        PERFORM refuse_others(sole);
    END IF;
    IF columns IS NOT NULL THEN
        PERFORM store_columns(columns, bodies, lanes, sender);
    ELSIF items IS NULL THEN
        NULL;  -- it is for those who are told
    ELSIF asked IS NULL THEN
        PERFORM store(items, bodies, lanes, sender);
    ELSE
        woken := bind(items, bodies, lanes, sender, asked);
    END IF;
    IF cardinality(told) > 0 THEN
        told := told || woken;
    END IF;
    PERFORM pg_notify('@name@', queue) FROM unnest(told) AS queue;
END
$$;

-- The same for one workitem, column by column: in a quarter of the time.  delay, lifetime: seconds from now on.  known: the
-- queue has this priority.  Without a search_path of its own, which costs as much as one of its statements: so all names
-- are whole.
CREATE FUNCTION @schema@.put_one(
    queue text, id text, type text, task text, content_type text, properties text, priority smallint, sender text,
    reference text, body bytea, delay double precision, lifetime double precision, known boolean, tell boolean
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    told pg_catalog.text;
BEGIN
    IF NOT known THEN  -- by itself, without a query, it costs nothing
        IF NOT EXISTS (
            SELECT FROM @schema@.queues q
            WHERE q.name OPERATOR(pg_catalog.=) put_one.queue AND q.priority OPERATOR(pg_catalog.=) put_one.priority
        ) THEN
            INSERT INTO @schema@.queues VALUES (queue, priority);
        END IF;
    END IF;
    INSERT INTO @schema@.workitems (
        due, expires, state, priority, queue, id, type, task, reference, sender, content_type, properties, body
    )
        VALUES (
            pg_catalog.now() OPERATOR(pg_catalog.+) pg_catalog.make_interval(secs => delay),
            pg_catalog.now() OPERATOR(pg_catalog.+)
                pg_catalog.make_interval(secs => COALESCE(delay, 0) OPERATOR(pg_catalog.+) lifetime),
            CASE WHEN delay IS NULL THEN 0 ELSE 1 END, priority, queue, id, type, task, reference, sender, content_type,
            properties, body
        );
    IF tell THEN
        told := pg_catalog.pg_notify('@name@', queue)::pg_catalog.text;  -- an assignment, which is no query either
    END IF;
END
$$;

-- What everybody else sends by:  SELECT taskqueue.send('invoice', '{"id": 7}', reference => 'order:4711')
CREATE FUNCTION @schema@.send(
    type text,
    body jsonb,
    reference text DEFAULT '',
    id text DEFAULT NULL,
    priority integer DEFAULT NULL,
    delay interval DEFAULT NULL,
    due timestamptz DEFAULT NULL,
    expiration interval DEFAULT NULL,
    headers jsonb DEFAULT NULL,
    correlation_id text DEFAULT NULL,
    reply_to text DEFAULT NULL,
    notify boolean DEFAULT true
) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp AS $$
DECLARE
    named text := coalesce(nullif(send.id, ''), replace(gen_random_uuid()::text, '-', ''));
    at timestamptz := coalesce(send.due, now() + send.delay);
    place text := 'worker_' || send.type;
    task text := CASE WHEN jsonb_typeof(send.headers->'task') = 'string' THEN send.headers->>'task' END;
    known jsonb := jsonb_strip_nulls(jsonb_build_object(
        'headers', send.headers,
        'correlation_id', nullif(send.correlation_id, ''),
        'reply_to', nullif(send.reply_to, ''),
        'priority', send.priority,
        'expiration', extract(epoch FROM send.expiration),
        'timestamp', floor(extract(epoch FROM now()))::bigint
    ));
BEGIN
    IF send.type IS NULL OR send.type !~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$' THEN
        RAISE EXCEPTION 'taskqueue.send: type %: expected up to 128 letters, digits, ".", "_" and "-", not beginning '
            'with one of the latter three', quote_nullable(send.type) USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF send.body IS NULL THEN
        RAISE EXCEPTION 'taskqueue.send: body: expected JSON; its null is ''null''' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    IF send.priority NOT BETWEEN 0 AND 255 THEN
        RAISE EXCEPTION 'taskqueue.send: priority %: expected 0 to 255', send.priority
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF send.delay IS NOT NULL AND send.due IS NOT NULL THEN
        RAISE EXCEPTION 'taskqueue.send: expected either delay or due' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF jsonb_typeof(send.headers) <> 'object' THEN
        RAISE EXCEPTION 'taskqueue.send: headers: expected a JSON object' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    INSERT INTO queues
        SELECT place, coalesce(send.priority, 0)
        WHERE NOT EXISTS (SELECT FROM queues q WHERE q.name = place AND q.priority = coalesce(send.priority, 0));
    INSERT INTO workitems (
        due, expires, state, priority, queue, id, type, task, reference, sender, content_type, properties, body
    )
        VALUES (
            CASE WHEN at > now() THEN at END, greatest(at, now()) + send.expiration, CASE WHEN at > now() THEN 1 ELSE 0 END,
            coalesce(send.priority, 0), place, named, send.type, CASE WHEN task ~ '^[[:alnum:]_.]{1,255}$' THEN task ELSE '' END,
            nullif(send.reference, ''),
            session_user || '@' || coalesce(host(inet_client_addr()), 'local') || ':' || pg_backend_pid(),
            'application/json', known::text, convert_to(send.body::text, 'UTF8')
        );
    IF send.notify THEN
        PERFORM pg_notify('@name@', place);
    END IF;
    RETURN named;
END
$$;

-- The same for many:  COPY taskqueue.outgoing (type, body, reference) FROM STDIN.  What is inserted here is sent.
CREATE VIEW @schema@.outgoing AS
    SELECT
        NULL::text AS type, NULL::jsonb AS body, NULL::text AS reference, NULL::text AS id, NULL::integer AS priority,
        NULL::interval AS delay, NULL::timestamptz AS due, NULL::interval AS expiration, NULL::jsonb AS headers,
        NULL::text AS correlation_id, NULL::text AS reply_to
    WHERE false;

CREATE FUNCTION @schema@.send_outgoing() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp AS $$
BEGIN
    NEW.id := send(
        NEW.type, NEW.body, NEW.reference, NEW.id, NEW.priority, NEW.delay, NEW.due, NEW.expiration, NEW.headers,
        NEW.correlation_id, NEW.reply_to
    );
    RETURN NEW;
END
$$;

CREATE TRIGGER send INSTEAD OF INSERT ON @schema@.outgoing
    FOR EACH ROW EXECUTE FUNCTION @schema@.send_outgoing();

CREATE FUNCTION @schema@.declare(queue text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM queues WHERE name = queue) THEN
        RETURN false;
    END IF;
    INSERT INTO queues VALUES (queue, 0);
    RETURN true;
END
$$;

CREATE FUNCTION @schema@.has(queue text) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp AS $$
    SELECT EXISTS (SELECT FROM queues WHERE name = queue)
$$;

-- Replies: a queue for each client that waits for some, for as long as it does; nothing else can be read by producers.

CREATE FUNCTION @schema@.is_reply(queue text) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT pg_catalog.starts_with(queue, 'taskqueue.reply.')
$$;

CREATE FUNCTION @schema@.await_replies(queue text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp AS $$
    INSERT INTO queues SELECT queue, 0 WHERE is_reply(queue) AND NOT EXISTS (SELECT FROM queues WHERE name = queue)
$$;

CREATE FUNCTION @schema@.take_replies(queue text, most integer, OUT items json, OUT bodies bytea)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp @by_index@ AS $$
BEGIN
    WITH taken AS (
        DELETE FROM workitems w WHERE w.ctid = ANY (ARRAY(
            SELECT r.ctid FROM workitems r
            WHERE r.state = 0 AND r.queue = take_replies.queue AND is_reply(r.queue)
            ORDER BY r.priority DESC, r.seq LIMIT most FOR UPDATE SKIP LOCKED
        ))
        RETURNING w.*
    )
    SELECT
        json_agg(json_build_array(
            t.seq, '', 0, length(t.body), t.id, t.type, t.reference, t.content_type, '', t.properties
        )),
        string_agg(t.body, '')
        INTO items, bodies
        FROM (SELECT * FROM taken ORDER BY seq) t;
    IF items IS NULL THEN
        PERFORM set_config('synchronous_commit', 'off', true);
    END IF;
END
$$;

CREATE FUNCTION @schema@.forget_replies(queue text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp AS $$
    DELETE FROM workitems w WHERE w.queue = forget_replies.queue AND w.state = 0 AND is_reply(w.queue);
    DELETE FROM queues WHERE name = forget_replies.queue AND is_reply(name)
$$;

-- Who may use the schema: the newest file that was applied, and the number that a program must know at least; and
-- where it is.
CREATE FUNCTION @schema@.version(OUT newest integer, OUT needs integer, OUT here text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp AS $$
    SELECT max(number), max(needs), identity() FROM versions
$$;
