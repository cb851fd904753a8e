"""Every setting of every algorithm has an effect: a run whose numbers differ, or one that a user sees otherwise.

The second kind is in ``support.effects``, and ``test_settings_that_change_no_number`` runs it. Settings that an
algorithm has no use for are refused, which is an effect, too. A setting that is in no row fails
``test_no_setting_is_left_out``, and so does a row of a setting that there is not.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import learner_core as lc
from learner_core.errors import ConfigError
from learner_core_algorithms import APPOConfig, BCConfig, IMPALAConfig, PPOConfig, SACConfig
from learner_core_algorithms.ppo.learner import PPOLearner

from support import process_effects, setting_effects
from support.effects import EFFECTS, OF_BC
from support.told import make_wander

#: What fills the tables of effects.
FILLED_BY = (process_effects, setting_effects)
CONFIGS: dict[str, Any] = {
    "ppo": PPOConfig, "sac": SACConfig, "impala": IMPALAConfig, "appo": APPOConfig, "bc": BCConfig
}  # fmt: skip

#: Setting -> (another value, settings that both runs have besides).
EVERYWHERE: dict[str, tuple[Any, dict[str, Any]]] = {
    "env_config": ({"scale": 3.0}, {}),
    "evaluation_interval": (1, {}),
    "evaluation_num_episodes": (3, {"evaluation_interval": 1}),
    "evaluation_max_episode_steps": (2, {"evaluation_interval": 1}),
    "lr": (0.5, {}),
    "gamma": (0.5, {}),
    "model": ({"hidden": [5]}, {}),
    "num_env_runners": (2, {}),
    "num_envs_per_env_runner": (3, {}),
    "normalize_observations": (True, {}),
    "normalize_rewards": (True, {}),
    "num_epochs": (3, {}),
    "optimizer": ("sgd", {}),
    "precision": ("float64", {}),
    "grad_clip": (1e-3, {"optimizer": "sgd"}),
    "grad_clip_by": ("value", {"grad_clip": 1e-3, "optimizer": "sgd"}),
    "minibatch_size": (6, {}),
    "train_batch_size": (24, {}),
    "shuffle_batch_per_epoch": (False, {"shuffle_batch_per_epoch": True, "minibatch_size": 6}),
    "data_shards": (3, {"minibatch_size": 6}),
    "seed": (1, {}),
    "policies_to_train": ([], {}),
    "policy_settings": ({"default_policy": {"grad_clip": 1e-3}}, {"optimizer": "sgd"}),
    "rl_module_spec": (lc.RLModuleSpec(model={"hidden": [5]}), {}),
}


class Doubled(PPOLearner):
    """Twice the loss."""

    def compute_loss_for_module(self, **arguments: Any) -> Any:
        return 2.0 * super().compute_loss_for_module(**arguments)


RECURRENT = {"model": {"hidden": [3], "recurrent": "gru", "recurrent_size": 3}}
VTRACE = {
    "vtrace_clip_rho_threshold": (0.5, {}),
    "vtrace_clip_c_threshold": (0.5, {}),
    "vtrace_clip_pg_rho_threshold": (0.5, {}),
    "vf_loss_coeff": (2.0, {}),
    "entropy_coeff": (0.5, {}),
    "broadcast_interval": (3, {}),
    "circular_buffer_num_batches": (2, {"circular_buffer_num_batches": 1}),
    "circular_buffer_iterations_per_batch": (3, {}),
    "timesteps_per_iteration": (48, {}),
    "rollout_fragment_length": (3, {}),
    "burn_in": (2, RECURRENT),
}
#: Algorithm -> the same of its own settings, or of those that it needs other values for.
OWN: dict[str, dict[str, tuple[Any, dict[str, Any]]]] = {
    "ppo": {
        "lambda_": (0.1, {}),
        "clip_param": (0.01, {"lr": 0.1, "num_epochs": 3}),
        "use_critic": (False, {}),
        "vf_loss_coeff": (3.0, {}),
        "vf_clip_param": (0.01, {}),
        "vf_clip_range": (0.01, {"lr": 0.1, "num_epochs": 3}),
        "entropy_coeff": (0.5, {}),
        "use_kl_loss": (False, {}),
        "kl_coeff": (2.0, {}),
        "kl_target": (1e-9, {"lr": 0.1, "num_epochs": 3}),
        "target_kl": (1e-9, {"lr": 0.1, "num_epochs": 3}),
        "normalize_advantages": ("off", {}),
        "rollout_fragment_length": (4, {}),
        "max_seq_len": (3, {**RECURRENT, "max_seq_len": 6}),
        "burn_in": (2, {**RECURRENT, "max_seq_len": 6}),
        "learner_class": (Doubled, {}),
    },
    "sac": {
        "n_step": (3, {}),
        "timesteps_per_iteration": (20, {}),
        "buffer_capacity": (7, {}),
        "prioritized_replay": (True, {}),
        "priority_alpha": (0.1, {"prioritized_replay": True}),
        "priority_beta": (1.0, {"prioritized_replay": True}),
        "learning_starts": (8, {}),
        "updates_per_step": (2.0, {}),
        "actor_lr": (0.1, {}),
        "critic_lr": (0.1, {}),
        "alpha_lr": (0.1, {}),
        "initial_alpha": (0.1, {}),
        "target_entropy": (3.0, {}),
        "twin_q": (False, {}),
        "tau": (0.5, {}),
        "target_network_update_interval": (3, {"tau": 0.5}),
        "q_loss": ("huber", {}),
        "rollout_fragment_length": (3, {}),
        "minibatch_size": (4, {}),
        "train_batch_size": (6, {}),
        "shuffle_batch_per_epoch": (True, {"minibatch_size": 4, "num_epochs": 2}),
    },
    "impala": VTRACE,
    "appo": {
        **VTRACE,
        "clip_param": (0.01, {"lr": 0.1}),
        "tau": (0.5, {}),
        "target_network_update_freq": (1.5, {}),
        "use_kl_loss": (True, {}),
        "kl_coeff": (5.0, {"use_kl_loss": True}),
        "kl_target": (1e-9, {"use_kl_loss": True, "lr": 0.1}),
    },
    "bc": {
        "updates_per_iteration": (3, {}),
        "env_config": ({"scale": 3.0}, {"evaluation_interval": 1}),
        "num_envs_per_env_runner": (3, {"evaluation_interval": 1}),
        "input_path": ("other", {}),
    },
}

#: Settings of one algorithm whose effect is not in the numbers of its runs.
OWN_EFFECTS = {"bc": OF_BC}


def _rows() -> Iterator[tuple[str, str]]:
    for name, config in CONFIGS.items():
        for setting in config.settings():
            known = setting in OWN[name] or setting in EVERYWHERE
            if known and setting not in config.unused_settings and setting not in OWN_EFFECTS.get(name, {}):
                yield name, setting


def _row(name: str, setting: str) -> tuple[Any, dict[str, Any]]:
    return OWN[name].get(setting) or EVERYWHERE[setting]


def _config(name: str, backend: str, recording: Path, settings: dict[str, Any]) -> Any:
    config = CONFIGS[name]()
    base: dict[str, Any] = {
        "env": make_wander,
        "env_config": {"continuous": name == "sac"},
        "framework_name": backend,
        "compile": False,
        "model": {"hidden": [3]},
        "num_envs_per_env_runner": 2,
        "train_batch_size": 12,
    }
    if name == "ppo":
        base |= {"minibatch_size": None, "num_epochs": 1}
    if name == "sac":
        base |= {
            "learning_starts": 4,
            "timesteps_per_iteration": 12,
            "buffer_capacity": 40,
            "num_envs_per_env_runner": 1,
        }
    if name in ("impala", "appo"):
        base |= {"rollout_fragment_length": 6, "timesteps_per_iteration": 24}
    if name == "appo":
        base |= {"circular_buffer_num_batches": 1}
    if name == "bc":
        base |= {"input_path": str(recording), "updates_per_iteration": 2, "minibatch_size": None}
    for setting, value in {**base, **settings}.items():
        if setting == "env_config":
            value = {**base["env_config"], **value}
        if setting == "input_path" and value == "other":
            value = str(recording) + "-other"
        setattr(config, setting, value)
    return config


def _numbers(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(place, number) of what a run leaves, times left out."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key not in ("timers", "throughput"):
                yield from _numbers(value, f"{path}/{key}")
    elif isinstance(tree, (list, tuple)):
        for index, value in enumerate(tree):
            yield from _numbers(value, f"{path}/{index}")
    elif isinstance(tree, (np.ndarray, int, float)):
        array = np.ascontiguousarray(tree)
        yield path, (array.dtype.str, array.shape, zlib.crc32(array.tobytes()))


@functools.cache
def _left_by(name: str, backend: str, recording: Path, settings: str) -> dict[str, Any]:
    """What two iterations leave: results and weights."""
    with _config(name, backend, recording, _SETTINGS[settings]).build() as algo:
        results = [algo.train(), algo.train()]
        return dict(_numbers({"results": results, "weights": algo.learner_group.get_weights()}))


#: Settings by their text, because a cache takes no dicts.
_SETTINGS: dict[str, dict[str, Any]] = {}


def _run(name: str, backend: str, recording: Path, settings: dict[str, Any]) -> dict[str, Any]:
    text = repr(settings)
    _SETTINGS[text] = settings
    return _left_by(name, backend, recording, text)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recordings of the environment, made by hand."""
    path = tmp_path_factory.mktemp("recording") / "recording"
    rng = np.random.default_rng(0)
    for name in (path, Path(f"{path}-other")):
        columns = {"obs": rng.normal(size=(48, 2)).astype(np.float32), "actions": rng.integers(0, 2, 48)}
        lc.save_state(name, {"format": "learner_core/recording", "schema": 1, "columns": columns})
    return path


def test_no_setting_is_left_out() -> None:
    for name, config in CONFIGS.items():
        known = {*EVERYWHERE, *OWN[name], *EFFECTS, *config.unused_settings, *OWN_EFFECTS.get(name, {})}
        assert not set(config.settings()) - known - {"env"}, name
        assert not set(OWN[name]) - set(config.settings()), name
    assert not (set(EVERYWHERE) | set(EFFECTS)) - set(lc.AlgorithmConfig.settings())


def _marked() -> Iterator[Any]:
    """Every row in the long tier; in the fast tier three in eight, one of them on both backends."""
    for name, setting in _rows():
        place = zlib.crc32(f"{name}/{setting}".encode()) % 8
        mark = {0: pytest.mark.fast_on_torch, 4: pytest.mark.fast_on_torch, 1: ()}.get(place, pytest.mark.slow)
        yield pytest.param(name, setting, marks=mark)


@pytest.mark.parametrize(("name", "setting"), list(_marked()))
def test_a_setting_changes_the_run(training_backend_name: str, recording: Path, name: str, setting: str) -> None:
    value, both = _row(name, setting)
    base = _run(name, training_backend_name, recording, both)
    assert base != _run(name, training_backend_name, recording, {**both, setting: value})


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_run_is_a_function_of_its_settings(training_backend_name: str, recording: Path, name: str) -> None:
    """Else the numbers would differ whatever a setting does."""
    first = _left_by.__wrapped__(name, training_backend_name, recording, _known({}))
    assert first == _run(name, training_backend_name, recording, {})


def _known(settings: dict[str, Any]) -> str:
    _SETTINGS[repr(settings)] = settings
    return repr(settings)


@pytest.mark.parametrize(
    ("name", "setting"), [(name, setting) for name, config in CONFIGS.items() for setting in config.unused_settings]
)
def test_a_setting_without_a_use_is_refused(name: str, setting: str) -> None:
    config = CONFIGS[name]()
    item = config.settings()[setting]
    others = {"gamma": 0.5, "critic_observes": "all"}
    value = not item.default if isinstance(item.default, bool) else others.get(setting, 3)
    with pytest.raises(ConfigError, match=f"{setting}=.* would have no effect"):
        getattr(config, item.method)(**{item.keyword: value})
    assert setting not in [described.name for described in config.describe()]
    # A config of an earlier version may have it.
    data = config.to_dict()
    data["settings"][setting] = value
    assert getattr(lc.AlgorithmConfig.from_dict(data), setting) == item.default
