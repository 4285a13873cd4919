"""POST /classify in vLLM's shape, and GET /v1/models: the adapter is named as the model."""

import time
import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, field_validator

from hadamard_adapter.errors import AdapterError
from hadamard_adapter.files import is_utf8
from hadamard_adapter.serving.http.asking import (
    are_texts,
    ask,
    check_n_items,
    lost_adapter,
    refuse_too_many,
)
from hadamard_adapter.serving.http.errors import ApiError, failures
from hadamard_adapter.serving.http.state import Caller, ServingNow
from hadamard_adapter.serving.rows import Text
from hadamard_adapter.tuning.classifier import Prediction

__all__ = ["ROUTES"]

ROUTES = APIRouter(tags=["predict"])


class ClassifyRequest(BaseModel):
    """Texts and the adapter, or adapters, that read each of them."""

    model: str | None = Field(None, description="Id of the adapter.")
    models: list[str] | None = Field(None, description="Ids of several adapters, instead of model.")
    input: Annotated[
        str | list[str] | list[int] | list[list[int]],
        Field(description="A text or a list of them; or the token ids of a text, or a list of such lists."),
    ]
    pairs: str | list[str] | None = Field(None, description="The second text of each, for tasks on pairs.")
    use_activation: bool | None = Field(None, description="Not to be false: only probabilities are given.")

    @field_validator("models", "pairs", mode="before")
    @classmethod
    def _are_texts(cls, value: Any) -> Any:
        """One error for a list of something else, where pydantic makes one for each item and type."""
        check_n_items(value)
        if isinstance(value, list) and not are_texts(value):
            raise ValueError("expected a list of texts")
        return value

    @field_validator("input", mode="before")
    @classmethod
    def _are_texts_or_token_ids(cls, value: Any) -> Any:
        """The same for what may be token ids instead."""
        check_n_items(value)
        if not isinstance(value, list) or are_texts(value):
            return value
        if _are_token_ids(value) or all(map(_are_token_ids, value)):
            return value
        raise ValueError("expected a list of texts, or of token ids, or of lists of them")


def _are_token_ids(value: Any) -> bool:
    return isinstance(value, list) and all(
        type(item) is int or (type(item) is float and item.is_integer() and abs(item) < 2.0**63)
        for item in value
    )


class ClassifyRow(BaseModel):
    """What one adapter says of one text."""

    index: int = Field(description="Position of the text.")
    label: str | None = Field(description="The most probable label; null for regression and multi-label.")
    probs: list[float] = Field(description="Of each label, in the adapter's order; empty for regression.")
    num_classes: int
    model: str = Field(description="Id of the adapter.")
    version: str = Field(description="Version of the adapter that computed this.")
    label_names: list[str]
    labels: list[str] | None = Field(None, description="Multi-label: all labels from the threshold on.")
    value: float | None = Field(None, description="Regression: the number.")


class Usage(BaseModel):
    """Tokens, special ones included."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0


class ClassifyReply(BaseModel):
    """A row for each text and adapter; texts in their order, adapters in theirs within a text."""

    id: str
    object: str = "list"
    created: int
    model: str
    data: list[ClassifyRow]
    usage: Usage


class TokenizeRequest(BaseModel):
    """A text, and the adapter that would read it."""

    model: str = Field(description="Id of the adapter.")
    prompt: str = Field(description="The text.")


class TokenizeReply(BaseModel):
    """Token ids, special ones included, cut as the adapter's texts are."""

    count: int
    max_model_len: int
    tokens: list[int]


@ROUTES.post("/classify", responses=failures(401, 403, 404, 413, 422, 429, 503, 504))
@ROUTES.post("/v1/classify", responses=failures(401, 403, 404, 413, 422, 429, 503, 504))
async def classify(
    request: Request, body: ClassifyRequest, serving: ServingNow, key: Caller
) -> ClassifyReply:
    """Classify texts by one adapter, or by several."""
    ids = body.models if body.models is not None else [body.model] if body.model is not None else []
    if not ids or (body.model is not None and body.models is not None):
        raise ApiError(422, "no_model", "expected model (an id) or models (a list of ids), one of the two")
    if body.use_activation is False:
        raise ApiError(422, "use_activation", "expected true, received false; probabilities are given")
    texts = _texts(body.input)
    seconds = [body.pairs] if isinstance(body.pairs, str) else body.pairs
    if seconds is not None and len(seconds) != len(texts):
        raise ApiError(422, "pairs", f"expected a second text a text, {len(texts)}, received {len(seconds)}")
    refuse_too_many(serving, len(texts) * len(ids))
    rows = [(at, id) for at in range(len(texts)) for id in ids]
    answer = await ask(
        request, serving, key, [texts[at] for at, _ in rows], [id for _, id in rows],
        [None if seconds is None else seconds[at] for at, _ in rows],
    )  # fmt: skip
    data = [
        _row(at, id, prediction, version)
        for (at, id), prediction, version in zip(rows, answer.predictions, answer.versions, strict=True)
    ]
    n_tokens = sum(answer.n_tokens)
    return ClassifyReply(
        id=f"classify-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=",".join(ids),
        data=data,
        usage=Usage(prompt_tokens=n_tokens, total_tokens=n_tokens),
    )


@ROUTES.post("/tokenize", responses=failures(401, 403, 404, 413, 422, 429, 503, 504))
async def tokenize(body: TokenizeRequest, serving: ServingNow, key: Caller) -> TokenizeReply:
    """The token ids of a text, as an adapter reads it."""
    serving.check_ids(key, [body.model])
    if not is_utf8(body.prompt):
        raise ApiError(422, "no_unicode", "expected whole characters, received half of a surrogate pair")
    serving.refuse_closing()
    try:
        ids, longest = await serving.batcher.token_ids(body.prompt, body.model, serving.limits.timeout_s)
    except AdapterError as error:
        raise lost_adapter(serving, error) from error
    return TokenizeReply(count=len(ids), max_model_len=longest, tokens=ids)


@ROUTES.get("/v1/models", responses=failures(401))
async def models(serving: ServingNow, key: Caller) -> dict[str, Any]:
    """The adapters that may be named as a model, in OpenAI's shape."""
    names = [id for id in serving.bank.ids if key.may_use(id)]
    data = [{"id": id, "object": "model", "created": 0, "owned_by": "hadamard"} for id in names]
    return {"object": "list", "data": data}


def _texts(given: str | list[str] | list[int] | list[list[int]]) -> list[Text]:
    """The texts of an input, token ids as tuples."""
    if isinstance(given, str):
        return [given]
    if given and isinstance(given[0], int):
        return [tuple(id for id in given if isinstance(id, int))]
    return [one if isinstance(one, str) else tuple(one) for one in given if not isinstance(one, int)]


def _row(at: int, id: str, prediction: Prediction, version: str) -> ClassifyRow:
    label, of_label = prediction.label, prediction.probabilities
    return ClassifyRow(
        index=at,
        label=label if isinstance(label, str) else None,
        probs=list(of_label.values()),
        num_classes=len(of_label),
        model=id,
        version=version,
        label_names=list(of_label),
        labels=list(label) if isinstance(label, tuple) else None,
        value=prediction.value,
    )
