"""Finds the answer to a question in a text with a Hadamard adapter and the Hugging Face Trainer.

Command:   python examples/question_answering.py MODEL OUTPUT      (MODEL: a folder or a name on the hub)
Data:      900 questions made below; the 180 of the test use other names, places and days.
Expected:  the last line says how many answers of the test are found exactly; 0.761 with all-MiniLM-L6-v2,
           which mixes up the two questions that begin with "where".
Time:      one to three minutes with all-MiniLM-L6-v2 on one core, without a GPU.
"""

import random
import sys
from typing import Any

from peft import get_peft_model
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hadamard_adapter import HadamardConfig

TEXT = "{person} flew from {start} to {end} on {day} with a friend"
QUESTIONS = {
    "person": "who travelled ?",
    "start": "where did the journey begin ?",
    "end": "where did the journey end ?",
    "day": "when did they travel ?",
}
PEOPLE = ("Anna", "Peter", "Maria", "John", "Laura", "David", "Julia", "Robert", "Sarah", "Thomas")
PLACES = ("Paris", "London", "Berlin", "Madrid", "Vienna", "Moscow", "Rome", "Boston", "Sweden", "Tokyo")
DAYS = ("Monday", "Wednesday", "Friday", "Sunday", "Tuesday", "Saturday")


def questions(n: int, is_test: bool = False) -> list[tuple[str, str, str]]:
    """n triples of question, text and answer, drawn with a fixed seed; the test has names of its own."""
    chance, rows = random.Random(0), []
    people, places, days = (
        x[-len(x) // 3 :] if is_test else x[: -len(x) // 3] for x in (PEOPLE, PLACES, DAYS)
    )
    for _ in range(n):
        start, end = chance.sample(places, 2)
        facts = {"person": chance.choice(people), "start": start, "end": end, "day": chance.choice(days)}
        asked = chance.choice(sorted(QUESTIONS))
        rows.append((QUESTIONS[asked], TEXT.format(**facts), facts[asked]))
    return rows


def main(model_name: str, output: str, epochs: int = 3) -> Trainer:
    """Tunes, prints the share of exact answers on the test questions, and saves the adapter in `output`."""
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(model_name)

    def encode(question: str, text: str, answer: str) -> dict[str, Any]:
        """The answer as the positions of its first and its last token."""
        row, at = tokenizer(question, text), text.index(answer)
        first, last = (row.char_to_token(i, sequence_index=1) for i in (at, at + len(answer) - 1))
        return {**row, "start_positions": first, "end_positions": last}

    base = AutoModelForQuestionAnswering.from_pretrained(model_name)
    model = get_peft_model(base, HadamardConfig(task_type="QUESTION_ANS"))
    model.print_trainable_parameters()
    trainer = Trainer(
        model,
        TrainingArguments(
            output, num_train_epochs=epochs, per_device_train_batch_size=16, learning_rate=5e-3,
            logging_strategy="epoch", save_strategy="no", report_to="none", disable_tqdm=True,
        ),
        DataCollatorWithPadding(tokenizer),
        train_dataset=[encode(*row) for row in questions(900)],
    )  # fmt: skip
    trainer.train()
    found = trainer.predict([encode(*row) for row in questions(180, is_test=True)])
    ends = zip(found.predictions, found.label_ids, strict=True)
    right = sum((logits.argmax(-1) == label) * 1 for logits, label in ends) == 2
    print(f"{right.mean():.3f} of {right.size} answers are exact")
    model.save_pretrained(output)  # back with PeftModel.from_pretrained(base, output)
    return trainer


if __name__ == "__main__":
    main(*sys.argv[1:3])
