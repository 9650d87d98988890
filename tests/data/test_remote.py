"""Remote datasets: read as local ones, through failures, within the cache's bound."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from csm.data.block_cache import BLOCK, BlockCache
from csm.data.dataset import ShardedDataset
from csm.data.lengths import load_lengths
from csm.text import ByteTokenizer
from tests.data.made_datasets import made_dataset, made_sample, write_dataset

SAMPLES = 130


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Four to five shards of 1.1 blocks, so that samples also lie across blocks' edges."""
    samples = [made_sample(i) for i in range(SAMPLES)]
    for sample in samples:  # 32 KB of codes
        repeats = 3300 // sample.num_frames
        sample.codes = np.tile(sample.codes, repeats)
        for turn in sample.turns:
            turn.start_frame, turn.num_frames = turn.start_frame * repeats, turn.num_frames * repeats
    return write_dataset(tmp_path_factory.mktemp("remote") / "data", samples, shard_bytes=1_150_000)


class Server(ThreadingHTTPServer):
    """A folder over HTTP with ranges. `faults` counts down: each request for a shard meanwhile fails."""

    daemon_threads = True
    folder: Path
    fault = 0  # 503; or 206 with a body cut short
    faults = 0
    ranges: list[tuple[str, str]]

    def handle_error(self, request, client_address) -> None:
        """Clients that go away, such as finished workers, are no news."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.respond(body=False)

    def do_GET(self) -> None:
        self.respond(body=True)

    def respond(self, body: bool) -> None:
        name = self.path.lstrip("/")
        file = self.server.folder / name
        fault = 0
        if name.endswith(".tar") and self.server.faults > 0:
            self.server.faults -= 1
            fault = self.server.fault
        if not file.is_file():
            self.answer(404, b"", body)
        elif fault == 503:
            self.answer(503, b"busy", body)
        elif requested := self.headers.get("Range"):
            start, end = (int(number) for number in requested.removeprefix("bytes=").split("-"))
            self.server.ranges.append((name, requested))
            data = file.read_bytes()[start : end + 1]
            self.answer(206, data[: len(data) // 2] if fault == 206 else data, body)
        else:
            self.answer(200, file.read_bytes(), body)

    def answer(self, status: int, data: bytes, body: bool) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *arguments) -> None:
        pass


@pytest.fixture
def server(folder) -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.folder, server.ranges = folder, []
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr("csm.data.remote._FIRST_DELAY", 0.002)


def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def assert_same(remote: ShardedDataset, folder: Path) -> None:
    local = ShardedDataset(folder)
    assert len(remote) == len(local) == SAMPLES
    for i in np.random.default_rng(0).permutation(SAMPLES):
        one, other = remote.read(int(i)), local.read(int(i))
        assert one.key == other.key and np.array_equal(one.codes, other.codes) and one.turns == other.turns


def test_memory_and_file_urls_read_as_the_folder(folder, tmp_path):
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/store/data", recursive=True)
    assert_same(ShardedDataset("memory://store/data", tmp_path), folder)
    assert_same(ShardedDataset(f"file://{folder}", tmp_path), folder)
    with pytest.raises(FileNotFoundError, match=r"memory://store/nothing: not a prepared dataset"):
        ShardedDataset("memory://store/nothing", tmp_path)


def test_every_block_is_fetched_once_by_all_processes_of_a_node(server, folder, tmp_path):
    dataset = ShardedDataset(url(server), tmp_path)
    dataset.read(0)  # the parent's connection must not be used in forked workers

    class Codes(Dataset):
        def __len__(self) -> int:
            return SAMPLES

        def __getitem__(self, i: int) -> np.ndarray:
            return dataset.read(i).codes

    local = ShardedDataset(folder)
    loader = DataLoader(Codes(), batch_size=None, num_workers=2, multiprocessing_context="fork")
    for i, codes in enumerate(loader):
        assert np.array_equal(codes, local.read(i).codes)
    fetched = len(server.ranges)
    blocks = sum(-(-shard.size // BLOCK) for shard in local.info.shards)
    assert blocks <= fetched <= 2 * blocks  # two workers may want the same block at the same time
    assert_same(ShardedDataset(url(server), tmp_path), folder)
    assert len(server.ranges) == fetched, "a second process finds everything in the cache"


@pytest.mark.parametrize("fault", [503, 206])
def test_failed_reads_are_retried_and_logged(server, folder, tmp_path, caplog, fault):
    dataset = ShardedDataset(url(server), tmp_path)
    dataset.read(0)
    last = dataset.samples_of(0)[-1]  # in another block
    server.fault, server.faults = fault, 5
    expected = ShardedDataset(folder).read(last)
    assert np.array_equal(dataset.read(last).codes, expected.codes)
    shard = f"{url(server)}/{dataset.info.shards[0].name}"
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 5 and server.faults == 0
    for number, line in enumerate(lines, start=1):
        assert line.startswith(f"{shard} bytes {BLOCK}..") and line.endswith(f"(attempt {number} of 7)")
        assert "status=503" in line or f" bytes of {dataset.info.shards[0].size - BLOCK}" in line


def test_reads_that_keep_failing_end_with_the_shards_name(server, tmp_path, caplog):
    dataset = ShardedDataset(url(server), tmp_path)
    server.fault, server.faults = 503, 10**6
    shard = f"{url(server)}/{dataset.info.shards[0].name}"
    with pytest.raises(OSError, match=f"{shard}.*cannot be read, 7 attempts failed .*503"):
        dataset.read(0)
    assert len(caplog.records) == 6


def test_truncated_and_missing_shards_are_named(server, tmp_path):
    server.folder = made_dataset(tmp_path / "data", 70)
    dataset = ShardedDataset(url(server), tmp_path / "cache")
    first, second = (server.folder / shard.name for shard in dataset.info.shards[:2])
    first.write_bytes(first.read_bytes()[:-700])
    size = dataset.info.shards[0].size
    with pytest.raises(ValueError, match=rf"{first.name}: cut short \({size - 700} bytes of {size}\); restore it"):
        dataset.read(0)
    second.unlink()
    with pytest.raises(FileNotFoundError, match=f"{url(server)}/{second.name}: missing"):
        dataset.read(dataset.samples_of(1)[0])


def test_index_that_is_not_the_one_described_is_refused(server, tmp_path):
    server.folder = made_dataset(tmp_path / "data", 40)
    index = server.folder / "index.parquet"
    data = bytearray(index.read_bytes())
    data[100] ^= 1
    index.write_bytes(data)
    with pytest.raises(ValueError, match=f"{url(server)}/index.parquet: not the file named in dataset.json"):
        ShardedDataset(url(server), tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.parquet"))


def test_lengths_next_to_a_remote_index_are_taken_from_there(server, tmp_path):
    server.folder = made_dataset(tmp_path / "data", 40)
    remote = ShardedDataset(url(server), tmp_path / "cache")
    measured = load_lengths(remote, ByteTokenizer(), tmp_path / "cache")
    assert server.ranges, "none there yet: the texts were read"
    assert np.array_equal(measured, load_lengths(ShardedDataset(server.folder), ByteTokenizer(), tmp_path))
    server.ranges.clear()
    elsewhere = ShardedDataset(url(server), tmp_path / "other")
    assert np.array_equal(measured, load_lengths(elsewhere, ByteTokenizer(), tmp_path / "other"))
    assert not server.ranges


def test_unknown_protocol_is_one_clear_error(tmp_path):
    with pytest.raises(ValueError, match="nope"):
        ShardedDataset("nope://bucket/data", tmp_path)


def used(folder: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in folder.iterdir())


def test_cache_stays_within_its_bound_while_reads_stay_right(folder, tmp_path):
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/bounded/data", recursive=True)
    limit = 3 * BLOCK  # of 4 to 5 shards of two blocks
    remote = ShardedDataset("memory://bounded/data", tmp_path, limit)
    local = ShardedDataset(folder)
    for i in np.random.default_rng(1).permutation(SAMPLES).tolist():
        assert np.array_equal(remote.read(i).codes, local.read(i).codes)
        assert used(tmp_path / "blocks") <= limit
    with pytest.raises(ValueError, match=r"data.cache_gb=0.001 is too small"):
        ShardedDataset("memory://bounded/data", tmp_path, 10**6)


def test_cache_gives_the_right_block_or_none_to_many_at_once(tmp_path):
    """Threads write, read and evict the same few files; remains of a crash are never taken for a block either."""
    cache = BlockCache(tmp_path, 4 * BLOCK)

    def content(name: str, block: int) -> bytes:
        return bytes([ord(name), block]) * (BLOCK // 2 if block < 2 else 1000)

    def work(seed: int) -> int:
        rng, hits = np.random.default_rng(seed), 0
        for _ in range(40):
            name, block = "abc"[rng.integers(3)], int(rng.integers(3))
            found = cache.get(name, block)
            assert found is None or found == content(name, block)
            hits += found is not None
            if found is None:
                cache.put(name, block, content(name, block))
        return hits

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(work, range(4))) > 10
    cache.put("a", 0, content("a", 0))
    file = tmp_path / "a.data"
    file.write_bytes(b"\0" * file.stat().st_size)
    assert cache.get("a", 0) is None
    file.unlink()
    assert cache.get("a", 0) is None


def test_least_recently_read_file_goes_first(tmp_path):
    cache = BlockCache(tmp_path, 3 * BLOCK + BLOCK // 2)
    for name in "abc":
        cache.put(name, 0, name.encode() * BLOCK)
    assert cache.get("a", 0)
    cache.put("d", 0, b"d" * BLOCK)
    assert [cache.get(name, 0) is not None for name in "abcd"] == [True, False, True, True]
