"""The steps of an update as one compiled Torch call.

``make_fx`` runs the step once on fake tensors and records every operation, autograd's backward pass included. On the
CPU a loop over the record is compiled and kept (loop_package.py); elsewhere, and where that fails, inductor compiles
the record alone. Nothing of Dynamo is involved: no guards are checked between steps and no recompile limit is shared
between learners. What depends on values cannot be recorded and raises, with file and line,
at build (docs/decisions/torch-update-loop.md has the alternatives and their figures).
"""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from learner_core.backend import ArrayDict, Body, Gradient, Reduce, RunSettings

from .loop_package import LoopPackage, use_trusted_inductor_cache

__all__ = ["CompiledLoop", "SplitLoop", "compile_pays_after"]

Compiled: TypeAlias = Callable[..., Sequence[torch.Tensor]]

#: Minibatch steps after which compiling (10 to 30 s once) has paid for itself against 0.5 to 1 ms saved a step. Renting
#: until the rent equals the price costs at most twice the optimum, whatever the length of the run.
_BREAK_EVEN_STEPS = 20_000


def compile_pays_after(device: torch.device, config: RunSettings) -> int | None:
    """Minibatch steps after which to compile; ``None`` where nothing here can compile for the device."""
    if device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        return None
    return _BREAK_EVEN_STEPS


class CompiledLoop:
    """The steps of an update, compiled: on the CPU the loop itself, elsewhere one call per minibatch.

    What a step reads by index it gathers inside. Where the loop cannot be compiled, the step still may be.

    Args:
        body: ``body(s, carry, inputs) -> carry``.
        example: carry and inputs with the shapes of every later call.
        device: where they live.
    """

    compiled = True

    def __init__(self, body: Body, example: tuple[ArrayDict, ArrayDict], *, device: torch.device) -> None:
        carry, inputs = example
        changed: list[str] = []

        def step(s: torch.Tensor, *arrays: torch.Tensor) -> tuple[torch.Tensor, ...]:
            now = dict(zip((*carry, *inputs), arrays, strict=True))
            before = {name: now[name] for name in carry}
            out = body(s, before, {name: now[name] for name in inputs})
            # What no step changes (frozen parameters, say) is an input of the loop and not carried through it.
            changed[:] = [name for name in carry if out[name] is not before[name]]
            return _apart([s + 1, *(out[name].detach() for name in changed)], arrays)

        zero = torch.zeros((), dtype=torch.int64, device=device)
        graph = _recorded(step, [zero, *carry.values(), *inputs.values()])
        self._carry_names = changed
        self._input_names = [name for name in (*carry, *inputs) if name not in changed]
        _order_inputs(graph, [*carry, *inputs], [*self._carry_names, *self._input_names])
        everything = {**carry, **inputs}
        arguments = [zero, *(everything[name] for name in (*self._carry_names, *self._input_names))]
        self._zero = zero
        self._package: LoopPackage | None = None
        self.fallback = ""
        if device.type == "cpu":
            try:
                self._package = LoopPackage(copy.deepcopy(graph), len(changed), arguments)
                return
            except Exception as error:
                self.fallback = f"{type(error).__name__}: {error}"
        self._run = _compiled(graph, arguments)

    def __call__(self, carry: ArrayDict, inputs: ArrayDict, start: int, stop: int) -> ArrayDict:
        everything = {**carry, **inputs}
        state = [everything[name] for name in self._carry_names]
        fixed = [everything[name] for name in self._input_names]
        if self._package is not None:
            state = self._package(start, stop, state, fixed)
        else:
            run, s = self._run, self._zero + start
            with torch.no_grad():
                for _ in range(start, stop):
                    s, *state = run(s, *state, *fixed)
        return {**carry, **dict(zip(self._carry_names, state, strict=True))}


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
        gradient: Gradient,
        apply: Body,
        reduce: Reduce,
        example: tuple[ArrayDict, ArrayDict],
        *,
        device: torch.device,
    ) -> None:
        carry, inputs = example
        self._reduce = reduce
        self._carry_names = list(carry)
        self._input_names = list(inputs)
        num_carry = len(self._carry_names)

        def named(arrays: tuple[torch.Tensor, ...]) -> tuple[ArrayDict, ArrayDict]:
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
        self._first = _compiled(_recorded(first, [self._zero, *arguments]), [self._zero, *arguments])
        with torch.no_grad():
            (flat,) = self._first(self._zero, *arguments)
        self._second = _compiled(_recorded(second, [self._zero, flat, *arguments]), [self._zero, flat, *arguments])

    def __call__(self, carry: ArrayDict, inputs: ArrayDict, start: int, stop: int) -> ArrayDict:
        fixed = [inputs[name] for name in self._input_names]
        step, *state = [self._zero + start, *(carry[name] for name in self._carry_names)]
        with torch.no_grad():
            for _ in range(start, stop):
                (flat,) = self._first(step, *state, *fixed)
                step, *state = self._second(step, self._reduce(flat), *state, *fixed)
        return dict(zip(self._carry_names, state, strict=True))


def _recorded(function: Compiled, arguments: list[torch.Tensor]) -> torch.fx.GraphModule:
    """The function's operations on arguments of these shapes."""
    from torch.fx.experimental.proxy_tensor import make_fx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph: torch.fx.GraphModule = make_fx(function, tracing_mode="fake")(*arguments)
        # A convolution may lay its output out differently when the record is traced again: what was a view of it must
        # then be a copy, and reshape is whichever it takes.
        for node in graph.graph.find_nodes(op="call_function", target=torch.ops.aten.view.default):
            node.target = torch.ops.aten.reshape.default
        graph.recompile()
    return graph


def _compiled(graph: torch.fx.GraphModule, arguments: list[torch.Tensor]) -> Compiled:
    """The graph by inductor, for arguments of these shapes."""
    from torch._inductor import config as inductor

    use_trusted_inductor_cache()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with inductor.patch(cpp_wrapper=arguments[0].device.type == "cpu"):
            run: Compiled = torch._inductor.compile(graph, [*arguments])
            # Code is generated on the first call; let that happen here and not in somebody's first update.
            run(*arguments)
    return run


def _apart(outputs: list[torch.Tensor], inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The outputs, copied where they share memory with an input or with one another: a loop must not carry such."""
    seen = {StorageWeakRef(array.untyped_storage()) for array in inputs}
    out = []
    for array in outputs:
        storage = StorageWeakRef(array.untyped_storage())
        out.append(array.clone() if storage in seen else array)
        seen.add(storage)
    return tuple(out)


def _order_inputs(graph: torch.fx.GraphModule, before: list[str], after: list[str]) -> None:
    """Reorder the inputs of a recorded step, all but the first, from the names' order ``before`` to ``after``."""
    first, *rest = [node for node in graph.graph.nodes if node.op == "placeholder"]
    nodes = dict(zip(before, rest, strict=True))
    place = first
    for name in after:
        place.append(nodes[name])
        place = nodes[name]
    graph.recompile()
