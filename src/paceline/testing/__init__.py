"""For tests of Paceline and of code that uses it: faults that are injected, not imagined.

`faults` hits a job's processes from outside; `sabotage` strikes at an exact point of a user's code, from within.
"""
