"""The worker process: how it is started, what it speaks with the carrier, and what it does with a workitem."""
