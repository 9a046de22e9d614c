"""Benchmarks: one question a module about a real `uproar serve`, asked in its line one.

Comes in: a name and a few sizes. Goes out: a `Report` with the figures, printed as a table or JSON
with the host block. The system runs in processes of its own; the generator is this process, its CPU
is measured like the system's, and a run that it limited says so. `python -m benchmarks`.
"""
