"""Workers inside a program: `with taskqueue.running(queue, worker, processes=2):`, with no daemon and no server.

The program is the manager, in an event loop in one thread of its own.

running    the block, as the program's own threads see it
manager    what is in that event loop
apart      the carrier, where it is a process, and not in that event loop
processes  worker processes
threads    workers in threads of the program instead
place      where a worker process finds the worker
"""
