"""The HTTP server over a bank and its store.

The modules in here import FastAPI, pydantic and prometheus_client at their top, because their routes are made
of them; nothing outside imports them but `hadamard serve`, which first looks whether they are there.
"""
