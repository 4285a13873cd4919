"""Laws of the last layer that computes the first token alone: same outputs, same gradients, or not at all."""

import contextlib
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from adapter_help import adapted
from hadamard_adapter.tuning.first_token import first_token_only
from hadamard_adapter.tuning.prefix import cached_prefix
from stage_help import FIRST_TOKEN, TEXT, head_stage_model, outcome, stage_for
from tuning_help import silent, tiny_folder, tiny_tune, write_rows


@pytest.mark.parametrize("name", TEXT)
def test_it_is_on_where_the_head_reads_the_first_token_and_changes_no_result(name: str) -> None:
    model, stage = adapted(name), stage_for(name)
    logits, gradients = outcome(model, stage, stage.train)
    with first_token_only(model, stage) as is_on:
        found, found_gradients = outcome(model, stage, stage.train)
    assert is_on == (name in FIRST_TOKEN)
    torch.testing.assert_close(found, logits, atol=1e-5, rtol=1e-5)
    assert found_gradients.keys() == gradients.keys() and gradients
    for key, gradient in gradients.items():
        assert (found_gradients[key] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7, key
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_it_computes_less() -> None:
    model, stage = adapted("bert"), stage_for("bert")
    shapes: list[tuple[int, ...]] = []
    inner = model.get_base_model().bert.encoder.layer[-1].intermediate.dense
    inner.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape)))
    with first_token_only(model, stage):
        model(**stage.collate(stage.train))
    assert shapes[-1][:2] == (len(stage.train), 1)


def test_training_rows_of_one_token_do_not_hide_that_the_last_one_is_read() -> None:
    model, stage = adapted("gpt2"), stage_for("gpt2")
    rows = [{**row, **{key: row[key][:1] for key in ("input_ids", "attention_mask")}} for row in stage.train]
    short = dataclasses.replace(stage, train=rows)
    expected, _ = outcome(model, stage, stage.dev)
    with first_token_only(model, short) as is_on:
        found, _ = outcome(model, stage, stage.dev)
    assert not is_on
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("is_cached", [False, True])
def test_a_head_of_zeros_does_not_hide_that_the_last_token_is_read(is_cached: bool, tmp_path: Path) -> None:
    model, stage = head_stage_model("gpt2"), stage_for("gpt2")
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.zeros_(parameter)
    _, expected = outcome(model, stage, stage.train)
    assert any(bool(gradient.any()) for gradient in expected.values())
    with contextlib.ExitStack() as stack:
        if is_cached:
            stage = stack.enter_context(cached_prefix(model, stage, tmp_path / "cache", {}, 1.0, silent))
            assert len(stage.train[0]["prefix"]) == len(stage.train[0]["input_ids"]) > 1
        is_on = stack.enter_context(first_token_only(model, stage))
        assert is_cached or not is_on
        _, found = outcome(model, stage, stage.train)
    for key, gradient in expected.items():
        assert (found[key] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7, key


def test_no_hook_is_left_after_an_error() -> None:
    model, stage = adapted("bert"), stage_for("bert")
    with pytest.raises(RuntimeError, match="killed"), first_token_only(model, stage):
        raise RuntimeError("killed")
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_recipe_ends_at_the_same_scores_with_it_and_without(tmp_path: Path) -> None:
    model, train = tiny_folder(tmp_path / "model"), write_rows(tmp_path / "train.csv", 48)
    losses = [
        [
            entry["loss"]
            for entry in tiny_tune(
                model, tmp_path / str(is_on), train, dropout=False, first_token_only=is_on
            ).metrics["curve"]
        ]
        for is_on in (True, False)
    ]
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-3, atol=1e-4)
