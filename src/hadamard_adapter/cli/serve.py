"""`hadamard serve` and `hadamard serve-key`: a bank over HTTP, and the keys of who may ask it."""

import ipaddress
from dataclasses import dataclass

from hadamard_adapter.cli.console import message_console
from hadamard_adapter.cli.hub import stay_offline_without_hub
from hadamard_adapter.cli.options import command_from
from hadamard_adapter.errors import SettingsError
from hadamard_adapter.serving.limits import Limits

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

    The page at / is for people, /docs describes the interfaces. Needs pip install 'hadamard-adapter[serve]'.

    \b
    Example:
      hadamard serve --model MODEL --store S
    """
    try:
        from hadamard_adapter.serving.http.run import make_serving, run_server, write_json_logs
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"hadamard serve needs {error.name}, which is missing; pip install 'hadamard-adapter[serve]'"
        ) from error
    from hadamard_adapter.serving.keys import read_keys

    keys = () if options.keys is None else read_keys(options.keys)
    stay_offline_without_hub([options.model])
    from hadamard_adapter.serving.load import load_bank
    from hadamard_adapter.serving.store import AdapterStore

    store = AdapterStore(options.store)
    bank = load_bank(options.model, options.device, options.pack, options.max_resident)
    serving = make_serving(options.model, bank, store, options, keys)
    console = message_console(options.quiet)
    for id, problem in serving.follower.problems.items():
        console.print(f"not served: {id or 'the store'}: {problem}")
    whom = f"{len(keys)} keys" if keys else "no keys: this machine only"
    scheme = "http" if options.tls_cert is None else "https"
    packed = "" if bank.pack is None else f" and {len(bank.pack)} packed"
    console.print(f"{len(bank)} adapters{packed} on {scheme}://{options.host}:{options.port} ({whom})")
    write_json_logs()
    run_server(serving, options.host, options.port, options.tls_cert, options.tls_key)


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
