"""READMEs of the algorithms: settings and defaults are those of the code, each difference has a test of its rule."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

import learner_core_algorithms

from support.peer_defaults import RLLIB

ROOT = Path(__file__).resolve().parents[2]
ALGORITHMS = ("ppo", "appo", "impala", "sac", "bc")

#: Algorithm -> (how a difference begins, the test of the rule that it states).
DIFFERENCES = {
    "ppo": {
        "The early stop by `target_kl`": "shared/learning/test_ppo_loss.py::test_target_kl_stops_the_update",
        "The KL that moves `kl_coeff`": "shared/learning/test_ppo_loss.py::test_what_the_coefficient_is_steered_by",
        "With `vf_clip_range` the larger": "shared/learning/test_ppo_loss.py::test_against_numpy",
        "The standard deviation of advantages": (
            "shared/learning/test_ppo_loss.py::test_advantages_are_standardised_over_the_rows_that_count"
        ),
        "The last, short minibatch": "shared/learning/test_minibatches.py::test_mean_is_over_the_rows_of_the_minibatch",
        "Sequences of a recurrent policy": "core/sampling/test_fragments.py::test_a_lane_is_a_sequence",
        "The reward at a truncation": "shared/test_returns.py::test_gae_by_hand",
        "With `accumulate` > 1": (
            "shared/learning/test_minibatches.py::test_micro_batches_compute_what_the_minibatch_does"
        ),
    },
    "appo": {
        "The target network moves sixteen times": (
            "shared/learning/test_vtrace_losses.py::test_the_unit_of_the_frequency_is_that_of_rllib"
        ),
        "`kl_coeff` moves when the target": (
            "shared/learning/test_vtrace_losses.py::test_the_kl_coefficient_is_adapted_when_the_target_moves"
        ),
        "Any module can be trained": (
            "shared/learning/test_vtrace_losses.py::test_the_target_moves_every_so_many_updates"
        ),
        "`kl_coeff` and the position": "shared/algorithm/test_resume_every_step.py",
        "No use of a batch is lost": (
            "core/sampling/test_fragments.py::test_no_batch_is_used_too_often_and_none_is_lost"
        ),
    },
    "impala": {
        "A truncation inside a fragment": "shared/learning/test_vtrace_losses.py::test_by_hand",
        "A batch that a full queue drops": "group/test_queue_faults.py",
        "Every step of `num_env_steps": "shared/algorithm/test_asynchronous.py::test_every_step_is_learned_from_once",
        "Several learners compute": "shared/group/test_vtrace_equivalence.py::test_sequences_over_two_learners",
    },
    "sac": {
        "stable-baselines3 takes the alpha": "shared/learning/test_sac_loss.py::test_against_numpy",
        "The density of a squashed action": (
            "shared/test_distributions.py::test_squashed_logp_holds_where_tanh_has_rounded_to_one"
        ),
        "The first gradient step moves": (
            "shared/learning/test_sac_loss.py::test_targets_move_every_so_many_gradient_steps"
        ),
        "The replay buffer is part": "core/sampling/test_replay.py::test_state_restores_the_very_same_draws",
        "The networks start with torch's": "shared/test_networks.py::test_uniform_fan_in_fills_its_bounds",
    },
}


def _text(algorithm: str) -> str:
    return (ROOT / "plugins" / "learner_core_algorithms" / algorithm / "README.md").read_text()


def _bullets(algorithm: str) -> list[str]:
    part = _text(algorithm).partition("## Differences from others")[2].partition("\n## ")[0]
    return [" ".join(bullet.split()) for bullet in re.split(r"^- ", part, flags=re.M)[1:]]


@pytest.mark.parametrize("algorithm", DIFFERENCES)
def test_every_difference_has_a_test_that_exists(algorithm: str) -> None:
    named = DIFFERENCES[algorithm]
    for bullet in _bullets(algorithm):
        assert sum(bullet.startswith(start) for start in named) == 1, bullet
    assert len(_bullets(algorithm)) == len(named)
    for test in named.values():
        file, _, name = test.partition("::")
        tree = ast.parse((ROOT / "tests" / file).read_text())
        functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        assert name in functions if name else functions, test


def _tables(algorithm: str) -> list[tuple[list[str], list[list[str]]]]:
    """(header, rows) of every table."""
    found: list[tuple[list[str], list[list[str]]]] = []
    lines = _text(algorithm).splitlines()
    for number, line in enumerate(lines):
        if line.startswith("|---") and number:
            header = [cell.strip() for cell in lines[number - 1].strip("|").split("|")]
            rows = []
            for row in lines[number + 1 :]:
                if not row.startswith("|"):
                    break
                rows.append([cell.strip() for cell in row.strip("|").split(" | ")])
            found.append((header, rows))
    return found


def _config(algorithm: str) -> Any:
    name = {"bc": "BC"}.get(algorithm, algorithm.upper())
    return getattr(learner_core_algorithms, f"{name}Config")()


def _said() -> list[tuple[str, str, str]]:
    """(algorithm, setting, default as it is shown, or "")."""
    found = []
    for algorithm in ALGORITHMS:
        for header, rows in _tables(algorithm):
            for row in rows:
                if header[0] == "here":
                    named = re.findall(r"`(\w+)`(?: (\"?[\w.,\-]+\"?))?", row[0])
                    words = row[0].split("`")[1].split() if "`" in row[0] else []
                    found += [(algorithm, name, value.rstrip(",")) for name, value in named]
                    found += [(algorithm, name, "") for name in words if len(words) > 1 and name.isidentifier()]
                elif header[:2] == ["setting", "here"]:
                    found.append((algorithm, row[0].strip("`"), row[1]))
    return found


@pytest.mark.parametrize(("algorithm", "name", "shown"), _said())
def test_settings_and_defaults_are_those_of_the_code(algorithm: str, name: str, shown: str) -> None:
    config = _config(algorithm)
    if name in ("hidden", "vf_share_layers", "free_log_std"):
        return  # of the model: test_migrating has them
    assert name in config.settings(), name
    default = config.settings()[name].default
    if re.fullmatch(r"[\d.,e\-]+", shown) and isinstance(default, (int, float)):
        assert float(shown.replace(",", "")) == default
    elif shown in ("True", "False", "None") or shown.startswith('"'):
        assert str(default) == shown.strip('"')


@pytest.mark.parametrize(
    ("name", "rllib"), [(r[0].strip("`"), r[2]) for h, rows in _tables("ppo") if h[0] == "setting" for r in rows]
)
def test_the_figures_of_rllib_are_the_sourced_ones(name: str, rllib: str) -> None:
    sourced = RLLIB["PPO", name]
    same = rllib == sourced
    assert same or float(rllib) == float(sourced)


def test_there_is_much_to_check() -> None:
    assert len(_said()) > 40
