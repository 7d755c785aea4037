"""Model families: where a diffusers transformer attends to video, and how its tokens lie."""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from vidsparse.errors import UnsupportedPipelineError
from vidsparse.layout import VideoLayout
from vidsparse.pipelines.not_applicable import NOT_APPLICABLE

Models = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class FamilyCard:
    """What people want to know of a family before they use it.

    Attributes:
        sparsified: which attentions become sparse, and how tokens beside the video are treated.
        text: "none", "before", "after" the video, or what else shares its sequence.
        head_sizes: D of the released models.
        preset: the bundled preset to start from; None where none was made for it.
    """

    sparsified: str
    text: str
    head_sizes: tuple[int, ...]
    preset: str | None = None


class ModelFamily(ABC):
    """Transformers that share one structure; knows nothing of methods and kernels.

    To add a family: one file in ``pipelines`` with a subclass decorated by ``register``, and one
    test.

    Attributes:
        name: short name, as in file names and presets.
        models: diffusers class names of transformers, matched along the class hierarchy, and of
            the pipelines each is tested with. Names, not classes: no family imports its model
            before a pipeline of it exists.
        arguments: what the transformers' ``forward`` may be given; others are refused, since they
            may move tokens.
        reads: those that ``layout`` and the tracker cannot do without.
        card: for listings.
        time_rises: the transformer is told 1000 - t, so its time grows while noise falls.
        time_scale: the time the transformer is told for pure noise.
        cuts_padding: the processor builds no mask any more: calls that stay dense attend to the
            tokens that ``text_valid`` says are real, too.
    """

    name: ClassVar[str]
    models: ClassVar[Models]
    arguments: ClassVar[tuple[str, ...]]
    reads: ClassVar[tuple[str, ...]] = ("hidden_states", "timestep")
    card: ClassVar[FamilyCard]
    time_rises: ClassVar[bool] = False
    time_scale: ClassVar[float] = 1000.0
    cuts_padding: ClassVar[bool] = False

    @property
    def pipelines(self) -> tuple[str, ...]:
        """Class names of all its pipelines."""
        return tuple(name for names in self.models.values() for name in names)

    def matches(self, transformer: nn.Module) -> bool:
        """Say whether the transformer is one of this family."""
        names = {cls.__name__ for cls in type(transformer).__mro__}
        return not names.isdisjoint(self.models)

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

    def dense_reason(self, inputs: Mapping[str, Any]) -> str | None:
        """Say why a whole forward stays dense; None when it need not.

        Args:
            inputs: arguments of the transformer's ``forward`` by name.
        """
        return None

    def text_order(self, inputs: Mapping[str, Any]) -> Tensor | None:
        """Return the order that moves a text's padding behind its real tokens.

        ``text_valid`` counts in that order; calls with another ``call_layout`` are left as they
        are.

        Args:
            inputs: arguments of the transformer's ``forward`` by name.

        Returns:
            (B, text_after) int64 indices; None when nothing is to be moved.
        """
        return None

    def processor_body(self, processor: type) -> Callable[..., Any] | None:
        """Return what replaces a processor's ``__call__``; None keeps its own code.

        For processors whose code itself is in the way; it calls ``processors.swapped_attention``.
        """
        return None


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
    for cls in type(transformer).__mro__:
        if cls.__name__ in NOT_APPLICABLE:
            raise UnsupportedPipelineError(
                f"{cls.__name__} gains nothing from sparse attention: "
                f"{NOT_APPLICABLE[cls.__name__].why}"
            )
    known = ", ".join(name for family in families for name in family.models)
    raise UnsupportedPipelineError(
        f"{type(transformer).__name__} is not supported; supported transformers are {known} "
        "(vidsparse models lists their pipelines); to add a family, write one file like "
        "vidsparse/pipelines/wan.py with a ModelFamily decorated by @register"
    )


def diffusers_version() -> str:
    """Return the version of the diffusers that is running, for messages."""
    return str(importlib.import_module("diffusers").__version__)


def supported_pipelines() -> list[str]:
    """Return the class names of all pipelines the families are tested with."""
    return [name for family in available_families().values() for name in family.pipelines]
