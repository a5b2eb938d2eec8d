"""The worker manager: starts the carrier and the worker processes that the configuration wants, and replaces them.

It opens no payload, imports no plugin code, and has no connection.

pool         the loop: look, plan, act; what each signal does
children     carriers, and the processes of all of them
processes    worker processes: started, ready, ended, or failing
succession   what one version leaves to the next
carrier_end  one carrier as its manager sees it: what is said to it, and whether it answers
"""
