"""Real input: every file below /usr/share/doc, through everything."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pika
from installations import Installation
from system import System

TREE = Path("/usr/share/doc")


def test_every_file_below_usr_share_doc_gets_the_digest_that_sha256sum_gives(
    installation: Installation, amqp_url: str
) -> None:
    paths = sorted(str(path) for path in TREE.rglob("*") if path.is_file() and os.access(path, os.R_OK))
    assert paths
    with System(installation, amqp_url) as system:
        config = system.config("[DEFAULT]\nworkers = 0\n[filestat]\nworkers = 2\n")
        dispatcher, pool = system.dispatcher(config), system.workerpool(config, ready=2)
        system.wait_queue("taskqueue")

        with pika.BlockingConnection(pika.URLParameters(amqp_url)) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            for path in paths:
                body = json.dumps({"worker_type": "filestat", "workitem": path})
                properties = pika.BasicProperties(content_type="application/json", delivery_mode=2)
                channel.basic_publish("", "taskqueue", body, properties, mandatory=True)
        results = [message.value for message in system.collect("results", len(paths))]
        pool.stop()
        dispatcher.stop()

    output = subprocess.run(["sha256sum", "--zero", *paths], capture_output=True, check=True).stdout.decode()
    digests = {line[66:]: line[:64] for line in output.split("\0") if line}
    assert {result["path"]: result["sha256"] for result in results} == digests
    assert len(results) == len(paths)
    print(f"{len(paths)} files")
