"""Our rows for the case tables of PEFT's tests. Data only; `plugin` writes them over PEFT's rows."""

from hadamard_adapter import HadamardConfig

__all__ = [
    "ACTIVE_CASES",
    "CONFIG_CLASS_CASES",
    "CUSTOM_CASES",
    "INLINE_CASES",
    "MIXED_CASES",
    "NO_FAMILY_ROW",
    "task_cases",
]


def task_cases(**kwargs) -> list[tuple]:
    """Returns the rows (config class, its arguments) for a table of transformers models.

    The first row is the default, the second adapts both sites, the third the input, without norms.

    Example:
        >>> task_cases(task_type="SEQ_CLS")[0][1]
        {'task_type': 'SEQ_CLS', 'target_modules': None}
    """
    return [
        (HadamardConfig, {**kwargs, "target_modules": None}),
        (HadamardConfig, {**kwargs, "sites": ["attention", "ffn"]}),
        (HadamardConfig, {**kwargs, "norm_modules": [], "position": "input"}),
    ]


NO_FAMILY_ROW = {"peft-internal-testing/tiny-random-GPTJForCausalLM": ["out_proj"]}
"""PEFT's model types without a row in our table of families, and the target_modules that a user gives."""

_CUSTOM = [
    ("MLP 1", "MLP", {"target_modules": "lin0"}),
    ("MLP 2", "MLP", {"target_modules": ["lin0"]}),
    ("MLP 3", "MLP", {"target_modules": ["lin1"]}),
    ("MLP 4", "MLP", {"target_modules": ["lin0", "lin1"]}),
    ("MLP 5 input", "MLP", {"target_modules": ["lin0"], "position": "input"}),
    ("MLP 6 input", "MLP", {"target_modules": ["lin0", "lin1"], "position": "input"}),
    ("MLP 7 modules_to_save", "MLP", {"target_modules": ["lin0"], "modules_to_save": ["lin1"]}),
    ("MLP 8 scale only", "MLP", {"target_modules": ["lin0", "lin1"], "train_shift": False}),
    ("MLP 9 shift only", "MLP", {"target_modules": ["lin0", "lin1"], "train_scale": False}),
    ("MLP 10 exclude", "MLP", {"target_modules": ["lin0", "lin1"], "exclude_modules": ["lin1"]}),
    ("MLP 11 regex", "MLP", {"target_modules": r".*lin[01]"}),
    ("MLP2 1", "MLP2", {"target_modules": ["lin0", "lin1"]}),
    ("Norm 1", "MLP_LayerNorm", {"target_modules": ["lin0"], "norm_modules": ["layernorm1"]}),
    (
        "Norm 2",
        "MLP_LayerNorm",
        {"target_modules": ["lin0", "lin1"], "norm_modules": ["layernorm0", "layernorm1"]},
    ),
    (
        "Norm 3 input modules_to_save",
        "MLP_LayerNorm",
        {
            "target_modules": ["lin0"],
            "norm_modules": ["layernorm0"],
            "position": "input",
            "modules_to_save": ["lin1"],
        },
    ),
    (
        "Norm 4 scale only",
        "MLP_LayerNorm",
        {"target_modules": ["lin1"], "norm_modules": "layernorm1", "train_shift": False},
    ),
    ("Conv1D 1", "EmbConv1D", {"target_modules": ["conv1d"]}),
    ("Conv1D 2", "EmbConv1D", {"target_modules": ["conv1d", "lin0"]}),
    ("Conv1D 3 modules_to_save", "EmbConv1D", {"target_modules": ["conv1d"], "modules_to_save": ["lin0"]}),
    ("Conv1D 4 input", "EmbConv1D", {"target_modules": ["conv1d"], "position": "input"}),
    ("Conv2d 1", "Conv2d", {"target_modules": ["conv2d"]}),
    ("Conv2d 2 shift only", "Conv2d", {"target_modules": ["conv2d"], "train_scale": False}),
    ("Conv2d 3", "Conv2d", {"target_modules": ["conv2d", "lin0"]}),
    ("Conv2d 4 scale only", "Conv2d", {"target_modules": ["conv2d", "lin0"], "train_shift": False}),
    ("Conv2d 5", "Conv2d2", {"target_modules": ["conv2d", "lin0"]}),
    ("Conv2d 6 kernel 1", "Conv2d1x1", {"target_modules": ["conv2d"]}),
    ("Conv3d 1", "Conv3d", {"target_modules": ["conv3d"]}),
    ("Conv3d 2 scale only", "Conv3d", {"target_modules": ["conv3d"], "train_shift": False}),
    ("Conv3d 3", "Conv3d", {"target_modules": ["conv3d", "lin0"]}),
]

CUSTOM_CASES = [(f"Hadamard {name}", model_id, HadamardConfig, kwargs) for name, model_id, kwargs in _CUSTOM]
"""TEST_CASES of test_custom_models.py: name, model, config class, arguments."""


def _random(**kwargs) -> HadamardConfig:
    """A config whose offsets start away from zero."""
    return HadamardConfig(init_weights=False, **kwargs)


def _active(name: str, first: dict, second: dict) -> tuple:
    random = {"init_weights": False}
    return (f"Hadamard {name}", "hadamard", HadamardConfig, first | random, second | random)


ACTIVE_CASES = [
    _active("Same", {"target_modules": ["lin0"]}, {"target_modules": ["lin0"]}),
    _active("Different", {"target_modules": ["lin0"]}, {"target_modules": ["lin1"]}),
    _active("Same both", {"target_modules": ["lin0", "lin1"]}, {"target_modules": ["lin0", "lin1"]}),
    _active(
        "Same input",
        {"target_modules": ["lin0"], "position": "input"},
        {"target_modules": ["lin0"], "position": "input"},
    ),
]
"""MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES of test_custom_models.py."""

MIXED_CASES = [
    ("Hadamard mixed", _random(target_modules=["lin0"]), _random(target_modules=["lin0"])),
    (
        "Hadamard mixed shift and scale",
        _random(target_modules=["lin0"], train_shift=False),
        _random(target_modules=["lin0"], train_scale=False),
    ),
]
"""MIXED_ADAPTER_TEST_CASES of test_custom_models.py: name and two configs whose adapters share a batch."""

CONFIG_CLASS_CASES = ((HadamardConfig, {}), (HadamardConfig, {"sites": ["attention", "ffn"]}))
"""ALL_CONFIG_CLASSES of test_config.py."""

_MIXED_HEADS = (
    _random(target_modules=["lin0"], modules_to_save=["lin1"]),
    _random(target_modules=["lin0"], modules_to_save=["lin1"]),
)

INLINE_CASES = {
    "test_multiple_adapters_mixed_modules_to_save": [HadamardConfig],
    "test_multiple_adapters_mixed_modules_to_save_order_switched": [HadamardConfig],
    "test_add_weighted_adapter_cat_with_rank_pattern": [HadamardConfig],
    "test_adapter_name_makes_no_difference": [
        _random(target_modules=["lin0"]),
        _random(target_modules=["lin1"], position="input"),
    ],
    "test_mixed_adapter_batches_different_target_layers": [
        ("Hadamard different", _random(target_modules=["lin0"]), _random(target_modules=["lin1"])),
    ],
    "test_mixed_adapter_batches_multiple_modules_to_save": [("Hadamard heads", *_MIXED_HEADS)],
    "test_mixed_adapter_batches_partly_overlapping_target_layers": [
        ("Hadamard overlap", _random(target_modules=["lin0"]), _random(target_modules=["lin0", "lin1"])),
    ],
    "test_mixed_adapter_batches_lora_conv1d_emb": [
        ("Hadamard Conv1D", _random(target_modules=["conv1d"]), _random(target_modules=["conv1d"])),
    ],
    "test_mixed_adapter_batches_lora_conv1d_emb_multiple_modules_to_save": [
        (
            "Hadamard Conv1D heads",
            _random(target_modules=["conv1d"], modules_to_save=["lin0"]),
            _random(target_modules=["conv1d"], modules_to_save=["lin0"]),
        ),
    ],
    "test_mixed_adapter_batches_lora_conv2d": [
        ("Hadamard conv2d", _random(target_modules=["conv2d"]), _random(target_modules=["conv2d"])),
    ],
    "test_mixed_adapter_batches_lora_wrong_adapter_name_raises": [
        ("Hadamard wrong name", _random(target_modules=["lin0"])),
    ],
    "test_inject_from_state_dict_and_from_config_target_same_layers": [HadamardConfig()],
}
"""Rows for the tables that stand inside a test's own decorator, by the test's name."""
