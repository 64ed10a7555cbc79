"""Faults injected into real runs: `make torture`, whose page is `examples/torture.md`.

    kills.py        SIGKILL at writes of every stage, and at any time
    full_disk.py    a disk that is full at some write, or at some size
    folders.py      folders that are read-only or vanish, two runs, clocks, slow disks
    damage.py       files that are cut or have other bits
    bad_input.py    wrong calls, photographs and recipes, with what is said

Runs are forked from one process that has imported everything (`runs.py`); the system's
calls that write pass through `faults.c`, which is compiled where there is a compiler.
"""
