"""What kinds of state trees there are, and which call reads each: a file of another kind is named before it is refused.

Needs a tree. Looks at the names in it only, and refuses nothing by itself that it does not know.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..errors import StateError

__all__ = [
    "ALGORITHM",
    "ALGORITHM_FORMAT",
    "ALGORITHM_STATE",
    "LEARNER",
    "RECORDING_FORMAT",
    "WEIGHTS",
    "kind_of",
    "refuse_other_kinds",
]

ALGORITHM_FORMAT = "learner_core/algorithm"
RECORDING_FORMAT = "learner_core/recording"

ALGORITHM = "a checkpoint of an Algorithm"
ALGORITHM_STATE = "the state of an Algorithm"
LEARNER = "a learner's state"
WEIGHTS = "weights"

#: Kind -> which call reads it.
_READERS = {
    ALGORITHM: "Algorithm.restore and Algorithm.from_checkpoint read it; its part state/learner is a learner's state",
    ALGORITHM_STATE: "Algorithm.set_state takes it; its part learner is a learner's state",
    "the state of environment runners": "it is a part of an Algorithm's state, which Algorithm.set_state takes",
    "a recording": "offline algorithms read it: .training(input_path=...)",
    LEARNER: "load_state and set_state of a Learner or LearnerGroup take it",
    WEIGHTS: "set_module_state of a Learner and set_weights of a LearnerGroup take them",
    "weights of one module": "as {module_id: weights}, set_module_state and set_weights take them",
}


def kind_of(tree: object) -> str:
    """What a tree is, in words; "" where it is nothing that this library writes."""
    if not isinstance(tree, Mapping):
        return ""
    formats = {ALGORITHM_FORMAT: ALGORITHM, RECORDING_FORMAT: "a recording"}
    if isinstance(tree.get("format"), str) and tree["format"] in formats:
        return formats[tree["format"]]
    if "algorithm" in tree and "learner" in tree:
        return ALGORITHM_STATE
    if "rl_module" in tree or "optimizer" in tree:
        return LEARNER
    if ("local" in tree and "runners" in tree) or ("lanes" in tree and "num_envs" in tree):
        return "the state of environment runners"
    if tree and all(isinstance(value, np.ndarray) for value in tree.values()):
        return "weights of one module"
    inner = [value for value in tree.values() if isinstance(value, Mapping) and value]
    if inner and len(inner) == len(tree) and all(_is_arrays(value) for value in inner):
        return WEIGHTS
    return ""


def _is_arrays(tree: Mapping[object, object]) -> bool:
    return all(isinstance(value, np.ndarray | np.generic) for value in tree.values())


def refuse_other_kinds(tree: object, wanted: str, *, where: str = "this") -> None:
    """Refuse a tree that is of another known kind.

    Args:
        tree: what came.
        wanted: the kind that the caller takes.
        where: what to call it: the path of a file.

    Raises:
        StateError: says what it is, and which call reads it.
    """
    kind = kind_of(tree)
    if kind and kind != wanted:
        raise StateError(f"{where} is {kind}, not {wanted}: {_READERS[kind]}")
