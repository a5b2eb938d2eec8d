-- Workitems that their handlers end, in transactions of their own.

-- Ends a workitem that a carrier holds, with all that this implies, and with the transaction that it is called in.  Until
-- that is over, the row is locked; whoever else would change it passes by (`bury`, `report`, `whether_over`).
-- lease: the upper half of the carrier's term.  ending, sends, bodies, lanes: as those of `settle`.
CREATE FUNCTION @schema@.complete(
    me bigint, lease bigint, seq bigint, id text, ending jsonb, sends json, bodies bytea, lanes json, sender text,
    told text[]
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp @few@ AS $$
#variable_conflict use_column
DECLARE
    place tid;
    held boolean;
    settled record;
BEGIN
    PERFORM FROM workitems w
        WHERE w.id = complete.id AND w.seq = complete.seq AND (w.queue = 'taskqueue' OR starts_with(w.queue, 'worker_'))
        FOR UPDATE;
    SELECT w.ctid, w.carrier IS NOT DISTINCT FROM me AND EXISTS (
            SELECT FROM carriers c WHERE c.id = me AND c.term >> 32 = lease
        ) INTO place, held
        FROM workitems w
        WHERE w.id = complete.id AND w.seq = complete.seq AND (w.queue = 'taskqueue' OR starts_with(w.queue, 'worker_'));
    IF held IS NOT TRUE THEN
        RAISE EXCEPTION 'workitem % is not this worker process'' any more: it was completed before, or its carrier lost '
            'its lease, and somebody else has it or will', complete.id USING ERRCODE = 'TQ001';
    END IF;
    ending := jsonb_build_array(ending || jsonb_build_object('seq', complete.seq, 'place', place));
    settled := settle(me, NULL, ending::json, NULL, sends, bodies, lanes, sender, true);
    IF cardinality(told) > 0 THEN
        PERFORM pg_notify('@name@', queue) FROM unnest(told || settled.woken) AS queue;
    END IF;
END
$$;

-- What became of a workitem of this carrier whose handler may have ended it so: `over`; `held`: that transaction goes on;
-- `open`: nothing.  Null: the lease is lost.  woken: the queues in which there may be something because it is over.
CREATE FUNCTION @schema@.whether_over(
    me bigint, my_term bigint, seq bigint, id text, OUT what text, OUT woken json
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp @by_index@ AS $$
#variable_conflict use_column
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    PERFORM FROM carriers c WHERE c.id = me AND c.term = my_term FOR SHARE;  -- nobody adopts it meanwhile
    IF NOT FOUND THEN
        RETURN;
    END IF;
    PERFORM FROM workitems w
        WHERE w.id = whether_over.id AND w.seq = whether_over.seq
            AND (w.queue = 'taskqueue' OR starts_with(w.queue, 'worker_'))
        FOR NO KEY UPDATE SKIP LOCKED;
    IF FOUND THEN
        what := 'open';
    ELSIF EXISTS (
        SELECT FROM workitems w
        WHERE w.id = whether_over.id AND w.seq = whether_over.seq
            AND (w.queue = 'taskqueue' OR starts_with(w.queue, 'worker_'))
    ) THEN
        what := 'held';
    ELSE
        what := 'over';
        woken := array_to_json(doubts());
    END IF;
END
$$;

REVOKE ALL ON FUNCTION @schema@.complete, @schema@.whether_over FROM PUBLIC;
