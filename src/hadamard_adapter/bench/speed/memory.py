"""Memory of a training step: how far a process grows beyond its loaded model, and what autograd keeps."""

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import set_seed

from hadamard_adapter.bench.speed.run import SpeedRun, settings_of
from hadamard_adapter.bench.speed.variants import VARIANTS
from hadamard_adapter.methods import METHODS, head_of, trained_counts
from hadamard_adapter.tasks import Task
from hadamard_adapter.tuning import TuneSettings
from hadamard_adapter.tuning.averaging import adamw
from hadamard_adapter.tuning.models import load_base, load_tokenizer, quiet_libraries
from hadamard_adapter.tuning.parts import parts_of
from hadamard_adapter.tuning.precision import autocast
from hadamard_adapter.tuning.report import forget_peak_memory, status_kb

__all__ = ["backward", "footprint", "random_batch", "saved_bytes"]

N_STEPS = 3


def footprint(run: SpeedRun, task: Task) -> dict[str, Any]:
    """Bytes that training steps take: the process beyond its loaded model, autograd's tensors, the result.

    The model is loaded and wrapped and has seen a few tokens, forward and backward, since what the libraries
    take once (60 MB here) is no variant's. Then the kernel's high-water mark is set back to what the process
    holds, so that the peak of loading is not taken for one of training; then come three steps of AdamW, with
    the mean of the weights where the variant keeps one, on `value` tokens a row. None where the kernel does
    not tell (not Linux).

    Args:
        run: of purpose "memory".
        task: gives the head.
    """
    row, settings = VARIANTS[run.variant], settings_of(run)
    with quiet_libraries(), contextlib.ExitStack() as while_training:
        set_seed(run.seed)
        tokenizer = load_tokenizer(run.model)
        base = load_base(run.model, task, tokenizer.pad_token_id)
        head = head_of(base)
        model = METHODS[row.method].make(base, head)
        batch = random_batch(model, task, run.task.batch_size, run.value)
        small = {name: value[:2] if name == "labels" else value[:2, :4] for name, value in batch.items()}
        while_training.enter_context(row.path.ready(model, small, settings))
        backward(model, small, settings)
        model.zero_grad()
        forget_peak_memory()
        loaded = status_kb("VmRSS")
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = adamw(trained, settings.average, lr=1e-6)
        for _ in range(N_STEPS):
            backward(model, batch, settings)
            optimizer.step()
            optimizer.zero_grad()
        peak = status_kb("VmHWM")
        with autocast(torch.device("cpu"), settings.dtype):
            largest = parts_of(batch, settings.micro_batch_tokens, is_few=True)[0]
            saved = saved_bytes(model, largest)
        n_trained, n_head = trained_counts(model, head)
        return {
            "loaded_bytes": None if loaded is None else 1024 * loaded,
            "peak_bytes": None if loaded is None or peak is None else 1024 * max(0, peak - loaded),
            "saved_bytes": saved,
            "result_bytes": _result_bytes(model),
            "trained_parameters": n_trained,
            "head_parameters": n_head,
        }


def backward(model: Any, batch: dict[str, Tensor], settings: TuneSettings) -> None:
    """Add the gradients of a batch's mean loss to those that are there, on a processor, as settings say.

    Args:
        model: in the state it trains in.
        batch: model inputs with "labels".
        settings: give the type of products, and how many tokens are computed at once.
    """
    for part in parts_of(batch, settings.micro_batch_tokens, is_few=True):
        with autocast(torch.device("cpu"), settings.dtype):
            loss = model(**part).loss
        (loss * len(part["labels"]) / len(batch["labels"])).backward()


def saved_bytes(model: Any, batch: dict[str, Tensor]) -> int:
    """Bytes of the tensors that autograd keeps from a forward pass, each once, parameters left out.

    Args:
        model: in the state it trains in.
        batch: model inputs with "labels".

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> model = BertForSequenceClassification(BertConfig(num_hidden_layers=1, vocab_size=9))
        >>> batch = {"input_ids": torch.ones(1, 2).long(), "labels": torch.tensor([0])}
        >>> saved_bytes(model.requires_grad_(False), batch)
        0
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**batch).loss  # kept until all is counted, so that no address is used twice
    del loss
    return sum(found.values())


def random_batch(model: Any, task: Task, n_rows: int, n_tokens: int) -> dict[str, Tensor]:
    """Random tokens without padding."""
    ids = torch.randint(5, model.config.vocab_size, (n_rows, n_tokens))
    n_labels = len(task.label_names)
    is_classes = task.problem_type == "single_label_classification"
    shape = (n_rows, n_labels) if task.problem_type == "multi_label_classification" else (n_rows,)
    labels = torch.zeros(shape, dtype=torch.long if is_classes else torch.float32)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def _result_bytes(model: Any) -> int:
    """Size of the files that hold the trained tensors, as `save_pretrained` writes them."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors"))
