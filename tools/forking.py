"""For tools that fork a process for each case: import everything first, and only once."""

import importlib

import torch

from aclam.commands.entry import COMMANDS

SIMULATION = ("aclam.sim.emoji_tabletop", "aclam.sim.benchmark")  # imported when they are used


def import_all(*more: str) -> None:
    """Import what the commands import, and `more`, so that a fork begins at once."""
    for module in (*COMMANDS.values(), *SIMULATION, *more):
        importlib.import_module(module)
    torch.set_num_threads(1)
