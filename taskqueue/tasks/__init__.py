"""Functions as tasks: a `TaskSpace` names them, and is itself the worker that calls them.

    space = TaskSpace("shop.mail")

    @space.task
    def send(order: int) -> str: ...

registered in the package's metadata as `'worker.plugins': ['default = shop.mail:space.factory']`; `default` is the name
of the queue that programs submit to.

options  what may be said of tasks
space    functions by name
calling  the worker that calls them
promise  what stands for the values of other tasks
"""

from taskqueue.tasks.calling import TaskContext, TaskWorker, current
from taskqueue.tasks.options import TaskOptions
from taskqueue.tasks.promise import Promise
from taskqueue.tasks.space import Task, TaskSpace, task_of

__all__ = ["Promise", "Task", "TaskContext", "TaskOptions", "TaskSpace", "TaskWorker", "current", "task_of"]
