"""Runs the whole platform as processes on one machine, from a checkout.

    settings    UNDERSTUDY_LOCAL_*: ports, run directory, Redis servers, models
    models      where the weights are; what is missing is named before anything starts
    services    which processes there are, what each needs to know of the others (pure)
    processes   one child: spawn, readiness, end; it never outlives its parent
    supervisor  starts them in order, restarts what dies, stops them in reverse
    state       what the supervisor tells others, in one file
    platform    the caller's side: start a supervisor, watch it, stop it
    traces      the trace store and its renderers

The supervisor (`python -m understudy.local`) is one process without threads. Whoever started the
platform may go away; whatever ends the supervisor, kill -9 included, ends its children.
"""
