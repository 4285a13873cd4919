"""Tags the words of a sentence (person, place, day) with a Hadamard adapter and the Hugging Face Trainer.

Command:   python examples/token_tagging.py MODEL OUTPUT      (MODEL: a folder or a name on the hub)
Data:      200 sentences made below; the 100 of the test have other names, places and days.
Expected:  the last line says how many words of the test sentences got the right tag; all 760 with
           all-MiniLM-L6-v2.
Time:      one minute with all-MiniLM-L6-v2 on a core that is shared, without a GPU.
"""

import itertools
import random
import sys

from peft import get_peft_model
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hadamard_adapter import HadamardConfig

TAGS = ("O", "PERSON", "PLACE", "DAY")
TRAIN = {
    "PERSON": ("Anna", "Peter", "Maria", "John", "Laura", "David", "Emma", "Frank"),
    "PLACE": ("Paris", "London", "Berlin", "Madrid", "Vienna", "Moscow", "Texas", "Japan"),
    "DAY": ("Monday", "Wednesday", "Friday", "Sunday"),
}
TEST = {
    "PERSON": ("Julia", "Robert", "Sarah", "Thomas"),
    "PLACE": ("Rome", "Boston", "Sweden", "Tokyo"),
    "DAY": ("Tuesday", "Thursday", "Saturday"),
}
PATTERNS = (
    "PERSON flew from PLACE to PLACE on DAY",
    "on DAY the train to PLACE was late",
    "PERSON and PERSON met in PLACE",
    "the shop in PLACE is closed on DAY",
    "nobody told PERSON that DAY is a holiday",
)


def sentences(names: dict[str, tuple[str, ...]], n: int) -> list[tuple[list[str], list[str]]]:
    """n pairs of words and tags, drawn with a fixed seed."""
    chance, patterns = random.Random(0), itertools.cycle(PATTERNS)
    slots = [next(patterns).split() for _ in range(n)]
    tags = [[word if word in TAGS else "O" for word in slot] for slot in slots]
    return [
        ([chance.choice(names.get(w, (w,))) for w in slot], tag)
        for slot, tag in zip(slots, tags, strict=True)
    ]


def main(model_name: str, output: str, epochs: int = 2) -> Trainer:
    """Tunes, prints the share of right tags on the test sentences, and saves the adapter in `output`."""
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(model_name)

    def encode(words: list[str], tags: list[str]) -> dict[str, list[int]]:
        """A word's first token carries its tag; -100 is not counted."""
        row = tokenizer(words, is_split_into_words=True)
        of = row.word_ids()
        first = [i is not None and i not in of[:at] for at, i in enumerate(of)]
        row["labels"] = [
            TAGS.index(tags[i]) if is_first else -100 for i, is_first in zip(of, first, strict=True)
        ]
        return dict(row)

    base = AutoModelForTokenClassification.from_pretrained(
        model_name, id2label=dict(enumerate(TAGS)), label2id={tag: index for index, tag in enumerate(TAGS)}
    )
    model = get_peft_model(base, HadamardConfig(task_type="TOKEN_CLS"))
    model.print_trainable_parameters()
    trainer = Trainer(
        model,
        TrainingArguments(
            output, num_train_epochs=epochs, per_device_train_batch_size=16, learning_rate=5e-3,
            logging_strategy="epoch", save_strategy="no", report_to="none", disable_tqdm=True,
        ),
        DataCollatorForTokenClassification(tokenizer),
        train_dataset=[encode(*pair) for pair in sentences(TRAIN, 200)],
    )  # fmt: skip
    trainer.train()
    found = trainer.predict([encode(*pair) for pair in sentences(TEST, 100)])
    counted = found.label_ids != -100
    right = (found.predictions.argmax(-1) == found.label_ids)[counted]
    print(f"{right.mean():.3f} of {right.size} words have the right tag")
    model.save_pretrained(output)  # back with PeftModel.from_pretrained(base, output)
    return trainer


if __name__ == "__main__":
    main(*sys.argv[1:3])
