"""Small learners and batches for the tests of the learning layer; imports no framework."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from gymnasium.spaces import Box, Discrete

import learner_core as lc
from learner_core.config.validation import FloatOrSchedule, Range
from learner_core.learning.rl_module import MultiRLModuleSpec, RLModule, RLModuleSpec

__all__ = [
    "OBS",
    "TWO_ACTIONS",
    "LinearModule",
    "ToyConfig",
    "ToyLearner",
    "assert_states_equal",
    "bc_batch",
    "build",
    "build_on_spaces",
    "flat_state",
    "ppo_batch",
    "regression_batch",
    "sac_batch",
    "skipping",
    "states_differ",
    "tiny",
    "two_modules",
]

OBS = Box(-np.inf, np.inf, (3,), np.float32)
TWO_ACTIONS = Discrete(2)


@dataclass(kw_only=True, repr=False, eq=False)
class ToyConfig(lc.AlgorithmConfig):
    """Settings of the toy regression: every kind of field that a step may see."""

    algorithm_name: ClassVar[str] = "toy"

    scale: Annotated[FloatOrSchedule, Range(0)] = 1.0
    """A float that may be scheduled."""

    shift: float = 0.0
    """A plain float."""

    power: Annotated[int, Range(1)] = 2
    """An int: static."""

    tau: float = 0.25
    """Share of the parameters in the target copy per step."""


class LinearModule(RLModule):
    """``vf_preds = w . obs + b`` and a second output ``q`` with a target copy."""

    targets: tuple[str, ...] = ("q.*",)

    def init(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {
            "v.weight": rng.normal(size=(1, 3)).astype(np.float32),
            "v.bias": rng.normal(size=(1,)).astype(np.float32),
            "q.weight": rng.normal(size=(1, 3)).astype(np.float32),
        }

    def init_buffers(self) -> dict[str, np.ndarray]:
        return {"calls": np.zeros((), np.float32)}

    def forward_train(self, params: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
        values = self.xp.linear(batch["obs"], params["v.weight"], params["v.bias"])
        return {"vf_preds": self.xp.squeeze(values, -1), "buffers": {"calls": params["calls"] + 1.0}}

    def q(self, params: Mapping[str, Any], obs: Any) -> Any:
        return self.xp.squeeze(self.xp.linear(obs, params["q.weight"]), -1)


class ToyLearner(lc.Learner):
    """Least squares of ``vf_preds`` and ``q`` by two optimizers, with every hook in use.

    vf:   mean(scale * alpha * |v - (value_targets + shift + kl)|^power), alpha trainable by a third loss
    q:    mean((q - q_target(obs) - noise)^2)
    """

    def build(self) -> None:
        for module_id in self.module_specs:
            self.register_variable(module_id=module_id, name="kl_coeff", value=0.25)
            self.register_variable(module_id=module_id, name="log_alpha", value=0.5, trainable=True)

    def configure_optimizers_for_module(self, module_id: str, config: Any) -> None:
        self.register_optimizer(
            module_id=module_id, optimizer_name="v", optimizer=lc.OptimizerSpec("adam"), params=["v.*"]
        )
        self.register_optimizer(
            module_id=module_id,
            optimizer_name="q",
            optimizer=lc.OptimizerSpec("sgd", momentum=0.9),
            params=["q.weight"],
            lr_or_lr_schedule=[[0, 0.1], [100, 0.0]],
        )
        self.register_optimizer(
            module_id=module_id,
            optimizer_name="alpha",
            optimizer=lc.OptimizerSpec("rmsprop"),
            params=["log_alpha"],
            lr_or_lr_schedule=0.01,
        )

    def compute_loss_for_module(self, *, module_id: str, config: Any, batch: Any, fwd_out: Any) -> Any:
        xp, module = self.xp, self.module[module_id]
        variables = self.variables[module_id]
        alpha = xp.exp(variables["log_alpha"])
        error = fwd_out["vf_preds"] - batch["value_targets"] - config.shift - variables["kl_coeff"]
        vf = self.mean(config.scale * xp.stop_gradient(alpha) * xp.square(error))
        noise = self.noise("q", ())
        q = self.mean(xp.square(module.q(batch["obs"]) - module.target.q(batch["obs"]) - noise))
        loss_alpha = self.mean(variables["log_alpha"] * xp.stop_gradient(error + 1.0))
        self.log("vf_loss", vf)
        self.log("rows_seen", self.mean(xp.ones_like(error)))
        return {"v": vf, "q": q, "alpha": loss_alpha}

    def after_step(self, *, module_id: str, params: dict[str, Any], targets: dict[str, Any], config: Any) -> None:
        for name, target in targets.items():
            targets[name] = config.tau * params[name] + (1.0 - config.tau) * target


def two_modules(names: tuple[str, ...] = ("left", "right"), module_class: type[RLModule] = LinearModule) -> Any:
    """A MultiRLModuleSpec of linear modules."""
    return MultiRLModuleSpec({name: RLModuleSpec(module_class, OBS, TWO_ACTIONS) for name in names})


def build(
    backend_name: str,
    learner_class: type = ToyLearner,
    *,
    compile: bool | None = False,
    precision: str = "float64",
    debug: bool = False,
    module_spec: Any = None,
    config: Any = None,
    **training: Any,
) -> Any:
    """A learner on tiny sizes: minibatches of 4, batches of 8, float64."""
    config = config or ToyConfig()
    settings = {"lr": 0.05, "minibatch_size": 4, "train_batch_size": 8, "num_epochs": 1, "grad_clip": None, **training}
    config.framework(backend_name, compile=compile, precision=precision, debug=debug).training(**settings)
    config.learners(learner_class=learner_class)
    spec = module_spec or RLModuleSpec(LinearModule, OBS, TWO_ACTIONS)
    return learner_class(config.freeze(), module_spec=spec)


def tiny(config: Any, backend_name: str, *, compile: bool | None = False, precision: str = "float64", **training: Any):
    """``config`` (PPO, SAC, BC) on tiny networks."""
    config.framework(backend_name, compile=compile, precision=precision)
    config.rl_module(model={"hidden": [6], "activation": "tanh"})
    settings = {"minibatch_size": 8, "train_batch_size": 16, "num_epochs": 1, **training}
    return config.training(**settings)


def regression_batch(rows: int, seed: int = 0, **columns: Any) -> dict[str, np.ndarray]:
    """Columns that the toy learner reads."""
    rng = np.random.default_rng(seed)
    obs = rng.normal(size=(rows, 3))
    return {"obs": obs, "value_targets": obs @ np.array([1.0, -2.0, 0.5]) + 0.3, **columns}


def ppo_batch(rows: int, action_space: Any, obs_size: int = 3, seed: int = 0, spread: float = 0.3) -> dict[str, Any]:
    """Columns of PPO, as an older policy would have left them."""
    rng = np.random.default_rng(seed)
    obs = rng.normal(size=(rows, obs_size))
    if isinstance(action_space, Discrete):
        logits = spread * rng.normal(size=(rows, int(action_space.n)))
        logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        index = np.array([rng.choice(len(p), p=p / p.sum()) for p in np.exp(logp)])
        actions, inputs, logp = index + int(action_space.start), logits, logp[np.arange(rows), index]
    else:
        size = int(np.prod(action_space.shape))
        mean, log_std = spread * rng.normal(size=(rows, size)), np.full((rows, size), -0.1)
        noise = rng.normal(size=(rows, size))
        actions = mean + np.exp(log_std) * noise
        inputs = np.concatenate([mean, log_std], -1)
        logp = (-0.5 * noise**2 - log_std - 0.5 * np.log(2 * np.pi)).sum(-1)
    values = rng.normal(size=rows)
    return {
        "obs": obs,
        "actions": actions,
        "action_logp": logp,
        "action_dist_inputs": inputs,
        "advantages": 2.0 * rng.normal(size=rows) + 0.5,
        "vf_preds": values,
        "value_targets": values + rng.normal(size=rows),
    }


def sac_batch(rows: int, num_actions: int = 2, obs_size: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    """Transitions for SAC on Box(-1, 1)."""
    rng = np.random.default_rng(seed)
    return {
        "obs": rng.normal(size=(rows, obs_size)),
        "actions": rng.uniform(-0.9, 0.9, size=(rows, num_actions)),
        "rewards": rng.normal(size=rows),
        "terminateds": np.arange(rows) % 3 == 1,
        "next_obs": rng.normal(size=(rows, obs_size)),
    }


def bc_batch(rows: int, num_actions: int = 2, obs_size: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    """Recorded observations and discrete actions."""
    rng = np.random.default_rng(seed)
    return {"obs": rng.normal(size=(rows, obs_size)), "actions": rng.integers(0, num_actions, rows)}


def flat_state(state: Any, prefix: str = "") -> dict[str, Any]:
    """{"a/b": leaf} of a state tree."""
    out: dict[str, Any] = {}
    for key, value in state.items():
        if isinstance(value, Mapping):
            out.update(flat_state(value, f"{prefix}{key}/"))
        else:
            out[f"{prefix}{key}"] = value
    return out


def states_differ(one: Any, other: Any) -> list[str]:
    """Paths at which two states are not equal to the last bit."""
    a, b = flat_state(one), flat_state(other)
    missing = sorted(set(a) ^ set(b))
    return missing + [
        path
        for path in sorted(set(a) & set(b))
        if np.asarray(a[path]).dtype != np.asarray(b[path]).dtype
        or np.asarray(a[path]).tobytes() != np.asarray(b[path]).tobytes()
    ]


def assert_states_equal(one: Any, other: Any, *, atol: float = 0.0, ignore: tuple[str, ...] = ()) -> None:
    """States with the same paths and the same values, to ``atol``."""
    a, b = flat_state(one), flat_state(other)
    assert sorted(a) == sorted(b)
    for path, value in a.items():
        if ignore and path.startswith(ignore):
            continue
        if isinstance(value, str):
            assert value == b[path], path
            continue
        np.testing.assert_allclose(
            np.asarray(value, np.float64), np.asarray(b[path], np.float64), rtol=0, atol=atol, err_msg=path
        )


def skipping(function: Any) -> Any:
    """``function()`` with the warning about skipped steps left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return function()


def build_on_spaces(config: Any, observation_space: Any, action_space: Any) -> Any:
    """The algorithm's own learner on two spaces, without an environment."""
    return config.environment(observation_space=observation_space, action_space=action_space).build_learner()
