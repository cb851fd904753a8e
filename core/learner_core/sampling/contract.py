"""Exceptions that say that an environment breaks its interface, told from those of its own affairs.

Needs an exception with its traceback. Gymnasium's wrappers stand around most environments, and meet a ``step`` that
returns four things before we do: they raise ValueError. An exception of a usual kind that gymnasium's wrappers raise
themselves, or that the call of ``reset`` or ``step`` raises before any line of the environment has run, is such a
mistake.
"""

from __future__ import annotations

from typing import Final

from ..plugins.containment import said

__all__ = ["RETURNS", "broken_contract"]

_KINDS: Final = (TypeError, ValueError, AssertionError)
#: Modules of gymnasium that check, or take apart, what an environment returned.
_CHECKS: Final = ("gymnasium.wrappers.", "gymnasium.utils.passive_env_checker", "gymnasium.core")
#: Where environments are called from.
_OURS: Final = ("learner_core.sampling.", "learner_core.config.")
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
    if not isinstance(error, _KINDS) or error.__traceback__ is None:
        return ""
    trace, method = error.__traceback__, "step"
    while True:
        name = trace.tb_frame.f_code.co_name
        method = "reset" if name in ("reset", "_begin", "_begin_anew", "_reset") else "step" if name == "step" else method
        if trace.tb_next is None:
            break
        trace = trace.tb_next
    module = str(trace.tb_frame.f_globals.get("__name__", ""))
    # Of ours a call that does not fit: reset(seed=...) of an environment that takes no seed.
    called = isinstance(error, TypeError) and "argument" in str(error) and module.startswith(_OURS)
    if not called and not module.startswith(_CHECKS):
        return ""
    if "argument" in str(error):
        return f"{_TAKES[method]}; calling it raised {said(error)}."
    rule, remedy = RETURNS[method]
    return f"{rule}; gymnasium, which checks that, raised {said(error)}. {remedy}"
