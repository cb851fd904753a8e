"""Exceptions that say that an environment breaks its interface, told from those of its own affairs.

Needs an exception with its traceback. Gymnasium's wrappers stand around most environments, and meet a ``step`` that
returns four things before we do: they raise ValueError. An exception of a usual kind that gymnasium's wrappers raise
themselves, or that the call of ``reset`` or ``step`` raises before any line of the environment has run, is such a
mistake (docs/decisions/environments.md).
"""

from __future__ import annotations

import traceback
from types import FrameType
from typing import Final

from ..plugins.containment import said

__all__ = ["RETURNS", "broken_contract"]

_KINDS: Final = (TypeError, ValueError, AssertionError, AttributeError)
#: Modules of gymnasium that check, or take apart, what an environment returned.
_CHECKS: Final = ("gymnasium.wrappers.", "gymnasium.utils.passive_env_checker", "gymnasium.core", "gymnasium.vector.")
#: Where environments are called from.
_OURS: Final = ("learner_core.sampling.", "learner_core.config.")
#: Functions, of ours too, in which an environment is asked for something -> what.
_METHODS: Final = {"step": "step", "reset": "reset", "_begin": "reset", "_reset": "reset"}
#: What each method returns, in words, and what to do where it does not.
RETURNS: Final = {
    "reset": ("reset() must return (observation, info)", "Return `observation, {}` where there is nothing to say."),
    "step": (
        "step() must return (observation, reward, terminated, truncated, info)",
        "Of one `done` flag: terminated says that the task has ended, truncated that time ran out.",
    ),
}
_TAKES: Final = {
    "reset": "reset() must take a seed and options: def reset(self, *, seed=None, options=None)",
    "step": "step() must take one action: def step(self, action)",
}


def broken_contract(error: Exception) -> str:
    """What an exception of ``reset`` or ``step`` says of a broken interface: the rule and the remedy.

    Args:
        error: What came out of the call.

    Returns:
        In words; "" if the exception is the environment's own affair.
    """
    if not isinstance(error, _KINDS):
        return ""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    while frames and _module(frames[-1]).startswith("numpy"):
        frames.pop()  # whoever called it is meant
    if not frames:
        return ""
    text, module = said(error), _module(frames[-1])
    asked = [frame.f_code.co_name for frame in frames if frame.f_code.co_name in _METHODS]
    method = "reset" if "reset()" in text or (asked and _METHODS[asked[-1]] == "reset") else "step"
    # Of ours a call that does not fit: reset(seed=...) of an environment that takes no seed.
    misfits = isinstance(error, TypeError) and "argument" in text
    if not module.startswith(_CHECKS) and not (misfits and module.startswith(_OURS)):
        return ""
    if misfits:
        return f"{_TAKES[method]}; calling it raised {text}."
    rule, remedy = RETURNS[method]
    return f"{rule}, as the spaces say; gymnasium, which takes that apart, raised {text}. {remedy}"


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))
