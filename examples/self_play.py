"""Self-play: a policy learns rock, paper, scissors against frozen snapshots of itself, taken as it goes on.

The opponent of every episode is the newest snapshot or one of the older ones; who plays which side changes from
episode to episode. A snapshot is a module that plays and does not learn.

Usage: python examples/self_play.py [torch|tf]
"""

import sys

import numpy as np

from learner_core_algorithms import PPOConfig

SNAPSHOTS = 2  # as many are kept; the oldest leaves when another comes


def sides(snapshots):
    """A mapping of agents: the learner plays one side, a snapshot the other."""

    def policy_mapping_fn(agent_id, episode):
        learner = f"player_{episode % 2}"
        opponent = snapshots[(episode // 2) % len(snapshots)]
        return "learner" if agent_id == learner else opponent

    return policy_mapping_fn


def main() -> None:
    backend = sys.argv[1] if len(sys.argv) > 1 else "torch"
    config = (
        PPOConfig()
        .environment("pettingzoo:classic/rps-v2", env_config={"num_actions": 3, "max_cycles": 15})
        .framework(backend, compile=False)
        .env_runners(num_envs_per_env_runner=8)
        .training(train_batch_size=128, minibatch_size=64, num_epochs=3, lr=3e-3, gamma=0.5, entropy_coeff=0.01)
        .rl_module(model={"hidden": [16]})
        .multi_agent(
            policies=["learner", "snapshot_0"],
            policies_to_train=["learner"],
            policy_mapping_fn=sides(["snapshot_0"]),
        )
        .debugging(seed=1)
    )
    snapshots = ["snapshot_0"]
    with config.build() as algo:
        for generation in range(1, 4):
            for _ in range(3):
                results = algo.train()
            returns = results["env_runners"]["module_episode_return_mean"]
            print(f"generation {generation}: against {len(snapshots)} snapshots {returns['learner']:.2f}")
            # The learner as it is now joins its opponents.
            snapshots = [*snapshots, f"snapshot_{generation}"]
            algo.add_module(module_id=snapshots[-1], like="learner", policy_mapping_fn=sides(snapshots))
            if len(snapshots) > SNAPSHOTS:
                oldest, *snapshots = snapshots
                algo.remove_module(oldest, policy_mapping_fn=sides(snapshots))
        weights = algo.learner_group.get_weights()
        same = all(np.array_equal(weights[snapshots[-1]][name], value) for name, value in weights["learner"].items())
        print(f"modules: {', '.join(weights)}; the newest is the learner: {same}")


if __name__ == "__main__":
    main()
