"""What an adapter consists of, tensor by tensor: planned from a model's config, or read from a folder."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hadamard_adapter.errors import SettingsError
from hadamard_adapter.files import expanded
from hadamard_adapter.offset_name import KINDS, PREFIX, offset_name, split

__all__ = ["Anatomy", "Part", "build_on_meta", "plan_adapter", "read_adapter"]


@dataclass(frozen=True)
class Part:
    """One trained vector of an adapter."""

    layers: str
    """Path of the list of layers; of the module itself where it stands in none."""
    layer_index: int | None
    """Position in that list, from 0; None where the module stands in none."""
    path: str
    """Path of the module inside its layer."""
    kind: str
    """scale, shift, norm_weight or norm_bias."""
    size: int
    """Number of parameters."""
    mean_offset: float = 0.0
    """Mean absolute offset from the identity; 0 for an adapter that is only planned."""


@dataclass(frozen=True)
class Anatomy:
    """An adapter taken apart."""

    name: str
    """The model or the adapter's folder."""
    base: str
    """What is adapted: model type or base model."""
    parts: tuple[Part, ...]
    """Its vectors, in the model's order."""
    head: dict[str, int]
    """Module of the head -> number of its parameters."""
    n_model: int | None
    """Parameters of the whole model with its head; None where the base model's config is not at hand."""

    @property
    def n_adapter(self) -> int:
        """Number of parameters, the head left out (the paper's convention)."""
        return sum(part.size for part in self.parts)

    @property
    def n_head(self) -> int:
        """Number of the head's parameters."""
        return sum(self.head.values())


def build_on_meta(model: str, allow_remote_code: bool = False) -> Any:
    """The model of a config, without weights: as a classifier where its type has one.

    Args:
        model: a folder with a config.json, or a name on the hub.
        allow_remote_code: whether code that comes with the model may run.

    Raises:
        SettingsError: there is no such config, or it needs code that is not allowed.

    Example:
        >>> build_on_meta("bert-base-uncased").device.type  # doctest: +SKIP
        'meta'
    """
    import torch
    import transformers

    from hadamard_adapter.tuning.models import config_of

    config = config_of(model, allow_remote_code)
    classes = ("AutoModelForSequenceClassification", "AutoModelForImageClassification", "AutoModel")
    for name in classes:
        try:
            with torch.device("meta"):
                return getattr(transformers, name).from_config(config, trust_remote_code=allow_remote_code)
        except ValueError as error:
            if "nrecognized configuration class" not in str(error):
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise SettingsError(f"model {model!r}: its config makes no model ({reason})") from error
    raise SettingsError(f"model {model!r}: transformers has no model class for {config.model_type!r}")


def plan_adapter(
    name: str, model: Any, sites: Sequence[str], position: str, layers: Sequence[int] | None
) -> Anatomy:
    """What a tuning run would train, poolers included, by injecting it into a model on the meta device.

    Args:
        name: of the model, for the display.
        model: what `build_on_meta` returned; it is changed.
        sites: attention, ffn or both.
        position: output or input.
        layers: layers to adapt, from 0; None: all.

    Raises:
        SettingsError: the model's family is unknown, or it has no such layers.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> import torch
        >>> with torch.device("meta"):
        ...     bert = BertForSequenceClassification(BertConfig())
        >>> plan_adapter("bert", bert, ["attention"], "output", None).n_adapter
        36864
    """
    from peft import get_peft_model

    from hadamard_adapter import HadamardConfig
    from hadamard_adapter.tuning.workbench import poolers_of

    model_type, n_total = str(model.config.model_type), model.num_parameters()
    chosen = None if layers is None else list(layers)
    config = HadamardConfig(
        sites=list(sites),
        position=position,
        layers_to_transform=chosen,
        modules_to_save=poolers_of(model) or None,
    )
    trained = {k: p.numel() for k, p in get_peft_model(model, config).named_parameters() if p.requires_grad}
    offsets, others = split(trained)
    parts = [_part(key, size) for key, size in offsets.items()]
    head = _by_module((key.replace(".modules_to_save.default", ""), size) for key, size in others.items())
    return Anatomy(name, model_type, tuple(sorted(parts, key=_in_order)), head, n_total)


def read_adapter(folder: str, allow_remote_code: bool = False) -> Anatomy:
    """The adapter in a folder, from its safetensors file; no base weights are needed.

    Args:
        folder: made by `hadamard tune` or PEFT's `save_pretrained`.
        allow_remote_code: whether code that comes with the base model may run.

    Raises:
        AdapterError: another method's adapter, a pickle file, or one that is damaged or cannot be read.

    Example:
        >>> read_adapter("adapter").n_adapter  # doctest: +SKIP
        36864
    """
    from hadamard_adapter.tuning.folder import read_config
    from hadamard_adapter.tuning.weights import WEIGHTS, read_weights

    place = expanded(folder)
    config = read_config(place)
    offsets, others = split(read_weights(place / WEIGHTS))
    parts = tuple(_part(key, t.numel(), t.float().abs().mean().item()) for key, t in offsets.items())
    head = _by_module((key, tensor.numel()) for key, tensor in others.items())
    base = str(config.base_model_name_or_path)
    try:
        n_model = _n_without(build_on_meta(base, allow_remote_code), head) + sum(head.values())
    except SettingsError:
        n_model = None
    return Anatomy(folder, base, tuple(sorted(parts, key=_in_order)), head, n_model)


def _part(key: str, size: int, mean_offset: float = 0.0) -> Part:
    found = offset_name(key)
    assert found is not None
    return Part(*found, size, mean_offset)


def _in_order(part: Part) -> tuple[Any, ...]:
    is_norm = part.kind.startswith("norm")
    kind = KINDS.index(part.kind)
    return part.layer_index is None, part.layers, part.layer_index or 0, is_norm, part.path, kind


def _by_module(tensors: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Parameters of each module, by the module's name without PEFT's prefix and the tensor's own name."""
    sizes: dict[str, int] = {}
    for key, size in tensors:
        module = key.removeprefix(PREFIX).rpartition(".")[0]
        sizes[module] = sizes.get(module, 0) + size
    return sizes


def _n_without(model: Any, head: dict[str, int]) -> int:
    in_head = (p.numel() for key, p in model.named_parameters() if key.rpartition(".")[0] in head)
    return model.num_parameters() - sum(in_head)
