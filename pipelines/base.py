"""Model families: where a diffusers transformer attends to video, and how its tokens lie."""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from torch import nn

from vidsparse.errors import UnsupportedPipelineError
from vidsparse.layout import VideoLayout


class ModelFamily(ABC):
    """Transformers that share one structure; knows nothing of methods and kernels.

    To add a family: one file in ``pipelines`` with a subclass decorated by ``register``, and one
    test.

    Attributes:
        name: short name, as in file names and presets.
        transformer_classes: diffusers class names, matched along the class hierarchy. Names, not
            classes: no family imports its model before a pipeline of it exists.
        pipelines: names of the pipelines this family is tested with, for messages and docs.
        time_rises: the transformer is told 1000 - t, so its time grows while noise falls.
    """

    name: ClassVar[str]
    transformer_classes: ClassVar[tuple[str, ...]]
    pipelines: ClassVar[tuple[str, ...]]
    time_rises: ClassVar[bool] = False

    def matches(self, transformer: nn.Module) -> bool:
        """Say whether the transformer is one of this family."""
        names = {cls.__name__ for cls in type(transformer).__mro__}
        return not names.isdisjoint(self.transformer_classes)

    @abstractmethod
    def self_attentions(self, transformer: nn.Module) -> list[nn.Module]:
        """Return the modules that attend from video to video, in order of execution."""

    @abstractmethod
    def layout(self, transformer: nn.Module, inputs: Mapping[str, Any]) -> VideoLayout:
        """Say where the tokens of a forward lie.

        Args:
            transformer: the model.
            inputs: arguments of its ``forward`` by name.

        Returns:
            The layout every self-attention of this forward sees, before ``call_layout``.
        """

    def call_layout(self, layout: VideoLayout, num_tokens: int) -> VideoLayout:
        """Return the layout of one attention call over ``num_tokens`` tokens.

        For families whose processor attends to one batch row at a time and drops its padding.
        """
        return layout


_FAMILIES: dict[str, ModelFamily] = {}
FamilyT = TypeVar("FamilyT", bound=type[ModelFamily])


def register(cls: FamilyT) -> FamilyT:
    """Make a family known under its ``name``; a class decorator."""
    _FAMILIES[cls.name] = cls()
    return cls


def available_families() -> dict[str, ModelFamily]:
    """Return every family by name, in alphabetical order."""
    package = importlib.import_module("vidsparse.pipelines")
    for module in pkgutil.iter_modules(package.__path__):
        # Test pipelines import all of diffusers.
        if module.name.startswith("testing"):
            continue
        importlib.import_module(f"vidsparse.pipelines.{module.name}")
    return dict(sorted(_FAMILIES.items()))


def family_of(transformer: nn.Module) -> ModelFamily:
    """Return the family of a transformer.

    Raises:
        UnsupportedPipelineError: no family knows its class.
    """
    families = available_families().values()
    for family in families:
        if family.matches(transformer):
            return family
    known = ", ".join(name for family in families for name in family.transformer_classes)
    raise UnsupportedPipelineError(
        f"{type(transformer).__name__} is not supported; supported transformers are {known} "
        f"(pipelines {', '.join(supported_pipelines())})"
    )


def supported_pipelines() -> list[str]:
    """Return the class names of all pipelines the families are tested with."""
    return [name for family in available_families().values() for name in family.pipelines]
