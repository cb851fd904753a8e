"""Gradients by central differences. Needs float64 to be of any use; knows no stop_gradient."""

import numpy as np

from learner_core import numpy_xp
from learner_core.backend import Backend


def _copy(tree):
    return {k: _copy(v) for k, v in tree.items()} if isinstance(tree, dict) else np.array(tree)


class FiniteBackend(Backend):
    name = "finite"
    xp = numpy_xp

    def from_numpy(self, tree):
        return _copy(tree)

    def to_numpy(self, tree):
        return _copy(tree)

    def gradients(self, loss_fn, params, groups):
        def losses(tree):
            found = {mid: v if isinstance(v, dict) else {"": v} for mid, v in loss_fn(tree)[0].items()}
            return {(mid, name): float(value) for mid, named in found.items() for name, value in named.items()}

        step, point = 1e-5, _copy(params)
        gradients = {mid: {name: np.zeros_like(value) for name, value in tree.items()} for mid, tree in params.items()}
        owner = {(mid, name): opt for mid, opts in groups.items() for opt, names in opts.items() for name in names}
        for (mid, name), optimizer in owner.items():
            array, out = point[mid][name], gradients[mid][name]
            for index in np.ndindex(array.shape):
                middle, sides = array[index], []
                for offset in (step, -step):
                    array[index] = middle + offset
                    at = losses(point)
                    sides.append(at.get((mid, optimizer), at.get((mid, ""), 0.0)))
                array[index] = middle
                out[index] = (sides[0] - sides[1]) / (2 * step)
        return gradients, loss_fn(point)[1]
