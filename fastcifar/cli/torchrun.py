"""This process's place among those that a launcher started, by the environment alone: importing torch takes seconds."""

import os

# Launchers that start a program several times, by the variable that tells each process how many there are.
_LAUNCHERS = {"SLURM_NTASKS": "srun", "OMPI_COMM_WORLD_SIZE": "mpirun", "PMI_SIZE": "mpiexec"}


def process_rank() -> str:
    """This process's rank under torchrun; "0" without it."""
    return os.environ.get("RANK", "0") if os.environ.get("WORLD_SIZE", "1") != "1" else "0"


def command_prefix() -> list[str]:
    """The words before `train` in a command that starts as many processes as there are now."""
    size, local_size = os.environ.get("WORLD_SIZE", "1"), os.environ.get("LOCAL_WORLD_SIZE", "1")
    if size == "1":
        return ["fastcifar"]
    nodes = ["--nnodes", str(int(size) // int(local_size))] if size != local_size else []
    return ["torchrun", *nodes, "--nproc-per-node", local_size, "-m", "fastcifar"]


def launcher_hint() -> str:
    """What to do if a cluster's launcher started several processes that do not know of each other; empty otherwise."""
    for variable, launcher in _LAUNCHERS.items():
        num_tasks = os.environ.get(variable, "")
        if num_tasks.isdecimal() and int(num_tasks) > 1 and "WORLD_SIZE" not in os.environ:
            return (
                f"{variable} is {num_tasks}, but without torchrun each process trains a separate run: let {launcher} "
                "start one `torchrun --nproc-per-node GPUS -m fastcifar train ...` on each machine"
            )
    return ""
