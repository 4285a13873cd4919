"""The examples on tiny models: they learn, train nothing but adapter and head, and come back from disk."""

import re
from collections.abc import Callable
from pathlib import Path
from runpy import run_path
from typing import Any, NamedTuple

import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForTokenClassification,
    PreTrainedTokenizerFast,
    Trainer,
)

from models import tiny_model

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
POEM = " ".join(
    f"the {animal} sees the {other}" for animal in ("cat", "dog", "owl") for other in ("fox", "hen", "cow")
)


class Run(NamedTuple):
    """What an example left."""

    trainer: Trainer
    load_base: Callable[[], Any]
    output: Path


def tiny_model_for(folder: Path, name: str, task: str, words: list[str]) -> Path:
    """A tiny model whose tokenizer knows these words."""
    known = {word: index for index, word in enumerate(dict.fromkeys((*SPECIAL, *words)))}
    tiny_model(name, task, vocab_size=len(known), num_labels=2).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    special = dict(bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **special).save_pretrained(
        folder
    )
    return folder


def words_of(texts: list[str]) -> list[str]:
    return [word for text in texts for word in re.findall(r"\w+|[^\w\s]", text)]


@pytest.fixture(scope="module")
def tagging(tmp_path_factory: pytest.TempPathFactory) -> Run:
    place, example = tmp_path_factory.mktemp("tagging"), run_path(str(EXAMPLES / "token_tagging.py"))
    words = words_of([" ".join(words) for words, _ in example["sentences"](example["TRAIN"], 200)])
    model = tiny_model_for(place / "model", "bert", "headless", words)
    trainer = example["main"](str(model), str(place / "out"), epochs=3)
    return Run(
        trainer,
        lambda: AutoModelForTokenClassification.from_pretrained(model, num_labels=len(example["TAGS"])),
        place / "out",
    )


@pytest.fixture(scope="module")
def answering(tmp_path_factory: pytest.TempPathFactory) -> Run:
    place, example = tmp_path_factory.mktemp("answering"), run_path(str(EXAMPLES / "question_answering.py"))
    words = words_of([f"{question} {text}" for question, text, _ in example["questions"](200)])
    model = tiny_model_for(place / "model", "bert", "headless", words)
    trainer = example["main"](str(model), str(place / "out"), epochs=2)
    return Run(trainer, lambda: AutoModelForQuestionAnswering.from_pretrained(model), place / "out")


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Run:
    place, example = tmp_path_factory.mktemp("language"), run_path(str(EXAMPLES / "language_model.py"))
    (place / "poem.txt").write_text("\n".join([POEM] * 30), encoding="utf-8")
    model = tiny_model_for(place / "model", "llama", "causal-lm", words_of([POEM]))
    trainer = example["main"](str(model), str(place / "poem.txt"), str(place / "out"), epochs=3)
    return Run(trainer, lambda: AutoModelForCausalLM.from_pretrained(model), place / "out")


@pytest.fixture(params=["tagging", "answering", "language"])
def run(request: pytest.FixtureRequest) -> Run:
    torch.set_num_threads(1)
    return request.getfixturevalue(request.param)


def outputs_of(model: torch.nn.Module) -> list[torch.Tensor]:
    """All logits on a batch of tokens that every tokenizer here knows."""
    model.eval()
    with torch.inference_mode():
        out = model(input_ids=torch.arange(12).view(2, 6), attention_mask=torch.ones(2, 6, dtype=torch.long))
    return [value for name, value in out.items() if "logits" in name]


def test_an_example_learns(run: Run) -> None:
    losses = [float(entry["loss"]) for entry in run.trainer.state.log_history if "loss" in entry]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


def test_an_example_changes_the_adapter_and_the_head_and_nothing_else(run: Run) -> None:
    tuned = dict(run.trainer.model.named_parameters())
    added = {name for name in tuned if ".hadamard_" in name or ".modules_to_save." in name}
    assert {name for name, parameter in tuned.items() if parameter.requires_grad} == added
    assert all(tuned[name].detach().abs().max() > 0 for name in added)
    plain = {name.replace(".base_layer", ""): tuned[name] for name in tuned if name not in added}
    backbone = run.load_base().base_model
    prefix = f"base_model.model.{run.load_base().base_model_prefix}."
    for name, parameter in backbone.named_parameters():
        assert torch.equal(parameter, plain[prefix + name]), name


def test_an_example_loads_as_it_was_saved(run: Run) -> None:
    loaded = PeftModel.from_pretrained(run.load_base(), run.output)
    for before, after in zip(outputs_of(run.trainer.model), outputs_of(loaded), strict=True):
        assert torch.equal(before, after)


def test_the_merged_language_model_is_a_plain_folder_that_says_the_same(language: Run) -> None:
    plain = AutoModelForCausalLM.from_pretrained(language.output / "merged")
    assert not any("hadamard" in name for name, _ in plain.named_parameters())
    (before,), (after,) = outputs_of(language.trainer.model), outputs_of(plain)
    (base,) = outputs_of(language.load_base())
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    assert (base - before).abs().max() > 0.01
