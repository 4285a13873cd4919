"""What the tests of a stage's short cuts share: a stage of few rows, a model in stage 1, its gradients."""

from typing import Any

import torch
from torch import Tensor

from adapter_help import adapted
from hadamard_adapter.tuning.stage import Stage
from models import PAD, TINY, tiny_inputs

TEXT = [name for name in TINY if name != "vit"]
FIRST_TOKEN = {
    "bert", "roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "electra", "mpnet", "distilbert",
    "deberta", "deberta-v2", "modernbert",
}  # fmt: skip


def stage_for(name: str) -> Stage:
    rates = dict.fromkeys(("scale", "shift", "norm", "head"), 1e-3)
    return Stage("adapter", 1, 32, rates, rows_for(name, 9, 0), rows_for(name, 3, 1), collate)


def rows_for(name: str, n_rows: int, seed: int) -> list[dict[str, Any]]:
    inputs = tiny_inputs(name, n_rows, seed)
    return [
        {"input_ids": ids[mask.bool()].tolist(), "attention_mask": [1] * int(mask.sum()), "labels": index % 3}
        for index, (ids, mask) in enumerate(zip(inputs["input_ids"], inputs["attention_mask"], strict=True))
    ]


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Pads on the right."""
    length = max(len(row["input_ids"]) for row in rows)
    ids = torch.full((len(rows), length), PAD)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
        mask[index, : len(row["input_ids"])] = 1
    labels = torch.tensor([row["labels"] for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def head_stage_model(name: str) -> Any:
    """A model as in stage 1: only the head trains."""
    model = adapted(name)
    model.peft_config["default"].freeze_adapter = True
    model.base_model.set_adapter("default")
    return model


def outcome(model: Any, stage: Stage, rows: list[dict[str, Any]]) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    output = model(**stage.collate(rows))
    output.loss.backward()
    return output.logits.detach(), {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
