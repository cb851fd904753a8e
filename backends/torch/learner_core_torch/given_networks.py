"""What of Torch's own kinds of modules can be a network here, and words for those that cannot.

Needs what stood in ``module_class``. Refuses wrappers that run copies elsewhere, modules that cannot be run with other
parameters than their own, quantized layers, and parameters without values; each with what to give instead.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from learner_core.errors import ConfigError

__all__ = ["has_lazy_layers", "plain_network", "refuse_foreign"]

#: Wrappers that hold the network as ``module`` and run it on several devices or processes.
_PARALLEL = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel")
_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized", "torchao.quantization")


def refuse_foreign(source: object, name: str) -> None:
    """Refuse what is no module at all, but was made from one.

    Args:
        source: what stood in ``module_class``.
        name: the same in words.
    """
    if isinstance(source, torch.export.ExportedProgram):
        raise ConfigError(f"{name} is an exported program: give the nn.Module that it was exported from")


def plain_network(network: nn.Module, name: str) -> nn.Module:
    """The network that is to be trained: of one that ``torch.compile`` made, the module inside.

    Args:
        network: what was given, or what was made.
        name: the same in words.

    Raises:
        ConfigError: it cannot be run with parameters that it does not hold, or has none that learn.
    """
    inner = getattr(network, "_orig_mod", None)
    if isinstance(inner, nn.Module):
        return inner  # compiled here with the loss, as .framework(compile=) says
    for place, module in network.named_modules():
        kind = type(module)
        where = f"{name}: layer {place!r}" if place else name
        if isinstance(module, torch.jit.ScriptModule):
            raise ConfigError(f"{where} is a ScriptModule: give the nn.Module that it was made from")
        if kind.__module__.startswith("torch.") and kind.__name__ in _PARALLEL:
            raise ConfigError(
                f"{where} is a {kind.__name__}: give the network in it, its .module; several learners share the work "
                "by .learners(num_learners=N)"
            )
        if kind.__module__.startswith(_QUANTIZED):
            raise ConfigError(
                f"{where} is quantized ({kind.__module__}.{kind.__qualname__}), and its weights cannot be trained: "
                "give the network in float"
            )
    values = [*network.named_parameters(), *network.named_buffers()]
    for place, value in values:
        if value.device.type == "meta" and not is_lazy(value):
            raise ConfigError(
                f"{name}: {place!r} is on the device 'meta', so that it has no values: make the network on a real "
                "device, or give a function that makes it"
            )
    return network


def has_lazy_layers(network: nn.Module) -> bool:
    """Whether a layer waits for its first observations to know its sizes."""
    return any(is_lazy(value) for value in [*network.parameters(), *network.buffers()])
