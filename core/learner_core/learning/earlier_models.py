"""Settings of networks as they were read when a run was saved, for a run that goes on.

Needs a ``model`` out of a file. What was saved before image layouts were asked about is read as it was built then, and
settings that nothing read are left out, as nothing reads them now. What is typed is not touched: there the same is
refused (``network_settings``, ``learner_core.maths.images``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import spaces
from ..maths.images import FLAT, byte_image, could_be_image, layouts_in_doubt
from ..spaces import AnySpace
from .network_settings import given

__all__ = ["as_it_was_built"]


def as_it_was_built(model: Mapping[str, Any], observation_space: AnySpace, action_space: AnySpace) -> dict[str, Any]:
    """The settings, complete and without those that are idle.

    Args:
        model: of the file.
        observation_space: of the module.
        action_space: of the module.

    Returns:
        Settings of the same network.
    """
    own = given(model)
    said = {key: "HWC" if byte_image(part) else FLAT for key, part in layouts_in_doubt(observation_space, own).items()}
    if "" in said:
        own["image_layout"] = said[""]
    elif said:
        own["image_layout"] = {**own.get("image_layout", {}), **said}
    hidden, filters = own.get("hidden"), own.get("conv_filters")
    if isinstance(hidden, (list, tuple)) and not hidden and not own.get("encoders"):
        own.pop("activation", None)
    if filters is not None and not filters and not any(map(could_be_image, spaces.parts(observation_space).values())):
        own.pop("conv_filters")
    if type(action_space).__name__ != "Box":
        own.pop("free_log_std", None)
    return own
