"""Tunes a language model on a text file with a Hadamard adapter, and merges it into a plain model folder.

Command:   python examples/language_model.py MODEL TEXT_FILE OUTPUT      (MODEL: a decoder, e.g. gpt2)
Data:      the text file, cut into blocks of 64 tokens; every tenth block is kept for the test.
Expected:  three perplexities on the test blocks: before, after (lower), and merged (the same as after).
Time:      no number, since it depends on the model and the text; 40 blocks of a tiny model take a second.
"""

import math
import sys
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from hadamard_adapter import HadamardConfig

BLOCK = 64


@torch.inference_mode()
def perplexity(model: torch.nn.Module, rows: list[dict[str, list[int]]]) -> float:
    """exp of the mean loss over blocks of equal length."""
    model.eval()
    device = next(model.parameters()).device
    batches = [{name: ids.to(device) for name, ids in default_data_collator([row]).items()} for row in rows]
    return math.exp(sum(model(**batch).loss.item() for batch in batches) / len(batches))


def main(model_name: str, text_file: str, output: str, epochs: int = 3) -> Trainer:
    """Tunes, prints three perplexities, saves the adapter in `output` and the merged model below it."""
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    ids = tokenizer(Path(text_file).read_text(encoding="utf-8"), verbose=False)["input_ids"]
    blocks = [ids[at : at + BLOCK] for at in range(0, len(ids) - BLOCK + 1, BLOCK)]
    rows = [{"input_ids": block, "attention_mask": [1] * BLOCK, "labels": block} for block in blocks]
    train, test = [row for i, row in enumerate(rows) if i % 10], rows[::10]
    if not train:
        raise ValueError(
            f"text_file: expected {2 * BLOCK} tokens or more, received {len(ids)}; use a longer text"
        )

    base = AutoModelForCausalLM.from_pretrained(model_name)
    before = perplexity(base, test)
    model = get_peft_model(base, HadamardConfig(task_type="CAUSAL_LM"))
    model.print_trainable_parameters()
    trainer = Trainer(
        model,
        TrainingArguments(
            output, num_train_epochs=epochs, per_device_train_batch_size=8, learning_rate=5e-3,
            logging_strategy="epoch", save_strategy="no", report_to="none", disable_tqdm=True,
        ),
        default_data_collator,
        train_dataset=train,
    )  # fmt: skip
    trainer.train()
    after = perplexity(model, test)
    model.save_pretrained(output)

    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_name), output)
    merged = loaded.merge_and_unload()
    merged.save_pretrained(f"{output}/merged")
    tokenizer.save_pretrained(f"{output}/merged")
    print(f"perplexity: before {before:.3f}, after {after:.3f}, merged {perplexity(merged, test):.3f}")
    return trainer


if __name__ == "__main__":
    main(*sys.argv[1:4])
