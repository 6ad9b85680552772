"""``model.name auto``: which network a run trains, and its start, by the machine it runs on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from rmt.modeling.pretrained import uses_gpu
from rmt.modeling.registry import shipped_weights
from rmt.recipes import as_dict
from rmt.recipes.schema import AUTO, Recipe
from rmt.training.batch_size import with_batch_size
from rmt.weights.load import load

R = TypeVar("R", bound=Recipe)

#: The networks that ``auto`` chooses: one that a CPU trains in minutes, and the paper's smallest.
ON_CPU, ON_GPU = "rmt_nano", "rmt_t"


def with_model(recipe: R) -> tuple[R, str]:
    """Return a recipe with its network and its start named, and a sentence if ``auto`` chose them.

    A checkpoint decides on the network; without one the machine does. Where this package has
    weights of a network that ``auto`` chose, they are the start, unless ``model.pretrained`` is
    false.

    Raises:
        ValueError: if ``model.pretrained`` is true and this package has no weights of the network.
        FileNotFoundError: if there is no such checkpoint.
    """
    key, start = recipe.model.network, recipe.model.checkpoint
    name = getattr(recipe.model, key)
    if name != AUTO:
        return recipe.with_network(name, start or _own_weights(recipe, name, wanted=False)), ""
    if start:
        named = recipe.with_network(_network_of(start), start)
        name = getattr(named.model, key)
        return named, f"{name}{_size(recipe, named)}, because model.checkpoint {start} holds one"
    name, other, why = _by_machine(recipe.trainer.accelerator)
    start = _own_weights(recipe, name, wanted=True)
    named = recipe.with_network(name, start)
    how = f"with the weights {start}" if start else "from scratch"
    told = (
        f"{name} {how}{_size(recipe, named)}, because {why}; --model.{key} {other} chooses another"
    )
    return named, told + (", --model.pretrained false starts from scratch" if start else "")


def as_begun(recipe: R, before: Mapping[str, Any]) -> R:
    """Return a resumed run's recipe with what ``auto`` stood for when the run began.

    Args:
        recipe: to continue with.
        before: the recipe in the run's state.
    """
    if recipe.data.batch_size == "auto":
        recipe = with_batch_size(recipe, before["data"]["batch_size"])
    model, begun = recipe.model, before["model"]
    if getattr(model, model.network) != AUTO:
        return recipe
    return recipe.with_network(begun[model.network], model.checkpoint or begun["checkpoint"])


def _own_weights(recipe: Recipe, name: str, *, wanted: bool) -> str | None:
    """Return the weights in this package that a run starts from.

    Args:
        recipe: of the run, without a checkpoint.
        name: of the network.
        wanted: whether ``model.pretrained null`` means that they are the start.

    Raises:
        ValueError: if ``model.pretrained`` is true and there are none.
    """
    asked = recipe.model.pretrained
    found = shipped_weights(name) if asked or (wanted and asked is None) else None
    if asked and found is None:
        raise ValueError(
            f"model.pretrained is true, but no weights of {name} come with this package: set it to "
            f"false, or model.{recipe.model.network} to {ON_CPU}, or model.checkpoint to a file"
        )
    return found


def _by_machine(accelerator: str) -> tuple[str, str, str]:
    """Return the network for the machine, the other one, and the reason."""
    if uses_gpu(accelerator):
        return ON_GPU, ON_CPU, "this machine has a GPU"
    if accelerator == "cpu":
        return ON_CPU, ON_GPU, "trainer.accelerator is cpu"
    return ON_CPU, ON_GPU, "this machine has no NVIDIA or AMD GPU"


def _network_of(checkpoint: str) -> str:
    """Return the name of the network in a checkpoint, of a dense model that of its backbone."""
    config = load(checkpoint).config
    return config["model_args"].get("backbone", config["architecture"])


def _size(given: Recipe, named: Recipe) -> str:
    """Return which size of the images was chosen with the network, in words."""
    before, now = (as_dict(recipe)["data"].get("input_size") for recipe in (given, named))
    return "" if before == now else f" at {now} pixels"
