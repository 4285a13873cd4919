"""`hadamard serve` and `hadamard serve-key`: a bank over HTTP, and the keys of who may ask it."""

import ipaddress
import re
from dataclasses import dataclass, fields
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Literal

from hadamard_adapter.cli.console import message_console
from hadamard_adapter.cli.hub import stay_offline_without_hub
from hadamard_adapter.cli.options import command_from
from hadamard_adapter.errors import SettingsError
from hadamard_adapter.serving.limits import Limits

if TYPE_CHECKING:
    from hadamard_adapter.serving.http.state import Serving
    from hadamard_adapter.serving.keys import Key

__all__ = ["serve_command", "serve_key_command"]


@dataclass(frozen=True, kw_only=True)
class ServeOptions(Limits):
    """The options of `hadamard serve`."""

    model: str
    """Base model: a folder, or a name on the hub."""
    store: str
    """Folder of the store, or a URL that fsspec knows, such as s3://bucket/adapters."""
    pack: str | None = None
    """Folder that `hadamard bank pack` made: its adapters are read when they are asked for."""
    max_resident: int = 1000
    """Adapters of the pack that are held, those that were used last; the store's are held besides."""
    host: str = "127.0.0.1"
    """Address to listen on; without --keys only one of this machine."""
    port: int = 8000
    """Port to listen on; 0 picks a free one, which the log names."""
    keys: str | None = None
    """File that `hadamard serve-key` wrote; None: everybody on this machine may do everything."""
    tls_cert: str | None = None
    """Certificate (PEM) for HTTPS; None: plain HTTP."""
    tls_key: str | None = None
    """Key (PEM) of the certificate."""
    device: str | None = None
    """cpu, cuda or mps; None: the fastest that is there."""
    engine: Literal["uvicorn", "ray"] = "uvicorn"
    """uvicorn: one process; ray: replicas of it by Ray Serve, here or on the cluster of RAY_ADDRESS."""
    replicas: str = "1"
    """Replicas of --engine ray: a number, or MIN-MAX, between which Ray chooses by the requests under way."""
    replica_cpus: float = 1.0
    """Processors that --engine ray reserves for each replica; with --device cuda a GPU besides."""
    replica_requests: int = 8
    """Requests under way in each replica that --engine ray aims at where --replicas is MIN-MAX."""
    quiet: bool = False
    """Whether to say nothing but errors."""

    def __post_init__(self) -> None:
        """Check the options before the model is loaded."""
        super().__post_init__()
        if not 0 <= self.port <= 65535:
            raise SettingsError(f"--port: expected 0 to 65535, received {self.port}")
        if self.keys is None and not _is_loopback(self.host):
            raise SettingsError(
                f"--host {self.host!r} can be reached from other machines, and there are no keys; pass "
                "--keys FILE (hadamard serve-key makes one), or listen on 127.0.0.1"
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            raise SettingsError("--tls-cert and --tls-key: expected both or none, received one")
        self._check_engine()

    def _check_engine(self) -> None:
        least, most = self.replica_range
        if not 1 <= least <= most:
            raise SettingsError(f"--replicas: expected 2 or 1-4, received {self.replicas!r}")
        if self.replica_cpus <= 0 or self.replica_requests < 1:
            raise SettingsError("--replica-cpus, --replica-requests: expected numbers above 0")
        if self.engine == "ray":
            if self.port == 0:
                raise SettingsError("--port 0: Ray's proxies listen on one port of every machine; name it")
            return
        for field in fields(self):
            if field.name.startswith("replica") and getattr(self, field.name) != field.default:
                option = f"--{field.name.replace('_', '-')}"
                raise SettingsError(f"{option} belongs to --engine ray, received --engine {self.engine}")

    @property
    def replica_range(self) -> tuple[int, int]:
        """Least and largest number of replicas; (0, 0) where they are not spelled so."""
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", self.replicas)
        return (0, 0) if found is None else (int(found[1]), int(found[2] or found[1]))


@dataclass(frozen=True, kw_only=True)
class ServeKeyOptions:
    """The options of `hadamard serve-key`."""

    keys: str
    """File of keys; made if it is not there."""
    name: str
    """Name of the key's owner, as logs and errors show it."""
    ids: tuple[str, ...] = ("*",)
    """Ids that it may use, with * and ? as in file names."""
    may_administrate: bool = False
    """Whether it may add, replace and remove adapters, and read /metrics."""


@command_from("serve", ServeOptions)
def serve_command(options: ServeOptions) -> None:
    """Answer over HTTP with every adapter of a store on one base model.

    The page at / is for people, /docs describes the interfaces. Needs pip install '.[serve]' in a clone.

    \b
    Example:
      hadamard serve --model MODEL --store S
    """
    extra, module = ("ray", "cluster") if options.engine == "ray" else ("serve", "run")
    try:
        import_module(f"hadamard_adapter.serving.http.{module}")
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"hadamard serve needs {error.name}, which is missing; pip install '.[{extra}]' in a clone"
        ) from error
    from hadamard_adapter.serving.http.run import check_certificate, check_free, write_json_logs
    from hadamard_adapter.serving.keys import read_keys

    check_free(options.host, options.port)
    if options.tls_cert is not None and options.tls_key is not None:
        check_certificate(options.tls_cert, options.tls_key)
    keys = () if options.keys is None else read_keys(options.keys)
    stay_offline_without_hub([options.model])
    write_json_logs()
    (_run_replicas if options.engine == "ray" else _run_here)(options, keys)


def _run_here(options: ServeOptions, keys: "tuple[Key, ...]") -> None:
    from hadamard_adapter.serving.http.run import run_server

    serving, console = _make(options, keys), message_console(options.quiet)
    for id, problem in serving.follower.problems.items():
        console.print(f"not served: {id or 'the store'}: {problem}")
    packed = "" if serving.bank.pack is None else f" and {len(serving.bank.pack)} packed"
    console.print(f"{len(serving.bank)} adapters{packed} {_where(options, keys)}")
    run_server(serving, options.host, options.port, options.tls_cert, options.tls_key)


def _run_replicas(options: ServeOptions, keys: "tuple[Key, ...]") -> None:
    from hadamard_adapter.serving.http.cluster import Replicas, run_cluster
    from hadamard_adapter.serving.load import load_bank

    # What cannot be served is refused here, in one line, before Ray starts and writes its tracebacks.
    load_bank(options.model, "cpu", options.pack, options.max_resident)
    least, most = options.replica_range
    replicas = Replicas(
        least=least,
        most=most,
        n_cpus=options.replica_cpus,
        n_gpus=float(options.device == "cuda"),
        n_requests=options.replica_requests,
    )
    message_console(options.quiet).print(f"{options.replicas} replicas {_where(options, keys)}")
    run_cluster(
        partial(_make, options, keys), options, replicas,
        options.host, options.port, options.tls_cert, options.tls_key,
    )  # fmt: skip


def _where(options: ServeOptions, keys: "tuple[Key, ...]") -> str:
    scheme = "http" if options.tls_cert is None else "https"
    whom = f"{len(keys)} keys" if keys else "no keys: this machine only"
    return f"on {scheme}://{options.host}:{options.port} ({whom})"


def _make(options: ServeOptions, keys: "tuple[Key, ...]") -> "Serving":
    from hadamard_adapter.serving.http.run import make_serving
    from hadamard_adapter.serving.load import load_bank
    from hadamard_adapter.serving.store import AdapterStore

    bank = load_bank(options.model, options.device, options.pack, options.max_resident)
    return make_serving(options.model, bank, AdapterStore(options.store), options, keys)


@command_from("serve-key", ServeKeyOptions)
def serve_key_command(options: ServeKeyOptions) -> None:
    """Make a key for `hadamard serve`: print it once, and keep its hash in a file.

    \b
    Example:
      hadamard serve-key --keys keys.json --name shop --ids 'shop-*'
    """
    from hadamard_adapter.serving.keys import make_key

    print(make_key(options.keys, options.name, options.ids, options.may_administrate))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
