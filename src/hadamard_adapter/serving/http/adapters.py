"""GET, PUT and DELETE /v1/adapters: list, upload, replace, roll back, unload; checks before activation."""

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, Field

from hadamard_adapter.errors import AdapterError, SettingsError
from hadamard_adapter.files import is_no_space
from hadamard_adapter.serving.http.asking import AdapterId, lost_adapter
from hadamard_adapter.serving.http.errors import ApiError, failures, store_away
from hadamard_adapter.serving.http.state import Administrator, Caller, Serving, ServingNow
from hadamard_adapter.serving.http.upload import unpack
from hadamard_adapter.serving.keys import Key
from hadamard_adapter.serving.source import BankAdapter, read_adapter
from hadamard_adapter.serving.store import ID, MissingError, Published

__all__ = ["ROUTES"]

ROUTES = APIRouter(tags=["adapters"], prefix="/v1/adapters")
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/zip": {"schema": {"type": "string", "format": "binary"}},
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["version"],
                    "properties": {"version": {"type": "string", "pattern": "^[0-9a-f]{16}$"}},
                }
            },
        },
    }
}


class Described(BaseModel):
    """An adapter that is served, or could be."""

    id: str
    version: str | None = Field(description="That is served; null after a dry run.")
    history: list[str] | None = Field(None, description="Versions before; null in lists.")
    problem_type: str
    labels: list[str]
    has_pair: bool | None = Field(description="Whether it reads two texts; null: not known.")
    max_length: int
    adapter_bytes: int
    head_bytes: int


class Listed(BaseModel):
    """A page of adapters, in the order of ids."""

    data: list[Described]
    n_adapters: int = Field(description="That this key may use.")
    next: str | None = Field(description="Give it as `after` for the next page; null: this was the last.")


class Removed(BaseModel):
    """An adapter that is served no more."""

    id: str
    removed: bool = True
    is_in_pack: bool | None = Field(
        description="Whether the server's pack has it, and answers with that; null: it cannot be read now."
    )


@ROUTES.get("", responses=failures(401, 422))
def adapters(
    serving: ServingNow,
    key: Caller,
    after: Annotated[str, Query(max_length=128, description="Ids behind this one.")] = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Listed:
    """List adapters."""
    ids = sorted(id for id in serving.bank.ids if key.may_use(id))
    behind = [id for id in ids if id > after]
    data: list[Described] = []
    for id in behind[:limit]:
        try:
            data.append(_described(serving, id))
        except AdapterError:  # removed in between
            continue
    following = behind[limit - 1] if len(behind) > limit else None
    return Listed(data=data, n_adapters=len(ids), next=following)


@ROUTES.get("/{id}", responses=failures(401, 403, 404, 503))
async def adapter(id: AdapterId, serving: ServingNow, key: Caller) -> Described:
    """Show one adapter with its earlier versions."""
    serving.check_ids(key, [id])
    try:
        found = await run_in_threadpool(_described, serving, id)
    except AdapterError as error:
        raise lost_adapter(serving, error) from error
    try:
        published = await serving.reads.run(serving.limits.timeout_s, serving.store.find, id)
    except (AdapterError, ApiError, SettingsError):  # away, or an id of a pack alone: nothing of its history
        return found
    return found.model_copy(update={"history": list(published.history) if published is not None else []})


@ROUTES.put("/{id}", openapi_extra=_BODY, responses=failures(400, 401, 403, 404, 413, 415, 422, 503))
async def put(
    id: AdapterId, request: Request, serving: ServingNow, key: Administrator, dry_run: bool = False
) -> Described:
    """Publish an uploaded adapter, or serve an earlier version again (JSON).

    An upload is a zip of adapter_config.json, adapter_model.safetensors and, where they are, run.json and
    metrics.json.
    """
    _check_id(serving, key, id)
    serving.refuse_closing()
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    content = await request.body()
    if kind == "application/zip":
        return await _changed(serving, _upload, id, content, dry_run)
    if kind == "application/json":
        return await _changed(serving, _roll_back, id, _version_in(content), dry_run)
    raise ApiError(
        415, "content_type", f"expected application/zip, or application/json to roll back, received {kind!r}"
    )


@ROUTES.delete("/{id}", responses=failures(401, 403, 404, 503))
async def delete(id: AdapterId, serving: ServingNow, key: Administrator) -> Removed:
    """Serve an adapter no more, and delete its versions; predictions under way are still answered."""
    _check_id(serving, key, id)
    serving.refuse_closing()
    await _changed(serving, _remove, id)
    try:
        is_in_pack = serving.is_in_pack(id)
    except ApiError:  # removed it is all the same
        is_in_pack = None
    return Removed(id=id, is_in_pack=is_in_pack)


async def _changed(serving: Serving, change: Callable[..., Any], *arguments: Any) -> Any:
    return await serving.changes.run(serving.limits.timeout_s, change, serving, *arguments)


def _remove(serving: Serving, id: str) -> None:
    with _store_explained():
        try:
            serving.store.show(id)
            serving.store.remove(id)
        except MissingError as error:
            message = f"no adapter {id!r} in the store; what a pack holds stays"
            raise ApiError(404, "no_such_adapter", message) from error
        serving.follower.take(id)


def _check_id(serving: Serving, key: Key, id: str) -> None:
    if not key.may_use(id):
        serving.check_ids(key, [id])
    if not ID.fullmatch(id):
        raise ApiError(
            422, "id", f"id: expected up to 128 letters, digits, dots, dashes or underscores, received {id!r}"
        )


def _version_in(content: bytes) -> str:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "json", f'expected {{"version": "…"}}, received no JSON: {error}') from error
    version = found.get("version") if isinstance(found, dict) else None
    if not isinstance(version, str):
        raise ApiError(422, "version", 'expected {"version": "…"} with 16 hex digits, received another value')
    return version


def _upload(serving: Serving, id: str, content: bytes, is_dry: bool) -> Described:
    with tempfile.TemporaryDirectory(prefix="hadamard-upload-") as folder:
        try:
            unpack(content, folder, serving.limits.upload_bytes)
            adapter = read_adapter(folder)
            serving.bank.backbone.check_fit(id, adapter)
        except Exception as error:
            if is_no_space(error):
                message = "this server's disk has no space left to unpack an upload; nothing was changed"
                raise ApiError(503, "no_space", message, {"Retry-After": "5"}) from error
            # Whatever a reader raises is about the bytes that were sent; it names the temporary folder.
            message = str(error).replace(folder, "upload")
            raise ApiError(422, "unfit_adapter", f"{message}; nothing was changed") from error
        if is_dry:
            return _describe(id, None, adapter)
        with _store_explained():
            published = serving.store.add(id, folder)
            serving.follower.take(id)
    return _describe(id, published.version, adapter)


def _roll_back(serving: Serving, id: str, version: str, is_dry: bool) -> Described:
    with _store_explained():
        serving_now = serving.store.find(id)
    if serving_now is None:
        raise ApiError(404, "no_such_adapter", f"no adapter {id!r} in the store; upload it")
    _check_version(id, version, serving_now)
    try:
        adapter = serving.store.read(id, version)[1]
        serving.bank.backbone.check_fit(id, adapter)
    except AdapterError as error:
        if _is_away(error):
            raise _unchanged(error) from error
        with _store_explained():
            _check_version(id, version, serving.store.find(id))  # somebody may have pruned it
        raise ApiError(422, "unfit_adapter", f"{error}; nothing was changed") from error
    if is_dry:
        return _describe(id, None, adapter)
    with _store_explained():
        try:
            serving.store.roll_back(id, version)
        except MissingError as error:
            raise _no_version(id, version) from error
        serving.follower.take(id)
    return _describe(id, version, adapter)


def _check_version(id: str, version: str, published: Published | None) -> None:
    """Refuse a version that the store does not have.

    Raises:
        ApiError: 404.
    """
    if published is None or version not in (published.version, *published.history):
        raise _no_version(id, version)


def _no_version(id: str, version: str) -> ApiError:
    return ApiError(
        404, "no_such_version",
        f"adapter {id!r} has no version {version[:64]!r}; GET /v1/adapters/{id} lists those that it has",
    )  # fmt: skip


@contextlib.contextmanager
def _store_explained() -> Iterator[None]:
    """Turn an error of the store into a 503; what was published before it is served by the next look."""
    try:
        yield
    except (AdapterError, SettingsError) as error:
        raise _unchanged(error) from error


def _is_away(error: Exception) -> bool:
    """Whether an error is the store's, which may be gone at the next try, and not the adapter's."""
    return isinstance(error.__cause__, OSError)


def _unchanged(error: Exception) -> ApiError:
    return store_away(f"{error}; what was served before is served")


def _described(serving: Serving, id: str) -> Described:
    adapter, version = serving.bank.show(id)
    return _describe(id, version, adapter)


def _describe(id: str, version: str | None, adapter: BankAdapter) -> Described:
    return Described(
        id=id,
        version=version,
        history=None,
        problem_type=adapter.task.problem_type,
        labels=list(adapter.task.label_names),
        has_pair=adapter.has_pair,
        max_length=adapter.max_length,
        adapter_bytes=adapter.offset_bytes,
        head_bytes=adapter.head_bytes,
    )
