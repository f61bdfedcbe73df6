"""Where datasets are looked for: the registry, missing and corrupt files, downloads."""

import contextlib
import hashlib
import http.server
import os
import threading

import numpy as np
import pytest

import data_fixtures
from data_fixtures import REAL, forget, needs, sha256
from outeropt import data
from outeropt.data import locate, registry
from outeropt.data.download import download
from outeropt.data.files import Dataset, File
from outeropt.errors import MissingData, OuteroptError, UnknownName


machine, elsewhere = data_fixtures.machine, data_fixtures.elsewhere
pytestmark = pytest.mark.usefixtures("machine")


# The registry


def test_registry_is_complete_and_consistent():
    assert set(data.names()) >= {"digits", "mnist", "fashion_mnist", "cifar10", "ptb", "tinyshakespeare"}
    assert sum(name.startswith("uci_") for name in data.names()) == 8
    for name in data.names():
        dataset = registry.get(name)
        assert tuple(dataset.splits) == ("train", "valid", "test") and min(dataset.splits.values()) > 0
        assert dataset.licence and dataset.citation and dataset.title
        assert dataset.published or name == "digits"
        for file in (*dataset.prepared, *dataset.published):
            assert len(file.sha256) == 64 and file.size > 0
        for file in dataset.published:
            assert file.urls and all(
                url.startswith("http") and url.endswith(file.name.split("/")[-1]) for url in file.urls
            )


def test_checksums_of_the_files_here():
    """Sizes of all files, and checksums of the small ones."""
    for name in data.names():
        for file in registry.get(name).prepared:
            path = REAL / file.name
            if path.is_file():
                assert path.stat().st_size == file.size, file.name
                if file.size < 1_000_000:
                    assert sha256(path.read_bytes()) == file.sha256, file.name


def test_describe_reads_no_data(elsewhere, monkeypatch):
    monkeypatch.delenv("OUTEROPT_OFFLINE")
    described = data.describe("ptb")
    assert described.paths == () and "outeropt data get ptb" in str(described)
    for file in registry.get("uci_yacht").prepared:
        (elsewhere / file.name).write_bytes(b"not what it should be")
    described = data.describe("uci_yacht")
    assert described.paths == (elsewhere / "uci_yacht.npz",)
    assert "train 222, valid 55, test 31" in str(described) and "Gerritsma" in str(described)


def test_unknown_names_and_kinds():
    with pytest.raises(UnknownName, match=r"Did you mean fashion_mnist"):
        data.images("fashion-mnist")
    for name in ("cifar100", "svhn", "imagenet"):
        with pytest.raises(UnknownName, match=rf"{name!r} is not provided; .*from_npz"):
            data.images(name)
    with pytest.raises(
        OuteroptError, match=r"'ptb' holds no images; load it with outeropt.data.tokens\('ptb'\)"
    ):
        data.images("ptb")
    with pytest.raises(OuteroptError, match=r"size = 0"):
        data.images("digits", size=0)
    with pytest.raises(OuteroptError, match=r"train_rows = 60000 .* give 1 to 59999"):
        data.images("mnist", train_rows=60000)


# Missing, corrupt, offline


def test_missing_file_says_which_where_and_how(elsewhere, machine):
    with pytest.raises(MissingData) as caught:
        data.images("mnist")
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "mnist.npz",
        "mnist/train-images-idx3-ubyte.gz and 3 more",
        f"OUTEROPT_DATA_DIR={elsewhere}",
    ):
        assert part in message
    assert str(machine) in message and "outeropt data get mnist" in message and "OUTEROPT_OFFLINE" in message


def test_one_missing_file_of_six_is_named(elsewhere):
    for file in registry.get("cifar10").prepared:
        if file.name != "cifar10_train3.npz":
            (elsewhere / file.name).touch()
    with pytest.raises(MissingData, match=r"needs cifar10_train3.npz \(or cifar10/cifar-10-binary.tar.gz\)"):
        data.images("cifar10")


def test_unset_or_absent_data_directory_is_said(monkeypatch, tmp_path):
    forget()
    monkeypatch.setenv("OUTEROPT_DATA_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(MissingData, match=r"nowhere \(no such directory\)"):
        data.tokens("ptb")
    monkeypatch.delenv("OUTEROPT_DATA_DIR")
    with pytest.raises(MissingData, match="OUTEROPT_DATA_DIR is not set"):
        data.tokens("ptb")


def test_corrupt_file_says_path_expected_and_found(elsewhere):
    path = elsewhere / "uci_yacht.npz"
    path.write_bytes(b"garbage")
    with pytest.raises(data.CorruptData) as caught:
        data.table("uci_yacht")
    message = str(caught.value)
    for part in (str(path), registry.get("uci_yacht").prepared[0].sha256, sha256(b"garbage"), "7 bytes"):
        assert part in message
    assert "\n" not in message and "Delete it" in message


@needs("uci_yacht.npz")
def test_a_file_is_hashed_once_until_it_changes(elsewhere, machine, monkeypatch):
    content = (REAL / "uci_yacht.npz").read_bytes()
    path = elsewhere / "uci_yacht.npz"
    path.write_bytes(content)
    hashed = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *args: hashed.append(1) or digest(*args))
    dataset = registry.get("uci_yacht")
    locate.locate(dataset)
    locate.locate(dataset)
    assert len(hashed) == 1 and (machine / "verified.json").is_file()
    path.write_bytes(content[:-1] + b"x")
    os.utime(path, ns=(1, 1))
    with pytest.raises(data.CorruptData):
        locate.locate(dataset)
    (machine / "verified.json").write_text("not json")
    path.write_bytes(content)
    locate.locate(dataset)


# Downloads


class Site(http.server.ThreadingHTTPServer):
    """A loopback web server that breaks off answers, and remembers what it was asked."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes], breaks: list[int], ranges: bool):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.breaks, self.ranges = files, breaks, ranges
        self.asked: list[tuple[str, str | None]] = []

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


class Answer(http.server.BaseHTTPRequestHandler):
    server: Site

    def do_GET(self):
        site, name, asked = self.server, self.path[1:], self.headers["Range"]
        site.asked.append((name, asked))
        if name not in site.files:
            self.send_error(404)
            return
        content = site.files[name]
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and site.ranges else 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = start + site.breaks.pop(0) if site.breaks else len(content)
        self.wfile.write(content[start:end])

    def log_message(self, *args):
        pass


@pytest.fixture
def serve(monkeypatch):
    """Starts servers, allows downloads, and stops the servers afterwards."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("OUTEROPT_OFFLINE")
    with contextlib.ExitStack() as stack:

        def start(files: dict[str, bytes], breaks: list[int] | None = None, ranges: bool = True) -> Site:
            site = stack.enter_context(Site(files, list(breaks or []), ranges))
            thread = threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            stack.callback(thread.join)
            stack.callback(site.shutdown)
            return site

        yield start


BLOB = np.random.default_rng(0).bytes(300_000)


def blob(*urls: str) -> Dataset:
    return Dataset(
        name="blob",
        kind="tokens",
        title="random bytes",
        shape=(),
        classes=256,
        splits={"train": 1, "valid": 1, "test": 1},
        licence="none",
        citation="none",
        prepared=(File("blob.npz", 1, "0" * 64),),
        published=(File("blob/blob.bin", len(BLOB), sha256(BLOB), urls),),
    )


def test_broken_download_resumes(serve, machine):
    site = serve({"blob.bin": BLOB}, breaks=[100_000, 70_000])
    found = locate.locate(blob(site.url("blob.bin")), show_progress=False)
    assert found.layout == "published" and found.paths == (machine / "blob" / "blob.bin",)
    assert found.paths[0].read_bytes() == BLOB
    starts = [int(asked[6:-1]) if asked else 0 for _, asked in site.asked]
    assert len(starts) == 3 and starts[0] == 0 and 0 < starts[1] <= 100_000 < starts[2] <= 170_000
    assert not list(machine.rglob("*.part"))
    locate.locate(blob(site.url("blob.bin")))
    assert len(site.asked) == 3


def test_download_goes_on_in_a_later_call(serve, machine):
    gone = serve({"blob.bin": BLOB}, breaks=[120_000, 0])
    with pytest.raises(MissingData) as caught:
        locate.locate(blob(gone.url("blob.bin")), show_progress=False)
    message = str(caught.value)
    assert "blob/blob.bin" in message and gone.url("blob.bin") in message
    assert "outeropt data get blob" in message and "\n" not in message
    kept = (machine / "blob" / "blob.bin.part").stat().st_size
    assert 0 < kept <= 120_000
    back = serve({"blob.bin": BLOB})
    locate.locate(blob(back.url("blob.bin")), show_progress=False)
    assert back.asked == [("blob.bin", f"bytes={kept}-")]


def test_server_without_ranges_starts_over(serve):
    site = serve({"blob.bin": BLOB}, breaks=[200_000], ranges=False)
    found = locate.locate(blob(site.url("blob.bin")), show_progress=False)
    assert found.paths[0].read_bytes() == BLOB


def test_mirrors_are_tried_in_order(serve, capfd):
    site = serve({"mirror/blob.bin": BLOB})
    dataset = blob(site.url("gone/blob.bin"), site.url("mirror/blob.bin"))
    assert locate.locate(dataset, show_progress=False).paths[0].read_bytes() == BLOB
    assert [name for name, _ in site.asked] == ["gone/blob.bin", "mirror/blob.bin"]
    assert capfd.readouterr() == ("", "")


def test_wrong_content_is_refused(serve, machine):
    site = serve({"blob.bin": BLOB[::-1]})
    with pytest.raises(MissingData, match=r"hash"):
        locate.locate(blob(site.url("blob.bin")), show_progress=False)
    assert not (machine / "blob" / "blob.bin").exists() and not list(machine.rglob("*.part"))


def test_fetch_shows_progress_and_replaces_a_corrupt_download(serve, machine, monkeypatch, capfd):
    site = serve({"blob.bin": BLOB})
    dataset = blob(site.url("blob.bin"))
    monkeypatch.setitem(registry.DATASETS, "blob", dataset)
    target = machine / "blob" / "blob.bin"
    target.parent.mkdir()
    target.write_bytes(b"half a file")
    with pytest.raises(data.CorruptData, match="Replace it with: outeropt data get blob"):
        locate.locate(dataset)
    assert data.fetch("blob") == (target,) and target.read_bytes() == BLOB
    output, progress = capfd.readouterr()
    assert output == "" and "blob/blob.bin" in progress
    data.fetch("blob", show_progress=False)
    assert len(site.asked) == 1


def test_a_part_longer_than_the_servers_file_is_dropped(serve, machine):
    site = serve({"blob.bin": BLOB[:1000]})
    part = machine / "blob" / "blob.bin.part"
    part.parent.mkdir()
    part.write_bytes(BLOB[:2000])
    file = blob(site.url("blob.bin")).published[0]
    with pytest.raises(MissingData, match="416"):
        download([file], machine, show_progress=False)
    assert not part.exists()
