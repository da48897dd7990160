"""Shards return the data written, splits never divide a song, and an epoch can be resumed anywhere."""

from __future__ import annotations

import gc
import hashlib
import json
import sys
import weakref
from itertools import groupby, islice, pairwise
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from seqvae.data import dataset, sampler
from seqvae.data.dataset import CUTS, ShardWriter, Split, TokenData, cuts, fetched, in_split, split_of
from seqvae.data.sampler import Batches
from seqvae.errors import ReadError, SeqVAEError

Ints = NDArray[np.int32]
Piece = tuple[str, list[Ints]]
EOS = 2
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
SEGMENT = 3  # chunks in a segment of most tests; piece lengths are not multiples of it


def random_pieces(count: int, seed: int = 0) -> list[Piece]:
    """Three takes of each song: pieces of 1 to 20 chunks of 0 to 30 tokens and EOS."""
    rng = np.random.default_rng(seed)
    return [
        (
            f"song {40 + i // 3} take {i % 3}",
            [
                np.append(rng.integers(4, 60000, rng.choice([0, 3, 10, 30])), EOS).astype(np.int32)
                for _ in range(rng.integers(1, 21))
            ],
        )
        for i in range(count)
    ]


def title_of(name: str) -> str:
    return name.partition(" take")[0]


def write(folder: Path, pieces: list[Piece]) -> TokenData:
    writer = ShardWriter(folder, {"about": "test"})
    for name, chunks in pieces:
        writer.add(chunks, "rock", title_of(name))
    writer.close()
    return TokenData(folder)


@pytest.fixture(scope="module")
def pieces() -> list[Piece]:
    return random_pieces(120)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, pieces: list[Piece]) -> TokenData:
    """The pieces over several shards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "SHARD_TOKENS", 2000)
        return write(tmp_path_factory.mktemp("shards"), pieces)


def batches(data: TokenData, split: Split = "train", **changes: Any) -> Batches:
    settings: dict[str, Any] = {"chunks": SEGMENT, "batch_tokens": 400, "max_windows": 100, "seed": 1}
    return Batches(data, split, **{**settings, **changes})


def records(data: TokenData) -> list[tuple[int, ...]]:
    """Metadata of every piece."""
    return [tuple(data.record(i).tolist()) for i in range(len(data))]


def first_of(data: TokenData, piece: int) -> int:
    return int(data.record(piece)["first"])


def row_ids(source: Batches) -> list[int]:
    """The pieces of the split."""
    found: list[int] = source.numbered(np.arange(len(source))).tolist()
    return found


def digest(source: Batches, count: int = 60) -> str:
    """Digest of the first batches and some replacement segments."""
    found = hashlib.sha256()
    for epoch, position, tokens in islice(source, count):
        found.update(np.array([epoch, position, *tokens.shape], np.int64).tobytes() + tokens.tobytes())
    found.update(source.random_segments(20, np.random.default_rng(5)).tobytes())
    return found.hexdigest()[:16]


# --- splits -----------------------------------------------------------------------------------------------------------


def test_nine_in_ten_groups_are_for_training() -> None:
    splits = [split_of(f"group {i}") for i in range(20000)]
    # three standard deviations of a share of 5 % of 20,000 are half a percent
    assert abs(splits.count("valid") / 20000 - 0.05) < 0.005
    assert abs(splits.count("test") / 20000 - 0.05) < 0.005
    assert splits.count("train") + splits.count("valid") + splits.count("test") == 20000


def test_the_split_of_a_group_never_changes() -> None:
    # pinned: another rule would put training songs of released models into a later test set
    known = {"yesterday": "train", "song 79": "valid", "song 30": "test"}
    assert {name: split_of(name) for name in known} == known


def test_a_split_follows_from_the_number_alone() -> None:
    names = [f"group {i}" for i in range(3000)]
    numbers = np.array([dataset._number(name) for name in names], np.uint64)
    splits: tuple[Split, ...] = ("train", "valid", "test")
    for split in splits:
        assert in_split(numbers, split).tolist() == [split_of(name) == split for name in names]


@given(st.lists(st.integers(0, 39) | st.integers(0, 4), min_size=1, max_size=12))
def test_two_groups_make_a_training_and_a_validation_split(fortieths: list[int]) -> None:
    groups = np.array([(2 * place + 1) << 57 for place in fortieths], np.uint64) // np.uint64(5) * np.uint64(8)
    found = cuts(groups)
    counts = {split: len(np.unique(groups[in_split(groups, split, found)])) for split in SPLITS}
    assert sum(counts.values()) == len(np.unique(groups))
    if sum(counts.values()) > 1:
        assert min(counts["train"], counts["valid"]) > 0
    before = {split: len(np.unique(groups[in_split(groups, split)])) for split in SPLITS}
    if min(before["train"], before["valid"]) > 0:
        assert found == CUTS
    elif found != CUTS:  # at most one group in each
        assert 1 in (counts["train"], counts["valid"])


def test_a_collection_of_two_groups_has_one_for_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "SHARD_TOKENS", 4)
    names = [f"group {i}" for i in range(100) if split_of(f"group {i}") == "train"][:2]
    data = write(tmp_path, [(names[i // 3], [np.array([5 + i, EOS], np.int32)]) for i in range(6)])
    assert data.index["shards"] == 3
    sizes = [len(batches(data, split)) for split in SPLITS]
    assert sizes == [3, 3, 0]
    assert {title for title in names if data.in_split(np.array([dataset._number(title)], np.uint64), "valid")} == {
        min(names, key=dataset._number)
    }


def test_a_larger_held_out_share_contains_the_smaller() -> None:
    for i in range(2000):
        if split_of(f"group {i}", 0.1) != "train":
            assert split_of(f"group {i}", 0.3) != "train"


def test_no_group_is_in_two_splits(data: TokenData, pieces: list[Piece]) -> None:
    splits: tuple[Split, ...] = ("train", "valid", "test")
    by_split = [{title_of(pieces[i][0]) for i in row_ids(batches(data, split))} for split in splits]
    assert all(map(len, by_split))
    assert sum(map(len, by_split)) == len(set.union(*by_split)) == len(pieces) / 3
    for split, titles in zip(splits, by_split, strict=True):
        assert {split_of(title) for title in titles} == {split}


# --- shards -----------------------------------------------------------------------------------------------------------


def test_gather_returns_the_data_written(data: TokenData, pieces: list[Piece]) -> None:
    assert data.index["shards"] > 3
    assert data.index["about"] == "test"
    assert len(data) == len(pieces)
    places = [(i, c) for i, (_, chunks) in enumerate(pieces) for c in range(len(chunks))]
    order = np.random.default_rng(0).permutation(len(places))
    for group in np.array_split(order, 7):
        chosen = [places[j] for j in group]
        row_ids = np.array([i for i, _ in chosen])
        firsts = np.array([first_of(data, i) + c for i, c in chosen])
        tokens = data.gather(row_ids, firsts, SEGMENT)
        for (i, c), segment in zip(chosen, tokens, strict=True):
            written = pieces[i][1][c : c + SEGMENT]
            written += [np.array([EOS])] * (SEGMENT - len(written))  # beyond the end there are empty chunks
            for chunk, row in zip(written, segment, strict=True):
                assert row[: len(chunk)].tolist() == chunk.tolist()
                assert not row[len(chunk) :].any()
        assert tokens.shape[2] == max(1, (tokens != 0).sum(2).max()), "no wider than the longest chunk"


def test_counts_and_sizes_match_the_data_written(data: TokenData, pieces: list[Piece]) -> None:
    assert data.counts(np.arange(len(pieces))).tolist() == [len(chunks) for _, chunks in pieces]
    rows, firsts, sizes = data.windows(np.arange(len(pieces)), 1)
    for i, first, size in zip(rows, firsts, sizes, strict=True):
        assert size == len(pieces[i][1][first - first_of(data, i)])
    assert len(rows) == sum(len(chunk) > 1 for _, chunks in pieces for chunk in chunks)


def test_many_shards_hold_the_same_data_as_one(data: TokenData, pieces: list[Piece], tmp_path: Path) -> None:
    alone = write(tmp_path, pieces)
    assert alone.index["shards"] == 1
    assert row_ids(batches(data)) == row_ids(batches(alone))
    many, one = (data.windows(np.arange(len(pieces)), SEGMENT) for data in (data, alone))
    assert many[0].tolist() == one[0].tolist()
    assert many[2].tolist() == one[2].tolist()
    a, b = (whole.gather(found[0], found[1], SEGMENT) for whole, found in ((data, many), (alone, one)))
    assert a.tolist() == b.tolist()


def test_an_index_of_format_version_1_is_read(data: TokenData, pieces: list[Piece], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "SHARD_TOKENS", 2000)
        write(tmp_path, pieces)
    rows = []
    for i, (name, chunks) in enumerate(pieces):
        shard = int(np.searchsorted(data.begins, i, side="right")) - 1
        about = {"name": name, "style": "rock", "group": title_of(name)}
        rows.append({**about, "shard": shard, "first": first_of(data, i), "chunks": len(chunks)})
    for path in tmp_path.glob("*.pieces.npy"):
        path.unlink()
    old = {"version": 1, "about": "test", "shards": data.index["shards"], "pieces": rows}
    (tmp_path / "index.json").write_text(json.dumps(old))
    read = TokenData(tmp_path)
    assert records(read) == records(data)
    assert read.styles == data.styles == ["rock"]
    assert digest(batches(read)) == digest(batches(data))


def test_unclosed_shards_do_not_exist(tmp_path: Path, pieces: list[Piece]) -> None:
    writer = ShardWriter(tmp_path, {})
    writer.add(pieces[0][1], "rock", "a")
    with pytest.raises(ReadError) as caught:
        TokenData(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_missing_shard_is_an_error_in_one_line(tmp_path: Path, pieces: list[Piece]) -> None:
    write(tmp_path, pieces[:3])
    (tmp_path / "shard-00000.ends.npy").unlink()
    with pytest.raises(ReadError, match="shard-00000"):
        TokenData(tmp_path)


# --- windows ----------------------------------------------------------------------------------------------------------


def test_windows_are_adjacent_from_the_offset(tmp_path: Path) -> None:
    lengths = [5, 1, 1, 1, 9, 3, 1, 50, 2]  # 1 is EOS alone
    data = write(tmp_path, [("a", [np.full(n, EOS, np.int32) for n in lengths])])

    def firsts(chunks: int, offset: int, longest: int) -> list[int]:
        found: list[int] = data.windows(np.array([0]), chunks, offset, longest)[1].tolist()
        return found

    assert firsts(2, 0, 40) == [0, 4, 8], "2 is empty, 6 is too long"
    assert firsts(2, 0, 50) == [0, 4, 6, 8]
    assert firsts(2, 1, 50) == [3, 5, 7], "1 is empty"
    assert firsts(4, 0, 50) == [0, 4, 8]


def seen(batches: Batches, epoch: int) -> list[tuple[int, int]]:
    return [
        (int(i), int(first)) for rows, firsts in batches.epoch(epoch) for i, first in zip(rows, firsts, strict=True)
    ]


def test_every_window_is_seen_once_an_epoch(data: TokenData) -> None:
    source = batches(data)
    for epoch in range(3):
        windows = seen(source, epoch)
        assert len(windows) == len(set(windows))
        for i in row_ids(source):
            mine = sorted(first - first_of(data, i) for j, first in windows if j == i)
            assert all((b - a) % SEGMENT == 0 for a, b in pairwise(mine)), "no chunk is in two windows"
            if not mine:
                continue  # the offset skips a short piece entirely
            offset = mine[0] % SEGMENT
            assert mine == [w - first_of(data, i) for w in data.windows(np.array([i]), SEGMENT, offset, 400)[1]]


def test_offsets_change_from_epoch_to_epoch(data: TokenData) -> None:
    source = batches(data)
    i = max(row_ids(source), key=lambda j: int(data.record(j)["chunks"]))
    offsets = {next(first for j, first in seen(source, e) if j == i) % SEGMENT for e in range(12)}
    assert len(offsets) > 1


def test_a_long_piece_gives_no_more_segments_than_its_share(data: TokenData) -> None:
    windows = seen(batches(data, max_windows=2), 0)
    counts = np.bincount([i for i, _ in windows])
    assert counts.max() == 2
    assert len(windows) == len(set(windows))


def test_too_long_chunks_are_left_out(data: TokenData) -> None:
    source = batches(data, max_tokens=11)
    widths = [data.gather(rows, firsts, SEGMENT).shape[2] for rows, firsts in source.epoch(0)]
    assert max(widths) == 11


# --- remote shards ----------------------------------------------------------------------------------------------------


def put(folder: Path, url: str) -> Any:
    """Copy a folder to an in-memory storage, and return its address."""
    storage, root = fsspec.core.url_to_fs(url)
    for path in folder.rglob("*"):
        if path.is_file():
            storage.pipe_file(f"{root}/{path.relative_to(folder)}", path.read_bytes())
    return storage


def test_remote_shards_are_fetched_once(tmp_path: Path) -> None:
    made = write(tmp_path / "made", random_pieces(9))
    (tmp_path / "made" / "tokenizer").mkdir()
    (tmp_path / "made" / "tokenizer" / "tokenizer.json").write_text("{}")
    url = f"memory://{tmp_path}/data"
    storage = put(tmp_path / "made", url)
    folder = fetched(url, tmp_path / "cache")
    data = TokenData(folder)
    assert records(data) == records(made)
    assert isinstance(data.shard(0).tokens.base, np.memmap)
    assert (folder / "tokenizer" / "tokenizer.json").is_file()
    storage.rm(f"{tmp_path}/data/shard-00000.tokens.npy")
    assert fetched(f"{url}/", tmp_path / "cache") == folder
    made = write(tmp_path / "new", random_pieces(3))
    (tmp_path / "new" / "shard-00000.ends.npy").rename(tmp_path / "late.npy")
    storage.rm(f"{tmp_path}/data", recursive=True)
    put(tmp_path / "new", url)
    with pytest.raises(ReadError, match=r"ends\.npy"):
        fetched(url, tmp_path / "cache")
    (tmp_path / "late.npy").rename(tmp_path / "new" / "shard-00000.ends.npy")
    put(tmp_path / "new", url)
    assert records(TokenData(fetched(url, tmp_path / "cache"))) == records(made), "new shards are fetched again"
    assert len(list((tmp_path / "cache" / "shards").iterdir())) == 2, "partial downloads are removed"


@pytest.mark.parametrize("url", ["memory://gone", "nothing://bucket/data"])
def test_an_address_without_shards_is_an_error_in_one_line(tmp_path: Path, url: str) -> None:
    with pytest.raises(ReadError, match="no token shards there") as caught:
        fetched(url, tmp_path / "cache")
    assert url in str(caught.value)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(ReadError, match=r"fsspec.*pip install 'seqvae\[remote\]'"):
        fetched("s3://bucket/data", tmp_path / "cache")


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [50, 400, 5000])
def test_a_batch_has_no_more_tokens_than_allowed(data: TokenData, limit: int) -> None:
    sizes = [data.gather(rows, firsts, SEGMENT).shape for rows, firsts in batches(data, batch_tokens=limit).epoch(0)]
    assert all(b * c * t <= limit or b == 1 for b, c, t in sizes)
    if limit > 100:
        assert np.mean([b * c * t for b, c, t in sizes]) > limit / 2, "and is filled"


def test_a_batch_holds_segments_of_similar_length(data: TokenData) -> None:
    used = total = 0
    for rows, firsts in batches(data).epoch(0):
        longest = (data.gather(rows, firsts, SEGMENT) != 0).sum(2).max(1)
        used, total = used + int(longest.sum()), total + int(longest.max() * len(longest))
    assert used / total > 0.85


def first_batches(source: Batches, epoch: int, position: int, count: int) -> list[tuple[int, int, list[Any]]]:
    return [(e, i, tokens.tolist()) for e, i, tokens in islice(source.resume(epoch, position), count)]


def test_the_order_follows_from_seed_and_epoch(data: TokenData) -> None:
    assert first_batches(batches(data), 0, 0, 40) == first_batches(batches(data), 0, 0, 40)
    assert first_batches(batches(data), 0, 0, 5) != first_batches(batches(data, seed=2), 0, 0, 5)
    one, two = list(batches(data).epoch(0)), list(batches(data).epoch(1))
    assert [rows.tolist() for rows, _ in one] != [rows.tolist() for rows, _ in two]


def test_the_order_of_one_shard_is_unchanged(pieces: list[Piece], tmp_path: Path) -> None:
    # pinned before shards had an order: runs begun then resume bit by bit
    data = write(tmp_path, pieces)
    assert digest(batches(data)) == "fa9aec6ec16d1705"
    assert digest(batches(data, max_windows=2)) == "737c86d6abffb171"
    assert digest(batches(data, "valid", chunks=1, max_tokens=11, batch_tokens=60)) == "40b82ca174e66261"
    drawn = [(rows.tolist(), firsts.tolist()) for rows, firsts in batches(data, max_windows=2).epoch(1)]
    assert drawn[:2] == [([21, 12, 14, 76], [223, 155, 173, 867]), ([30, 5, 40, 49], [335, 59, 457, 563])]


def test_an_epoch_visits_shards_in_a_random_order(data: TokenData) -> None:
    orders = []
    for epoch in range(3):
        shards = [np.searchsorted(data.begins, rows, side="right") - 1 for rows, _ in batches(data).epoch(epoch)]
        assert all(len(set(one.tolist())) == 1 for one in shards), "no batch needs two"
        orders.append([number for number, _ in groupby(int(one[0]) for one in shards)])
        assert sorted(orders[-1]) == list(range(data.index["shards"])), "no shard is visited twice"
    assert orders[0] != orders[1] != orders[2]


def test_some_batches_are_drawn_from_all_shards(data: TokenData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "BLOCK", 4)
    source = batches(data, max_windows=1)
    found = [np.concatenate(both) for both in zip(*source.some(40), strict=True)]
    assert 35 <= len(found[0]) <= 40, "an offset may skip a whole piece"
    assert set(found[0].tolist()) <= set(row_ids(source))
    shards = np.bincount(np.searchsorted(data.begins, found[0], side="right") - 1)
    assert shards.min() > 0
    assert [rows.tolist() for rows, _ in source.some(40)] == [rows.tolist() for rows, _ in source.some(40)]
    assert len(list(source.some(1000))) == len(list(source.epoch(0))), "all that there is"


def test_replacement_segments_are_drawn_uniformly(data: TokenData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "BLOCK", 4)
    source = batches(data)
    assert row_ids(source) == row_ids(batches(data))
    drawn: list[int] = []
    monkeypatch.setattr(data, "gather", lambda pieces, firsts, chunks: drawn.extend(pieces.tolist()))
    source.random_segments(4000, np.random.default_rng(0))
    counts = np.unique(drawn, return_counts=True)[1]
    assert len(counts) == len(source)
    mean = 4000 / len(source)
    assert np.abs(counts - mean).max() < 5 * np.sqrt(mean)


def test_one_shard_is_mapped_at_a_time(data: TokenData) -> None:
    mapped = weakref.WeakSet[Any]()
    source = batches(data)
    gc.collect()
    gc.freeze()  # otherwise each batch would search the objects left by other tests
    try:
        for rows, firsts in source.epoch(0):
            data.gather(rows, firsts, SEGMENT)
            mapped.add(data.shard(int(np.searchsorted(data.begins, rows[0], side="right")) - 1))
            gc.collect()
            assert len(mapped) == 1
    finally:
        gc.unfreeze()


def test_an_epoch_can_be_resumed_anywhere(data: TokenData) -> None:
    length = len(list(batches(data).epoch(0)))
    straight = first_batches(batches(data), 0, 0, 2 * length + 5)
    assert straight[length - 1][:2] == (0, length)
    assert straight[length][:2] == (1, 1)
    for stopped in (1, length // 2, length - 1, length, length + 3):
        epoch, position, _ = straight[stopped - 1]
        assert first_batches(batches(data), epoch, position, 10) == straight[stopped : stopped + 10]


def test_a_split_without_pieces_has_no_batches(tmp_path: Path) -> None:
    data = write(tmp_path, [("yesterday", [np.array([5, EOS], np.int32)])])
    assert list(batches(data, "valid").epoch(0)) == []
    with pytest.raises(SeqVAEError, match="add more pieces"):
        next(iter(batches(data, "valid")))


def test_pieces_without_notes_are_an_error_and_not_an_endless_loop(tmp_path: Path) -> None:
    data = write(tmp_path, [("yesterday", [np.array([EOS], np.int32)] * 9)])
    with pytest.raises(SeqVAEError, match="no segment"):
        next(iter(batches(data)))
