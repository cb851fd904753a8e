"""What would train nothing, found where a step is explored and refused in words.

A loss that reaches none of its parameters; gradients of parameters that there are not, that are frozen or left out; and
an ``apply_gradients`` that never takes the optimizers' step, or takes it twice, of which the second alone would count.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...errors import ConfigError
from ...xp import Array, ArrayTree
from ..blueprint import ModulePlan
from .context import StepContext
from .hook_answers import refuse_others
from .hooks import LearnerHooks, LossFunction

__all__ = ["check_gradients", "gradients_that_reach", "refuse_unapplied"]


def gradients_that_reach(
    learner: LearnerHooks, context: StepContext, loss_fn: LossFunction, trainable: Mapping[str, Mapping[str, Array]]
) -> tuple[dict[str, dict[str, Array]], ArrayTree]:
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
        groups = context.blueprint.groups[module_id]
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


def check_gradients(
    hook: str, gradients: object, plans: Mapping[str, ModulePlan], params: Mapping[str, Mapping[str, Array]]
) -> None:
    """Refuse gradients that are not one of every parameter that an optimizer has, and no other.

    Args:
        hook: whose answer they are, for the message.
        gradients: what came; expected {module_id: {name: array}}.
        plans: module id -> its plan.
        params: module id -> name -> array, frozen ones too.

    Raises:
        ConfigError: names the first that is missing or of no use.
    """
    wanted = {mid: [n for one in plan.optimizers.values() for n in one.layout.names] for mid, plan in plans.items()}
    if not isinstance(gradients, Mapping) or not all(isinstance(arrays, Mapping) for arrays in gradients.values()):
        raise ConfigError(f"{hook}: expected gradients {{module_id: {{name: array}}}}, got {gradients!r:.100}")
    refuse_others(f"{hook}: gradients of", "rl_module", gradients, plans)
    for mid, names in wanted.items():
        given = gradients.get(mid, {})
        for name in given:
            if name in params[mid] and name not in names:
                raise ConfigError(
                    f"{hook}: a gradient of rl_module/{mid}/{name}, which no optimizer has: it is frozen, and nothing "
                    "would be applied"
                )
        refuse_others(f"{hook}: a gradient of", f"rl_module/{mid}", given, names)
        missing = [name for name in names if name not in given]
        if missing:
            what = "gradients are" if len(missing) == len(names) else f"gradient of {missing[0]!r} is"
            raise ConfigError(
                f"{hook}: the {what} missing for module {mid!r}, and its optimizers step with one of every parameter "
                "that they have: give zeros where nothing is to move, or register no optimizer for it"
            )


def refuse_unapplied(learner: LearnerHooks, plans: Mapping[str, ModulePlan], times: int) -> None:
    """Refuse an ``apply_gradients`` by the number of times that it has taken the optimizers' step."""
    if times == 1 or not any(plan.optimizers for plan in plans.values()):
        return
    what = "never takes the optimizers' step: nothing would be trained" if not times else "takes it more than once"
    raise ConfigError(
        f"{type(learner).__name__}.apply_gradients {what}. Call super().apply_gradients(gradients) once, with all of "
        "them; multi_agent(policies_to_train=[]) is how nothing is trained"
    )
