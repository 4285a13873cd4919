"""Tasks: files into texts and labels, GLUE by name, and scores."""

from .classes import class_report
from .columns import Columns, describe_columns, find_columns
from .examples import Examples, data_fingerprint, encode, encode_texts, shared_texts, stratified_split
from .glue import GLUE, GlueRow, glue_row, glue_task, load_glue, load_glue_split
from .labels import infer_task
from .metrics import METRICS, choose_metrics, predictions, score
from .streams import iter_rows, write_rows
from .tables import Table, read_table
from .task import PROBLEM_TYPES, Task, describe_task

__all__ = [
    "GLUE",
    "METRICS",
    "PROBLEM_TYPES",
    "Columns",
    "Examples",
    "GlueRow",
    "Table",
    "Task",
    "choose_metrics",
    "class_report",
    "data_fingerprint",
    "describe_columns",
    "describe_task",
    "encode",
    "encode_texts",
    "find_columns",
    "glue_row",
    "glue_task",
    "infer_task",
    "iter_rows",
    "load_glue",
    "load_glue_split",
    "predictions",
    "read_table",
    "score",
    "shared_texts",
    "stratified_split",
    "write_rows",
]
