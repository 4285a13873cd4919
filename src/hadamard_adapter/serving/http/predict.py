"""POST /adapters/{id}/predict in text-embeddings-inference's shape, and what InferenceClient posts."""

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field, field_validator

from hadamard_adapter.serving.http.asking import AdapterId, are_texts, ask, check_n_items
from hadamard_adapter.serving.http.errors import ApiError, failures
from hadamard_adapter.serving.http.state import Caller, ServingNow
from hadamard_adapter.tuning.classifier import Prediction

__all__ = ["ROUTES"]

ROUTES = APIRouter(tags=["predict"])


class PredictRequest(BaseModel):
    """One input, or a batch of them.

    A string or a list of one string is a text, a list of two a pair; a list of such lists is a batch. A body
    with `parameters` is that of a Hugging Face pipeline: its inputs are a text or a list of texts.
    """

    inputs: Annotated[str | list[str] | list[list[str]], Field(description="Text, pair, or batch.")]
    raw_scores: bool = Field(False, description="Not available: only probabilities are.")
    truncate: bool = Field(True, description="Texts are cut as in training whatever this says.")
    parameters: dict[str, Any] | None = Field(None, description="top_k, of a pipeline's body.")

    @field_validator("inputs", mode="before")
    @classmethod
    def _are_texts_or_lists_of_them(cls, value: Any) -> Any:
        """One error for a list of something else, where pydantic makes one for each item and type."""
        check_n_items(value)
        if not isinstance(value, list) or are_texts(value) or all(map(are_texts, value)):
            return value
        raise ValueError("expected a text, a list of texts, or a list of lists of them")


class Score(BaseModel):
    """A label and its probability; for regression the label "value" and the number."""

    label: str
    score: float


@ROUTES.post("/adapters/{id}", responses=failures(401, 403, 404, 413, 422, 429, 503, 504))
async def pipeline(
    id: AdapterId,
    request: Request,
    body: PredictRequest,
    response: Response,
    serving: ServingNow,
    key: Caller,
) -> list[list[Score]]:
    """Labels of every input, most probable first, as `InferenceClient.text_classification` expects them."""
    return await _scores(id, request, body, response, serving, key)


@ROUTES.post("/adapters/{id}/predict", responses=failures(401, 403, 404, 413, 422, 429, 503, 504))
async def predict(
    id: AdapterId,
    request: Request,
    body: PredictRequest,
    response: Response,
    serving: ServingNow,
    key: Caller,
) -> list[Score] | list[list[Score]]:
    """Labels of one input, or of each input of a batch, most probable first."""
    found = await _scores(id, request, body, response, serving, key)
    is_batch = body.parameters is not None or _is_batch(body.inputs)
    return found if is_batch else found[0]


async def _scores(
    id: str, request: Request, body: PredictRequest, response: Response, serving: ServingNow, key: Caller
) -> list[list[Score]]:
    if body.raw_scores:
        raise ApiError(422, "raw_scores", "expected raw_scores false, received true; probabilities are given")
    top_k = (body.parameters or {}).get("top_k")
    if top_k is not None and (type(top_k) is not int or top_k < 1):
        raise ApiError(422, "top_k", f"parameters.top_k: expected a number above 0, received {top_k!r}")
    function = (body.parameters or {}).get("function_to_apply")
    if function is not None:
        raise ApiError(
            422, "function_to_apply",
            f"parameters.function_to_apply: expected none, received {function!r:.100}; the adapter's task "
            "decides: softmax of one label, sigmoid of several, the number itself of a value",
        )  # fmt: skip
    inputs = body.inputs
    if body.parameters is not None and not isinstance(inputs, str):
        rows = [[one] if isinstance(one, str) else one for one in inputs]
    else:
        rows = inputs if _is_batch(inputs) else [[inputs] if isinstance(inputs, str) else inputs]
    texts, pairs = zip(*(_text_and_pair(row) for row in rows), strict=True) if rows else ((), ())
    answer = await ask(request, serving, key, texts, [id] * len(texts), pairs)
    response.headers["X-Adapter-Version"] = answer.versions[0]
    return [_ranked(prediction)[:top_k] for prediction in answer.predictions]


def _is_batch(inputs: Any) -> bool:
    return isinstance(inputs, list) and (not inputs or isinstance(inputs[0], list))


def _text_and_pair(row: Any) -> tuple[str, str | None]:
    if len(row) not in (1, 2):
        raise ApiError(422, "inputs", f"expected a text or a pair of texts, received a list of {len(row)}")
    return row[0], row[1] if len(row) == 2 else None


def _ranked(prediction: Prediction) -> list[Score]:
    if prediction.value is not None:
        return [Score(label="value", score=prediction.value)]
    scores = [Score(label=label, score=score) for label, score in prediction.probabilities.items()]
    return sorted(scores, key=lambda one: -one.score)
