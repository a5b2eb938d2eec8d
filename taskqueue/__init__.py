"""taskqueue hands work to worker processes on one or many hosts."""
