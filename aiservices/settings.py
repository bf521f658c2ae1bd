"""What settings there are: each with its type, bounds, default and meaning; ``aiservices.config`` reads them.

One class for each table of ``services.toml``, its fields in the file's order. The name of a number ends in its unit.
The README's tables are made from this file by ``scripts/settings-table``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import attrs
from msgspec import Meta

T = TypeVar("T")

Positive = Annotated[int, Meta(ge=1)]
Count = Annotated[int, Meta(ge=0)]
PositiveSeconds = Annotated[float, Meta(gt=0)]
Seconds = Annotated[float, Meta(ge=0)]
Gib = Annotated[float, Meta(ge=0)]
Port = Annotated[int, Meta(ge=0, le=65535)]
UpToAWeekSeconds = Annotated[float, Meta(ge=1, le=604_800)]

MEANING = "meaning"
"""Key of a field's metadata: what the setting does, in one line of Markdown without a full stop."""


def setting(default: T, meaning: str, *, secret: bool = False) -> T:
    """Declare a setting with its default; a secret stays out of ``repr``. Typed as ``attrs.field`` is."""
    return attrs.field(default=default, metadata={MEANING: meaning}, repr=not secret)


@attrs.frozen(kw_only=True)
class ServerConfig:
    """``[server]``: the process and its HTTP side."""

    profile: str = setting("demo", "the profile that runs when nobody names one")
    host: str = setting("127.0.0.1", "address to listen on; `0.0.0.0` to be reached from other machines")
    port: Port = setting(8001, "port to listen on; 0: any free one")
    grace_s: Seconds = setting(30.0, "seconds that running jobs may go on once the process was told to stop")
    api_keys: tuple[Annotated[str, Meta(min_length=1)], ...] = setting(
        (), "callers need one of these as `Authorization: Bearer KEY`; none: everyone may call", secret=True
    )
    keys_file: str = setting("", "TOML file with the named keys of tenants, read again when it changes; empty: none")
    hosts: tuple[Annotated[str, Meta(pattern=r"^[a-z0-9._-]+$")], ...] = setting(
        (),
        "names in `Host` beside addresses and `localhost`; none: no more on loopback without keys, else any",
    )
    allow_origins: tuple[Annotated[str, Meta(pattern=r"^https?://[^/*]+$")], ...] = setting(
        (), "origins (`https://app.example.com`) whose web pages may call; none: only the server's own page"
    )
    log_level: Literal["debug", "info", "warning", "error"] = setting(
        "info", "least level that is logged: `debug`, `info`, `warning` or `error`"
    )
    log_format: Literal["auto", "json", "console"] = setting(
        "auto", "`json`, `console`, or `auto`: colours on a terminal, else JSON"
    )
    model_dir: Path = setting(Path("models"), "folder where downloaded models are kept")
    cache_gib: Gib = setting(
        0.0, "most GiB in that folder: models used longest ago are removed, never one in use; 0: no bound"
    )
    pool_threads: Positive = setting(2, "threads that decode, tokenise and encode beside the models")
    device_memory_gib: dict[str, Gib] = attrs.field(
        factory=dict,
        metadata={
            MEANING: 'most GiB of models by device, as `{ "cuda:0" = 70 }`: idle ones give way to others; none: any'
        },
    )
    decoder_processes: Positive = setting(2, "processes that decode pictures and sound that callers send")
    decode_timeout_s: PositiveSeconds = setting(
        10.0, "seconds that one picture or sound may take to decode; its decoder is then killed"
    )
    decoder_memory_bytes: Positive = setting(
        2 * 1024 * 1024 * 1024, "most bytes of memory (address space) of one of these processes"
    )
    max_run_body_bytes: Positive = setting(10 * 1024 * 1024, "most bytes of one request of `run`; more is refused: 413")
    max_runsync_body_bytes: Positive = setting(20 * 1024 * 1024, "the same for `runsync`")
    max_bodies_bytes: Positive = setting(
        512 * 1024 * 1024, "most bytes of request bodies under way at once, over all connections; more is refused: 503"
    )
    body_timeout_s: PositiveSeconds = setting(120.0, "seconds that one request's body may take to arrive")
    max_answers_bytes: Positive = setting(
        1024 * 1024 * 1024, "most bytes of large answers being sent at once; others wait 5 s, then 503"
    )
    send_timeout_s: PositiveSeconds = setting(60.0, "seconds that a reader may take nothing of its answer")
    head_timeout_s: PositiveSeconds = setting(10.0, "seconds that a request's head may take to arrive")
    keepalive_s: PositiveSeconds = setting(75.0, "seconds that a connection may wait for its next request")
    max_connections: Positive = setting(
        2000, "most connections; above it idle ones are closed, and where none is idle, new ones get probes only"
    )

    @property
    def needs_keys(self) -> bool:
        """Whether callers need a key."""
        return bool(self.api_keys or self.keys_file)


@attrs.frozen(kw_only=True)
class FetchConfig:
    """``[fetch]``: bounds of the guarded download of URLs that callers give."""

    max_bytes: Positive = setting(25 * 1024 * 1024, "most bytes of one file")
    timeout_s: PositiveSeconds = setting(20.0, "seconds for one download, redirects included")
    connect_timeout_s: PositiveSeconds = setting(5.0, "seconds to connect to one address")
    max_redirects: Count = setting(3, "most redirects of one download")
    max_concurrency: Positive = setting(32, "most downloads at once; more wait")
    max_per_host: Positive = setting(8, "most downloads at once from one host; more wait and hold nobody else's place")
    allow_hosts: tuple[str, ...] = setting(
        (), "hosts, `host:port`, addresses or networks that may be fetched from although they are private"
    )
    user_agent: str = setting("aiservices", "the `User-Agent` header of downloads")


@attrs.frozen(kw_only=True)
class WebhookConfig:
    """``[webhook]``: the POST of the status object when a job ends."""

    timeout_s: PositiveSeconds = setting(10.0, "seconds for one attempt")
    attempts: Positive = setting(3, "attempts in all, until the receiver answers 2xx")
    retry_wait_s: Seconds = setting(10.0, "seconds between two attempts, on average")
    max_pending: Positive = setting(
        1000, "most deliveries under way; more wait where there is a journal, else they are dropped"
    )
    max_pending_per_host: Positive = setting(500, "most deliveries under way to one host")
    max_pending_per_tenant: Positive = setting(500, "most deliveries under way of one tenant, where there are tenants")
    max_per_host: Positive = setting(8, "most POSTs at once to one host; more wait")
    secrets: tuple[Annotated[str, Meta(min_length=1)], ...] = setting(
        (), "`whsec_` secrets (HMAC) and `whsk_` keys (ed25519): each signs every POST; none: not signed", secret=True
    )
    secret: str = setting("", "signs the old header `X-Aiservices-Signature`; gone in the next release", secret=True)


@attrs.frozen(kw_only=True)
class S3Config:
    """``[s3]``: where models on ``s3://`` lie. Empty values leave the choice to the AWS defaults."""

    endpoint_url: str = setting("", "address of a store that is not AWS's")
    region: str = setting("", "region of the buckets")
    access_key_id: str = setting("", "name of the key", secret=True)
    secret_access_key: str = setting("", "the key itself; better by environment than in the file", secret=True)
    session_token: str = setting("", "token of a temporary key", secret=True)
    addressing_style: Literal["auto", "path", "virtual"] = setting(
        "auto", "`path` (`http://host/bucket`), `virtual` (`http://bucket.host`) or `auto`"
    )
    max_concurrency: Positive = setting(8, "most requests at once")
    part_mib: Positive = setting(16, "MiB of one range or part of a larger file")
    attempts: Positive = setting(6, "how often in a row one request may fail")
    retry_wait_s: Seconds = setting(
        0.5, "most seconds before the second attempt; doubled for each further one, up to 20 s"
    )
    connect_timeout_s: PositiveSeconds = setting(10.0, "seconds to connect")
    read_timeout_s: PositiveSeconds = setting(30.0, "seconds that a transfer may stand still")


@attrs.frozen(kw_only=True)
class OutputsConfig:
    """``[outputs]``: how large an output may be, and the bucket that large ones go to."""

    bucket: str = setting("", "name of the bucket; empty: none but what a job names itself, by `s3Config`")
    prefix: str = setting("", "folder in the bucket")
    endpoint_url: str = setting("", "address of the store; empty: as in `[s3]`")
    region: str = setting("", "region of the bucket; empty: as in `[s3]`")
    access_key_id: str = setting("", "name of the key; empty: as in `[s3]`", secret=True)
    secret_access_key: str = setting("", "the key itself; empty: as in `[s3]`", secret=True)
    max_inline_bytes: Positive = setting(
        4 * 1024 * 1024, "larger files (as base64) and larger answers go to the bucket, if there is one"
    )
    max_output_bytes: Positive = setting(
        256 * 1024 * 1024, "most bytes of an output that goes to no bucket; the job fails where it is larger"
    )
    url_lifetime_s: Annotated[int, Meta(ge=1, le=604_800)] = setting(86_400, "seconds that a signed URL is valid")
    timeout_s: PositiveSeconds = setting(60.0, "seconds for one job's uploads to the bucket above")
    max_concurrency: Positive = setting(8, "most jobs that upload to it at once; more wait")
    callers_timeout_s: PositiveSeconds = setting(30.0, "seconds for one job's uploads to a bucket that it names")
    callers_concurrency: Positive = setting(32, "most jobs that upload to buckets they name at once; more wait")
    callers_per_host: Positive = setting(4, "most of them to one host at once; more wait and hold nobody else's place")
    callers_max_bytes: Positive = setting(
        512 * 1024 * 1024, "most bytes that wait for such buckets, for one host half of it; more fails its job"
    )


@attrs.frozen(kw_only=True)
class JournalConfig:
    """``[journal]``: the file in which accepted jobs survive the end of the process."""

    path: str = setting("auto", "the file; `auto`: `data/jobs-PROFILE.db` beside `model_dir`; `off`: there is none")
    sync: Literal["normal", "full"] = setting(
        "normal", "`normal`: accepted jobs survive `kill -9`; `full`: a power cut as well, at more time for each"
    )
    key: str = setting("", "encrypts callers' `s3Config`; empty: jobs with one are kept in memory only", secret=True)


@attrs.frozen(kw_only=True)
class ServiceConfig:
    """``[services.NAME]``: one service; a profile may override each of these."""

    name: str
    handler: Annotated[str, Meta(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")] = attrs.field(
        metadata={MEANING: 'class that runs the jobs, as `"module:Class"`'}
    )
    model: str = setting("", "where the weights are: a folder, `hf://…`, `s3://…` or `package://…`")
    device: Annotated[str, Meta(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = setting(
        "auto", "`cpu`, `cuda`, `cuda:1`, or `auto`: a GPU if there is one"
    )
    load: Literal["start", "first_use"] = setting(
        "start", "when the model is loaded: at the `start`, or at its `first_use` by a job"
    )
    idle_s: Seconds = setting(
        0.0, "seconds without a job after which the model is unloaded; the next job loads it again; 0: never"
    )
    memory_gib: Gib = setting(0.0, "GiB that have to be free on the device before the model is loaded; 0: do not check")
    max_batch_size: Positive = setting(8, "most jobs in the model at once")
    batch_wait_s: Seconds = setting(
        0.0, "seconds that an idle model waits for companions of a first job; 0: it starts at once"
    )
    prefetch: Positive = setting(16, "jobs that are fetched and decoded ahead of the model")
    queue_size: Positive = setting(1000, "most waiting jobs; more are refused: 429")
    queue_bytes: Positive = setting(256 * 1024 * 1024, "most bytes of waiting input; more is refused: 429")
    timeout_s: UpToAWeekSeconds = setting(
        600.0, "seconds that a job may run, unless its `policy.executionTimeout` says otherwise"
    )
    ttl_s: UpToAWeekSeconds = setting(
        86_400.0, "seconds that a job may wait in the queue, unless its `policy.ttl` says otherwise"
    )
    max_attempts: Positive = setting(
        3, "attempts of a job that each ended with the process while it ran; then it is FAILED"
    )
    max_retries: Count = setting(
        20, "most times that a job is begun again, by its callers or because a process ended; then `retry` answers 409"
    )
    prepare_timeout_s: PositiveSeconds = setting(120.0, "seconds for fetching and decoding one job's input")
    hang_s: PositiveSeconds = setting(
        60.0,
        "seconds past its limit that a job may hold the model's thread; then the service fails and the process exits",
    )
    keep_results_s: Annotated[float, Meta(ge=1)] = setting(1800.0, "seconds that a job is remembered after its end")
    keep_results: Count = setting(10_000, "most ended jobs that are remembered")
    keep_results_bytes: Count = setting(512 * 1024 * 1024, "most bytes of remembered outputs")
    stream_buffer_bytes: Positive = setting(
        1024 * 1024, "most bytes of one job's stream that nobody has read; the oldest chunks are dropped"
    )
    options: dict[str, Any] = attrs.field(
        factory=dict, metadata={MEANING: "the handler's own settings; an unknown one is refused with the right names"}
    )


@attrs.frozen(kw_only=True)
class Config:
    """All settings of one process.

    Attributes:
        profile: name of the running profile.
        services: the profile's services by name, in the file's order.
        profiles: names of every profile in the file.
    """

    server: ServerConfig = ServerConfig()
    fetch: FetchConfig = FetchConfig()
    webhook: WebhookConfig = WebhookConfig()
    s3: S3Config = S3Config()
    outputs: OutputsConfig = OutputsConfig()
    journal: JournalConfig = JournalConfig()
    profile: str = ""
    services: Mapping[str, ServiceConfig] = attrs.Factory(dict)
    profiles: tuple[str, ...] = ()
