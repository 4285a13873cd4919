"""Bad options and config files: exit code 2, one line that says what is wrong, nothing changed on disk."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from command import Words, assert_refused, tune, tuned

SETTINGS: dict[str, tuple[Callable[[], Words], str]] = {
    "an unknown command": (lambda: ["tun"], "No such command 'tun'.*--help"),
    "an unknown option": (lambda: tune("t.csv", "--learning-rate", 1), "No such option.*--learning-rate"),
    "a missing option": (lambda: ["tune", "--model", "m"], "Missing option '--output'"),
    "neither data nor task": (lambda: ["tune", "--model", "m", "--output", "out"], "train"),
    "epochs in letters": (lambda: tune("t.csv", "--epochs", "many"), "--epochs.*'many'"),
    "negative epochs": (lambda: tune(tuned().train, "--epochs", -3), "epochs.*-3"),
    "a rate of nothing": (lambda: tune(tuned().train, "--lr", 0), "lr.*0"),
    "a preset that is none": (lambda: tune(tuned().train, "--preset", "best"), "'best'.*paper.*wide"),
    "layers in letters": (lambda: tune(tuned().train, "--layers", "first"), "'first'"),
    "a layer too many": (lambda: tune(tuned().train, "--layers", "0,9"), "9"),
    "too long a text": (lambda: tune(tuned().train, "--max-length", 5000), "5000"),
    "a site that is none": (lambda: tune(tuned().train, "--sites", "heart"), "attention.*heart"),
    "no layer": (lambda: tune(tuned().train, "--layers", ""), "layers.*leave it out"),
    "no layer by name": (lambda: tune(tuned().train, "--layers", "none"), "layers.*leave it out"),
    "too large a seed": (lambda: tune(tuned().train, "--seed", 2**32), r"seed.*2\*\*32"),
    "a threshold for classes": (lambda: tune(tuned().train, "--threshold", 0.3), "threshold.*leave it out"),
    "rates of which none is used": (
        lambda: tune(tuned().train, *("--lr", "1e-3,1e-2", "--scale-lr", 1, "--shift-lr", 1, "--norm-lr", 1)),
        "lr: expected none beside scale_lr.*leave it out",
    ),
    "a rate beside its parts": (
        lambda: tune(tuned().train, *("--lr", 1, "--scale-lr", 1, "--shift-lr", 1, "--norm-lr", 1)),
        "lr: expected none beside scale_lr.*leave it out",
    ),
    **{
        f"a rate of what does not train: {words[0]}": (
            lambda words=words: tune(tuned().train, *words),
            f"{words[-2].strip('-').replace('-', '_')}: expected none beside no .*leave it out",
        )
        for words in (
            ("--no-train-scale", "--scale-lr", "0.1"),
            ("--no-train-shift", "--shift-lr", "0.1"),
            ("--norm-modules", "none", "--norm-lr", "0.1"),
        )
    },
    "a name that is no UTF-8": (
        lambda: [*tune("x"), "--dev", os.fsdecode(b"caf\xe9.csv")],
        r"dev: expected a name in UTF-8, received 'caf\\udce9.csv'; rename",
    ),
    "a share beside a split": (
        lambda: tune(tuned().train, "--dev-split", "dev", "--dev-fraction", 0.3),
        "dev_fraction: expected none beside rows for dev",
    ),
    "data beside rows": (lambda: tune(tuned().train, "--data", "."), "data.*task.*leave it out"),
    "dev beside a task": (
        lambda: ["tune", "--model", "m", "--task", "rte", "--data", ".", "--output", "o", "--dev", "d.csv"],
        "dev: .*'rte'.*pass train and dev instead of task",
    ),
    **{
        f"{option} of nothing": (
            lambda words=words: words,
            rf"{option}.*expected a name or a path, received ''",
        )
        for option, *words in (
            ("--adapter", "eval", "--adapter", "", "--data", "x.csv"),
            ("--data", "eval", "--adapter", "a", "--data", ""),
            ("--output", "merge", "--adapter", "a", "--output", ""),
            ("--input", "predict", "--adapter", "a", "--input", ""),
            ("MODEL", "inspect", ""),
        )
    },
    "a device that is none": (lambda: tune(tuned().train, "--device", "abacus"), "'abacus'"),
    "a loss that is not finite": (
        lambda: tune(tuned().train, "--lr", 3e37, "--head-lr", 3e37, "--head-epochs", 1, "--epochs", 1),
        "loss is (inf|nan) at step.*finite.*lower learning rate",
    ),
}


def _config(content: str, *words: object) -> Callable[[], Words]:
    def make() -> Words:
        Path("run.toml").write_text(content)
        return [*(words or ("tune",)), "--config", "run.toml"]

    return make


CONFIG: dict[str, tuple[Callable[[], Words], str]] = {
    "no config file": (lambda: ["tune", "--config", "no.toml"], "no.toml.*No such file"),
    "not TOML": (_config("lr: 3"), "not a TOML file"),
    "TOML without end": (_config("lr = " + "[" * 5000), "not a TOML file"),
    "a number without end": (_config("lr = " + "9" * 5000), "not a TOML file"),
    "a mark before it": (_config("\ufeffepochs = 2.5\n"), "epochs = 2.5.*integer"),
    "an unknown key": (_config("[tune]\nlern-rate = 3\n"), r"\[tune\].*'lern-rate'.*head-lr.*overwrite"),
    "an unknown key at the top": (_config("lern_rate = 3\n"), "'lern_rate'.*known to tune"),
    "an unknown table": (_config("[train]\nlr = 1\n"), r"\[train\].*eval.*tune"),
    "epochs with a fraction": (_config("epochs = 2.5\n"), "epochs = 2.5.*integer"),
    "a flag with a number": (_config("overwrite = 1\n"), "overwrite.*true or false"),
    "a number with a flag": (_config("epochs = true\n"), "epochs.*not true or false"),
    "a choice that is none": (_config('[merge]\ndtype = "int4"\n', "merge"), "int4.*float32"),
}
CASES = {**SETTINGS, **CONFIG}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_option_is_one_clear_line_and_changes_nothing(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(*CASES[case])
