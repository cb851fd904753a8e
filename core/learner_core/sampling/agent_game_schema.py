"""What the saved state of a game of several agents must be.

Needs the players of the modules. Refuses, with the path, agents that are nowhere else in the state, and what their
module's spaces and memory do not allow.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..state.schema import COUNT, NUMBER, TEXT, Anything, Items, ListOf, OneOf, Record, Schema, refuse
from ..state.tree import Tree
from .agent_player import Player

__all__ = ["game_schema"]


def game_schema(players: Mapping[str, Player], num_copies: int) -> Record:
    """What ``AgentGame.set_state`` takes, of so many copies with these players."""
    copy = Record(
        {
            "number": COUNT,
            "return": NUMBER,
            "length": COUNT,
            "agents": ListOf(Items([TEXT, OneOf(tuple(players)), NUMBER, COUNT, Anything()])),
            "obs": ListOf(Items([TEXT, Anything()])),
            "allowed": ListOf(Items([TEXT, Anything()])),
            "waiting": ListOf(Items([TEXT, Anything()])),
        },
        optional=("waiting",),  # states from before turn-based games do not have it
        rule=lambda saved, path: _check_copy(saved, path, players),
    )
    fields: dict[str, Schema] = {
        "num_episodes": COUNT,
        "num_lost": COUNT,
        "agents": ListOf(TEXT),
        "copies": ListOf(copy, num_copies),
    }
    return Record(fields, rule=_check_ranks, what="running episodes")


def _check_ranks(state: Tree, path: str) -> None:
    """Every agent of a running episode has its place in the order of lanes."""
    known = list(state["agents"])
    if len(set(known)) != len(known):
        refuse(f"{path}/agents", "every agent once", repr(known)[:100])
    for index, copy in enumerate(state["copies"]):
        for name, *_ in copy["agents"]:
            if name not in known:
                refuse(f"{path}/copies/[{index}]/agents", f"agents among {known}"[:200], repr(name))


def _check_copy(copy: Tree, path: str, players: Mapping[str, Player]) -> None:
    """Of each agent the memory of its module; those that act next are shown what its observation space says."""
    modules = {name: module_id for name, module_id, *_ in copy["agents"]}
    for part in ("agents", "obs", "allowed", "waiting"):
        names = [entry[0] for entry in copy.get(part, ())]
        if len(set(names)) != len(names) or not set(names) <= set(modules):
            refuse(f"{path}/{part}", f"agents among {sorted(modules)}, each once"[:200], repr(names)[:100])
    if not copy["obs"]:
        refuse(f"{path}/obs", "at least one agent that acts next", "none")
    shown, allowed, waiting = dict(copy["obs"]), dict(copy["allowed"]), dict(copy.get("waiting", ()))
    if both := sorted(set(shown) & set(waiting)):
        refuse(f"{path}/waiting", "agents that do not act next", repr(both[0]))
    for index, (name, module_id, _, _, memory) in enumerate(copy["agents"]):
        fields = players[module_id].agent_schema().fields
        fields["memory"].check(memory, f"{path}/agents/[{index}]/[4]")
        if name in shown:
            fields["obs"].check(shown[name], f"{path}/obs/{name}")
            fields["allowed"].check(allowed.get(name), f"{path}/allowed/{name}")
        if name in waiting:
            fields["obs"].check(waiting[name], f"{path}/waiting/{name}")
