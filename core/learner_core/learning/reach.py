"""A loss that reaches none of its parameters trains nothing: found where a step is explored, refused in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from .context import StepContext
    from .learner import Learner

__all__ = ["gradients_that_reach"]


def gradients_that_reach(
    learner: Learner, context: StepContext, loss_fn: Callable[[Any], Any], trainable: Any
) -> tuple[dict[str, dict[str, Any]], Any]:
    """The learner's gradients; a loss that reaches no parameter that it is differentiated by is refused.

    Parts that are frozen on purpose are no mistake: frozen parameters are in no optimizer, and a loss of one optimizer
    among several may be made of ``self.module[...].frozen``.

    Raises:
        ConfigError: names module and loss.
    """
    backend = learner.backend
    backend.unreached = []
    try:
        gradients, aux = learner.compute_gradients(loss_fn, trainable)
        unreached = backend.unreached
    finally:
        backend.unreached = None
    for names in unreached:
        module_id = names[0][0]
        wanted = {name for _, name in names}
        groups = learner._build.groups[module_id]
        optimizer = next((name for name, own in groups.items() if len(groups) > 1 and wanted == {*own}), None)
        if optimizer is not None and module_id in context.frozen_views:
            continue
        loss = "loss" if optimizer is None else f"loss of optimizer {optimizer!r}"
        raise ConfigError(
            f"{type(learner).__name__}: the {loss} of module {module_id!r} reaches none of its parameters "
            f"({names[0][1]}, ...): it would train nothing. Compute it from fwd_out or self.module[...] without "
            "torch.inference_mode(), no_grad(), detach(), stop_gradient or numpy in between; freeze what is not to be "
            "trained, or leave its loss out"
        )
    return gradients, aux
