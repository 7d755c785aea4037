"""The contract of a sparse attention method, and the registry that finds them."""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from vidsparse.errors import UsageError, did_you_mean
from vidsparse.kernels.block_sparse_attention import AttentionOutput
from vidsparse.layout import VideoLayout
from vidsparse.methods.parameters import check_kinds
from vidsparse.methods.state_size import tensor_bytes
from vidsparse.plan import AttentionPlan, CallSite


@dataclass(frozen=True)
class SearchRange:
    """Values ``tune`` may try for one parameter, from the least to the most work kept."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Phase:
    """Steps of a run whose calls do the same kind of work, for benches and charts.

    Attributes:
        name: for people.
        steps: ascending, from 0.
        searches: whether these calls find a new mask for the steps after them.
    """

    name: str
    steps: tuple[int, ...]
    searches: bool = False


@dataclass(frozen=True)
class SparseMethod(ABC):
    """Look at q, k, v and the layout, and say what to attend to.

    Subclasses are frozen dataclasses whose fields are the method's parameters; what changes
    between calls lives in the state, one per ``state_key`` and generation.

    To add a method: one file in ``vidsparse/methods`` with a subclass decorated by
    ``register``, and one test.

    Density means one thing everywhere: kept query-key pairs over all S x S pairs of a call,
    counted in tokens, text included and padding left out. What always stays (text, a first
    frame, own blocks, the best block of a row) is part of it, and a method refuses a density that
    this alone exceeds. A plan meets the request from above, by less than one block per head.
    Methods whose parameters set another aim, such as a share of the attention mass, say so, and
    their density follows from the video. Dense steps and layers are not part of it:
    ``Handle.summary`` gives the realised mean of the sparse calls as ``density`` and that of all
    calls, dense ones counting 1, as ``overall_density``.

    Attributes:
        density: requested share of query-key pairs, in (0, 1]; 1 is exact dense attention.
        compensate: let skipped blocks count through their mean key and value; no other method
            parameter changes with it, and neither do the kept blocks or the density.

    Raises:
        UsageError: a parameter is out of range.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]

    density: float = 0.3
    compensate: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise UsageError(f"density={self.density} must lie in (0, 1]; 1 is dense attention")
        if not isinstance(self.compensate, bool):
            raise UsageError(f"compensate={self.compensate!r} must be true or false")
        # Most methods let the user choose the size of blocks.
        blocks = getattr(self, "blocks", None)
        if blocks is not None and (len(blocks) != 2 or min(blocks) < 1):
            raise UsageError(f"blocks={blocks} must be two sizes of at least 1 token")

    def init_state(self) -> Any:
        """Return the state of one ``state_key`` for one generation; None for none."""
        return None

    def state_key(self, site: CallSite) -> Hashable:
        """Say which calls of a generation share a state: those of a layer and branch.

        Calls of other shapes, and the rows of a batch whose text has padding, never share one.
        """
        return site.transformer, site.layer, site.branch

    @abstractmethod
    def plan(
        self, q: Tensor, k: Tensor, v: Tensor, layout: VideoLayout, site: CallSite, state: Any
    ) -> AttentionPlan | None:
        """Decide one call.

        Args:
            q: (B, H, S, D) queries after position embedding, float16, bfloat16 or float32.
            k: (B, H, S, D) keys.
            v: (B, H, S, D) values.
            layout: where text and video lie in S; it holds no padding.
            site: layer, step and branch of the call.
            state: what ``init_state`` returned, kept for this ``state_key`` and generation.

        Returns:
            The plan, or None for a dense call.
        """

    def decide(
        self, q: Tensor, k: Tensor, v: Tensor, layout: VideoLayout, site: CallSite, state: Any
    ) -> AttentionPlan | None:
        """Plan one call and add what holds for all methods: compensation. Arguments as ``plan``."""
        plan = self.plan(q, k, v, layout, site, state)
        if plan is None or not self.compensate:
            return plan
        return replace(plan, compensate=True)

    def observe(  # noqa: B027 - optional: most methods learn nothing from the output
        self, output: AttentionOutput, plan: AttentionPlan, site: CallSite, state: Any
    ) -> None:
        """Learn from a call's output (log-sum-exp, block statistics).

        It is in the plan's order, but in natural order where ``plan.moved`` is not None.
        """

    def compare(  # noqa: B027 - optional: only plans with ``anchor`` ask for it
        self, exact: Tensor, out: Tensor, plan: AttentionPlan, site: CallSite, state: Any
    ) -> None:
        """Learn from a call's dense output beside the planned one, (B, H, S, D), natural order."""

    def state_bytes(self, state: Any) -> int:
        """Return the bytes of device and host memory that a state holds between calls."""
        return tensor_bytes(state)

    def phases(self, num_steps: int, first_step: int) -> tuple[Phase, ...]:
        """Split the sparse steps of a run by what their calls do; () where all do the same.

        Args:
            num_steps: steps of the run.
            first_step: the first one that is not dense by schedule.
        """
        return ()

    def at_density(self, density: float, *, of_layer: bool) -> "SparseMethod":
        """Return this method at another density.

        Args:
            density: kept share of query-key pairs, in (0, 1].
            of_layer: it is meant for one layer alone, so that a method that shares its density out
                among layers keeps all of it there.
        """
        return replace(self, density=density)

    def instead_of_density(self) -> str | None:
        """Name what leaves ``density`` without effect, for people; None where it has one."""
        return None

    def search_space(self) -> dict[str, SearchRange]:
        """Return the parameters ``tune`` may vary, by field name."""
        return {}


_METHODS: dict[str, type[SparseMethod]] = {}
MethodT = TypeVar("MethodT", bound=type[SparseMethod])


def register(cls: MethodT) -> MethodT:
    """Make a method known under its ``name``; a class decorator."""
    _METHODS[cls.name] = cls
    return cls


def available_methods() -> dict[str, type[SparseMethod]]:
    """Return every method by name, in alphabetical order."""
    package = importlib.import_module("vidsparse.methods")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"vidsparse.methods.{module.name}")
    return dict(sorted(_METHODS.items()))


def build_method(name: str, parameters: dict[str, Any]) -> SparseMethod:
    """Make a method from its name and parameters.

    Args:
        name: one of ``available_methods()``.
        parameters: field values; those not given keep their defaults.

    Raises:
        UsageError: the name or a parameter is unknown, or a value is of another kind or out of
            range.
    """
    methods = available_methods()
    if name not in methods:
        raise UsageError(
            f"unknown method {name!r}{did_you_mean(name, methods)}; "
            f"choose one of {', '.join(methods)}"
        )
    known = [parameter.name for parameter in fields(methods[name])]
    for key in parameters:
        if key not in known:
            raise UsageError(
                f"method {name!r} has no parameter {key!r}{did_you_mean(key, known)}; "
                f"it has {', '.join(known)}"
            )
    build: Callable[..., SparseMethod] = methods[name]
    return build(**check_kinds(name, methods[name], parameters))


def check_given(method: SparseMethod, given: Collection[str]) -> None:
    """Refuse a density that somebody asked for and the method would ignore.

    Args:
        method: the method with all its parameters.
        given: names of those that were asked for, rather than taken from a preset or default.

    Raises:
        UsageError: ``density`` is among them and has no effect.
    """
    instead = method.instead_of_density()
    if "density" in given and instead is not None:
        raise UsageError(
            f"density={method.density} has no effect on method {method.name!r} with {instead}; "
            f"{'leave it out' if method.name == 'dense' else 'give one of the two'}"
        )
