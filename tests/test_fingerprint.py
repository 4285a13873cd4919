"""The fingerprint tells backbones apart, and sees nothing else."""

import copy

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertModel

from adapter_help import adapted
from hadamard_adapter.adapter.fingerprint import fingerprint
from models import TINY, tiny_config, tiny_model


@pytest.mark.parametrize("name", TINY)
def test_adapters_heads_and_merging_do_not_change_it(name):
    expected = fingerprint(tiny_model(name))
    model = adapted(name)
    assert fingerprint(model) == fingerprint(model.base_model) == expected
    model.merge_adapter()
    assert fingerprint(model) == expected


def test_the_head_and_the_number_of_labels_do_not_change_it():
    model = tiny_model("bert")
    expected = fingerprint(model)
    torch.nn.init.ones_(model.classifier.weight)
    assert fingerprint(model) == expected


def test_parameters_that_the_checkpoint_lacks_do_not_change_it(tmp_path):
    BertModel(tiny_config("bert"), add_pooling_layer=False).save_pretrained(tmp_path)
    seen = set()
    for n_labels in (2, 3):
        torch.manual_seed(n_labels)
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=n_labels)
        assert model.bert.pooler is not None
        seen.add(fingerprint(model))
    assert len(seen) == 1


def test_bfloat16_loading_does_not_change_it():
    model = tiny_model("bert")
    assert fingerprint(copy.deepcopy(model).to(torch.bfloat16)) == fingerprint(model)


@pytest.mark.parametrize("key", ["encoder.layer.1.output.dense.weight", "embeddings.LayerNorm.bias"])
def test_any_change_of_the_backbone_changes_it(key):
    model = tiny_model("bert")
    before = fingerprint(model)
    with torch.no_grad():
        model.bert.get_parameter(key).add_(0.1)
    assert fingerprint(model) != before
    assert fingerprint(tiny_model("bert", num_hidden_layers=1)) != before
