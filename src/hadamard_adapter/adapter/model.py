"""HadamardModel: the tuner that PEFT runs, from injection to merging."""

# PEFT's base class types every config as PeftConfig, and fixes more arguments of its hooks than it passes.
# pyright: reportIncompatibleMethodOverride=false, reportIncompatibleVariableOverride=false

import copy
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from hadamard_adapter.adapter.config import HadamardConfig
from hadamard_adapter.adapter.head_wrapper import HeadWrapper, wrap_head
from hadamard_adapter.adapter.heads import uncovered_parameters
from hadamard_adapter.adapter.labels import LabelSwitch, remember_labels
from hadamard_adapter.adapter.layers import HadamardLayer
from hadamard_adapter.adapter.mixed import mixed_batch, repeats_of
from hadamard_adapter.adapter.norm import HadamardNorm, is_norm
from hadamard_adapter.adapter.outputs import fit_outputs
from hadamard_adapter.adapter.projection import HadamardProjection
from hadamard_adapter.adapter.refuse import refuse_bypassed, refuse_unsupported
from hadamard_adapter.adapter.resolve import bias_switches, check_names, matches, resolve, turn_on_biases
from hadamard_adapter.adapter.undo import all_or_nothing
from hadamard_adapter.adapter.weighted import add_weighted
from hadamard_adapter.adapter.wrap import wrap_module
from hadamard_adapter.errors import AdapterError, SettingsError
from hadamard_adapter.offset_name import PREFIX

__all__ = ["HadamardModel"]


class HadamardModel(BaseTuner):
    """A model with Hadamard adapters: y = (1 + scale) ⊙ A + shift at each site, and tuned norms.

    Made by `peft.get_peft_model(model, HadamardConfig())`; everything that PEFT promises works on it.

    Source: Chen et al., CIKM 2023; huggingface/peft src/peft/tuners/tuners_utils.py, BaseTuner.

    Example:
        >>> from peft import get_peft_model
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> model = BertForSequenceClassification(BertConfig(num_hidden_layers=2, vocab_size=10))
        >>> type(get_peft_model(model, HadamardConfig(task_type="SEQ_CLS")).base_model).__name__
        'HadamardModel'
    """

    model: nn.Module
    peft_config: dict[str, HadamardConfig]
    prefix = "hadamard_"
    tuner_layer_cls = HadamardLayer

    def _prepare_adapter_config(
        self, peft_config: HadamardConfig, model_config: dict[str, Any]
    ) -> HadamardConfig:
        return peft_config  # all in _prepare_model, which knows the model

    def _prepare_model(self, peft_config: HadamardConfig, model: nn.Module) -> None:
        refuse_unsupported(model)
        is_saved = peft_config.is_resolved
        resolve(peft_config, model)
        remember_labels(peft_config, self._labels.own)
        # Each adapter has its own config: inject_adapter saw to that.
        name = next(key for key, config in self.peft_config.items() if config is peft_config)
        for head in peft_config.head_modules or ():
            wrap_head(model, head, name, peft_config, is_active=name in self.active_adapters)
        try:
            self._fit_outputs(name, peft_config)
        except SettingsError:
            if not is_saved:  # a saved head is loaded with its own number of outputs
                raise

    def _fit_outputs(self, adapter_name: str, config: HadamardConfig) -> None:
        """Gives an adapter with another number of labels than the base model as many outputs."""
        labels, n_labels = self._labels.own, len(config.id2label or ())
        if labels is None or n_labels in (0, len(labels["id2label"])):
            return
        heads: dict[str, Any] = {name: self.model.get_submodule(name) for name in config.head_modules or ()}
        copies = {name: head.modules_to_save[adapter_name] for name, head in heads.items()}
        fit_outputs(self.model, copies, n_labels)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Adds the layers and the head of an adapter; a config that served before is copied."""
        config = self.peft_config[adapter_name]
        is_shared = any(other is config for name, other in self.peft_config.items() if name != adapter_name)
        if config.inference_mode:  # what is loaded stays as it was saved, and the caller's object, as in PEFT
            config = copy.deepcopy(config) if is_shared else config
        elif is_shared or config.filled_in is not None:
            config = config.as_asked()
        self.peft_config[adapter_name] = config
        with config.filling(), all_or_nothing(model, adapter_name):
            super().inject_adapter(model, adapter_name, *args, **kwargs)
            check_names(config, model)
            if not any(layer.has_offsets(adapter_name) for layer in self._layers()):
                raise SettingsError(
                    "nothing to train: no module got a scale, a shift or norm offsets; set train_scale, "
                    "train_shift or norm_modules"
                )
            if not config.inference_mode and (lost := uncovered_parameters(model)):
                warnings.warn(_cannot_save(lost), stacklevel=2)
        self._labels.configs[adapter_name] = config
        first, *others = self._layers()
        for layer in others:  # one of them was the first, perhaps
            layer.linked_heads, layer.labels = (), None
        first.linked_heads, first.labels = list(self._heads()), self._labels
        first.show_labels()

    @staticmethod
    def _check_target_module_exists(config: HadamardConfig, key: str) -> object:
        found = matches(config, key, config.target_modules)  # where false, perhaps PEFT's word for "excluded"
        return found if found or not config.norm_modules else matches(config, key, config.norm_modules)

    def _create_and_replace(
        self,
        config: HadamardConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **_: Any,
    ) -> None:
        refuse_bypassed(parent, current_key)
        shift = config.train_shift
        has_shift = shift if isinstance(shift, bool) else bool(matches(config, current_key, shift))
        if isinstance(target, HadamardProjection):
            target.update_layer(adapter_name, config, has_shift)
        elif isinstance(target, HadamardNorm):
            target.update_layer(adapter_name, config)
        else:
            if matches(config, current_key, config.norm_modules) and not is_norm(target):
                raise SettingsError(
                    f"norm_modules: expected norms (a weight with one axis), received {current_key} "
                    f"({type(target).__name__})"
                )
            new = wrap_module(target, current_key, adapter_name, config, has_shift)
            if adapter_name not in self.active_adapters:
                new.requires_grad_(False)
            self._replace_module(parent, target_name, new, target)

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        if isinstance(child, HeadWrapper):  # PEFT would look for a weight, which a whole head does not have
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        first = next(self._layers(), None)  # there is one if transformers makes a tuner for each adapter
        self._labels = LabelSwitch(model) if first is None or first.labels is None else first.labels

    def _layers(self) -> Iterator[HadamardLayer]:
        return (module for module in self.model.modules() if isinstance(module, HadamardLayer))

    def _heads(self) -> Iterator[HeadWrapper]:
        return (module for module in self.model.modules() if isinstance(module, HeadWrapper))

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Offsets are made in float32; without autocast they take their base layer's dtype."""
        if autocast_adapter_dtype:
            return
        for layer in self._layers():
            for dictionary in (getattr(layer, name) for name in layer.adapter_layer_names):
                if adapter_name in dictionary:
                    dictionary[adapter_name].data = dictionary[adapter_name].data.to(layer.own_weight.dtype)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Makes one or several adapters active, with the labels of the first; what is frozen stays frozen.

        Raises:
            ValueError: There is no adapter of that name.
        """
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        missing = [name for name in names if name not in self.peft_config]
        if missing:
            raise ValueError(f"Adapter {missing[0]} not found; there are {sorted(self.peft_config)}")
        configs = self.peft_config.items()  # in a model of transformers also those of other methods
        frozen_adapters = {name for name, config in configs if getattr(config, "freeze_adapter", False)}
        frozen_heads = {name for name, config in configs if getattr(config, "freeze_head", False)}
        for module in self.model.modules():
            if isinstance(module, HadamardLayer):
                module.set_frozen(frozen_adapters)
            elif isinstance(module, HeadWrapper):
                module.set_frozen(frozen_heads)
        super().set_adapter(adapter_name, inference_mode=inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Deletes an adapter with its head and labels; if it was active, all layers get the same next one."""
        was_active = adapter_name in self.active_adapters
        super().delete_adapter(adapter_name)
        left = self.active_adapters or sorted(self.peft_config)[:1]
        if was_active and left:  # PEFT lets each layer choose its next one alone
            self.set_adapter(left)

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Folds adapters into the base weights, keeping copies; all or nothing.

        Raises:
            AdapterError: A shift would be lost, or a weight is another module's too.
            ValueError: With safe_merge, if a merged tensor is not finite. Either leaves the model as it was.
        """
        self._check_shifts(adapter_names)
        self._check_ties()
        merged_before = [(layer, list(layer.merged_adapters)) for layer in self._layers()]
        try:
            super().merge_adapter(adapter_names, safe_merge=safe_merge)
        except Exception:
            for layer, names in merged_before:
                if layer.merged_adapters != names:
                    layer.restore(names)
            raise

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        if merge:
            names = list(self.active_adapters if adapter_names is None else adapter_names)
            if any(set(names) - set(layer.merged_adapters) for layer in self._layers()):
                self.merge_adapter(adapter_names, safe_merge=safe_merge)
            turn_on_biases(self.model, self._switches_used())
        else:
            names = []
            for layer in self._layers():
                layer.restore([])
        self._labels.show(names)
        for head in self._heads():
            head.set_adapter(names)  # PEFT unloads the active copy, or without one the original
        super()._unload_and_optionally_merge(False, progressbar, safe_merge, adapter_names)
        if merge:
            self._untie()
        return self.model

    def _untie(self) -> None:
        """Has the config say that embeddings are no longer tied where an adapter had its own of one side."""
        model: Any = self.model
        if not getattr(getattr(model, "config", None), "tie_word_embeddings", False):
            return
        with suppress(NotImplementedError, AttributeError):  # a model without words, or without an output
            sides = [model.get_input_embeddings(), model.get_output_embeddings()]
            if None not in sides and len({side.weight.data_ptr() for side in sides}) > 1:
                model.config.tie_word_embeddings = False
                warnings.warn("embeddings of words are no longer tied after merging", stacklevel=4)

    def _projections(self) -> Iterator[tuple[str, HadamardProjection]]:
        for name, module in self.model.named_modules():
            if isinstance(module, HadamardProjection):
                yield name, module

    def _check_shifts(self, adapter_names: list[str] | None) -> None:
        names = self.active_adapters if adapter_names is None else adapter_names
        switches = bias_switches(self.model)
        lost = [key for key, m in self._projections() if m.has_lost_shift(names) and key not in switches]
        if lost:
            raise AdapterError(
                f"cannot merge: {lost[0]} and {len(lost) - 1} more have no bias to carry the trained shift, "
                "and the model's config has no switch for one; keep the adapter unmerged, or train with "
                "train_shift=False"
            )

    def _check_ties(self) -> None:
        owners = Counter(id(p) for module in self.model.modules() for p in module.parameters(recurse=False))
        for key, layer in self._projections():
            if any(owners[id(p)] > 1 for p in layer.get_base_layer().parameters(recurse=False)):
                raise AdapterError(
                    f"cannot merge: {key} shares its weight with another module, which would change too; "
                    "keep the adapter unmerged, or load the model with tie_word_embeddings=False"
                )

    def _switches_used(self) -> set[str]:
        switches = bias_switches(self.model)
        return {switches[key] for key, m in self._projections() if key in switches and m.gained_bias}

    def add_weighted_adapter(
        self,
        adapters: Sequence[str],
        weights: Sequence[float],
        adapter_name: str,
        head: str | None = None,
        *,
        combination_type: str = "linear",
        **kwargs: Any,
    ) -> None:
        """Adds an adapter whose offsets are the weighted sum of others' (see `weighted.add_weighted`).

        Raises:
            AdapterError: the adapters do not add, `combination_type` is another than "linear", or there is an
                argument of another one (`density`, …).
        """
        if combination_type != "linear":
            raise AdapterError(
                f"combination_type: expected 'linear' (offsets are vectors, and add), received "
                f"{combination_type!r}; leave it out"
            )
        if kwargs:
            raise AdapterError(f"{', '.join(kwargs)}: not of the linear combination; leave it out")
        self._labels.keep()
        add_weighted(self, adapters, weights, adapter_name, head)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        names = kwargs.get("adapter_names")
        if names is None:
            yield
            return
        with mixed_batch(self.model, names, list(self.peft_config), repeats_of(self.model, kwargs)):
            yield

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        lost = uncovered_parameters(model)
        if lost:
            raise AdapterError(_cannot_save(lost))
        for module in model.modules():
            if isinstance(module, HadamardLayer) and module.labels is not None:
                module.labels.keep()  # PEFT saves the config next
        return super()._get_adapter_state_dict(model, config, adapter_name, state_dict, *args, **kwargs)


def _cannot_save(lost: Sequence[str]) -> str:
    module = lost[0].removeprefix(PREFIX).replace(".base_layer.", ".").rpartition(".")[0]
    return (
        f"cannot save: the checkpoint lacks {lost[0]!r} (and {len(lost) - 1} more) and no saved module "
        f"covers it, so a reload would lose it; name its module in modules_to_save: {module!r}"
    )
