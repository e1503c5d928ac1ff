"""Which of several processes is this one?"""

import os


def is_first_process() -> bool:
    """Say whether this process is the first of its run, before a trainer knows.

    Lightning's own launcher names the processes that it starts by `LOCAL_RANK` and leaves each node's first
    alone, which is told its node by `NODE_RANK`; torchrun and SLURM name all of them.
    """
    names = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return all(int(os.environ.get(name) or 0) == 0 for name in names)
