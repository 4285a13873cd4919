"""Writes docs/families.md, the page of model families, from the table itself.

Command:  python scripts/families_page.py           (writes the page)
          python scripts/families_page.py --check   (fails if the page does not say what the table says)
"""

import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel

from hadamard_adapter.adapter.families import (
    FAMILIES,
    SITE_NAMES,
    Family,
    Site,
    Stack,
    find_sites,
    shift_can_merge,
)

PAGE = Path(__file__).resolve().parent.parent / "docs" / "families.md"
HEAD = """# Model families

This page is made from `FAMILIES` in `hadamard_adapter.adapter.families` by `python scripts/families_page.py`;
a test checks that it is up to date. {n} values of `config.model_type` have a row. For any other model pass
`target_modules` and, if wanted, `norm_modules`; `hadamard inspect MODEL` proposes names.

## Sites

A path counts from one layer. `[i+1]` stands for the next layer; the last layer has none, and takes the norm
behind the stack, named after "last:". A norm in the same layer is that of the sub-layer itself (post-norm,
sandwich norms) or, for the attention of pre-norm layers, the one before the feed-forward.

Every family can be adapted after the projection (`position="output"`, the default) or before it (`"input"`).
What folds into a projection's weight and bias, exactly, in a merge:

| position | weight | bias |
|---|---|---|
| output, y = w ⊙ (W x + c) + b | W' = diag(w) W | c' = w ⊙ c + b |
| input, y = W (w ⊙ x + b) + c | W' = W diag(w) | c' = c + W b |

A norm's weight becomes γ + δγ and its bias, where it has one, β + δβ. All of this always folds but the shift,
which needs a bias: the projection's own, or one that the config can switch on.
"""
SITES_HEAD = """
| `model_type` | layers | site | projection | norm that follows | shift folds into |
|---|---|---|---|---|---|
"""
HEADS_HEAD = """
## Heads

The head is what the checkpoint lacks. Those of the modules below that a model has are taken too, whole, where
the task type has a head (`SEQ_CLS`, `TOKEN_CLS`, `QUESTION_ANS`), where a part of them is new, and where the
model cannot tell what was loaded (after `from_config` or a deepcopy). A `pooler` that was loaded is trained
only if it is named. Where layers are shared, `layers_to_transform` is refused.

| `model_type` | row needs | layers shared | head |
|---|---|---|---|
"""
TAIL = """
## The next-norm rule

With each projection goes the next norm on the residual path: the first norm that its output reaches. In
post-norm layers (BERT) that is the norm of the residual sum, right behind the projection. With sandwich
norms (Gemma 2) it is the norm of the branch. Pre-norm layers (Llama) have no norm there: for the
attention it is the norm before the feed-forward, in T5's decoder the one before the cross-attention; for
the feed-forward it is the first norm of the next layer, and in the last layer the norm behind the stack.
Cross-attention is not adapted.

## Adding a row

1. Write the row in `src/hadamard_adapter/adapter/family_table.py`: the list of layers, and per site the
   projection, the norm and, if there is one, the config's bias switch.
2. Add a tiny config of the same `model_type` to `TINY` in `tests/models.py`. Without it
   `test_every_row_has_a_tiny_model` fails.
3. Run `python scripts/families_page.py`.

These tests then run on the new row: `tests/test_families.py` derives the norms from the order of calls in
a forward pass and compares them with the row; `tests/test_laws.py` checks identity at the start,
gradients, merging, mixed batches, saving and freezing.
"""
SWITCHED, NOWHERE = "a bias that `{}` switches on", "nothing: no shift by default"


def page() -> str:
    """The whole page, in Markdown."""
    names: dict[Family, list[str]] = {}
    for model_type, rows in FAMILIES.items():
        for row in rows:
            names.setdefault(row, []).append(model_type)
    sites, heads = [], []
    folds = {
        (model_type, row): folds_of(model_type, row) for row, types in names.items() for model_type in types
    }
    for row, types in names.items():
        for same in group(types, lambda model_type, row=row: tuple(folds[model_type, row].items())):
            label = ", ".join(f"`{model_type}`" for model_type in same) + condition(row)
            sites += [
                site_line(label, stack, name, folds[same[0], row])
                for stack in row.stacks
                for name in SITE_NAMES
            ]
        label, needs = ", ".join(f"`{t}`" for t in types), ", ".join(f"`{k}={v}`" for k, v in row.when)
        head = ", ".join(f"`{module}`" for module in row.head)
        heads.append(f"| {label} | {needs or '–'} | {'yes' if row.is_shared else 'no'} | {head} |")
    return (
        HEAD.format(n=len(FAMILIES))
        + SITES_HEAD
        + "\n".join(sites)
        + "\n"
        + HEADS_HEAD
        + "\n".join(heads)
        + "\n"
        + TAIL
    )


def site_line(label: str, stack: Stack, name: str, folds: dict[str, str]) -> str:
    """One line of the table of sites."""
    site: Site = getattr(stack, name)
    norm = "–" if site.norm is None else f"`{site.norm}`"
    if site.norm_in_next_layer:
        norm = f"`[i+1].{site.norm}`, last: " + (f"`{stack.final_norm}`" if stack.final_norm else "–")
    return f"| {label} | `{stack.layers}` | {name} | `{site.projection}` | {norm} | {folds[name]} |"


def folds_of(model_type: str, row: Family) -> dict[str, str]:
    """Site -> where a model with the default config of its type takes a shift."""
    config = AutoConfig.for_model(model_type, **dict(row.when))
    config.num_hidden_layers = 2  # all layers are alike
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    found = {}
    for site in find_sites(model, SITE_NAMES):
        if model.get_submodule(site.projection).bias is not None:
            found[site.site] = "its bias"
        elif shift_can_merge(model, site.projection, site.bias_switch):
            found[site.site] = SWITCHED.format(site.bias_switch)
        else:
            found[site.site] = NOWHERE
    return found


def condition(row: Family) -> str:
    """What the row needs of the config, in brackets."""
    return "".join(f" (`{name}={value}`)" for name, value in row.when)


def group(names: list[str], key) -> list[list[str]]:
    """The names with equal keys together, in the order of their first."""
    groups: dict[object, list[str]] = {}
    for name in names:
        groups.setdefault(key(name), []).append(name)
    return list(groups.values())


if __name__ == "__main__":
    text = page()
    if "--check" in sys.argv[1:]:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
            sys.exit("docs/families.md is out of date; run: python scripts/families_page.py")
    else:
        PAGE.write_text(text, encoding="utf-8")
