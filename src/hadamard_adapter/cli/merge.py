"""`hadamard merge`: fold an adapter into its base model and leave a plain transformers folder."""

from dataclasses import dataclass
from typing import Literal

from hadamard_adapter.cli.adapter_options import AdapterOptions
from hadamard_adapter.cli.console import message_console
from hadamard_adapter.cli.hub import base_name_in, stay_offline_without_hub
from hadamard_adapter.cli.options import command_from

__all__ = ["MergeOptions", "merge_command"]


@dataclass(frozen=True, kw_only=True)
class MergeOptions(AdapterOptions):
    """The options of `hadamard merge`."""

    output: str
    """Folder that receives the plain model and its tokenizer."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the written weights; float32 if not given."""
    overwrite: bool = False
    """Whether an earlier merge in the output folder may be replaced."""


@command_from("merge", MergeOptions)
def merge_command(options: MergeOptions) -> None:
    """Fold an adapter into its model: a plain transformers folder.

    The folder needs nothing of this package: pipeline("text-classification", "OUTPUT") works.

    \b
    Example:
      hadamard merge --adapter adapter --output plain-model
      hadamard merge --adapter adapter --output small --dtype bfloat16
    """
    stay_offline_without_hub([options.model or base_name_in(options.adapter)])
    from hadamard_adapter.tuning import merge

    report = merge(
        options.adapter,
        options.output,
        dtype=options.dtype,
        model=options.model,
        overwrite=options.overwrite,
        allow_remote_code=options.allow_remote_code,
    )
    console = message_console(options.quiet)
    console.print(f"merged   {report.dtype}, {report.size_bytes / 1e6:,.1f} MB")
    console.print(
        f"checked  largest change of a logit, adapted against merged and reloaded, on probe texts: "
        f"{report.max_logit_difference:.2g}"
    )
    console.print(f"in       {report.output}")
    console.print(f'next     transformers.pipeline("text-classification", {report.output!r})')
