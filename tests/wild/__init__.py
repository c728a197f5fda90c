"""Wild calls: every public name, with valid, nearly valid and nonsense arguments.

`python tests/wild --calls 10000 --seed 0` makes the calls in worker processes. A call may return
anything and refuse anything; it must not end its process, run for more than 20 s, or fail with an
error that does not say which argument was wrong.
"""
