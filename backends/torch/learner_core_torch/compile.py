"""The whole training step as one compiled Torch graph.

``make_fx`` runs the step once on fake tensors and records every operation, autograd's backward pass included; inductor
compiles the record with a C++ wrapper. Nothing of Dynamo is involved: no guards are checked between steps and no
recompile limit is shared between learners. What depends on values cannot be recorded and raises, with file and line,
at build (docs/decisions/0003-torch-make-fx.md has the alternatives and their figures).
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from typing import Any

import torch

from learner_core.backend import Body

__all__ = ["CompiledLoop", "SplitLoop", "compile_pays_after"]

#: Minibatch steps after which compiling (10 to 30 s once) has paid for itself against 0.5 to 1 ms saved a step. Renting
#: until the rent equals the price costs at most twice the optimum, whatever the length of the run.
_BREAK_EVEN_STEPS = 20_000


def compile_pays_after(device: torch.device, config: Any) -> int | None:
    """Minibatch steps after which to compile; ``None`` where nothing here can compile for the device."""
    if device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        return None
    return _BREAK_EVEN_STEPS


class CompiledLoop:
    """Calls one compiled step per minibatch; what the step reads by index it gathers inside.

    Args:
        body: ``body(s, carry, inputs) -> carry``.
        example: carry and inputs with the shapes of every later call.
        device: where they live.
    """

    compiled = True

    def __init__(self, body: Body, example: tuple[dict[str, Any], dict[str, Any]], *, device: torch.device) -> None:
        carry, inputs = example
        self._carry_names = list(carry)
        self._input_names = list(inputs)
        num_carry = len(self._carry_names)

        def flat(step: torch.Tensor, *arrays: torch.Tensor) -> tuple[torch.Tensor, ...]:
            now = dict(zip(self._carry_names, arrays[:num_carry], strict=True))
            given = dict(zip(self._input_names, arrays[num_carry:], strict=True))
            out = body(step, now, given)
            return (step + 1, *(out[name].detach() for name in self._carry_names))

        zero = torch.zeros((), dtype=torch.int64, device=device)
        self._run = _compiled(flat, [zero, *carry.values(), *inputs.values()])
        self._zero = zero

    def __call__(self, carry: dict[str, Any], inputs: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
        fixed = [inputs[name] for name in self._input_names]
        state = [self._zero + start, *(carry[name] for name in self._carry_names)]
        run = self._run
        with torch.no_grad():
            for _ in range(start, stop):
                state = run(*state, *fixed)
        return dict(zip(self._carry_names, state[1:], strict=True))


class SplitLoop:
    """Calls two compiled halves per minibatch, with the sum over the learners between them.

    Args:
        gradient: ``gradient(s, carry, inputs) -> flat``.
        apply: ``apply(s, carry, inputs, flat) -> carry``.
        reduce: ``reduce(flat) -> flat``, not compiled.
        example, device: as for :class:`CompiledLoop`.
    """

    compiled = True

    def __init__(
        self,
        gradient: Callable[..., Any],
        apply: Callable[..., dict[str, Any]],
        reduce: Callable[[Any], Any],
        example: tuple[dict[str, Any], dict[str, Any]],
        *,
        device: torch.device,
    ) -> None:
        carry, inputs = example
        self._reduce = reduce
        self._carry_names = list(carry)
        self._input_names = list(inputs)
        num_carry = len(self._carry_names)

        def named(arrays: tuple[torch.Tensor, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
            return (
                dict(zip(self._carry_names, arrays[:num_carry], strict=True)),
                dict(zip(self._input_names, arrays[num_carry:], strict=True)),
            )

        def first(step: torch.Tensor, *arrays: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (gradient(step, *named(arrays)).detach(),)

        def second(step: torch.Tensor, flat: torch.Tensor, *arrays: torch.Tensor) -> tuple[torch.Tensor, ...]:
            out = apply(step, *named(arrays), flat)
            return (step + 1, *(out[name].detach() for name in self._carry_names))

        self._zero = torch.zeros((), dtype=torch.int64, device=device)
        arguments = [*carry.values(), *inputs.values()]
        self._first = _compiled(first, [self._zero, *arguments])
        with torch.no_grad():
            (flat,) = self._first(self._zero, *arguments)
        self._second = _compiled(second, [self._zero, flat, *arguments])

    def __call__(self, carry: dict[str, Any], inputs: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
        fixed = [inputs[name] for name in self._input_names]
        step, *state = [self._zero + start, *(carry[name] for name in self._carry_names)]
        with torch.no_grad():
            for _ in range(start, stop):
                (flat,) = self._first(step, *state, *fixed)
                step, *state = self._second(step, self._reduce(flat), *state, *fixed)
        return dict(zip(self._carry_names, state, strict=True))


def _compiled(function: Callable[..., Any], arguments: list[Any]) -> Callable[..., Any]:
    """The function as one inductor graph for arguments of these shapes."""
    from torch._inductor import config as inductor
    from torch.fx.experimental.proxy_tensor import make_fx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = make_fx(function, tracing_mode="fake")(*arguments)
        with inductor.patch(cpp_wrapper=arguments[0].device.type == "cpu"):
            run: Callable[..., Any] = torch._inductor.compile(graph, arguments)
            # Code is generated on the first call; let that happen here and not in somebody's first update.
            run(*arguments)
    return run
