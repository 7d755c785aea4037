"""What the command line asks a method to do: its name, its density, its parameters."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from vidsparse.choices import check_impl, check_precision
from vidsparse.errors import UsageError
from vidsparse.method_text import read_value, split_method

if TYPE_CHECKING:
    import torch

    from vidsparse.api import Handle
    from vidsparse.methods.base import SparseMethod


@dataclass(frozen=True)
class SparseRequest:
    """A method with its options, before it meets a pipeline; None leaves a default.

    Attributes:
        label: how tables and pictures name it.
        method: name of the method; None when the preset names it.
        density: share of query-key pairs to keep, in (0, 1].
        preset: path of a preset file or name of a bundled one.
        dense_steps: share or count of steps that stay dense.
        dense_layers: share or count of layers that stay dense.
        impl: kernel implementation.
        precision: see ``vidsparse.precision``.
        parameters: fields of the method.
        force: use the preset although it is for another model.
    """

    label: str
    method: str | None
    density: float | None = None
    preset: str | None = None
    dense_steps: float | int | None = None
    dense_layers: float | int | None = None
    impl: str | None = None
    precision: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    force: bool = False

    def check(self) -> None:
        """Refuse what can be refused without a pipeline.

        Raises:
            UsageError: the method, a parameter or a value is unknown or out of range, a density
                would have no effect, or the preset is missing.
        """
        from vidsparse.config import SparseConfig
        from vidsparse.methods.base import build_method, check_given
        from vidsparse.schedule import DenseSchedule

        base = SparseConfig() if self.preset is None else SparseConfig.load(self.preset)
        given = {} if self.density is None else {"density": self.density}
        name = self.method or base.method
        kept = base.parameters if name == base.method else {}
        given = {**self.parameters, **given}
        check_given(build_method(name, {**kept, **given}), given)
        steps, layers = self.dense_steps, self.dense_layers
        DenseSchedule(0 if steps is None else steps, 0 if layers is None else layers)

    def check_device(self, device: "torch.device") -> None:
        """Refuse a kernel implementation that was asked for and cannot run on a device.

        Raises:
            UsageError: the implementation is unknown, or says why it cannot run.
        """
        from vidsparse.profiling.doctor import kernel_support

        impl = check_impl(self._impl())
        if impl == "auto":
            return
        row = next(row for row in kernel_support(device) if row.impl == impl)
        if not row.head_sizes:
            raise UsageError(f"impl {impl!r} cannot run on {device}: {'; '.join(row.why_not)}")

    def _impl(self) -> str:
        from vidsparse.config import SparseConfig

        if self.impl is not None:
            return self.impl
        return (SparseConfig() if self.preset is None else SparseConfig.load(self.preset)).impl

    def enable(
        self,
        pipe: Any,
        *,
        record_sites: bool = False,
        all_sparse: bool = False,
        instead: "SparseMethod | None" = None,
    ) -> "Handle":
        """Attach the method to a pipeline.

        Args:
            pipe: the pipeline.
            record_sites: see ``vidsparse.enable``.
            all_sparse: keep no step and layer dense, for warm-ups.
            instead: attached in place of the method, with all other options and the preset's.

        Raises:
            UnsupportedPipelineError: no model family knows the pipeline.
            UsageError: see ``check``.
        """
        import vidsparse

        return vidsparse.enable(
            pipe,
            self.method if instead is None else instead,
            density=self.density if instead is None else None,
            preset=self.preset,
            dense_steps=0 if all_sparse else self.dense_steps,
            dense_layers=0 if all_sparse else self.dense_layers,
            dense_above_sigma=1.0 if all_sparse else None,
            impl=self.impl,
            precision=self.precision,
            record_sites=record_sites,
            parameters=self.parameters if instead is None else None,
            force=self.force,
        )


def parse_method(text: str, shared: SparseRequest) -> SparseRequest:
    """Read ``name`` or ``name:key=value:key=value``.

    Args:
        text: what the user typed; it becomes the label. ``density``, ``dense_steps``,
            ``dense_layers`` and ``precision`` override the shared options, other keys are fields
            of the method.
        shared: options that hold for all methods of the command.

    Raises:
        UsageError: a pair has no ``=``, or a key is given twice.
    """
    name, pairs = split_method(text)
    own: dict[str, Any] = {
        key: _number(text, key, pairs.pop(key)) for key in _SHARED if key in pairs
    }
    if name == "dense":
        # Beside sparse methods it is the control: what they share does not ask it for anything.
        own.setdefault("density", None)
    precision = pairs.pop("precision", shared.precision)
    own["precision"] = None if precision is None else check_precision(str(precision))
    return replace(shared, label=text, method=name, parameters=pairs, **own)


_SHARED = ("density", "dense_steps", "dense_layers")


def parse_count_or_share(text: str | None, name: str) -> float | int | None:
    """Read ``3`` as a count and ``0.3`` as a share.

    Raises:
        UsageError: it is no number.
    """
    if text is None:
        return None
    value = read_value(text)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UsageError(f"{name} {text!r} must be a number: a count (3) or a share (0.2)")
    return value


def _number(text: str, key: str, value: Any) -> float | int:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UsageError(f"{text!r}: {key} must be a number, not {value!r}")
    return value
