"""The layers that a backward pass runs through while a stage trains: checkpointed, compiled, their attention.

transformers' own gradient checkpointing asks whether a layer is in training mode, which would switch on the
dropout that the recipe leaves off, and some families (MPNet, ALBERT) lack it. Here the layers' forward
itself is checkpointed: backward computes a layer's activations again from its input, so that a batch keeps
one hidden state a layer (b, s, d) and the activations of one layer at a time.
"""

import contextlib
import functools
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from hadamard_adapter.adapter.base_model import base_model_of
from hadamard_adapter.adapter.families import layer_stacks
from hadamard_adapter.errors import SettingsError
from hadamard_adapter.tuning.prefix import frozen_prefix

__all__ = ["checkpointed", "compiled", "float32_attention", "trained_layers"]


def trained_layers(model: Any) -> list[nn.Module]:
    """The layers from the first one on in which something trains.

    Args:
        model: a transformers model of a known family, or a PEFT model around one, masks set.

    Example:
        >>> from peft import get_peft_model
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> from hadamard_adapter import HadamardConfig
        >>> base = BertForSequenceClassification(BertConfig(hidden_size=8, num_attention_heads=2))
        >>> model = get_peft_model(base, HadamardConfig(task_type="SEQ_CLS", layers_to_transform=[10]))
        >>> len(trained_layers(model))
        2
    """
    layers = [layer for stack in layer_stacks(base_model_of(model)) for layer in stack]
    is_trained = any(parameter.requires_grad for layer in layers for parameter in layer.parameters())
    return layers[len(frozen_prefix(model)[0]) :] if is_trained else []


@contextlib.contextmanager
def checkpointed(model: Any) -> Iterator[None]:
    """Within it backward computes these layers' activations again; a decoder keeps no keys and values.

    Results and gradients are the same as without, bit for bit.

    Args:
        model: PEFT model with the stage's masks set.

    Example:
        >>> with checkpointed(model):  # doctest: +SKIP
        ...     trainer.train()
    """
    base, layers = base_model_of(model), trained_layers(model)
    configs = {id(module.config): module.config for module in base.modules() if hasattr(module, "config")}
    before = [(config, config.use_cache) for config in configs.values() if hasattr(config, "use_cache")]
    try:
        for config, _ in before:  # T5's decoder has one of its own
            config.use_cache = False  # computing a layer again would append to the cache again
        with _called_by(_forward, layers):
            yield
    finally:
        for config, use_cache in before:
            config.use_cache = use_cache


@contextlib.contextmanager
def float32_attention(model: Any, dtype: str) -> Iterator[None]:
    """Within it fused attention of these layers is computed in float32 where the others' products are not.

    On a CPU PyTorch's backward pass of fused attention takes some nine times as long in bfloat16 as in
    float32 (45 against 5 ms, MiniLM, 32x30 tokens, PyTorch 2.13), longer than all products of a step. The
    inputs are those that autocast rounded, and the output is rounded as it would be. Around it stand
    `checkpointed` and `compiled`, not within.

    Args:
        model: PEFT model with the stage's masks set.
        dtype: type of products, "float32" or "bfloat16"; only the latter on a CPU has an effect.
    """
    layers = trained_layers(model) if dtype == "bfloat16" and model.device.type == "cpu" else []
    with _called_by(_with_float32_attention, layers):
        yield


class _Float32Attention(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is not scaled_dot_product_attention:
            return func(*args, **kwargs)
        query: Tensor = args[0] if args else kwargs["query"]
        with torch.autocast("cpu", enabled=False):
            found = func(*map(_widened, args), **{name: _widened(value) for name, value in kwargs.items()})
        return found.to(query.dtype)


def _with_float32_attention(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with _Float32Attention():
        return inner(*args, **kwargs)


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value


@contextlib.contextmanager
def compiled(model: Any) -> Iterator[None]:
    """Within it these layers run compiled by torch.compile, each by itself, for any length of rows.

    Results and gradients are the same as without up to rounding.

    Args:
        model: PEFT model with the stage's masks set.

    Raises:
        SettingsError: the model is on the CPU, where torch.compile needs a C++ compiler, and there is none.

    Example:
        >>> with compiled(model):  # doctest: +SKIP
        ...     trainer.train()
    """
    layers = trained_layers(model)
    if layers and model.device.type == "cpu" and shutil.which(_compiler()) is None:
        raise SettingsError(
            f"torch_compile: expected a C++ compiler on the CPU, found no {_compiler()!r}; install it, "
            "name another in the environment's CXX, or leave torch_compile out"
        )
    try:
        for layer in layers:
            layer.compile(dynamic=True)
        yield
    finally:
        for layer in layers:
            # What nn.Module.compile sets; there is no public way back.
            layer._compiled_call_impl = None  # pyright: ignore[reportPrivateUsage]
        if layers:
            torch.compiler.reset()


@contextlib.contextmanager
def _called_by(call: Callable[..., Any], layers: list[nn.Module]) -> Iterator[None]:
    """Within it a layer's forward is `call`, given the forward that it had and its arguments."""
    try:
        for layer in layers:
            layer.forward = functools.partial(call, layer.forward)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _forward(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def _compiler() -> str:
    """The one that torch.compile calls."""
    usual = {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")
    return os.environ.get("CXX", usual)
